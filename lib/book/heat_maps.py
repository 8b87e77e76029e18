"""The heat-map chapter's maps: what they vary, how large they are, and where they are stored.

`python -m lib.book.heat_maps` computes the published ones anew and stores them; `results` gives the
chapter its tables, stored or live.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from lib import store
from lib.book import stored as stored_results
from lib.book.stored import RESULTS, Task
from lib.experiments.heat_maps import Criterion, Setting, heat_map
from lib.experiments.resistance_runs import Experiment, resistance

FOLDER = RESULTS / "heat_maps"
EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
SOURCES = (EXPERIMENTS / "heat_maps.py", EXPERIMENTS / "resistance_runs.py")
Scale = Literal["stored", "live", "full"]


@dataclass(frozen=True)
class Size:
    """Cells along an axis (mixing, SNR, …; batch sizes are all taken where fewer), and efforts.

    seeds, damped_seeds: networks per cell of the undamped and of the damped maps; a finite horizon
    leaves more to the luck of a start. steps, damped_steps: their horizons; damped maps over the
    learning rate have three times as many.
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


FULL = Size(33, 31, 9, 5, 2, 400, 2000, 17, 20)
LIVE = Size(21, 21, 3, 3, 1, 120, 200, 7, 4)
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

    setting: Setting
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
        found = {**asdict(self), "x": list(self.x), "y": list(self.y)}
        if not self.own_networks:
            del found["own_networks"]
        return found

    def table(self, device: str | None) -> pd.DataFrame:
        """Compute the map."""
        columns = [[value] for value in self.x[1]] if self.own_networks else [self.x[1]]
        parts = [
            heat_map(
                self.setting,
                (self.x[0], column),
                self.y,
                criterion=self.criterion,
                seeds=range(number * self.seeds, (number + 1) * self.seeds),
                device=device,
            )
            for number, column in enumerate(columns)
        ]
        return pd.concat(parts, ignore_index=True)


@dataclass(frozen=True)
class ResistanceTask:
    """One call of `resistance`: full batches just inside the retain set's own stability edge."""

    snrs: list[float]
    seeds: int
    experiment: Experiment

    @property
    def cost(self) -> float:
        """Updates, at most."""
        return len(self.snrs) * self.seeds * self.experiment.max_steps

    def parameters(self) -> dict[str, Any]:
        """All that the result depends on but the code, as JSON."""
        return asdict(self)

    def table(self, device: str | None) -> pd.DataFrame:
        """One row per SNR and seed."""
        found = resistance(self.snrs, seeds=self.seeds, experiment=self.experiment)
        columns = {name: getattr(found, name).flatten().numpy() for name in found.__annotations__}
        rows = {
            "snr": np.repeat(self.snrs, self.seeds),
            "seed": np.tile(np.arange(self.seeds), len(self.snrs)),
        }
        return pd.DataFrame({**rows, **columns})


def tasks(size: Size, base: Setting | None = None) -> dict[str, Task]:
    """Every result of the chapter, by name; `base` holds the network's sizes."""
    base = base or Setting()
    undamped = Criterion(steps=size.steps, linear_runs=size.linear_runs)
    damped = replace(undamped, steps=size.damped_steps, growth=10.0, asymptotic=True)
    maps = _map_axes(size, base, undamped)
    found: dict[str, Task] = {}
    for name, task in maps.items():
        held = replace(task.setting, damping_share=DAMPING_SHARE)
        # The slowest growth that can be told from none is that of the smallest learning rate.
        slow = 3 if task.x[0] == "learning_rate_share" else 1
        patient = replace(damped, steps=slow * size.damped_steps)
        found[name] = task
        found[f"{name}_damped"] = replace(
            task, setting=held, criterion=patient, seeds=size.damped_seeds
        )
    batches, mixing = maps["retain_batch"], maps["mixing"]
    found["reshuffled"] = replace(batches, setting=replace(batches.setting, reshuffle=True))
    fewer = replace(mixing, seeds=size.damped_seeds)
    found |= _logistic(fewer) | _multiples(fewer, size)
    found["resistance"] = ResistanceTask(
        _snrs(13)[1],
        size.resistance_seeds,
        Experiment(
            n_retain=base.n_retain,
            n_forget=base.n_forget,
            dim=base.dim,
            filters=base.filters,
            init_scale=base.init_scale,
            learning_rate_share=0.95,
        ),
    )
    return found


