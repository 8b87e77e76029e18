"""Dumb, dense, independent references: slow on purpose, written from the definitions alone."""

import itertools
import math

import torch


def random_instance(n_retain, n_forget, p, rank=1, seed=0):
    """Hessians (n, p, p) of the given rank, retain and forget samples in shuffled order."""
    generator = torch.Generator().manual_seed(seed)
    n = n_retain + n_forget
    roots = torch.randn(n, p, rank, generator=generator)
    roots = roots * torch.rand(n, 1, 1, generator=generator).add(0.5)
    forget = torch.zeros(n, dtype=torch.bool)
    forget[torch.randperm(n, generator=generator)[:n_forget]] = True
    return roots @ roots.transpose(1, 2), forget


def batches(members, size, sampling):
    """Every batch with its probability, as (probability, tuple of sample numbers)."""
    n = len(members)
    if sampling == "bernoulli":
        p = size / n
        for mask in itertools.product([0, 1], repeat=n):
            k = sum(mask)
            chosen = tuple(m for m, inside in zip(members, mask, strict=True) if inside)
            yield p**k * (1 - p) ** (n - k), chosen
    elif sampling == "without_replacement":
        for chosen in itertools.combinations(members, size):
            yield 1 / math.comb(n, size), chosen
    else:
        for chosen in itertools.product(members, repeat=size):
            yield n**-size, chosen


def dense_second_moment(hessians, forget, algorithm, learning_rate):
    """E[Ĵ ⊗ Ĵ] over every pair of batches: the p² × p² matrix of T on all of parameter space."""
    p = hessians.shape[1]
    retain = torch.nonzero(~forget).flatten().tolist()
    forgets = torch.nonzero(forget).flatten().tolist()
    total = torch.zeros(p * p, p * p)
    for p_r, R in batches(retain, algorithm.retain_batch, algorithm.sampling):
        for p_f, F in batches(forgets, algorithm.forget_batch, algorithm.sampling):
            step = algorithm.damping * torch.eye(p)
            for i in R:
                step = step + (1 - algorithm.mixing) / algorithm.retain_batch * hessians[i]
            for j in F:
                step = step - algorithm.mixing / algorithm.forget_batch * hessians[j]
            jump = torch.eye(p) - learning_rate * step
            total += p_r * p_f * torch.kron(jump, jump)
    return total


def tabled_second_moment(hessians, forget, algorithm, learning_rate):
    """T from the table of v_i and s_c (lem-sampling), p² × p²; for sizes beyond enumeration."""
    p = hessians.shape[1]
    jump = torch.eye(p) - learning_rate * dense_mean(hessians, forget, algorithm)
    total = torch.kron(jump, jump)
    sets = (
        (~forget, 1 - algorithm.mixing, algorithm.retain_batch),
        (forget, algorithm.mixing, algorithm.forget_batch),
    )
    for members, weight, B in sets:
        n = int(members.sum())
        v, s = {
            "bernoulli": ((1 / B - 1 / n) / n, 0.0),
            "without_replacement": ((n - B) / (B * n * (n - 1)), (n - B) / (B * (n - 1))),
            "with_replacement": (1 / (B * n), 1 / B),
        }[algorithm.sampling]
        for h in hessians[members]:
            total += learning_rate**2 * weight**2 * v * torch.kron(h, h)
        mean = hessians[members].mean(0)
        total -= learning_rate**2 * weight**2 * s * torch.kron(mean, mean)
    return total


def dense_mean(hessians, forget, algorithm):
    """A, p × p."""
    return (
        (1 - algorithm.mixing) * hessians[~forget].mean(0)
        - algorithm.mixing * hessians[forget].mean(0)
        + algorithm.damping * torch.eye(hessians.shape[1])
    )


def spectral_radius(matrix):
    return float(torch.linalg.eigvals(matrix).abs().max())


def bisected_rate(hessians, forget, algorithm, steps=60):
    """η* by bisection on the dense operator's spectral radius.

    The enumerated operator is a quadratic in η, so three enumerations give it at every rate.
    """
    if torch.linalg.eigvalsh(dense_mean(hessians, forget, algorithm))[0] <= 0:
        return 0.0
    zero, plus, minus = (
        dense_second_moment(hessians, forget, algorithm, rate) for rate in (0.0, 1.0, -1.0)
    )
    linear, square = (plus - minus) / 2, (plus + minus) / 2 - zero
    low, high = 0.0, 4 / float(torch.linalg.eigvalsh(dense_mean(hessians, forget, algorithm))[-1])
    for _ in range(steps):
        middle = (low + high) / 2
        stable = spectral_radius(zero + middle * linear + middle**2 * square) < 1
        low, high = (middle, high) if stable else (low, middle)
    return (low + high) / 2
