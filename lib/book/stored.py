"""Results that a chapter reads rather than computes: brought up to date, read, or computed live."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import joblib
import pandas as pd
import torch

from lib import store

RESULTS = Path(__file__).resolve().parents[2] / "book" / "results"


class Task(Protocol):
    """Something whose table is worth storing; cost, in any unit, lets the longest begin first."""

    @property
    def cost(self) -> float:
        """How long it takes, roughly."""

    def parameters(self) -> dict[str, Any]:
        """All that the table depends on but the code, as JSON."""

    def table(self, device: str | None) -> pd.DataFrame:
        """Compute it."""


def read(tasks: Mapping[str, Task], folder: Path, code: str) -> dict[str, store.Result]:
    """The stored results of all tasks.

    Raises:
        StaleResult, DamagedResult, MissingResult: from `lib.store.read`.
    """
    return {
        name: store.read(folder / name, parameters=task.parameters(), code=code)
        for name, task in tasks.items()
    }


def bring_up_to_date(tasks: Mapping[str, Task], folder: Path, code: str) -> list[str]:
    """Compute and store what is missing, damaged or stale; the names of these."""
    invalid = {
        name: task for name, task in tasks.items() if not _is_valid(folder / name, task, code)
    }
    compute(invalid, code, folder)
    return list(invalid)


def compute(
    tasks: Mapping[str, Task], code: str, folder: Path | None = None
) -> dict[str, store.Result]:
    """Compute all, one process per processor or on the GPU there is; store them in a folder."""
    device = "cuda" if torch.cuda.is_available() else None
    workers = 1 if device else joblib.cpu_count()
    order = sorted(tasks, key=lambda name: -tasks[name].cost)
    jobs = (joblib.delayed(_one)(name, tasks[name], code, folder, device) for name in order)
    done = dict(joblib.Parallel(n_jobs=workers, batch_size=1)(jobs))
    return {name: done[name] for name in tasks}


def _is_valid(stem: Path, task: Task, code: str) -> bool:
    try:
        store.read(stem, parameters=task.parameters(), code=code)
    except (store.MissingResult, store.DamagedResult, store.StaleResult):
        return False
    return True


def _one(
    name: str, task: Task, code: str, folder: Path | None, device: str | None
) -> tuple[str, store.Result]:
    torch.set_num_threads(1)  # in a worker process of its own; the same digits for any number
    begin = time.perf_counter()
    table = _rounded(task.table(device))
    seconds, parameters = time.perf_counter() - begin, task.parameters()
    where = torch.cuda.get_device_name() if device else None
    if folder is None:
        live = store.Provenance(parameters, code, {}, where or "here", seconds, None, "now")
        return name, store.Result(table, live)
    store.save(
        folder / name, table, parameters=parameters, code=code, seconds=seconds, device=where
    )
    return name, store.read(folder / name)


def _rounded(table: pd.DataFrame) -> pd.DataFrame:
    """Five significant digits: the rest is not looked at, and would fill the repository."""
    numbers = table.select_dtypes("float64")
    return table.assign(
        **{str(name): [float(f"{v:.5g}") for v in numbers[name]] for name in numbers}
    )
