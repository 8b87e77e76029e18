"""Sampled runs of the linearised update: their paths, and the growth of a typical one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from lib.checks import (
    LARGEST,
    is_finite,
    require_count,
    require_finite,
    require_kind,
    require_nonnegative,
    require_room,
)
from lib.randomness import stream
from lib.stability.algorithm import AscentDescent, batch_weights
from lib.stability.curvature import Curvature
from lib.stability.second_moment import require_setting


def simulate(
    curvature: Curvature,
    algorithm: AscentDescent,
    learning_rate: float,
    *,
    steps: int,
    runs: int,
    seed: int,
    start: Tensor | None = None,
) -> Tensor:
    """‖δ_k‖² of independent sampled runs of the linearised update, k = 0 … steps; (steps+1, runs).

    Args:
        curvature, algorithm, learning_rate: as in `growth_factor`.
        steps, runs: number of updates ≥ 0 and of runs ≥ 1.
        seed: of the starts and the batches, a stream each; the same call gives the
            same bits on one machine.
        start: (q, runs) δ_0, one column a run; by default unit vectors uniform on U's sphere.

    Infinite once a run passes the largest float64, about 1e308.
    """
    steps = require_count("steps", steps, 0)
    runs = require_count("runs", runs, 1)
    require_room("steps and runs", steps + 1, runs)
    walk = _walk(curvature, algorithm, learning_rate, runs, seed, start)
    path = torch.stack([delta.square().sum(dim=0) for delta, _ in islice(walk, steps + 1)])
    return path.nan_to_num(nan=math.inf, posinf=math.inf)


def lyapunov_exponent(
    curvature: Curvature,
    algorithm: AscentDescent,
    learning_rate: float,
    *,
    steps: int,
    runs: int,
    seed: int,
) -> tuple[float, float]:
    """Top Lyapunov exponent γ = lim (1/k) log‖δ_k‖, per step: the growth of a typical run.

    γ ≤ ½ log ρ(T) by Jensen: the mean square may diverge, on rare runs, where almost every single
    run still converges. Where several directions share the top exponent, as on a grouped family,
    the largest of them has E log‖δ_k‖ ≈ γk + c√k, so that log‖δ_K‖/K is off by as much as a run's
    own spread. From L_k = log‖δ_k‖ at i = ⌊K/100⌋, j = ⌊K/4⌋ and K, each run therefore gives
    [L_K − L_i − r(L_j − L_i)] / [K − i − r(j − i)] with r = (√K − √i)/(√j − √i), free of c and of
    a constant, at about twice the spread of (L_K − L_i)/(K − i).

    Args:
        curvature, algorithm, learning_rate: as in `growth_factor`.
        steps: updates K per run, ≥ 5.
        runs: independent runs ≥ 2, whose spread gives the standard error.
        seed: of the starts and the batches.

    Returns:
        (estimate, standard error), both per step; −inf and NaN if some run reaches δ = 0 exactly.

    Source: book, chapter hessian_tests.
    """
    steps = require_count("steps", steps, 5)
    runs = require_count("runs", runs, 2)
    require_kind("curvature", curvature, Curvature)
    if is_finite(learning_rate) and learning_rate > LARGEST:
        raise ValueError(
            f"learning_rate must keep one step inside float64's range, got {learning_rate!r}"
        )
    walk = _walk(curvature, algorithm, learning_rate, runs, seed)
    i, j, growth = steps // 100, steps // 4, curvature.factors.new_zeros(runs)
    at_i = at_j = growth
    for k, state in enumerate(islice(walk, 1, steps + 1), 1):
        length = torch.linalg.vector_norm(state, dim=(0, 1))
        if not bool(length.isfinite().all()):
            raise ValueError(
                f"learning_rate must keep one step inside float64's range, got {learning_rate!r}"
            )
        state /= length.clamp_min(torch.finfo(length.dtype).tiny)
        growth = growth + length.log()
        at_i, at_j = (growth if k == i else at_i), (growth if k == j else at_j)
    r = (math.sqrt(steps) - math.sqrt(i)) / (math.sqrt(j) - math.sqrt(i))
    rates = (growth - at_i - r * (at_j - at_i)) / (steps - i - r * (j - i))
    rates = torch.where(growth.isinf(), growth, rates)
    return float(rates.mean()), float(rates.std() / math.sqrt(runs))


def _walk(
    curvature: Curvature,
    algorithm: AscentDescent,
    learning_rate: float,
    runs: int,
    seed: int,
    start: Tensor | None = None,
) -> Iterator[Tensor]:
    """δ_k of δ ← δ − η(Σ_i c_i H_i + λI)δ, k = 0, 1, …, without end, a column a run.

    (2, q, runs): δ_k and what momentum adds at the next step, β(δ_k − δ_{k−1}), 0 at the start.
    Always the same tensor, moved on in place: whoever rescales it goes on from there.
    """
    require_setting(curvature, algorithm)
    learning_rate = require_nonnegative("learning_rate", learning_rate)
    require_room("runs", runs, curvature.factors.shape[0] * curvature.factors.shape[2])
    stacked = curvature.stacked
    q = len(stacked)
    if start is None:
        generator = stream("simulated starts", seed)
        start = torch.randn(q, runs, generator=generator, dtype=torch.float64, device="cpu")
        start = start.to(stacked)
        start /= torch.linalg.vector_norm(start, dim=0)
    require_finite("start", start, q, runs)
    start = start.to(stacked)
    batches = batch_weights(algorithm, curvature.forget, runs, stream("simulated batches", seed))
    state = torch.stack([start, torch.zeros_like(start)])
    delta, velocity = state
    while True:
        yield state
        weights = batches().to(stacked)
        slopes = stacked.T @ delta
        slopes *= weights.repeat_interleave(len(slopes) // len(weights), dim=0)
        velocity -= learning_rate * (stacked @ slopes + algorithm.damping * delta)
        delta += velocity
        velocity *= algorithm.momentum
