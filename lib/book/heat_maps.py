"""The heat-map chapter's maps as tasks: what they vary and how large they are.

`lib.book.stored` runs, stores and reads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from lib.book.rounding import rounded
from lib.experiments import resistance_runs
from lib.experiments.heat_maps import heat_map
from lib.experiments.settings import Cell, Criterion, Network, Update


@dataclass(frozen=True, kw_only=True)
class Size:
    """Cells along an axis (mixing, SNR, …; batch sizes are all taken where fewer), and efforts.

    least_cells: of a map; one with few batch sizes has more columns to make up for it. seeds,
    damped_seeds: networks per cell of the undamped and of the damped maps; a finite horizon leaves
    more to the luck of a start. steps, damped_steps: their horizons; damped maps over the learning
    rate have three times as many. multiples: cells along both axes of the maps of other networks.
    """

    columns: int
    rows: int
    seeds: int
    damped_seeds: int
    linear_runs: int
    steps: int
    damped_steps: int
    multiples: int
    resistance_seeds: int
    least_cells: int = 0


FULL = Size(
    columns=33,
    rows=31,
    seeds=9,
    damped_seeds=5,
    linear_runs=2,
    steps=400,
    damped_steps=2000,
    multiples=17,
    resistance_seeds=20,
    least_cells=1000,
)
LIVE = Size(
    columns=21,
    rows=21,
    seeds=3,
    damped_seeds=3,
    linear_runs=1,
    steps=120,
    damped_steps=200,
    multiples=7,
    resistance_seeds=4,
)
DAMPING_SHARE = 0.1
TRAINING_LOSSES = (0.1, 0.01, 0.001)
MULTIPLES = {
    "filters": (3, 10, 40),
    "init_scale": (0.001, 0.01, 0.1),
    "dim": (100, 400, 1600),
}


@dataclass(frozen=True)
class MapTask:
    """One call of `heat_map`, or one per column with networks of its own.

    own_networks: where neither axis changes the networks, `seeds` of them would stand behind the
    whole map, and one that is at its frontier along a row would be a coin tossed in every column.
    """

    cell: Cell
    x: tuple[str, list[Any]]
    y: tuple[str, list[Any]]
    criterion: Criterion
    seeds: int
    own_networks: bool = False

    @property
    def cost(self) -> float:
        """Updates, at most."""
        return len(self.x[1]) * len(self.y[1]) * self.seeds * self.criterion.steps

    def parameters(self) -> dict[str, Any]:
        """All that the result depends on but the code, as JSON."""
        return asdict(self)

    def table(self, device: str | None) -> pd.DataFrame:
        """Compute the map."""
        columns = [[value] for value in self.x[1]] if self.own_networks else [self.x[1]]
        parts = [
            heat_map(
                self.cell,
                (self.x[0], column),
                self.y,
                criterion=self.criterion,
                seeds=range(number * self.seeds, (number + 1) * self.seeds),
                device=device,
            )
            for number, column in enumerate(columns)
        ]
        return rounded(pd.concat(parts, ignore_index=True))


@dataclass(frozen=True)
class ResistanceTask:
    """One call of `resistance`: full batches just inside the retain set's own stability edge."""

    snrs: list[float]
    seeds: int
    network: Network
    update: Update
    criterion: Criterion

    @property
    def cost(self) -> float:
        """Updates, at most."""
        return len(self.snrs) * self.seeds * self.criterion.steps

    def parameters(self) -> dict[str, Any]:
        """All that the result depends on but the code, as JSON."""
        return asdict(self)

    def table(self, device: str | None) -> pd.DataFrame:
        """One row per SNR and seed."""
        found = resistance_runs.resistance(
            self.snrs,
            seeds=self.seeds,
            network=self.network,
            update=self.update,
            criterion=self.criterion,
        )
        rows = pd.MultiIndex.from_product([self.snrs, range(self.seeds)], names=["snr", "seed"])
        columns = {name: column.flatten().numpy() for name, column in vars(found).items()}
        return rounded(pd.DataFrame(columns, index=rows).reset_index())


def published() -> Mapping[str, MapTask | ResistanceTask]:
    """The stored results' tasks, by name."""
    return tasks(FULL)


