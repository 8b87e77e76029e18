"""Ascent fails to forget on four points: a logistic regression with one weight, solved.

Samples at x = −1, 1, 3, 4 with labels −, +, −, + stand 5, 4, 1 and 4 times; two of the four at
x = 4 are to be forgotten. The model is y ~ wx, so the margins are m = yx times w and the forget
samples have twins among the retained: what ascent does to the one it does to the other.

Source: setting after Mavrothalassitis et al. (arXiv 2509.26427).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit, wrightomega
from torch import Tensor

from lib.checks import require_nonnegative, require_share
from lib.stability.curvature import Curvature

MARGINS = np.array([1.0, 1.0, -3.0, 4.0])  # yx
COUNTS = np.array([5.0, 4.0, 1.0, 4.0])
FORGOTTEN = np.array([0.0, 0.0, 0.0, 2.0])
RIDGE = 0.1
REACH = 1e3  # of rest points: |slope of a mean loss| ≤ 4, so |w| ≤ 4/ridge


def slope(weight: float, mixing: float) -> float:
    """F'(w) of F = (1−α)·mean ℓ over the retain − α·mean ℓ over the forget set + (ridge/2)w²."""
    pulls = -MARGINS * expit(-MARGINS * weight)
    retained = COUNTS - FORGOTTEN
    kept, gone = (counts @ pulls / counts.sum() for counts in (retained, FORGOTTEN))
    return float((1 - mixing) * kept - mixing * gone + RIDGE * weight)


def bend(weight: float, mixing: float) -> float:
    """F''(w): the mean operator A, here one number, ridge included."""
    curved = MARGINS**2 * expit(MARGINS * weight) * expit(-MARGINS * weight)
    retained = COUNTS - FORGOTTEN
    kept, gone = (counts @ curved / counts.sum() for counts in (retained, FORGOTTEN))
    return float((1 - mixing) * kept - mixing * gone + RIDGE)


def original() -> float:
    """The weight that minimises mean ℓ over all 14 samples + (ridge/2)w²."""
    # Mixing with −n_f/(n_r − n_f) would add the forget set; the weights are spelled out instead.
    share = FORGOTTEN.sum() / COUNTS.sum()

    def pull(weight: float) -> float:
        kept = (slope(weight, 0.0) - RIDGE * weight) * (1 - share)
        gone = -(slope(weight, 1.0) - RIDGE * weight) * share
        return kept + gone + RIDGE * weight

    return float(brentq(pull, -REACH, REACH, xtol=1e-15, rtol=1e-15))


def retrained() -> float:
    """The weight that minimises mean ℓ over the 12 retained samples + (ridge/2)w²."""
    (found,) = rest_points(0.0)
    return found


def rest_points(mixing: float) -> list[float]:
    """All w with F'(w) = 0 at this mixing, ascending.

    Raises:
        ValueError: mixing is not in [0, 1].
    """
    mixing = require_share("mixing", mixing)
    # |F'| grows past 4/ridge = 40; between, features of F' are no narrower than 1/4.
    grid = np.linspace(-50, 50, 4001) + 1e-4
    values = [slope(w, mixing) for w in grid]
    ends = [k for k in range(len(grid) - 1) if values[k] * values[k + 1] < 0]
    return [
        float(brentq(slope, grid[k], grid[k + 1], (mixing,), xtol=1e-15, rtol=1e-15)) for k in ends
    ]


def descended(mixing: float, learning_rate: float, steps: int) -> np.ndarray:
    """w_0 … w_steps of full-batch ascent–descent from the original weight, (steps+1,)."""
    weights = [original()]
    for _ in range(steps):
        weights.append(weights[-1] - learning_rate * slope(weights[-1], mixing))
    return np.array(weights)


def ascended(time: float) -> float:
    """w(t) of the gradient flow of ascent on the forget set alone, without ridge, in closed form.

    m = 4w obeys dm/dt = −16σ(−m), so e^m + m falls by 16 each unit of time: with
    s = e^{m_0} + m_0 − 16t it is m = s − W(e^s), W Lambert's function.

    Args:
        time: t = η·steps ≥ 0.

    Raises:
        ValueError: time is negative or not finite.
    """
    time = require_nonnegative("time", time)
    margin = MARGINS[3] * original()
    s = math.exp(margin) + margin - MARGINS[3] ** 2 * time
    return float((s - wrightomega(s).real) / MARGINS[3])


def curvature() -> Curvature:
    """Per-sample curvature at the original weight, of all 14 samples; the ridge is damping."""
    weight = original()
    margins = np.repeat(MARGINS, COUNTS.astype(int))
    root = torch.from_numpy(margins * np.sqrt(expit(margins * weight) * expit(-margins * weight)))
    forget = torch.arange(len(margins), device="cpu") >= len(margins) - int(FORGOTTEN.sum())
    gram: Tensor = torch.outer(root, root)
    return Curvature.from_gram(gram, forget)
