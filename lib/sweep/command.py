"""Run a notebook over many parameters; killed at any moment, it goes on where it was.

    python -m lib.sweep book/coherence.ipynb --grid mixing=0.05,0.1 --repeat seed=0:5 --out results/

Each point is one papermill run. The numbers, bools and strings of its claims, and those it glued,
are stored as one row by `lib.store`; `store.load(folder)` gives the table. A point's file name is a
hash of the notebook's code, of the modules of `lib/` behind it and of all parameters: what is there
and whole is not computed again, and a change recomputes exactly what depends on it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import joblib

from lib import store
from lib.sweep.breaks import INTERRUPTED, interruptions
from lib.sweep.point import CodeChanged, run_point
from lib.sweep.points import Plan, Space, make_plan
from lib.sweep.pools import ClusterPool, LocalPool, Pool
from lib.sweep.runner import Summary, describe, run

AGAIN = "the same command goes on from here"
SHOWN = 20  # points a dry run lists


def foreign_results(plan: Plan, folder: Path) -> int:
    """Results in the folder that the plan's code did not compute, or that are damaged."""
    return len(store.results_below(folder)) - len(_known(folder, plan.code))


def _known(folder: Path, code: str | None = None) -> dict[str, store.Provenance]:
    """Name and provenance of the whole results in a folder, of a code hash if one is given."""
    found = {}
    for stem in store.results_below(folder):
        with suppress(ValueError):
            found[stem.name] = store.read(stem, code=code).provenance
    return found


def print_plan(plan: Plan, folder: Path, workers: int) -> None:
    """What a run would do, and how long it may take, judged by results already in the folder."""
    known = _known(folder)
    left = [point for point in plan.points if plan.stem(point) not in known]
    total, there = len(plan.points), len(plan.points) - len(left)
    print(f"{plan.name}, code {plan.code}: {total} points, {there} already there")
    for point in plan.points[:SHOWN]:
        print(f"  {describe(point)}")
    if total > SHOWN:
        print(f"  … and {total - SHOWN} more")
    seconds = [known[name].seconds for name in known if name.startswith(f"{plan.name}-")]
    if not seconds:
        print("time unknown until a first point has run")
        return
    each = statistics.mean(seconds)
    print(
        f"about {len(left) * each / workers:.0f} s, at {each:.1f} s a point and {workers} at a time"
    )


def print_summary(plan: Plan, folder: Path, summary: Summary) -> None:
    """The closing lines."""
    for line in summary.damaged:
        print(f"recomputed: {line}")
    for stem, line in summary.failed.items():
        print(f"FAILED {line}\n  see {folder / stem}{store.FAILED}")
    left = summary.points - summary.computed - summary.reused - len(summary.failed)
    print(
        f"{summary.points} points: {summary.computed} computed, {summary.reused} already there, "
        f"{len(summary.failed)} failed" + (f", {left} left" if left else "")
    )
    foreign = foreign_results(plan, folder)
    if foreign:
        print(
            f"{foreign} other results, of other code or damaged, stand in {folder}; "
            f"store.load({str(folder)!r}, code={plan.code!r}) reads this sweep's"
        )


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit status 0: all points there; 1: not all; 2: bad arguments; 130: Ctrl-C."""
    options = _parser().parse_args(arguments)
    with interruptions() as interrupted:
        try:
            status = _sweep(options)
        except BaseException as error:
            if not interrupted and isinstance(error, CodeChanged | OSError):
                print(f"sweep: stopped, {error}; {AGAIN}", file=sys.stderr)
                return 1
            if not interrupted and not isinstance(error, KeyboardInterrupt):
                raise
            status = INTERRUPTED
        if interrupted and status:
            print(f"interrupted; {AGAIN}", file=sys.stderr)
            return INTERRUPTED
        return status


def _sweep(options: argparse.Namespace) -> int:
    try:
        if options.timeout is not None and not 0 < options.timeout < math.inf:
            raise ValueError(f"timeout must be seconds > 0, got {options.timeout}")
        draws, *random = options.random or ["0"]
        space = Space(
            _assignments([*options.grid, *options.repeat]),
            _assignments(options.zip),
            _assignments(random),
            _count(draws),
            options.seed,
        )
        local = LocalPool(options.workers)
        plan = make_plan(options.notebook, space, options.depends)
        if options.dry_run:
            print_plan(plan, options.out, options.workers)
            return 0
        pool: Pool = ClusterPool(options.scheduler) if options.scheduler else local
    except (ValueError, FileNotFoundError) as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    execute = partial(run_point, timeout=options.timeout)
    summary = run(plan, options.out, pool, notebooks=options.keep_notebooks, execute=execute)
    print_summary(plan, options.out, summary)
    return 0 if summary.complete else 1


def _count(text: str) -> int:
    if not text.isdigit():
        raise ValueError(f"--random must begin with the number of draws, got {text!r}")
    return int(text)


def _assignments(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name.isidentifier() or not values:
            raise ValueError(f"must be name=values, got {text!r}")
        if name in found:
            raise ValueError(f"parameter {name!r} must be given once, got it twice")
        found[name] = values
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib.sweep", description=main.__doc__)
    add = parser.add_argument
    values = partial(add, nargs="+", action="extend", default=[], metavar="NAME=VALUES")
    add("notebook", help="an .ipynb file, or an address that papermill reads")
    values("--grid", help="every combination; a,b,c or lin:low:high:n or log:low:high:n")
    values("--repeat", help="as --grid; for integers, low:high (high left out)")
    values("--zip", help="lists of one length, taken side by side")
    add("--random", nargs="+", help="N NAME=uniform:a:b|loguniform:a:b|integer:a:b|choice:a,b …")
    add("--seed", type=int, default=0, help="of the random draws")
    add("--out", type=Path, required=True, help="folder of the results")
    add("--workers", type=int, default=joblib.cpu_count(), help="points at a time, here")
    add("--scheduler", metavar="ADDRESS", help="of a Dask cluster to run on instead")
    add("--depends", nargs="+", action="extend", default=[], type=Path, metavar="FILE",
        help="files that the notebook reads; a change makes its points new")  # fmt: skip
    add("--timeout", type=float, metavar="SECONDS", help="that a point's cells may take together")
    add("--keep-notebooks", metavar="WHERE", help="folder or address for executed notebooks")
    add("--dry-run", action="store_true", help="print the plan and its time, compute nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
