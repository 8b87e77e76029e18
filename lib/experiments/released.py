"""The Hessian test of the authors' released code, at its own setting, and what γ predicts of it.

Read off the sister paper's public repository (`coherence_local.py`), not off either paper: n = 100
samples in each set, both sets alike; the first σ of a set curve along one axis common to all, every
other along an axis of its own that one sample of either set shares; H = (2n/σ) e eᵀ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from itertools import product

import numpy as np
import torch
from torch import Tensor

from lib.checks import (
    require_batch,
    require_count,
    require_items,
    require_nonnegative,
    require_seed,
)
from lib.experiments.escape import Escape, HessianTest
from lib.experiments.hessian_tests import EscapeMap, threshold_order
from lib.randomness import seed_sequence
from lib.stability.algorithm import AscentDescent
from lib.stability.exponents import axis_laws, critical_moment, exponents_of, moment_exponent
from lib.stability.families import AxisFamily
from lib.stability.sampling import draw_group_counts

SAMPLES = 100  # in each set
LEAVES = 1000.0  # a run has left once its squared norm has grown by this factor
NEGLIGIBLE = 1e-12  # a run that will leave with at most this probability is counted as staying
ORDERS = tuple(2.0**k for k in range(5, -7, -1))  # of the moments that bound this probability
LARGEST_RUNS = 40_000  # of all cells together: some ten seconds at 1000 steps
CHECKED = 16  # steps between two evaluations of the bound


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
        exponents_of(_laws(family, update, learning_rate)).typical
        for family, update in _cells(batches, sigmas, mixing)
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
        repetitions, steps: runs per cell ≥ 1, at most 40,000 in all cells, and updates per run ≥ 1.
        seed: of starts and batches; a column of cells depends on its own b and the list of σ.

    Raises:
        ValueError: naming the argument, its value and the allowed range.
    """
    learning_rate = require_nonnegative("learning_rate", learning_rate)
    repetitions = require_count("repetitions", repetitions, 1)
    steps, seed = require_count("steps", steps, 1), require_seed(seed)
    batches, sigmas = require_items("batches", batches), require_items("sigmas", sigmas)
    if repetitions * len(batches) * len(sigmas) > LARGEST_RUNS:
        raise ValueError(
            f"repetitions, batches and sigmas must make at most {LARGEST_RUNS} runs, "
            f"got {repetitions} × {len(batches)} × {len(sigmas)}"
        )
    families = [released_family(sigma) for sigma in sigmas]
    updates = [_algorithm(mixing, batch) for batch in batches]
    counts = repetitions, steps, seed
    columns = [_column(families, update, learning_rate, counts) for update in updates]
    stayed = np.reshape(columns, (len(updates), len(families))).T
    return torch.from_numpy(stayed.astype(np.int64))


def released_map(
    batches: Sequence[int],
    sigmas: Sequence[int],
    *,
    learning_rate: float = 0.5,
    mixing: float = 0.1,
    repetitions: int = 10,
    steps: int = 1000,
    seed: int = 0,
) -> EscapeMap:
    """`released_hessian_test` as a map beside its three predictions, batches across, σ upwards.

    Arguments and errors as there.
    """
    stayed = released_hessian_test(
        batches,
        sigmas,
        learning_rate=learning_rate,
        mixing=mixing,
        repetitions=repetitions,
        steps=steps,
        seed=seed,
    ).numpy()
    values = []
    for family, update in _cells(batches, sigmas, mixing):
        laws = _laws(family, update, learning_rate)
        order = threshold_order(HessianTest(family, update, learning_rate), LEAVES)
        values.append((*astuple(exponents_of(laws)), moment_exponent(laws, order)))
    layers = np.reshape(values, (*stayed.shape, 4)).transpose(2, 0, 1)
    criterion = Escape(steps, repetitions, LEAVES)
    cells = "batch", np.asarray(batches), "sigma", np.asarray(sigmas)
    return EscapeMap(*cells, criterion, repetitions - stayed, *layers)


def _cells(
    batches: Sequence[int], sigmas: Sequence[int], mixing: float
) -> Iterator[tuple[AxisFamily, AscentDescent]]:
    """Family and update of every cell, batches fastest."""
    return product(map(released_family, sigmas), [_algorithm(mixing, batch) for batch in batches])


