"""The chapter on plans, a part: a plan from some of the samples, as tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from lib.book.rounding import rounded
from lib.experiments.plan_samples import compare

SIZES = 1000, 2000


@dataclass(frozen=True)
class SamplesTask:
    """`plan_samples.compare` of one number of samples."""

    planned_on: int
    seed: int = 0

    @property
    def cost(self) -> float:
        """Entries of the kernel, roughly."""
        return float(self.planned_on**2)

    def parameters(self) -> dict[str, Any]:
        """All that the table depends on but the code, as JSON."""
        return asdict(self)

    def table(self, device: str | None) -> pd.DataFrame:
        """One row, columns as in `compare`; on the CPU."""
        return rounded(compare(self.planned_on, self.seed))


def published() -> Mapping[str, SamplesTask]:
    """The stored results' tasks, by name."""
    return {f"planned_on_{size}": SamplesTask(size) for size in SIZES}
