"""The benign-overfitting chapter's full map, as a task to be stored (`lib.book.stored`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from lib.book.rounding import rounded
from lib.experiments.benign_overfitting import ErrorMap, error_map


@dataclass(frozen=True)
class BenignTask:
    """One call of `benign_overfitting.error_map`, with the published map's grid by default.

    Signal norms 0, norm_step, … below 10; dimensions 100, 100 + dim_step, … below 1100.
    """

    norm_step: float = 0.1
    dim_step: int = 10
    repeats: int = 10
    seed: int = 0

    @property
    def signal_norms(self) -> np.ndarray:
        """Along the map's columns."""
        return np.arange(round(10 / self.norm_step)) * self.norm_step

    @property
    def dims(self) -> np.ndarray:
        """Along its rows."""
        return np.arange(100, 1100, self.dim_step)

    @property
    def cost(self) -> float:
        """Networks."""
        return len(self.signal_norms) * len(self.dims) * self.repeats

    def parameters(self) -> dict[str, Any]:
        """All that the map depends on but the code, as JSON."""
        return asdict(self)

    def table(self, device: str | None) -> pd.DataFrame:
        """One row per cell: dim, signal_norm, test_error, train_loss."""
        norms, dims = self.signal_norms, self.dims
        found = error_map(
            norms.tolist(), dims.tolist(), repeats=self.repeats, seed=self.seed, device=device
        )
        cells = {"dim": np.repeat(dims, len(norms)), "signal_norm": np.tile(norms, len(dims))}
        columns = {name: means.flatten().cpu().numpy() for name, means in vars(found).items()}
        return rounded(pd.DataFrame({**cells, **columns}))

    def error_map(self, table: pd.DataFrame) -> ErrorMap:
        """The map in a table."""
        shape = len(self.dims), len(self.signal_norms)
        columns = (table[name].to_numpy(copy=True) for name in ("test_error", "train_loss"))
        return ErrorMap(*(torch.from_numpy(column).view(shape) for column in columns))


def published() -> Mapping[str, BenignTask]:
    """The stored results' tasks, by name."""
    return {"map": BenignTask()}
