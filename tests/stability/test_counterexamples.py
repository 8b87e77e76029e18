"""Statements the book once made too strongly: each test fails on the old one."""

import itertools
import math

import pytest
import torch

from lib.stability.algorithm import SAMPLINGS, AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.dynamics import (
    critical_learning_rate,
    critical_mixing,
    growth_factor,
    growth_mode,
)
from lib.stability.families import gaussian_curvature
from lib.stability.second_moment import SecondMoment
from lib.stability.thresholds import block_critical_rate, block_gain
from lib.stability.window import unlearning_window


def operator_on_unit_starts(curvature, algorithm, rate, steps):
    """(T^k)*(I): its largest eigenvalue is the largest E‖δ_k‖² from a start of length one."""
    moment, N = SecondMoment.of(curvature, algorithm), torch.eye(curvature.factors.shape[1])
    for _ in range(steps):
        N = moment.step(N, rate)
    return N


def test_a_start_below_the_low_edge_can_reach_the_amplification():
    curvature = gaussian_curvature(30, 10, 8, seed=27)
    algorithm = AscentDescent(0.3, 1, 1)
    window = unlearning_window(curvature, algorithm, steps=5, amplification=10.0)
    rate = 0.97 * window.low
    grown = growth_factor(curvature, algorithm, rate) ** 5
    assert grown == pytest.approx(8.9, abs=0.05)
    reached = torch.linalg.eigvalsh(operator_on_unit_starts(curvature, algorithm, rate, 5))[-1]
    assert float(reached) == pytest.approx(14.5, abs=0.05)


@pytest.mark.parametrize("seed", range(12))
def test_thm_sandwich(seed):
    curvature = gaussian_curvature(12, 5, 6, alignment=0.1 * (seed % 7), seed=seed)
    algorithm = AscentDescent(0.1 + 0.05 * (seed % 5), 1 + seed % 4, 1 + seed % 3)
    for share in (0.5, 1.0, 2.0):
        rate = share / float(torch.linalg.eigvalsh(curvature.retain_hessian)[-1])
        rho, X = growth_mode(curvature, algorithm, rate)
        q = len(X)
        for k in (1, 3, 8):
            N = operator_on_unit_starts(curvature, algorithm, rate, k)
            isotropic, worst = float(N.trace()) / q, float(torch.linalg.eigvalsh(N)[-1])
            floor = float(X.trace() / (q * torch.linalg.eigvalsh(X)[-1]))
            assert rho**k * floor * (1 - 1e-9) <= isotropic <= rho**k * (1 + 1e-9)
            assert worst <= math.sqrt(q) * rho**k * (1 + 1e-9)


def test_the_block_equation_has_a_second_root():
    h = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.2]] * 4)
    curvature = Curvature.from_gram(h @ h.T, torch.arange(8) >= 4)
    algorithm = AscentDescent(0.5, 1, 1, damping=1.0)

    def equation(rate):
        g = block_gain(curvature, algorithm, rate)
        return float((1 - g[0, 0]) * (1 - g[1, 1]) - g[0, 1] * g[1, 0])

    rate = block_critical_rate(curvature, algorithm)
    assert rate == pytest.approx(1.199, abs=1e-3)
    assert rate == pytest.approx(critical_learning_rate(curvature, algorithm), rel=1e-9)
    assert equation(rate - 0.01) > 0 > equation(rate + 0.01)
    assert equation(1.225) < 0 < equation(1.24)  # the other eigenvalue's root, near 1.231


def test_the_critical_rate_on_u_can_exceed_what_the_pull_alone_allows():
    curvature = Curvature.from_gram(torch.tensor([[0.1, 0.05**0.5], [0.05**0.5, 0.5]]),
                                    torch.tensor([False, True]))  # fmt: skip
    algorithm = AscentDescent(0.6, 1, 1, damping=0.3)
    assert critical_learning_rate(curvature, algorithm) == pytest.approx(50, rel=1e-6)
    assert 2 / algorithm.damping < 50


def test_a_gradient_outside_u_drifts_for_ever():
    update, rate = AscentDescent(0.0, 1, 1), 0.5
    H, g = torch.diag(torch.tensor([1.0, 0.0])), torch.tensor([0.0, 1.0])
    delta = torch.zeros(2)
    for _ in range(100):
        delta = delta - rate * (H @ delta + g)
    curvature = Curvature.from_hessians(torch.stack([H, H]), torch.tensor([False, True]))
    assert growth_factor(curvature, update, rate) < 1
    assert float(delta[1]) == pytest.approx(-50)


