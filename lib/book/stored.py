"""Results that a chapter reads rather than computes: brought up to date, read, or computed live.

A chapter's task module (`lib.book.heat_maps`, say) says what its tables are, and is all that they
depend on: their code hash is its, and does not see this machinery. `python -m lib.book.stored`
recomputes what is missing, damaged or stale, of all chapters or of `[chapter [names …]]`.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import joblib
import pandas as pd
import torch

from lib import store

RESULTS = Path(__file__).resolve().parents[2] / "book" / "results"
CHAPTERS = (
    "heat_maps",
    "benign_overfitting",
    "tangent_model",
    "your_model",
    "your_model_again",
    "plan_samples",
    "deletion",
)
SCALES = ("stored", "live", "full")
Scale = Literal["stored", "live", "full"]


class Task(Protocol):
    """Something whose table is worth storing; cost, in any unit, lets the longest begin first."""

    @property
    def cost(self) -> float:
        """How long it takes, roughly."""

    def parameters(self) -> dict[str, Any]:
        """All that the table depends on but the code, as JSON."""

    def table(self, device: str | None) -> pd.DataFrame:
        """Compute it."""


def code_of(chapter: ModuleType) -> str:
    """The code hash of a task module's results."""
    return store.code_hash(Path(str(chapter.__file__)))


def folder_of(chapter: ModuleType) -> Path:
    """Where a task module's results are stored."""
    return RESULTS / chapter.__name__.rpartition(".")[2]


def results(
    chapter: ModuleType,
    scale: Scale,
    published: Mapping[str, Task],
    live: Mapping[str, Task],
) -> dict[str, store.Result]:
    """A chapter's tables by name, each with its provenance.

    Args:
        chapter: its task module.
        scale: "stored" reads the published results, and computes live where this installation
            holds none; "live" computes; "full" computes and stores those published ones that are
            missing, damaged or stale.
        published, live: the tasks of either.

    Raises:
        StaleResult, DamagedResult, MissingResult: stored results that are not what this code and
            these parameters give, so that a page cannot show them.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be 'stored', 'live' or 'full', got {scale!r}")
    folder, code = folder_of(chapter), code_of(chapter)
    if scale == "stored" and not folder.is_dir():
        warnings.warn("no stored results in this installation: computing live", stacklevel=2)
        scale = "live"
    if scale == "live":
        return compute(live, code)
    if scale == "full":
        bring_up_to_date(published, folder, code)
    return read(published, folder, code)


def present(chapter: ModuleType) -> dict[str, store.Result]:
    """Those of a chapter's `long` results that are stored: they are computed only when named.

    Raises:
        StaleResult, DamagedResult: from `lib.store.read`.
    """
    folder = folder_of(chapter)
    there = {
        name: task for name, task in chapter.long().items() if (folder / f"{name}.json").exists()
    }
    return read(there, folder, code_of(chapter))


def stored_or_live(chapter: ModuleType, name: str, task: Task) -> store.Result:
    """One result, read where it is stored with the task's parameters, computed where it is not.

    Raises:
        StaleResult, DamagedResult: what is stored is of other code, or damaged.
    """
    code = code_of(chapter)
    try:
        found = store.read(folder_of(chapter) / name, code=code)
    except store.MissingResult:
        found = None
    if found is None or found.provenance.parameters != task.parameters():
        found = compute({name: task}, code)[name]
    return found


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
    table = task.table(device)
    seconds, parameters = time.perf_counter() - begin, task.parameters()
    where = torch.cuda.get_device_name() if device else None
    if folder is None:
        live = store.Provenance(parameters, code, {}, where or "here", seconds, None, None)
        return name, store.Result(table, live)
    store.save(
        folder / name, table, parameters=parameters, code=code, seconds=seconds, device=where
    )
    return name, store.read(folder / name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Bring stored results up to date: all published, a chapter's, or those named, `long` too."""
    parser = argparse.ArgumentParser(prog="python -m lib.book.stored", description=main.__doc__)
    parser.add_argument("chapter", nargs="?", choices=CHAPTERS, help="default: all")
    parser.add_argument("names", nargs="*", help="default: all of the chapter's")
    given = parser.parse_args(arguments)
    for name in [given.chapter] if given.chapter else CHAPTERS:
        chapter = import_module(f"lib.book.{name}")
        tasks = chapter.published()
        known = {**tasks, **getattr(chapter, "long", dict)()}
        if unknown := {*given.names} - {*known}:
            parser.error(f"names must be among {', '.join(known)}, got {', '.join(unknown)}")
        wanted = {key: known[key] for key in given.names or tasks}
        for key, result in results(chapter, "full", wanted, {}).items():
            print(f"{name}/{key}: {len(result.table)} rows, {result.provenance.stamp}")


if __name__ == "__main__":
    main()
