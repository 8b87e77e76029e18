"""The deletion chapter: methods under yardsticks, the plane and the paths, as stored tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from lib.book.rounding import rounded
from lib.experiments.deletion_cases import Data, Kind
from lib.experiments.deletion_paths import approach, plane
from lib.experiments.deletion_runs import GRIDS, METHODS, table

# Processor seconds, roughly.
COSTS = {"digits": 60.0, "fashion": 150.0, "resnet": 20_000.0}


@dataclass(frozen=True)
class TableTask:
    """`deletion_runs.table` of one kind of network, data and forget set."""

    data: Data
    kind: Kind
    models: int = 100
    methods: tuple[str, ...] = METHODS
    seed: int = 2

    @property
    def cost(self) -> float:
        """In processor seconds."""
        return COSTS[self.data] * self.models / 100

    def parameters(self) -> dict[str, Any]:
        """All that the table depends on but the code, as JSON."""
        grids = {method: GRIDS.get(method, []) for method in self.methods}
        return asdict(self) | {"methods": grids}

    def table(self, device: str | None) -> pd.DataFrame:
        """Columns as in `deletion_runs.table`; on the CPU."""
        found = table(
            self.data, self.kind, models=self.models, methods=self.methods, seed=self.seed
        )
        return rounded(found)


@dataclass(frozen=True)
class PathTask:
    """`deletion_paths.approach` of one kind of data and forget set."""

    data: Data
    kind: Kind
    seed: int = 2

    @property
    def cost(self) -> float:
        """In processor seconds."""
        return COSTS[self.data] / 3

    def parameters(self) -> dict[str, Any]:
        """All that the table depends on but the code, as JSON."""
        return asdict(self)

    def table(self, device: str | None) -> pd.DataFrame:
        """Columns as in `approach`; on the CPU."""
        return rounded(approach(self.data, self.kind, seed=self.seed))


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
Task = TableTask | PathTask | PlaneTask


def published() -> Mapping[str, Task]:
    """The stored results' tasks, by name."""
    tables = {f"{data}_{kind}": TableTask(data, kind) for data in DATA for kind in KINDS}
    paths = {f"path_{data}_{kind}": PathTask(data, kind) for data in DATA for kind in KINDS}
    return {"plane": PlaneTask(), **tables, **paths}


def hours() -> Mapping[str, TableTask]:
    """The ResNet's tasks: twenty networks, so no KLoM and no U-LiRA; hours each, not published."""
    return {f"resnet_{kind}": TableTask("resnet", kind, models=20) for kind in KINDS}


def live() -> Mapping[str, Task]:
    """Small enough to be computed as the page renders."""
    methods = ("fine-tuning", "NegGrad+ to a loss", "Newton step")
    return {
        "plane": PlaneTask((0.1, 0.5, 2.0), 2),
        "digits_class": TableTask("digits", "class", methods=methods),
        "path_digits_class": PathTask("digits", "class"),
    }
