"""The loop of a sweep: claim a point, run it, store what it gave, go on whatever happens."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from lib import store
from lib.store.files import locked, remove_leftovers, replace_files
from lib.sweep.point import (
    CodeChanged,
    attested,
    failure,
    remove_dead_folders,
    require_same,
    run_point,
)
from lib.sweep.points import Plan, Point, file_hash
from lib.sweep.pools import Pool

POLL = 0.2  # seconds between looks at points that another sweep is computing
LOOK = 5.0  # and between looks at whether there are workers still
LINES = 20  # of progress where no terminal shows a bar


@dataclass
class Summary:
    """How a sweep ended; `failed` maps a point's stem to its error in one line."""

    points: int
    computed: int = 0
    reused: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every point has a result."""
        return self.computed + self.reused == self.points


@dataclass
class _Run:
    plan: Plan
    folder: Path
    pool: Pool
    notebooks: str | None
    execute: Callable[..., dict[str, Any]]
    summary: Summary
    progress: tqdm
    running: dict[Future, tuple[Point, ExitStack]] = field(default_factory=dict)
    # In flight when a worker died: run one at a time, to see which of them kills workers.
    suspects: set[str] = field(default_factory=set)
    done: int = 0

    def stem(self, point: Point) -> Path:
        return self.folder / self.plan.stem(point)

    def all_points(self) -> None:
        waiting = deque(self.plan.points)
        while waiting or self.running:
            others = self.start(waiting)
            if self.running:
                done, _ = wait(self.running, POLL if others else LOOK, FIRST_COMPLETED)
                if not done:
                    _ = self.pool.width  # raises if there is nobody to wait for
                for future in done:
                    self.collect(future, waiting)
            elif others:
                time.sleep(POLL)

    def start(self, waiting: deque[Point]) -> int:
        """Fill the pool; returns how many waiting points another sweep holds."""
        others = 0
        while others < len(waiting) and len(self.running) < (
            1 if self.suspects else self.pool.width
        ):
            point = waiting.popleft()
            lock = self.folder / f".{self.plan.stem(point)}.running"
            if not lock.exists() and self.is_finished(point):  # the folder may be read-only
                self.advance(reused=1)
                continue
            with ExitStack() as claim:
                mine = locked(lock, wait=False)
                if not claim.enter_context(mine):
                    waiting.append(point)
                    others += 1
                elif self.is_finished(point):
                    self.advance(reused=1)
                else:
                    self.running[self.submit(point)] = point, claim.pop_all()
        return others

    def advance(self, reused: int = 0) -> None:
        """One point more is done: move the bar or, in a log, print a line now and then."""
        self.summary.reused += reused
        self.progress.update()
        self.done += 1
        total, before = self.summary.points, self.done - 1
        log = self.progress.disable and sys.stderr and sys.stderr is sys.__stderr__
        if log and self.done * LINES // total > before * LINES // total:
            line = f"{self.done} of {total} points, {len(self.summary.failed)} failed"
            print(line, file=sys.stderr, flush=True)

    def submit(self, point: Point) -> Future:
        plan, output = self.plan, None
        if self.notebooks:
            output = f"{self.notebooks.rstrip('/')}/{plan.stem(point)}.ipynb"
        try:
            arguments = plan.name, plan.text, plan.code, point.given, str(plan.folder), output
            return self.pool.submit(attested, self.execute, *arguments)
        except BrokenExecutor as error:  # of another point's death: this one's turn comes again
            broken: Future = Future()
            broken.set_exception(error)
            return broken

    def is_finished(self, point: Point) -> bool:
        try:
            store.read(self.stem(point), parameters=point.parameters, code=self.plan.code)
        except store.MissingResult:
            return False
        except (store.DamagedResult, store.StaleResult) as error:
            report = str(error).partition(";")[0]
            self.summary.damaged += [report] if report not in self.summary.damaged else []
            return False
        for end in (".json", store.FAILED):
            remove_leftovers(self.stem(point).with_name(self.plan.stem(point) + end))
        return True

    def collect(self, future: Future, waiting: deque[Point]) -> None:
        point, claim = self.running.pop(future)
        with claim:
            try:
                outcome = future.result()
            except CodeChanged:
                raise
            except BrokenExecutor as error:
                if point.key not in self.suspects:
                    self.suspects.add(point.key)
                    waiting.appendleft(point)
                    return
                outcome = {"failure": failure("the worker died", str(error))}
            except Exception as error:  # whatever it was, the other points go on
                outcome = {"failure": failure(type(error).__name__, str(error))}
            self.suspects.discard(point.key)
            self.require_unchanged(outcome)
            self.record(point, outcome)
            self.advance()

    def require_unchanged(self, outcome: dict[str, Any]) -> None:
        """Refuse what other software computed, or from files that changed since."""
        if "software" in outcome:
            require_same(outcome["software"])
        changed = [str(path) for path, known in self.plan.files.items() if file_hash(path) != known]
        if changed:
            raise CodeChanged(f"changed since the sweep was planned: {', '.join(changed)}")

    def record(self, point: Point, outcome: dict[str, Any]) -> None:
        failed = self.stem(point).with_name(self.plan.stem(point) + store.FAILED)
        if "row" in outcome:
            try:
                self.save(point, outcome)
                failed.unlink(missing_ok=True)
                self.summary.computed += 1
                return
            except ValueError as error:  # a number too large for the table, say
                outcome = {"failure": failure(type(error).__name__, str(error))}
        problem = outcome["failure"]
        content = {"parameters": point.parameters, "code": self.plan.code, **problem}
        replace_files({failed: json.dumps(content, indent=1).encode() + b"\n"})
        cell = "" if problem["cell"] is None else f"cell {problem['cell']}: "
        self.summary.failed[self.plan.stem(point)] = (
            f"{describe(point)}: {cell}{problem['error']}: {problem['message']}"
        )

    def save(self, point: Point, outcome: dict[str, Any]) -> None:
        seed = point.parameters.get("seed")
        store.save(
            self.stem(point),
            pd.DataFrame([outcome["row"]]),
            parameters=point.parameters,
            code=self.plan.code,
            seconds=outcome["seconds"],
            device=outcome["device"],
            seed=seed if type(seed) is int else None,
            versions={
                **outcome["software"],
                **{path.name: known for path, known in self.plan.files.items()},
            },
        )


def run(
    plan: Plan,
    folder: Path,
    pool: Pool,
    *,
    notebooks: str | None = None,
    execute: Callable[..., dict[str, Any]] = run_point,
) -> Summary:
    """Compute every point of a plan that `folder` does not hold yet, and store it there.

    Any number of sweeps may share a folder: a point is computed by one, the others wait for it.

    Args:
        plan: from `lib.sweep.make_plan`.
        folder: for the results; created.
        pool: where to run; closed at the end.
        notebooks: a folder or address where papermill is to keep the executed notebooks.
        execute: what computes a point; another than papermill's serves tests.

    Raises:
        CodeChanged: `lib` or a file changed while the sweep ran, or `lib` or a library differs on
            a worker.
        OSError: a result cannot be written. What was stored before stays.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_dead_folders()
    summary = Summary(len(plan.points))
    finished = False
    with tqdm(total=len(plan.points), unit="point", disable=None) as progress:
        state = _Run(plan, folder, pool, notebooks, execute, summary, progress)
        try:
            state.all_points()
            finished = True
        finally:
            # What breaks on the way out of an interruption must not stand in its place.
            with suppress(*(() if finished else (Exception,))):
                pool.close(kill=not finished)
            for _, claim in state.running.values():
                claim.close()
    return summary


def describe(point: Point) -> str:
    """The parameters that were given, in one line."""
    return " ".join(f"{name}={value!r}" for name, value in point.given.items()) or "defaults"
