"""Heat maps of CNN unlearning: real networks beside what their Gram matrix at w* predicts.

A map varies two of a `Setting`'s values. Every cell has one network per seed, trained and then
unlearned by ascent–descent; the predictions see that network's curvature Gram matrix and no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.cnn.data import SignalNoise
from lib.cnn.network import TwoLayerCNN
from lib.cnn.unlearning import Trajectory, ascent_descent, linearised
from lib.experiments.predictions import follow, mean, mean_square_along, typical
from lib.experiments.settings import CellUpdate, Criterion, Networks, Setting, trained_networks

_NONE = (math.nan,) * 3


def heat_map(
    setting: Setting,
    x: tuple[str, Sequence[Any]],
    y: tuple[str, Sequence[Any]],
    *,
    criterion: Criterion,
    seeds: Sequence[int],
    device: str | None = None,
) -> pd.DataFrame:
    """One row per cell and seed: the cell's two values, the seed, predictions and measurements.

    mean, mean_square, typical: escape is predicted where positive. With criterion.asymptotic the
    growth of log‖δ‖ per step; else the decades by which ‖δ‖ exceeds the growth criterion at its
    largest within the horizon. ±∞ under mean_square: only the sign was computed, from neighbours.
    typical_forget: decades by which the linearised ‖f − y‖ on the forget set exceeds the forget
    loss's. escape_step, forget_step: first step of either event, ∞ if none; twin_step: escape_step
    of the linearised run on the same batches from the same start, and twin_forget_step alike.
    largest, last: log_10 of ‖δ‖/‖δ_0‖, over the run and at its end. At the step of forgetting, NaN
    elsewhere: retain_loss and retain_, forget_ and test_accuracy.

    Args:
        setting: what stays fixed.
        x, y: name of a field of `setting` and its values. Along y the mean-square growth must be
            convex or monotone, as it is in mixing, learning rate and either batch size.
        criterion: the horizon and the events.
        seeds: of data, start, displacement and batches; one network per cell and seed.
        device: where the networks are trained and unlearned.

    Raises:
        ValueError: for values that a network, the update or the criterion rejects.
        NotInterpolated: where training stalls.
    """
    grid = [replace(setting, **{x[0]: a, y[0]: b}) for a, b in product(x[1], y[1])]
    cells = [cell for cell in grid for _ in seeds]
    networks = trained_networks(cells, list(seeds) * len(grid), device)
    updates = [CellUpdate.of(*pair) for pair in zip(cells, networks.curvatures, strict=True)]
    shape = len(x[1]), len(y[1]), len(seeds)
    columns = {
        "mean": [mean(update, criterion) for update in updates],
        "mean_square": mean_square_along(updates, shape, criterion),
        **_sampled_columns(networks, updates, criterion, seeds[0]),
    }
    axes = {name: [getattr(cell, name) for cell in cells] for name in (x[0], y[0])}
    return pd.DataFrame({**axes, "seed": list(seeds) * len(grid), **columns})


def _sampled_columns(
    networks: Networks, updates: list[CellUpdate], criterion: Criterion, seed: int
) -> dict[str, np.ndarray]:
    """Predicted and measured by runs, in the order of the cells."""
    # Runs that take equally long to decide stand together, as a chunk lasts as long as its last.
    hurry = [abs(mean(update, replace(criterion, asymptotic=True))) for update in updates]
    order = np.argsort(hurry, kind="stable")
    networks, updates = networks[order], [updates[k] for k in order]
    columns = {
        **typical(networks.fit, updates, criterion, seed),
        **_measured_columns(networks, updates, criterion, seed),
    }
    return {name: column[np.argsort(order)] for name, column in columns.items()}


def _measured_columns(
    networks: Networks, updates: list[CellUpdate], criterion: Criterion, seed: int
) -> dict[str, Any]:
    common = networks.fit, updates, criterion, seed, criterion.forget_loss
    reshuffle = updates[0].setting.reshuffle
    path = follow(ascent_descent, *common, reshuffle=reshuffle)
    twin = follow(linearised, *common, reshuffle=reshuffle)
    forget_step = _first(path.forget_loss >= criterion.forget_loss)
    columns = {
        "escape_step": _first(path.distance >= criterion.growth),
        "twin_step": _first(twin.distance >= criterion.growth),
        "forget_step": forget_step,
        "twin_forget_step": _first(twin.forget_loss >= criterion.forget_loss),
        "largest": path.distance.amax(0).log10(),
        "last": path.distance[-1].log10(),
        "retain_loss": torch.where(forget_step.isfinite(), path.retain_loss[-1], math.nan),
    }
    rows = [
        _accuracies(path, k, fresh, updates[k].setting.forget) if math.isfinite(step) else _NONE
        for k, (step, fresh) in enumerate(zip(forget_step.tolist(), networks.fresh, strict=True))
    ]
    names = ("retain_accuracy", "forget_accuracy", "test_accuracy")
    accuracies = dict(zip(names, np.array(rows).T, strict=True))
    return {**{name: column.numpy() for name, column in columns.items()}, **accuracies}


def _first(reached: Tensor) -> Tensor:
    """First step at which each entry (steps+1, b) is True, ∞ if none."""
    return torch.where(reached.any(0), reached.int().argmax(0).double(), math.inf)


def _accuracies(
    path: Trajectory, entry: int, fresh: SignalNoise, forget: Tensor
) -> tuple[float, float, float]:
    """Shares that the last weights get right: of the retain set, the forget set, fresh samples."""
    data, network = path.start.fit.datasets[entry], TwoLayerCNN(path.weights_of(entry))
    with torch.no_grad():
        right, test = ((network(part.patches) * part.labels > 0).double() for part in (data, fresh))
    return float(right[~forget].mean()), float(right[forget].mean()), float(test.mean())
