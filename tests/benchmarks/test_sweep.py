"""What a sweep costs over bare papermill, and whether its memory grows.

SWEEP_POINTS points of a trivial notebook (500 for the figure that counts; fewer by default, since
each takes two kernel starts), in interleaved blocks of ten: a block by papermill alone, one after
the other in this process, and the same points by the sweep with one worker. The overhead is the
median of the blocks' ratios; interleaved, a busy machine slows both alike.
"""

import os
import statistics
import time
from pathlib import Path

import papermill
import psutil

from lib import store
from lib.sweep.points import Plan, Space, make_plan
from lib.sweep.pools import LocalPool
from lib.sweep.runner import run
from tests.support.sweeping import write_notebook

POINTS = int(os.environ.get("SWEEP_POINTS", "40"))
BLOCK = 10


class KeptPool(LocalPool):
    """Its worker stays from block to block, as it does within one long sweep."""

    def close(self, kill: bool = False) -> None:
        pass


def seconds(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def memory():
    """Resident MB of this process and of the workers, kernels left out."""
    processes = [psutil.Process(), *psutil.Process().children()]
    return sum(process.memory_info().rss for process in processes) / 2**20


def test_overhead_over_bare_papermill_and_memory(benchmark, tmp_path):
    notebook = write_notebook(tmp_path / "tiny.ipynb")
    plan = make_plan(notebook, Space(grid={"n": f"0:{POINTS}"}))
    pool, out, ratios, used = KeptPool(1), Path(tmp_path, "out"), [], []
    begin = time.perf_counter()
    pool.submit(os.getpid).result()
    first = plan.points[:1]
    run(Plan(plan.name, plan.text, plan.folder, plan.code, first), tmp_path / "warm", pool)
    warm_up = time.perf_counter() - begin

    def bare(points):
        for point in points:
            papermill.execute_notebook(notebook, None, point.given, progress_bar=False)

    def swept(points):
        run(Plan(plan.name, plan.text, plan.folder, plan.code, points), out, pool)

    bare(first)
    for place in range(0, POINTS, BLOCK):
        block = plan.points[place : place + BLOCK]
        turns = [bare, swept] if place // BLOCK % 2 else [swept, bare]
        times = {call: seconds(lambda c=call, b=block: c(b)) for call in turns}
        ratios.append((times[swept], times[bare]))
        used.append(memory())
    assert len(store.load(out)) == POINTS
    figures = {
        "points": POINTS,
        "bare papermill, s a point": statistics.median(b for _, b in ratios) / BLOCK,
        "overhead, median of blocks, %": 100 * (statistics.median(s / b for s, b in ratios) - 1),
        "overhead, totals with the pool's start, %": 100
        * ((sum(s for s, _ in ratios) + warm_up) / sum(b for _, b in ratios) - 1),
        "resident MB after the first block": used[0],
        "resident MB after the last": used[-1],
        "seconds to start the pool and run its first point": warm_up,
    }
    ratio = statistics.median(bare_time / own for own, bare_time in ratios)
    benchmark.extra_info.update(figures, peer="bare papermill", ratio=ratio)
    print(*(f"{name}: {value:.4g}" for name, value in figures.items()), sep="\n")
    benchmark.pedantic(swept, args=(plan.points,), rounds=1)
    LocalPool(1).close()