def test_inertia_needs_a_forget_sample_with_curvature():
    factors = torch.zeros(4, 3, 1)
    factors[:3, :, 0] = torch.eye(3)
    curvature = Curvature(factors, torch.tensor([False, False, False, True]))
    assert critical_learning_rate(curvature, AscentDescent(0.3, 3, 1)) > 0


def test_a_singular_mean_is_neutral_only_if_no_batch_moves_its_kernel():
    shared = torch.diag(torch.tensor([1.0, 0.0]))
    other = torch.diag(torch.tensor([0.0, 1.0]))
    # α = ½: on e_2 one of two retain samples pulls, the forget sample pushes as hard on average.
    hessians = torch.stack([shared, shared + 2 * other, other])
    forget = torch.tensor([False, False, True])
    moving = AscentDescent(0.5, 1, 1, sampling="without_replacement")
    still = AscentDescent(0.5, 2, 1, sampling="without_replacement")
    curvature = Curvature.from_hessians(hessians, forget)
    assert critical_learning_rate(curvature, moving) == 0
    for rate in (1e-3, 0.1, 1.0):
        assert growth_factor(curvature, moving, rate) > 1
    assert critical_learning_rate(curvature, still) > 0


@pytest.mark.long
def test_larger_batches_are_never_less_stable_in_mean_square():
    for seed in range(40):
        curvature = gaussian_curvature(9, 6, 5, alignment=0.1 * (seed % 8), seed=seed)
        sampling = SAMPLINGS[seed % 3]
        rate = 0.7 / float(torch.linalg.eigvalsh(curvature.retain_hessian)[-1])
        grown = [
            growth_factor(curvature, AscentDescent(0.2, b, 1 + b // 2, sampling=sampling), rate)
            for b in range(1, 10)
        ]
        assert all(b <= a * (1 + 1e-10) for a, b in itertools.pairwise(grown))


def test_a_typical_run_may_be_less_stable_in_larger_batches():
    multipliers = {1: (1 - 0.5 * 0.2, 1 - 0.5 * 0.2 + 0.5 * 0.42), 2: (1 - 0.1 + 0.25 * 0.42,)}
    gamma = {b: sum(math.log(x) for x in xs) / len(xs) for b, xs in multipliers.items()}
    assert gamma[1] < 0 < gamma[2]


@pytest.mark.parametrize("seed", range(10))
def test_prop_preconditioner(seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(4, 4, generator=generator)
    P = root @ root.T + 0.1 * torch.eye(4)
    values, vectors = torch.linalg.eigh(P)
    half = vectors * values.sqrt() @ vectors.T
    gradients = torch.randn(14, 4, generator=generator)
    hessians, forget = gradients[:, :, None] * gradients[:, None, :], torch.arange(14) >= 9
    plain = Curvature.from_hessians(hessians, forget)
    turned = Curvature.from_hessians(half @ hessians @ half, forget)
    assert critical_mixing(turned) == pytest.approx(critical_mixing(plain), rel=1e-8)
    # Preconditioned descent in w is the theory's descent in ε: the same ρ, from the dense operator.
    update = AscentDescent(0.1, 3, 2)
    rate = 0.05
    A = (1 - 0.1) * hessians[:9].mean(0) - 0.1 * hessians[9:].mean(0)
    step = torch.eye(4) - rate * P @ A
    total = torch.kron(step, step)
    for members, weight, B, n in ((hessians[:9], 0.9, 3, 9), (hessians[9:], 0.1, 2, 5)):
        for h in members:
            total += rate**2 * weight**2 / n * (1 / B - 1 / n) * torch.kron(P @ h, P @ h)
    radius = float(torch.linalg.eigvals(total).abs().max())
    assert growth_factor(turned, update, rate) == pytest.approx(radius, rel=1e-9)
    newton = torch.linalg.inv(hessians[:9].mean(0))
    values, vectors = torch.linalg.eigh(newton)
    half = vectors * values.sqrt() @ vectors.T
    lowest = torch.linalg.eigvalsh(half @ A @ half)[0]
    kappa = 1 / critical_mixing(plain) - 1
    assert float(lowest) == pytest.approx(0.9 - 0.1 * kappa, rel=1e-7)
