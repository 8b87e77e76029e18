"""Commuting curvature: every sample curves along one axis, and stability splits into scalars.

On axis a one step of the linearised update is δ_a ← X_a δ_a with the random multiplier

    X_a = 1 − η[(1−α) (c_r,a/B_r) M_r,a − α (c_f,a/B_f) M_f,a + λ],

M_c,a being the number of axis a's samples in the mini-batch of set c and c_c,a their curvature. The
multipliers of one step depend on each other through the batch; those of different steps do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from lib.checks import (
    LARGEST,
    require_above,
    require_batches,
    require_items,
    require_kind,
    require_nonnegative,
    require_room,
)
from lib.stability.algorithm import AscentDescent
from lib.stability.families import AxisFamily, distinct_axes
from lib.stability.sampling import count_distribution


@dataclass(frozen=True)
class Exponents:
    """Growth of ‖δ‖ per step, as a logarithm: positive where w* is predicted to be unstable.

    mean: max_a log|E X_a|, the batches' noise left out; mean_square: max_a ½ log E X_a², which is
    ½ log ρ(T); typical: max_a E log|X_a|, the top Lyapunov exponent γ, −∞ if every axis can be
    wiped out.
    """

    mean: float
    mean_square: float
    typical: float


def growth_exponents(
    family: AxisFamily, algorithm: AscentDescent, learning_rate: float
) -> Exponents:
    """The three predictions in closed form, by summing over the counts M_r,a and M_f,a.

    Exact: T multiplies entry ab of the second moment by E X_aX_b, at most the larger of E X_a² and
    E X_b², so ρ(T) = max_a E X_a². By the law of large numbers (1/k) log|δ_a,k| → E log|X_a|.

    Raises:
        ValueError: for a negative or not finite rate, or a batch larger than its set.

    Source: book, thm-exact-criterion and thm-three-frontiers.
    """
    return exponents_of(axis_laws(family, algorithm, learning_rate))


def exponents_of(laws: list[tuple[np.ndarray, np.ndarray]]) -> Exponents:
    """`growth_exponents` from the laws of the axes, by `axis_laws`."""
    with np.errstate(divide="ignore"):  # log 0 = −∞ is meant: the axis is wiped out
        mean = max(float(np.log(abs(weights @ X))) for weights, X in laws)
        typical = max(float(weights @ np.log(np.abs(X))) for weights, X in laws)
    return Exponents(mean, moment_exponent(laws, 2.0), typical)


def moment_exponent(laws: list[tuple[np.ndarray, np.ndarray]], order: float) -> float:
    """max_a (1/p) log E|X_a|^p, per step: growth of the p-th moment of the displacement, p = order.

    Increasing in p (Lyapunov's inequality): p = 2 is the mean-square exponent, p → 0 the typical
    one. If it is ≤ 0, p ≤ 2, a run started equally long along q axes obeys, at every threshold τ,
    P(sup_k ‖δ_k‖² ≥ τ‖δ_0‖²) ≤ q^{1−p/2} τ^{−p/2}  (Ville's inequality for Σ_a |δ_a|^p).

    Args:
        laws: of the axes, from `axis_laws`.
        order: p > 0.

    Raises:
        ValueError: for an order that is not a finite number > 0.
    """
    order = require_above("order", order, 0)
    _require_laws(laws)
    top = max(float(np.abs(X).max()) for _, X in laws)
    if top > 0 and order * math.log(top) > math.log(np.finfo(np.float64).max):
        raise ValueError(f"order must keep |X|^p inside float64's range, got {order!r}")
    return _moment_exponent(laws, order)


def _moment_exponent(laws: list[tuple[np.ndarray, np.ndarray]], order: float) -> float:
    """`moment_exponent`, infinite where the moment passes the largest float64."""
    with np.errstate(divide="ignore", over="ignore"):  # log 0 = −∞ is meant, as above
        return max(float(np.log(weights @ np.abs(X) ** order)) / order for weights, X in laws)


def critical_moment(laws: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Largest p with E|X_a|^p ≤ 1 on every axis; 0.0 if γ ≥ 0, infinite if no |X_a| exceeds 1.

    p* = 2 on the mean-square frontier and 0 on the typical one. log E|X|^p is convex in p and zero
    at p = 0, so there is one root. If γ < 0, P(sup_k δ_a,k² ≥ s δ_a,0²) ≤ s^{−p*/2}.

    Args:
        laws: of the axes, from `axis_laws`.

    Raises:
        RuntimeError: if the root search does not converge.
    """
    _require_laws(laws)
    if max(float(np.abs(X).max()) for _, X in laws) <= 1:
        return math.inf
    # The smallest order at which a sign is trusted: below it the moment is 1 to rounding.
    low, high = 1e-6, 2.0
    if _moment_exponent(laws, low) >= 0:
        return 0.0
    while _moment_exponent(laws, high) < 0:
        high *= 2

    def logarithm(p: float) -> float:
        return min(p * _moment_exponent(laws, p), LARGEST)  # an infinite end has no secant

    return float(optimize.brentq(logarithm, low, high, xtol=1e-10))


def _require_laws(laws: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """ValueError unless these are pairs of probabilities and multipliers, as `axis_laws` gives."""
    for law in require_items("laws", laws, tuple):
        fits = len(law) == 2 and all(
            isinstance(x, np.ndarray) and x.ndim == 1 and x.size and np.isfinite(x).all()
            for x in law
        )
        if not fits or law[0].shape != law[1].shape or np.any(law[0] < 0) or not np.any(law[0]):
            raise ValueError("laws must be pairs (probabilities, multipliers) from axis_laws")


def axis_laws(
    family: AxisFamily, algorithm: AscentDescent, learning_rate: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The law of X_a for every kind of axis: pairs of probabilities and multipliers, (s,) each.

    Raises:
        ValueError: for a negative or not finite rate, or a batch larger than its set.
    """
    require_kind("family", family, AxisFamily)
    require_kind("algorithm", algorithm, AscentDescent)
    learning_rate = require_nonnegative("learning_rate", learning_rate)
    laws = []
    for single in distinct_axes(family):
        counts, weights = joint_counts(single, algorithm)
        X = axis_multipliers(single, algorithm, learning_rate, *counts)[:, 0]
        if np.abs(X).max() > LARGEST:
            raise ValueError(
                f"learning_rate must keep a step's factor at most {LARGEST:g}, "
                f"got {learning_rate!r}"
            )
        laws.append((weights, X))
    return laws


def axis_multipliers(
    family: AxisFamily,
    algorithm: AscentDescent,
    learning_rate: float,
    retain_counts: np.ndarray,
    forget_counts: np.ndarray,
) -> np.ndarray:
    """X_a given how many of axis a's samples are in the batch; counts and result (..., q).

    A multiplier smaller than the rounding of the terms it is the difference of is returned as 0:
    in exact arithmetic it wipes the axis out, in floating point it must not come back.
    """
    c_r, c_f = family.curvatures()
    ascent = learning_rate * algorithm.mixing / algorithm.forget_batch * c_f * forget_counts
    descent = learning_rate * (
        (1 - algorithm.mixing) / algorithm.retain_batch * c_r * retain_counts + algorithm.damping
    )
    X = (1 + ascent) - descent
    X[np.abs(X) <= 8 * np.finfo(np.float64).eps * (1 + ascent + descent)] = 0.0
    return X


def joint_counts(
    single: AxisFamily, algorithm: AscentDescent
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Counts (retain, forget), (s, 1) each, that can occur on the one axis, and their weights."""
    require_batches(single, algorithm)
    algorithm.require_plain("the multipliers of one axis")
    algorithm.require_independent("the multipliers of one step")
    laws = [
        count_distribution(int(group[0]), n, batch, algorithm.sampling) if weight else np.ones(1)
        for group, n, batch, weight in (
            (single.retain_group, single.n_retain, algorithm.retain_batch, 1 - algorithm.mixing),
            (single.forget_group, single.n_forget, algorithm.forget_batch, algorithm.mixing),
        )
    ]
    require_room("family", *(len(law) for law in laws))
    weights = np.outer(*laws)
    counts = np.nonzero(weights)
    return (counts[0][:, None], counts[1][:, None]), weights[counts]
