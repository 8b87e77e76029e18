"""Heavy-ball momentum: δ_{k+1} = (1+β)δ_k − βδ_{k−1} − ηÂ_kδ_k, exact in mean square.

In A's eigenbasis the mean splits into one companion matrix C_a = [[s_a, −β], [1, 0]] per direction,
s_a = 1 + β − ηλ_a, and the batches' noise enters through the newest displacement alone. So the
4q² × 4q² operator on the second moment of (δ_k, δ_{k−1}) is never needed: with

    P_ab(ρ) = Σ_{k≥0} ρ^{−k−1} (C_a^k)_11 (C_b^k)_11

and 𝒩 the noise of `SecondMoment`, its spectral radius is the ρ at which N ↦ η²P(ρ)∘𝒩(N) has
largest eigenvalue 1, or that of the mean where the noise is too weak to reach it.

Source: book, thm-momentum.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from torch import Tensor

from lib.stability.second_moment import SecondMoment, largest_eigenpair

_SLACK = 1e-12  # how near the mean's own growth the noise is still resolved, relative


def kernel(eigenvalues: Tensor, learning_rate: float, momentum: float, growth: float) -> Tensor:
    """P_ab at ρ = growth, (q, q): positive in every entry for ρ above the mean's growth.

    With b = β/ρ and s scaled by 1/√ρ, 1/(ρP_ab) is the sum of two terms that do not cancel,
    (1−b)/(1+b) · (1+b−s̄)(1+b+s̄) + (1+b)/(1−b) · (s_a−s_b)²/4, s̄ = (s_a+s_b)/2. Without momentum
    P_ab = 1/(ρ − x_ax_b), x = 1 − ηλ.

    Args:
        eigenvalues: λ_a of A, (q,).
        learning_rate: η.
        momentum: β ∈ [0, 1).
        growth: ρ, above `mean_growth`.
    """
    b = momentum / growth
    s = (1 + momentum - learning_rate * eigenvalues) / math.sqrt(growth)
    middle, gap = (s[:, None] + s[None, :]) / 2, s[:, None] - s[None, :]
    along = (1 - b) / (1 + b) * (1 + b - middle) * (1 + b + middle)
    return 1 / (growth * (along + (1 + b) / (1 - b) * gap.square() / 4))


def mean_growth(eigenvalues: Tensor, learning_rate: float, momentum: float) -> float:
    """Squared spectral radius of the mean dynamics: max_a |z|², z² − s_a z + β = 0."""
    s = (1 + momentum - learning_rate * eigenvalues).abs()
    roots = (s.square() - 4 * momentum).clamp(min=0).sqrt()
    return float(torch.where(roots > 0, ((s + roots) / 2).square(), momentum).max())


def growth_factor(moment: SecondMoment, learning_rate: float, momentum: float) -> float:
    """ρ, the factor by which E‖δ‖² grows per step in the long run, with momentum.

    Raises:
        RuntimeError: with the residual, if a Lanczos run does not converge.
    """
    lam = moment.eigenvalues
    mean = mean_growth(lam, learning_rate, momentum)
    if learning_rate == 0:
        return mean

    def excess(rho: float) -> float:
        half = learning_rate * kernel(lam, learning_rate, momentum, rho).sqrt()
        return largest_eigenpair(lambda N: half * moment.noise(half * N), lam)[0] - 1

    low = max(mean * (1 + _SLACK), torch.finfo(lam.dtype).tiny)
    if excess(low) <= 0:
        return mean
    high = 2 * max(mean, 1.0)
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, low, high, xtol=1e-14 * high, rtol=1e-13))


def critical_forms(eigenvalues: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """ℒ_β and 𝒟_β, (q, q), both entrywise: ρ < 1 iff ℒ_β∘ ≻ η(𝒟_β∘ + 𝒩), for η > 0 and A ≻ 0.

    ℒ_β = (1−β)(λ_a+λ_b), 𝒟_β = [(1−β)²(λ_a+λ_b)² − (1+β)²(λ_a−λ_b)²] / (4(1−β²));
    without momentum λ_a+λ_b and λ_aλ_b. So {η: ρ < 1} is an interval, and η* one eigenvalue problem
    at every β.
    """
    total = eigenvalues[:, None] + eigenvalues[None, :]
    gap = eigenvalues[:, None] - eigenvalues[None, :]
    if momentum == 0:
        return total, eigenvalues[:, None] * eigenvalues[None, :]
    down, up = 1 - momentum, 1 + momentum
    bend = (down**2 * total.square() - up**2 * gap.square()) / (4 * down * up)
    return down * total, bend