def tasks(size: Size, base: Network | None = None) -> dict[str, MapTask | ResistanceTask]:
    """Every result of the chapter, by name; `base` holds the network's sizes."""
    base = base or Network()
    undamped = Criterion(steps=size.steps, linear_runs=size.linear_runs)
    maps = _undamped_maps(size, Cell(base), undamped)
    found: dict[str, MapTask | ResistanceTask] = {}
    for name, task in maps.items():
        found |= {name: task, f"{name}_damped": _damped(task, size)}
    batches, fewer = maps["retain_batch"], replace(maps["mixing"], seeds=size.damped_seeds)
    found["reshuffled"] = replace(batches, cell=batches.cell.varied(reshuffle=True))
    found |= _logistic(fewer) | _multiples(fewer, size)
    found["resistance"] = ResistanceTask(
        _snrs(13)[1],
        size.resistance_seeds,
        base,
        replace(resistance_runs.UPDATE, learning_rate_share=0.95),
        resistance_runs.CRITERION,
    )
    return found


def _damped(task: MapTask, size: Size) -> MapTask:
    """The same map with damping, where what counts is growth in the long run."""
    # The slowest growth that can be told from none is that of the smallest learning rate.
    slow = 3 if task.x[0] == "learning_rate_share" else 1
    patient = replace(task.criterion, steps=slow * size.damped_steps, growth=10.0, asymptotic=True)
    held = task.cell.varied(damping_share=DAMPING_SHARE)
    return replace(task, cell=held, criterion=patient, seeds=size.damped_seeds)


def _undamped_maps(size: Size, base: Cell, criterion: Criterion) -> dict[str, MapTask]:
    """The chapter's four kinds of map; the last at three SNRs."""
    n_retain, n_forget = base.network.n_retain, base.network.n_forget
    batch_rows = _batches(size.rows, n_retain)
    many = max(size.columns, math.ceil(size.least_cells / len(batch_rows)))
    mixing = _mixings(size.rows)
    shares = "learning_rate_share", np.linspace(0.1, 1.1, size.columns).round(4).tolist()
    task = partial(MapTask, criterion=criterion, seeds=size.seeds)
    calm = base.varied(learning_rate_share=0.25, retain_batch=n_retain // 2)
    brisk = base.varied(mixing=0.02, forget_batch=n_forget)
    equal = base.varied(n_forget=n_retain, snr=2.0, learning_rate_share=0.8, retain_batch=n_retain)
    many_mixings = "mixing", np.geomspace(0.05, 0.8, many).round(4).tolist()
    maps = {
        "mixing": task(calm, _snrs(size.columns), mixing),
        "retain_batch": task(brisk, _snrs(many), ("retain_batch", batch_rows)),
        "forget_batch": task(equal, ("forget_batch", batch_rows), many_mixings, own_networks=True),
    }
    for level, ratio in (("low", 0.1), ("middle", 0.5), ("high", 2.0)):
        third = base.varied(snr=ratio, retain_batch=n_retain // 3)
        maps[f"learning_rate_{level}"] = task(third, shares, mixing)
    return maps


def _snrs(count: int) -> tuple[str, list[float]]:
    return "snr", np.geomspace(0.05, 5, count).round(4).tolist()


def _mixings(count: int) -> tuple[str, list[float]]:
    return "mixing", np.geomspace(0.005, 0.8, count).round(5).tolist()


def _batches(count: int, largest: int) -> list[int]:
    """Every batch size up to the whole set, or `count` of them."""
    if largest <= count:
        return list(range(1, largest + 1))
    return sorted({round(b) for b in np.linspace(1, largest, count).tolist()})


def _logistic(mixing: MapTask) -> dict[str, MapTask]:
    """The mixing map after logistic training to different losses; f = 0 is a loss of log 2."""
    criterion = replace(mixing.criterion, displacement=1e-3, forget_loss=math.log(2))
    cells = {
        loss: mixing.cell.varied(loss="logistic", training_loss=loss) for loss in TRAINING_LOSSES
    }
    return {
        f"logistic_{loss:g}": replace(mixing, cell=cell, criterion=criterion)
        for loss, cell in cells.items()
    }


def _multiples(mixing: MapTask, size: Size) -> dict[str, MapTask]:
    """Coarser mixing maps of other networks, one thing changed at a time."""
    coarse = replace(mixing, x=_snrs(size.multiples), y=_mixings(size.multiples))
    others = {
        f"{name}_{value:g}": replace(coarse, cell=mixing.cell.varied(**{name: value}))
        for name, values in MULTIPLES.items()
        for value in values
        if value != getattr(mixing.cell.network, name)
    }
    return {"reference": coarse, **others}
