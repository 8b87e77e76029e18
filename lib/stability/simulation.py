"""Sampled runs of the linearised update: their paths, and the growth of a typical one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.checks import require_count, require_finite, require_nonnegative
from lib.randomness import stream
from lib.stability.algorithm import AscentDescent, batch_weights
from lib.stability.curvature import Curvature


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
    require_nonnegative("learning_rate", learning_rate)
    require_count("steps", steps, 0)
    walk = _Walk.of(curvature, algorithm, learning_rate, runs, seed, start)
    path = [walk.delta.square().sum(dim=0)]
    for _ in range(steps):
        walk.step()
        path.append(walk.delta.square().sum(dim=0))
    return torch.stack(path)


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
    require_nonnegative("learning_rate", learning_rate)
    require_count("steps", steps, 5)
    require_count("runs", runs, 2)
    walk = _Walk.of(curvature, algorithm, learning_rate, runs, seed, None)
    i, j, growth = steps // 100, steps // 4, torch.zeros(runs).to(walk.delta)
    at_i = at_j = growth
    for k in range(1, steps + 1):
        walk.step()
        length = torch.linalg.vector_norm(torch.cat([walk.delta, walk.velocity]), dim=0)
        if not bool(length.isfinite().all()):
            raise ValueError(
                f"learning_rate must keep one step inside float64's range, got {learning_rate!r}"
            )
        scale = length.clamp_min(torch.finfo(length.dtype).tiny)
        walk.delta /= scale
        walk.velocity /= scale
        growth = growth + length.log()
        at_i, at_j = (growth if k == i else at_i), (growth if k == j else at_j)
    r = (math.sqrt(steps) - math.sqrt(i)) / (math.sqrt(j) - math.sqrt(i))
    rates = (growth - at_i - r * (at_j - at_i)) / (steps - i - r * (j - i))
    rates = torch.where(growth.isinf(), growth, rates)
    return float(rates.mean()), float(rates.std() / math.sqrt(runs))


@dataclass
class _Walk:
    """Independent runs of δ ← δ − η(Σ_i c_i H_i + λI)δ, one column of delta (q, runs) each.

    velocity: what momentum adds at the next step, δ_k − δ_{k−1} times β; 0 at the start.
    """

    delta: Tensor
    velocity: Tensor
    stacked: Tensor
    algorithm: AscentDescent
    learning_rate: float
    batches: Callable[[], Tensor]

    @classmethod
    def of(
        cls,
        curvature: Curvature,
        algorithm: AscentDescent,
        learning_rate: float,
        runs: int,
        seed: int,
        start: Tensor | None,
    ) -> _Walk:
        require_count("runs", runs, 1)
        stacked = curvature.stacked
        q = len(stacked)
        if start is None:
            generator = stream("simulated starts", seed)
            start = torch.randn(q, runs, generator=generator, dtype=torch.float64).to(stacked)
            start /= torch.linalg.vector_norm(start, dim=0)
        require_finite("start", start, q, runs)
        batches = batch_weights(
            algorithm, curvature.forget, runs, stream("simulated batches", seed)
        )
        still = torch.zeros_like(start)
        return cls(start.clone(), still, stacked, algorithm, learning_rate, batches)

    def step(self) -> None:
        """One update of every run, in place."""
        weights = self.batches().to(self.delta)
        slopes = self.stacked.T @ self.delta
        slopes *= weights.repeat_interleave(len(slopes) // len(weights), dim=0)
        gradient = self.stacked @ slopes + self.algorithm.damping * self.delta
        move = self.velocity - self.learning_rate * gradient
        self.delta += move
        self.velocity = self.algorithm.momentum * move
