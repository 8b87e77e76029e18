"""The benign-overfitting chapter's full map, stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lib import store
from lib.book import stored as stored_results
from lib.experiments.benign_overfitting import ErrorMap, error_map

FOLDER = stored_results.RESULTS / "benign_overfitting"
SOURCE = Path(__file__).resolve().parents[1] / "experiments" / "benign_overfitting.py"


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
        """One row per cell: signal_norm, dim, test_error, train_loss."""
        found = error_map(
            self.signal_norms.tolist(),
            self.dims.tolist(),
            repeats=self.repeats,
            seed=self.seed,
            device=device,
        )
        columns = len(self.signal_norms)
        return pd.DataFrame(
            {
                "dim": np.repeat(self.dims, columns),
                "signal_norm": np.tile(self.signal_norms, len(self.dims)),
                "test_error": found.test_error.flatten().cpu().numpy(),
                "train_loss": found.train_loss.flatten().cpu().numpy(),
            }
        )


def map_of(task: BenignTask) -> tuple[ErrorMap, store.Provenance]:
    """The map, read where it is stored with the task's parameters, computed live where it is not.

    Raises:
        StaleResult, DamagedResult: a stored map of these parameters is of other code, or damaged.
    """
    code = store.code_hash(SOURCE)
    try:
        result = store.read(FOLDER / "map", code=code)
    except store.MissingResult:
        result = None
    if result is None or result.provenance.parameters != task.parameters():
        result = stored_results.compute({"map": task}, code)["map"]
    shape = len(task.dims), len(task.signal_norms)
    error, loss = (
        torch.from_numpy(result.table[name].to_numpy().reshape(shape).copy())
        for name in ("test_error", "train_loss")
    )
    return ErrorMap(error, loss), result.provenance


if __name__ == "__main__":
    stored_results.bring_up_to_date({"map": BenignTask()}, FOLDER, store.code_hash(SOURCE))
