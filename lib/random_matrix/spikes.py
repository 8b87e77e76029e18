"""Signals in the curvature: outliers of one set, of A, and of the pair (H_f ; H_r).

A signal of strength θ² along a unit vector v raises the population covariance from I to I + θ²vvᵀ
(unit noise variance). It may stand in both sets (`shared`) or in the forget set only (`own`).
Statements are limits p → ∞ at fixed ratios c = p/n and fixed strength.
"""

import math
from dataclasses import dataclass

import torch
from scipy.optimize import brentq

from lib.checks import require_above, require_nonnegative, require_share
from lib.random_matrix.free_difference import (
    LARGEST_RATIO,
    FreeDifference,
    critical_mixing,
    forget_condition,
    require_ratio,
    spectrum_edges,
)
from lib.stability.dynamics import steps_to_grow


@dataclass(frozen=True)
class Outlier:
    """An eigenvalue apart from the bulk: `position`, and `overlap` = ⟨eigenvector, v⟩² ∈ [0, 1]."""

    position: float
    overlap: float


def _require_strength(strength: float) -> float:
    """θ²; ValueError unless it is a finite number ≥ 0: 0, or in [1e-12, 1e12]."""
    if require_nonnegative("strength", strength) == 0:
        return 0.0
    return require_above("strength", strength, 0, LARGEST_RATIO)


def single_set_outlier(strength: float, ratio: float) -> Outlier | None:
    """Outlier of W with covariance I + θ²vvᵀ: (1+θ²)(1 + c/θ²), overlap (1 − c/θ⁴)/(1 + c/θ²).

    None below the transition, θ⁴ ≤ c: no eigenvalue leaves the bulk and the top eigenvector is
    blind to v. For population eigenvalue a ≥ 1 along v the strength is a − 1: rows yμ + ξ with
    ξ ⟂ μ have a = ‖μ‖²/σ_p² (`signal.detectability`).
    Source: Baik, Ben Arous and Péché (2005); Baik and Silverstein (2006); Paul (2007).
    Raises ValueError for a strength that is not ≥ 0 or a ratio that is not > 0, both finite.
    """
    strength = _require_strength(strength)
    ratio = require_ratio("ratio", ratio)
    if strength**2 <= ratio:
        return None
    position = (1 + strength) * (1 + ratio / strength)
    return Outlier(position, (1 - ratio / strength**2) / (1 + ratio / strength))


def own_signal_threshold(retain_ratio: float, forget_ratio: float) -> float:
    """Smallest population eigenvalue a = 1 + θ² of the forget set's own signal that moves α*.

    a > (1 + √(c_r + c_f − c_r c_f))/(1 − c_r), = √κ of the null model; inf when c_r ≥ 1.
    Source: Wang and Yao (2017), spiked F-matrices.
    Raises ValueError for a ratio that is not a finite number > 0.
    """
    return math.sqrt(forget_condition(retain_ratio, forget_ratio))


def own_signal_critical_mixing(strength: float, retain_ratio: float, forget_ratio: float) -> float:
    """α* = 1/(1+κ), undamped, when the forget set alone carries a signal of strength θ² = a − 1.

    κ = a(a − 1 + c_f)/(a − 1 − a c_r) above `own_signal_threshold`, where the forget set's own
    direction is the first to escape; κ of the null model below it; α* = 0 when c_r ≥ 1.
    Source: Wang and Yao (2017). Raises ValueError for a strength not ≥ 0 or a ratio not > 0, or
    not finite.
    """
    strength = _require_strength(strength)
    a = 1 + strength
    if a <= own_signal_threshold(retain_ratio, forget_ratio):
        return critical_mixing(retain_ratio, forget_ratio)
    kappa = a * (strength + forget_ratio) / (strength - a * retain_ratio)
    return 1 / (1 + kappa)


