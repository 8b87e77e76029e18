"""The Hessian test of the authors' released code, at its own setting, and what γ predicts of it.

Read off the sister paper's public repository (`coherence_local.py`), not off either paper: n = 100
samples in each set, both sets alike; the first σ of a set curve along one axis common to all, every
other along an axis of its own that one sample of either set shares; H = (2n/σ) e eᵀ.
"""

from __future__ import annotations

from collections.abc import Sequence

import joblib
import numpy as np
import torch
from torch import Tensor

from lib.checks import (
    require_batch,
    require_count,
    require_items,
    require_nonnegative,
    require_room,
    require_seed,
)
from lib.randomness import seed_sequence
from lib.stability.algorithm import AscentDescent
from lib.stability.exponents import growth_exponents
from lib.stability.families import AxisFamily

SAMPLES = 100  # in each set
LEAVES = 1000.0  # a run has left once its squared norm has grown by this factor


def released_family(sigma: int) -> AxisFamily:
    """The released test's curvature: σ samples of each set on axis 1, the others one to an axis."""
    require_count("sigma", sigma, 1)
    sigma = require_batch("sigma", sigma, SAMPLES)
    group = np.array([sigma] + [1] * (SAMPLES - sigma))
    sharpness = 2.0 * group / sigma
    return AxisFamily(SAMPLES, SAMPLES, group, group, sharpness, sharpness)


def released_hessian_prediction(
    batches: Sequence[int],
    sigmas: Sequence[int],
    *,
    learning_rate: float = 0.5,
    mixing: float = 0.1,
) -> Tensor:
    """γ of every cell, (len(sigmas), len(batches)) float64, per step: a run leaves where γ > 0.

    Arguments and errors as `released_hessian_test`. Source: book, thm-three-frontiers.
    """
    batches, sigmas = require_items("batches", batches), require_items("sigmas", sigmas)
    learning_rate = require_nonnegative("learning_rate", learning_rate)
    cells = [
        [
            growth_exponents(
                released_family(sigma), _algorithm(mixing, batch), learning_rate
            ).typical
            for batch in batches
        ]
        for sigma in sigmas
    ]
    return torch.from_numpy(np.array(cells, dtype=np.float64)).reshape(len(sigmas), len(batches))


def released_hessian_test(
    batches: Sequence[int],
    sigmas: Sequence[int],
    *,
    learning_rate: float = 0.5,
    mixing: float = 0.1,
    repetitions: int = 10,
    steps: int = 1000,
    seed: int = 0,
) -> Tensor:
    """How many runs stay in every cell, (len(sigmas), len(batches)) int64, of `repetitions`.

    A run starts uniformly in [0, 1]^d, d = 100 − σ + 1, and has left when ‖w‖² ≥ 1000‖w_0‖² at some
    step k ≤ steps. Batches of equal size b for both sets, without replacement, independent. The
    authors call a cell stable if at least half of its runs stay.

    Args:
        batches: b, each in [1, 100].
        sigmas: σ, each in [1, 100].
        learning_rate, mixing: η ≥ 0 and α ∈ [0, 1].
        repetitions, steps: runs per cell ≥ 1 and updates per run ≥ 1.
        seed: of starts and batches; a column of cells depends on its own b and the list of σ.

    Raises:
        ValueError: naming the argument, its value and the allowed range.
    """
    learning_rate = require_nonnegative("learning_rate", learning_rate)
    repetitions = require_count("repetitions", repetitions, 1)
    steps, seed = require_count("steps", steps, 1), require_seed(seed)
    batches, sigmas = require_items("batches", batches), require_items("sigmas", sigmas)
    require_room("repetitions and sigmas", repetitions * len(sigmas), SAMPLES)
    families = [released_family(sigma) for sigma in sigmas]
    updates = [_algorithm(mixing, batch) for batch in batches]
    call = joblib.delayed(_column)
    columns = joblib.Parallel(n_jobs=-1)(
        call(families, update, learning_rate, (repetitions, steps, seed)) for update in updates
    )
    return torch.stack([torch.from_numpy(column) for column in columns], dim=1)


def _algorithm(mixing: float, batch: int) -> AscentDescent:
    require_count("batches: every batch", batch, 1)
    batch = require_batch("batches: every batch", batch, SAMPLES)
    return AscentDescent(mixing, batch, batch, sampling="without_replacement")


def _column(
    families: list[AxisFamily],
    update: AscentDescent,
    learning_rate: float,
    counts: tuple[int, int, int],
) -> np.ndarray:
    """Runs that stay, per family, at one batch size; runs that have left are not followed on."""
    repetitions, steps, seed = counts
    batch = update.retain_batch
    generator = np.random.default_rng(seed_sequence("released Hessian test", seed, batch))
    sigma = np.repeat([family.retain_group[0] for family in families], repetitions)[:, None]
    # Column i is sample i's own axis for i ≥ σ, and column 0 the common one; the rest stay empty.
    number = np.arange(SAMPLES)
    own, step = number >= sigma, learning_rate * 2 * SAMPLES / sigma / batch
    squares = generator.random((len(sigma), SAMPLES)) ** 2 * (own | (number == 0))
    limit = LEAVES * squares.sum(axis=1)
    running = np.arange(len(sigma))
    for _ in range(steps):
        retain, forget = (_draw(len(running), batch, generator) for _ in range(2))
        pull = step[running] * ((1 - update.mixing) * retain - update.mixing * forget)
        alone = own[running]
        multiplier = 1 - np.where(alone, pull, 0.0)
        multiplier[:, 0] = 1 - np.where(alone, 0.0, pull).sum(axis=1)
        squares[running] *= multiplier**2
        running = running[squares[running].sum(axis=1) < limit[running]]
        if not len(running):
            break
    return np.bincount(running // repetitions, minlength=len(families)).astype(np.int64)


def _draw(runs: int, batch: int, generator: np.random.Generator) -> np.ndarray:
    """Indicators of a batch without replacement for every run, (runs, 100) float64."""
    keys = generator.random((runs, SAMPLES), dtype=np.float32)
    chosen = np.argpartition(keys, batch - 1, axis=1)[:, :batch]
    counts = np.zeros((runs, SAMPLES))
    np.put_along_axis(counts, chosen, 1.0, axis=1)
    return counts
