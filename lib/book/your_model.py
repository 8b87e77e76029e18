"""The chapter on plans for one's own model: plans and real runs side by side, as tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from lib.book.rounding import rounded
from lib.experiments.networks import ForgetSet
from lib.experiments.plan_runs import SEEDS, SETS, compare

# Processor seconds a case, relative to the digits MLP.
COSTS = {"conv": 2.0, "head": 2.0, "transformer": 4.0, "resnet_groupnorm": 8.0}


@dataclass(frozen=True)
class PlanTask:
    """`plan_runs.compare` of one family and forget set, seeds one after another."""

    family: str
    forget_set: ForgetSet
    seeds: tuple[int, ...]

    @property
    def cost(self) -> float:
        """In cases of the digits MLP."""
        return len(self.seeds) * COSTS.get(self.family, 1.0)

    def parameters(self) -> dict[str, Any]:
        """All that the table depends on but the code, as JSON."""
        return asdict(self) | {"seeds": list(self.seeds)}

    def table(self, device: str | None) -> pd.DataFrame:
        """One row per method and seed, columns as in `compare`; on the CPU."""
        several = [compare(self.family, self.forget_set, seed) for seed in self.seeds]
        return rounded(pd.concat(several, ignore_index=True))


def published() -> Mapping[str, PlanTask]:
    """The stored results' tasks, by name; together `plan_runs.CASES`."""
    return {
        f"{family}_{forget_set}": PlanTask(family, forget_set, tuple(range(seeds)))
        for family, seeds in SEEDS.items()
        for forget_set in SETS
    }