def _map_axes(size: Size, base: Setting, criterion: Criterion) -> dict[str, MapTask]:
    """The chapter's four kinds of map, undamped; the last at three SNRs."""
    snr, mixing = _snrs(size.columns), _mixings(size.rows)
    shares = "learning_rate_share", np.linspace(0.1, 1.1, size.columns).round(4).tolist()
    equal = replace(base, n_forget=base.n_retain)

    def task(setting: Setting, x: tuple[str, list], y: tuple[str, list]) -> MapTask:
        return MapTask(setting, x, y, criterion, size.seeds)

    calm = replace(base, learning_rate_share=0.25, retain_batch=base.n_retain // 2)
    brisk = replace(base, mixing=0.02, forget_batch=base.n_forget)
    batch_rows = _batches(size.rows, base.n_retain)
    many = _at_least(size, len(batch_rows))
    many_mixings = "mixing", np.geomspace(0.05, 0.8, many).round(4).tolist()
    maps = {
        "mixing": task(calm, snr, mixing),
        "retain_batch": task(brisk, _snrs(many), ("retain_batch", batch_rows)),
        "forget_batch": replace(
            task(
                replace(equal, snr=2.0, learning_rate_share=0.8, retain_batch=base.n_retain),
                ("forget_batch", batch_rows),
                many_mixings,
            ),
            own_networks=True,
        ),
    }
    for level, ratio in (("low", 0.1), ("middle", 0.5), ("high", 2.0)):
        third = replace(base, snr=ratio, retain_batch=base.n_retain // 3)
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


def _at_least(size: Size, rows: int) -> int:
    """Columns that give a map of so many rows as many cells as the others have."""
    return max(size.columns, math.ceil(1000 / rows)) if size is FULL else size.columns


def _logistic(mixing: MapTask) -> dict[str, MapTask]:
    """The mixing map after logistic training to different losses; f = 0 is a loss of log 2."""
    criterion = replace(mixing.criterion, displacement=1e-3, forget_loss=math.log(2))
    return {
        f"logistic_{loss:g}": replace(
            mixing,
            setting=replace(mixing.setting, loss="logistic", training_loss=loss),
            criterion=criterion,
        )
        for loss in TRAINING_LOSSES
    }


def _multiples(mixing: MapTask, size: Size) -> dict[str, MapTask]:
    """Coarser mixing maps of other networks, one thing changed at a time."""
    coarse = replace(
        mixing,
        x=_snrs(size.multiples),
        y=_mixings(size.multiples),
    )
    varied: dict[str, dict[str, Any]] = {
        f"{name}_{value:g}": {name: value}
        for name, values in MULTIPLES.items()
        for value in values
        if value != getattr(mixing.setting, name)
    }
    others = {
        name: replace(coarse, setting=replace(mixing.setting, **change))
        for name, change in varied.items()
    }
    return {"reference": coarse, **others}


def results(
    scale: Scale = "stored", *, base: Setting | None = None, names: Sequence[str] | None = None
) -> dict[str, store.Result]:
    """The chapter's tables by name, each with its provenance.

    Args:
        scale: "stored" reads the published results, and computes live where this installation
            holds none; "live" computes at `LIVE`; "full" computes and stores those published ones
            that are missing, damaged or stale.
        base: the network's sizes, `Setting()` unless given.
        names: of the results wanted; all unless given.

    Raises:
        StaleResult, DamagedResult, MissingResult: stored results that are not what this code and
            these parameters give, so that a page cannot show them.
    """
    if scale not in ("stored", "live", "full"):
        raise ValueError(f"scale must be 'stored', 'live' or 'full', got {scale!r}")
    if scale == "stored" and not FOLDER.is_dir():
        warnings.warn("no stored results in this installation: computing live", stacklevel=2)
        scale = "live"
    wanted = tasks(LIVE if scale == "live" else FULL, base)
    wanted = {name: wanted[name] for name in names or wanted}
    code = store.code_hash(*SOURCES)
    if scale == "live":
        return stored_results.compute(wanted, code)
    if scale == "full":
        stored_results.bring_up_to_date(wanted, FOLDER, code)
    return stored_results.read(wanted, FOLDER, code)


def main(arguments: Sequence[str] | None = None) -> None:
    """Bring the published results up to date: all of them, or those named."""
    parser = argparse.ArgumentParser(prog="python -m lib.book.heat_maps", description=main.__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *tasks(FULL)], help="default: all")
    chosen = parser.parse_args(arguments).names
    for name, result in results("full", names=chosen or None).items():
        print(f"{name}: {len(result.table)} rows, {result.provenance.stamp}")


if __name__ == "__main__":
    main()
