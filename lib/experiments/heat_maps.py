"""Heat maps of CNN unlearning: real networks beside what their Gram matrix at w* predicts.

A map varies two fields of a `Cell`. Every cell has one network per seed, trained and then
unlearned by ascent–descent; the predictions see that network's curvature Gram matrix and no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.checks import require_axis, require_items, require_kind, require_seed
from lib.cnn.data import SignalNoise
from lib.cnn.network import TwoLayerCNN
from lib.cnn.unlearning import Trajectory, ascent_descent, linearised
from lib.experiments.predictions import follow, mean, mean_square_along, typical
from lib.experiments.settings import (
    Cell,
    Criterion,
    Network,
    Networks,
    TrainedCell,
    Update,
    trained_networks,
)

_NOT_FORGOTTEN = dict.fromkeys(("retain_accuracy", "forget_accuracy", "test_accuracy"), math.nan)


def heat_map(
    cell: Cell,
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
        cell: network and update, of which all else stays fixed.
        x, y: name of a field of either and its values. Along y the mean-square growth must be
            convex or monotone, as it is in mixing, learning rate and either batch size.
        criterion: the horizon and the events.
        seeds: of data, start, displacement and batches; one network per cell and seed.
        device: where the networks are trained and unlearned.

    Raises:
        ValueError: for values that a network, the update or the criterion rejects.
        NotInterpolated: where training stalls.
    """
    require_kind("cell", cell, Cell)
    require_kind("criterion", criterion, Criterion)
    names = [f.name for kind in (Network, Update) for f in fields(kind)]
    x, y = require_axis("x", x, names), require_axis("y", y, names)
    seeds = [require_seed(seed, "seeds: every seed") for seed in require_items("seeds", seeds)]
    places = [{x[0]: a, y[0]: b, "seed": s} for a, b, s in product(x[1], y[1], seeds)]
    grid = [cell.varied(**{x[0]: a, y[0]: b}) for a, b, _ in product(x[1], y[1], seeds)]
    networks = trained_networks(
        [one.network for one in grid], [place["seed"] for place in places], device
    )
    cells = [TrainedCell(*pair) for pair in zip(grid, networks.curvatures, strict=True)]
    shape = len(x[1]), len(y[1]), len(seeds)
    columns = {
        "mean": [mean(at, criterion) for at in cells],
        "mean_square": mean_square_along(cells, shape, criterion),
        **_sampled_columns(networks, cells, criterion, seeds[0]),
    }
    return pd.DataFrame(places).assign(**columns)


def _sampled_columns(
    networks: Networks, cells: list[TrainedCell], criterion: Criterion, seed: int
) -> dict[str, np.ndarray]:
    """Predicted and measured by runs, in the order of the cells."""
    # Runs that take equally long to decide stand together, as a chunk lasts as long as its last.
    hurry = [abs(mean(at, replace(criterion, asymptotic=True))) for at in cells]
    order = np.argsort(hurry, kind="stable")
    networks, cells = networks[order], [cells[k] for k in order]
    columns = {
        **typical(networks.fit, cells, criterion, seed),
        **_measured_columns(networks, cells, criterion, seed),
    }
    return {name: column[np.argsort(order)] for name, column in columns.items()}


def _measured_columns(
    networks: Networks, cells: list[TrainedCell], criterion: Criterion, seed: int
) -> dict[str, Any]:
    common = networks.fit, cells, criterion, seed, criterion.forget_loss
    reshuffle = cells[0].cell.update.reshuffle
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
    forget = cells[0].cell.network.forget
    accuracies = [
        _accuracies(path, k, networks.fresh[k], forget) if math.isfinite(step) else _NOT_FORGOTTEN
        for k, step in enumerate(forget_step.tolist())
    ]
    shares = {name: np.array([row[name] for row in accuracies]) for name in _NOT_FORGOTTEN}
    return {name: column.numpy() for name, column in columns.items()} | shares


def _first(reached: Tensor) -> Tensor:
    """First step at which each entry (steps+1, b) is True, ∞ if none."""
    return torch.where(reached.any(0), reached.int().argmax(0).double(), math.inf)


def _accuracies(
    path: Trajectory, entry: int, fresh: SignalNoise, forget: Tensor
) -> dict[str, float]:
    """Shares that the last weights get right: of the retain set, the forget set, fresh samples."""
    data, network = path.start.fit.datasets[entry], TwoLayerCNN(path.weights_of(entry))
    with torch.no_grad():
        right, test = ((network(part.patches) * part.labels > 0).double() for part in (data, fresh))
    parts = {"retain": right[~forget], "forget": right[forget], "test": test}
    return {f"{name}_accuracy": float(part.mean()) for name, part in parts.items()}
