"""The deletion chapter: methods under yardsticks, the plane and the paths, as stored tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from lib.book.rounding import rounded
from lib.experiments.deletion_cases import Data, Kind
from lib.experiments.deletion_paths import (
    MIXINGS,
    MODELS,
    RATES,
    RETRAINED,
    approach,
    courses,
    plane,
)
from lib.experiments.deletion_runs import DEEP, GRIDS, METHODS, TUNED_ON, table

# Processor seconds of a hundred networks, roughly.
COSTS = {"digits": 60.0, "fashion": 110.0, "resnet": 4500.0}


@dataclass(frozen=True)
class TableTask:
    """`deletion_runs.table` of one kind of network, data and forget set.

    grids: of the methods that are to have another than `GRIDS` gives them.
    """

    data: Data
    kind: Kind
    models: int = 100
    methods: Sequence[str] = METHODS
    grids: Mapping[str, list[dict[str, float]]] | None = None
    tuned_on: int = TUNED_ON
    seed: int = 2

    @property
    def cost(self) -> float:
        """In processor seconds."""
        return COSTS[self.data] * self.models / 100

    def parameters(self) -> dict[str, Any]:
        """All that the table depends on but the code, as JSON."""
        grids = GRIDS | dict(self.grids or {})
        given = asdict(self) | {"methods": {name: grids.get(name, []) for name in self.methods}}
        return {name: value for name, value in given.items() if name != "grids"}

    def table(self, device: str | None) -> pd.DataFrame:
        """Columns as in `deletion_runs.table`; on the CPU."""
        found = table(
            self.data,
            self.kind,
            models=self.models,
            methods=tuple(self.methods),
            grids=GRIDS | dict(self.grids or {}),
            tuned_on=self.tuned_on,
            seed=self.seed,
        )
        return rounded(found)


@dataclass(frozen=True)
class PathTask:
    """`deletion_paths.approach` of one kind of data and forget set."""

    data: Data
    kind: Kind
    models: int = MODELS
    retrained: int = RETRAINED
    mixings: tuple[float, ...] = MIXINGS
    rates: tuple[float, ...] = RATES
    seed: int = 2

    @property
    def cost(self) -> float:
        """In processor seconds."""
        return COSTS[self.data] / 7

    def parameters(self) -> dict[str, Any]:
        """All that the table depends on but the code, as JSON."""
        return asdict(self) | {"mixings": list(self.mixings), "rates": list(self.rates)}

    def table(self, device: str | None) -> pd.DataFrame:
        """Columns as in `approach`; on the CPU."""
        return rounded(approach(**asdict(self)))


@dataclass(frozen=True)
class CourseTask:
    """`deletion_paths.courses` of one kind of data and forget set."""

    data: Data
    kind: Kind
    seed: int = 2

    @property
    def cost(self) -> float:
        """In processor seconds."""
        return COSTS[self.data] / 6

    def parameters(self) -> dict[str, Any]:
        """All that the table depends on but the code, as JSON."""
        return asdict(self)

    def table(self, device: str | None) -> pd.DataFrame:
        """Columns as in `courses`; on the CPU."""
        return rounded(courses(**asdict(self)))


@dataclass(frozen=True)
class PlaneTask:
    """`deletion_paths.plane` over signal-to-noise ratios."""

    snrs: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 5.0)
    seeds: int = 5

    @property
    def cost(self) -> float:
        """In processor seconds."""
        return 1.0 * self.seeds * len(self.snrs)

    def parameters(self) -> dict[str, Any]:
        """All that the table depends on but the code, as JSON."""
        return asdict(self) | {"snrs": list(self.snrs)}

    def table(self, device: str | None) -> pd.DataFrame:
        """Columns as in `plane`; on the CPU."""
        return rounded(plane(self.snrs, self.seeds))


KINDS: tuple[Kind, ...] = ("random", "class", "memorised")
DATA: tuple[Data, ...] = ("digits", "fashion")
Task = TableTask | PathTask | CourseTask | PlaneTask


def published() -> Mapping[str, Task]:
    """The stored results' tasks, by name."""
    tables = {f"{data}_{kind}": TableTask(data, kind) for data in DATA for kind in KINDS}
    paths = {f"path_{data}_{kind}": PathTask(data, kind) for data in DATA for kind in KINDS}
    ways = {f"course_{data}_{kind}": CourseTask(data, kind) for data in DATA for kind in KINDS}
    return {"plane": PlaneTask(), **tables, **paths, **ways}


def long() -> Mapping[str, Task]:
    """The GroupNorm ResNet's tasks: computed when named, shown where they are stored.

    Twenty networks, so neither KLoM nor U-LiRA; each method's twelve settings on two networks; no
    Newton step and no plan; for the closest approach two networks, nine settings and ten retrained
    ones. Fixed before the first run: half an hour of one processor a table.
    """
    tables = {
        f"resnet_{kind}": TableTask("resnet", kind, models=20, methods=DEEP, tuned_on=2)
        for kind in KINDS
    }
    paths = {
        f"path_resnet_{kind}": PathTask(
            "resnet", kind, models=2, retrained=10, rates=(0.01, 0.03, 0.1)
        )
        for kind in KINDS
    }
    return {**tables, **paths}


def live() -> Mapping[str, Task]:
    """Small enough to be computed as the page renders."""
    methods = ("fine-tuning", "NegGrad+ to a loss", "Newton step")
    return {
        "plane": PlaneTask((0.1, 0.5, 2.0), 2),
        "digits_class": TableTask("digits", "class", methods=methods),
        "path_digits_class": PathTask("digits", "class"),
    }
