"""The tangent model's chapter: its real runs and predictions, as tasks to be stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from lib.book.rounding import rounded
from lib.experiments.networks import ForgetSet
from lib.experiments.tangent_runs import LARGE, compare, curvature_path

# Relative to a run of the digits MLP.
COSTS = {
    "conv": 3.0,
    "resnet_groupnorm": 15.0,
    "resnet_batchnorm": 15.0,
    "transformer": 15.0,
}


@dataclass(frozen=True)
class RunsTask:
    """`tangent_runs.compare` of one family and forget set, seeds one after another."""

    family: str
    forget_set: ForgetSet
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def cost(self) -> float:
        """Runs, in those of the digits MLP."""
        return len(self.seeds) * COSTS.get(self.family, 1.0)

    def parameters(self) -> dict[str, Any]:
        """All that the table depends on but the code, as JSON."""
        return asdict(self) | {"seeds": list(self.seeds)}

    def table(self, device: str | None) -> pd.DataFrame:
        """One row per setting and seed, columns as in `compare`; on the CPU."""
        several = [compare(self.family, self.forget_set, seed) for seed in self.seeds]
        return rounded(pd.concat(several, ignore_index=True))


@dataclass(frozen=True)
class PathTask:
    """`tangent_runs.curvature_path` of one family, forget set and seed."""

    family: str = "mlp"
    forget_set: ForgetSet = "class"
    seed: int = 0

    @property
    def cost(self) -> float:
        """In runs of the digits MLP."""
        return 1.0

    def parameters(self) -> dict[str, Any]:
        """All that the table depends on but the code, as JSON."""
        return asdict(self)

    def table(self, device: str | None) -> pd.DataFrame:
        """Columns as in `curvature_path`; on the CPU."""
        return rounded(curvature_path(self.family, self.forget_set, self.seed))


SETS: tuple[ForgetSet, ...] = ("random", "class")
SMALL = ("mlp", "conv", "lora", "head")


def published() -> Mapping[str, RunsTask | PathTask]:
    """The stored results' tasks, by name."""
    runs = {
        f"{family}_{forget_set}": RunsTask(family, forget_set)
        for family in (*SMALL, *LARGE)
        for forget_set in SETS
    }
    return {**runs, "curvature": PathTask()}