def _algorithm(mixing: float, batch: int) -> AscentDescent:
    require_count("batches: every batch", batch, 1)
    batch = require_batch("batches: every batch", batch, SAMPLES)
    return AscentDescent(mixing, batch, batch, sampling="without_replacement")


def _laws(
    family: AxisFamily, update: AscentDescent, learning_rate: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`axis_laws` of the common axis and of one other: all others are alike."""
    return axis_laws(family.on_axes(np.arange(len(family.retain_group)) < 2), update, learning_rate)


def _column(
    families: list[AxisFamily],
    update: AscentDescent,
    learning_rate: float,
    counts: tuple[int, int, int],
) -> np.ndarray:
    """Runs that stay, per family, at one batch size; runs that are decided are not followed on."""
    repetitions, steps, seed = counts
    batch, mixing = update.retain_batch, update.mixing
    generator = np.random.default_rng(seed_sequence("released Hessian test", seed, batch))
    sigma = np.repeat([family.retain_group[0] for family in families], repetitions)[:, None]
    orders = [_bounding_order(_laws(family, update, learning_rate)) for family in families]
    order = np.repeat(orders, repetitions)[:, None]
    # Column i is sample i's own axis for i ≥ σ, and column 0 the common one; the rest stay empty.
    number, step = np.arange(SAMPLES), learning_rate * 2 * SAMPLES / sigma / batch
    own = step * (number >= sigma)
    squares = generator.random((len(sigma), SAMPLES)) ** 2 * ((number >= sigma) | (number == 0))
    limit = LEAVES * squares.sum(axis=1, keepdims=True)
    left = np.zeros(len(sigma), dtype=bool)
    runs, going = np.arange(len(left)), ~left
    for k in range(steps):
        if k % CHECKED == 0:
            going = going & (_return_bound(squares / limit, sigma, order) > NEGLIGIBLE)
        if not going.all():
            keep = np.flatnonzero(going)
            runs, sigma, order, own = runs[keep], sigma[keep], order[keep], own[keep]
            step, squares, limit = step[keep], squares[keep], limit[keep]
        if not len(runs):
            break
        retain, forget = (_draw(len(runs), update, generator) for _ in range(2))
        pull = own * ((1 - mixing) * retain - mixing * forget)
        # A batch pulls b times (1 − 2α) in all: on the common axis with what the others leave.
        pull[:, :1] = step * batch * (1 - 2 * mixing) - pull.sum(axis=1, keepdims=True)
        squares *= (1 - pull) ** 2
        going = squares.sum(axis=1) < limit[:, 0]
        left[runs[~going]] = True
    return (~left).reshape(len(families), repetitions).sum(axis=1)


def _bounding_order(laws: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The largest of `ORDERS` with E|X_a|^p ≤ 1 on every axis, 0.0 if there is none."""
    largest = critical_moment(laws)
    return next((order for order in ORDERS if order <= largest), 0.0)


def _return_bound(shares: np.ndarray, sigma: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Bound on the probability that a run ever leaves, (runs,), from w_a²/limit, (runs, axes).

    Where E|X_a|^p ≤ 1 on all q axes, Σ_a |w_a|^p is a nonnegative supermartingale, and it is at
    least min(1, q^{1−p/2}) ‖w‖^p: by Ville's inequality the bound is
    max(1, q^{p/2−1}) Σ_a (w_a²/limit)^{p/2}. It is 1 where no p > 0 will do.
    """
    axes = SAMPLES - sigma + 1
    scale = np.where(order > 2, axes, 1.0)  # inside the power, where nothing overflows
    total = ((scale * shares) ** (order / 2)).sum(axis=1, keepdims=True)
    return np.where(order > 0, total / scale, 1.0)[:, 0]


def _draw(runs: int, update: AscentDescent, generator: np.random.Generator) -> np.ndarray:
    """Indicators of a batch without replacement for every run, (runs, 100)."""
    single = np.ones(SAMPLES, dtype=np.int64)
    return draw_group_counts(
        single, SAMPLES, update.retain_batch, update.sampling, (runs,), generator
    )
