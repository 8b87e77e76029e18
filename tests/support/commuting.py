"""Closed forms on commuting families, from the counts' moments: references for the solvers."""

import math

import numpy as np
import torch

from lib.checks import require_batches
from lib.stability.curvature import Curvature
from lib.stability.exponents import growth_exponents


def grouped_lyapunov_exponent(family, algorithm, learning_rate):
    """γ = max_a E log|X_a|, per step: the growth of a typical run, in closed form."""
    return growth_exponents(family, algorithm, learning_rate).typical


def grouped_critical_learning_rate(family, algorithm):
    """η* = min_a 2λ_a / (λ_a² + V_a), λ_a = E Â_aa and V_a = Var Â_aa; 0.0 if no rate is stable.

    V_a = Σ_c ω_c² (c_c,a/B_c)² Var M_c,a. A neutral axis (λ_a = V_a = 0) is left out, as it is by
    `critical_learning_rate`, which this equals (book, thm-two-sided, where the two sides meet).
    """
    lam, variance = axis_moments(family, algorithm)
    moved = (lam != 0) | (variance != 0)
    if np.any(lam[moved] <= 0):
        return 0.0
    rates = 2 * lam[moved] / (lam[moved] ** 2 + variance[moved])
    return float(rates.min(initial=np.inf))


def mean_only_learning_rate(family, algorithm):
    """2/λ_max(A), the edge for full batches; 0.0 if A has a negative eigenvalue."""
    lam, _ = axis_moments(family, algorithm)
    if np.any(lam < 0):
        return 0.0
    return float(2 / lam.max()) if lam.max() > 0 else math.inf


def axis_moments(family, algorithm):
    """Mean λ_a and variance V_a of Â_aa, (q,) each, from the moments of the counts."""
    require_batches(family, algorithm)
    lam = np.full(len(family.retain_group), algorithm.damping)
    variance = np.zeros_like(lam)
    for sign, weight, n, batch, group, c in zip(
        (1, -1),
        (1 - algorithm.mixing, algorithm.mixing),
        (family.n_retain, family.n_forget),
        (algorithm.retain_batch, algorithm.forget_batch),
        (family.retain_group, family.forget_group),
        family.curvatures(),
        strict=True,
    ):
        share = group / n
        spread = {
            "bernoulli": group * (batch / n) * (1 - batch / n),
            "without_replacement": batch * share * (1 - share) * (n - batch) / max(n - 1, 1),
            "with_replacement": batch * share * (1 - share),
        }[algorithm.sampling]
        lam += sign * weight * c * share
        variance += (weight * c / batch) ** 2 * spread
    return lam, variance


def curvature_of(family):
    """The family's samples for the general solvers: axis by axis, flat ones last, retain first."""
    parts = []
    for n, group, c in zip(
        (family.n_retain, family.n_forget),
        (family.retain_group, family.forget_group),
        family.curvatures(),
        strict=True,
    ):
        axis = np.repeat(np.arange(len(group)), group)
        factors = torch.zeros(n, len(group), 1, dtype=torch.float64)
        factors[np.arange(len(axis)), axis, 0] = torch.from_numpy(np.sqrt(c[axis]))
        parts.append(factors)
    forget = torch.arange(family.n_retain + family.n_forget) >= family.n_retain
    return Curvature(torch.cat(parts), forget)
