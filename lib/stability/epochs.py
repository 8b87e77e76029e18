"""A data loader, exactly: reshuffled epochs on families whose samples each curve along one axis.

Within an epoch the batches of a set depend on each other, so no operator T describes a step. Along
one axis only the counts matter, and between epochs everything is fresh: the squared multiplier of a
whole epoch is a sum over how many of the axis's samples are left to be drawn.

Source: book, thm-loader.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats
from scipy.optimize import brentq

from lib.checks import LARGEST, require_batches, require_kind, require_nonnegative
from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.families import AxisFamily, axis_family, distinct_axes
from lib.stability.second_moment import mean_operator

LARGEST_WORK = 1e9  # products of one axis: seconds
LARGEST_EPOCH = 10_000  # steps after which both sets begin an epoch together, at most


def epoch_growth(family: AxisFamily, algorithm: AscentDescent, learning_rate: float) -> float:
    """ρ = max_a (E Π_{k<L} X_a,k²)^{1/L}: growth of E‖δ‖² per step under a loader's batches.

    L is the least common multiple of the two epochs n_r/B_r and n_f/B_f; a set of weight 0 does not
    count. The expectation runs over the samples of the axis that are left in each set's epoch, a
    table of (σ_r+1)(σ_f+1) numbers; every term is positive. Off-diagonal second moments are at most
    the larger of the two diagonal ones (Cauchy–Schwarz), as for independent batches.

    Args:
        family: on axes.
        algorithm: mixing, batch sizes and damping; its sampling is not looked at.
        learning_rate: η ≥ 0.

    Raises:
        ValueError: for a batch size that does not divide its set, a batch larger than its set, a
            negative rate, a step beyond float64's range, L above 10,000, or a table so large that
            an epoch takes more than 1e9 products.
    """
    require_kind("family", family, AxisFamily)
    require_kind("algorithm", algorithm, AscentDescent)
    require_batches(family, algorithm)
    learning_rate = require_nonnegative("learning_rate", learning_rate)
    epochs = [_epoch(name, family, algorithm) for name in ("retain", "forget")]
    steps = math.lcm(*epochs)
    if steps > LARGEST_EPOCH:
        raise ValueError(
            f"retain_batch and forget_batch must give epochs with a common multiple of at most "
            f"{LARGEST_EPOCH} steps, got epochs of {epochs[0]} and {epochs[1]}"
        )
    growth = [
        _axis_growth(single, algorithm, learning_rate, epochs, steps)
        for single in distinct_axes(family)
    ]
    return max(growth)


def on_axes(curvature: Curvature, algorithm: AscentDescent) -> AxisFamily:
    """The family of axes behind a curvature; ValueError where "reshuffled" has no exact form."""
    algorithm.require_plain("'reshuffled' batches")
    try:
        return axis_family(curvature)
    except ValueError as error:
        raise ValueError(
            "algorithm.sampling 'reshuffled' has an exact form only where every sample of a set "
            f"curves one axis, as strongly as the others on it: {error}"
        ) from None


def critical_epoch_rate(curvature: Curvature, algorithm: AscentDescent) -> float:
    """`critical_learning_rate` under reshuffled epochs; errors as `epoch_growth`."""
    family = on_axes(curvature, algorithm)
    values = torch.linalg.eigvalsh(mean_operator(curvature, algorithm))
    if float(values[0]) < 0 or float(values[-1]) <= 0:
        return 0.0 if float(values[0]) < 0 else math.inf

    def excess(rate: float) -> float:
        return epoch_growth(family, algorithm, rate) - 1

    below = 0.0
    for share in range(1, 257):
        rate = share / 64 / float(values[-1])
        if excess(rate) >= 0:
            if not below:
                return 0.0
            return float(brentq(excess, below, rate, rtol=1e-12, xtol=1e-15 * rate))
        below = rate
    raise RuntimeError(f"no rate up to {below:.6g}, twice the mean's edge, is unstable")


def _weight(name: str, algorithm: AscentDescent) -> float:
    return algorithm.mixing if name == "forget" else 1 - algorithm.mixing


def _epoch(name: str, family: AxisFamily, algorithm: AscentDescent) -> int:
    """Steps in which a loader goes through a set once."""
    n, batch = getattr(family, f"n_{name}"), getattr(algorithm, f"{name}_batch")
    if _weight(name, algorithm) == 0:
        return 1
    if n % batch:
        raise ValueError(
            f"{name}_batch must divide {n}, the size of its set, under reshuffled epochs, "
            f"got {batch}"
        )
    return n // batch


def _axis_growth(
    single: AxisFamily,
    algorithm: AscentDescent,
    learning_rate: float,
    epochs: list[int],
    steps: int,
) -> float:
    """`epoch_growth` of one axis."""
    c = [float(values[0]) for values in single.curvatures()]
    draws, groups = [], []
    for k, name in enumerate(("retain", "forget")):
        group = int(getattr(single, f"{name}_group")[0]) if _weight(name, algorithm) else 0
        groups.append(group)
        n, batch = getattr(single, f"n_{name}"), getattr(algorithm, f"{name}_batch")
        draws.append([_draw_law(group, n - done * batch, batch) for done in range(epochs[k])])
    in_retain, in_forget = (np.arange(d[0].shape[1]) for d in draws)
    descent = (1 - algorithm.mixing) * c[0] * in_retain[:, None] / algorithm.retain_batch
    ascent = algorithm.mixing * c[1] * in_forget[None, :] / algorithm.forget_batch
    squares = (1 - learning_rate * (descent - ascent + algorithm.damping)) ** 2
    if squares.max() > LARGEST:
        raise ValueError(
            f"learning_rate must keep a step's square at most {LARGEST:g}, got {learning_rate!r}"
        )
    if squares.size * math.prod(size + 1 for size in groups) * steps > LARGEST_WORK:
        raise ValueError(
            f"retain_batch and forget_batch must keep an epoch of {steps} steps on groups of "
            f"{groups} samples below {LARGEST_WORK:g} products, got {squares.shape} counts"
        )
    left, logarithm = np.zeros((groups[0] + 1, groups[1] + 1)), 0.0
    left[-1, -1] = 1.0
    for step in range(steps):
        left = _step(left, draws[0][step % epochs[0]], draws[1][step % epochs[1]], squares)
        for axis in (0, 1):
            if (step + 1) % epochs[axis] == 0:  # nothing is left: the next epoch has the whole
                whole = left.sum(axis=axis)
                left = np.zeros_like(left)
                left[(-1, slice(None)) if axis == 0 else (slice(None), -1)] = whole
        scale = left.sum()
        if scale == 0:
            return 0.0
        left, logarithm = left / scale, logarithm + math.log(scale)
    return math.exp(logarithm / steps)


def _draw_law(group: int, remaining: int, batch: int) -> np.ndarray:
    """P(a batch takes m | g of the group are among the remaining samples), (group+1, m+1)."""
    drawn = np.arange(min(group, batch) + 1)
    law = np.zeros((group + 1, len(drawn)))
    for inside in range(min(group, remaining) + 1):
        law[inside] = stats.hypergeom.pmf(drawn, remaining, inside, min(batch, remaining))
    return law


def _step(
    left: np.ndarray, retain: np.ndarray, forget: np.ndarray, squares: np.ndarray
) -> np.ndarray:
    """E[X²; what is left after the step], from what is left before it."""
    after = np.zeros_like(left)
    rows, columns = left.shape
    for m in range(squares.shape[0]):
        for k in range(squares.shape[1]):
            chance = retain[m:, m, None] * forget[None, k:, k]
            after[: rows - m, : columns - k] += squares[m, k] * chance * left[m:, k:]
    return after