def shared_signal_outliers(
    strength: float, mixing: float, retain_ratio: float, forget_ratio: float
) -> tuple[Outlier, ...]:
    """Outliers, ascending, of A = (1−α)H_r − αH_f when both sets have covariance I + θ²vvᵀ.

    det(z − Σ^{1/2}A₀Σ^{1/2}) = 0 off the bulk reads z G(z) = 1 + 1/θ², and with w = 1/G(z)

        a_r/(w − x) − a_f/(w + y) = 1/θ²,   z = (1 + 1/θ²) w,   overlap = z'/(1 + θ²(1 − z')),

    z' = dz/dw: a quadratic in w, whose root counts when it lies beyond the edge. At most one
    outlier on either side of the bulk. Gaps inside the support are not searched.
    Raises ValueError for mixing outside [0, 1], a strength not ≥ 0 or a ratio not > 0, or not
    finite.
    """
    strength = _require_strength(strength)
    law = FreeDifference(mixing, retain_ratio, forget_ratio)
    if strength == 0:
        return ()
    found = []
    for w in _shared_signal_roots(law, strength):
        slope = float(law.slope(torch.tensor(w, dtype=torch.float64, device="cpu")))
        if slope > 0:
            overlap = slope / (1 + strength * (1 - slope))
            found.append(Outlier((1 + 1 / strength) * w, overlap))
    return tuple(sorted(found, key=lambda outlier: outlier.position))


def _shared_signal_roots(law: FreeDifference, strength: float) -> list[float]:
    """Roots of (w − x)(w + y) = θ²[a_r(w + y) − a_f(w − x)] with w > x or w < −y."""
    (a_r, a_f), (x, y) = law.weights, law.poles
    # With w = x + u: u² + u(span − θ²(a_r − a_f)) − θ²a_r·span = 0, one root of either sign.
    span = x + y
    half = (span - strength * (a_r - a_f)) / 2
    product = strength * a_r * span
    reach = math.hypot(half, math.sqrt(product))
    big = -half - reach if half > 0 else -half + reach
    offsets = (big, -product / big)
    return [x + u for u in offsets if (u > 0 and a_r > 0) or (u < -span and a_f > 0)]


def lowest_eigenvalue(
    strength: float, mixing: float, retain_ratio: float, forget_ratio: float
) -> float:
    """lim λ_min(A) under a shared signal of strength θ²: the lower edge, or an outlier below it.

    Raises ValueError as `shared_signal_outliers`.
    """
    lower = spectrum_edges(mixing, retain_ratio, forget_ratio)[0]
    outliers = shared_signal_outliers(strength, mixing, retain_ratio, forget_ratio)
    return min([lower, *(outlier.position for outlier in outliers)])


def shared_signal_critical_mixing(
    strength: float, retain_ratio: float, forget_ratio: float, damping: float = 0.0
) -> float:
    """α* when both sets carry the signal: where λ_min(A − λI) reaches −λ, λ = `damping`.

    Without damping it is the null model's, for every strength: A = Σ^{1/2}A₀Σ^{1/2} is a
    congruence, which keeps the number of negative eigenvalues (Sylvester). With damping it can
    only be lower than the null model's: λ_min(Σ^{1/2}A₀Σ^{1/2}) ≤ λ_min(A₀) where that is negative
    (Ostrowski).
    Raises ValueError as `shared_signal_outliers`, and for damping that is not a finite number ≥ 0.
    """
    bulk = critical_mixing(retain_ratio, forget_ratio, damping)
    strength = _require_strength(strength)
    if damping == 0:
        return bulk

    def margin(mixing: float) -> float:
        return lowest_eigenvalue(strength, mixing, retain_ratio, forget_ratio) + damping

    return bulk if margin(bulk * (1 - 1e-12)) >= 0 else float(brentq(margin, 0.0, bulk, xtol=1e-14))


def escape_steps(
    strength: float,
    mixing: float,
    retain_ratio: float,
    forget_ratio: float,
    amplification: float = 1e3,
) -> float:
    """Steps in which the mean dynamics amplify ‖E δ‖ by τ: log τ / log(1 − ηλ_min(A)); inf when
    λ_min ≥ 0.

    Shared signal of strength θ², no damping, and η = 1/((1−α)λ_max(H_r)): half of the retain set's
    full-batch edge of stability, which the signal's outlier sets once it has left the bulk.
    Raises ValueError for mixing outside [0, 1), amplification not > 1, and as
    `shared_signal_outliers`.
    """
    amplification = require_above("amplification", amplification, 1)
    mixing = require_share("mixing", mixing, "[0, 1)")
    lowest = lowest_eigenvalue(strength, mixing, retain_ratio, forget_ratio)
    outlier = single_set_outlier(strength, retain_ratio)
    sharpness = outlier.position if outlier else (1 + math.sqrt(retain_ratio)) ** 2
    escape = math.log1p(max(-lowest, 0.0) / ((1 - mixing) * sharpness))
    return steps_to_grow(amplification, escape)
