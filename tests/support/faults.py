"""Seeded faults of sweeps, counted: what is lost, doubled or wrong once the sweep has gone on.

`python -m tests.support.faults` runs all and stores the count that the chapter "Sweeps" shows.
"""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pandas as pd

from lib import store
from lib.sweep.point import run_point
from lib.sweep.points import Space, make_plan
from lib.sweep.pools import LocalPool
from lib.sweep.runner import run
from tests.support.sweeping import GLUE, InlinePool, forked, logged, logging, start, write_notebook
from tests.sweep.test_faults import CALLS, sweep_counting_calls
from tests.sweep.test_sweep import COMMAND, ENVIRONMENT, clustered

POINTS = 5
MOST_CALLS = (
    90  # system calls of these points' sweep, of which each kind is called 2 a point or more
)
STORED = Path(__file__).resolve().parents[2] / "book" / "results" / "sweeps" / "faults"
COUNTS = {"file kill": 100, "file error": 60, "client": 22, "worker": 10, "kernel": 5,
          "scheduler": 3}  # fmt: skip
KERNEL = "import os\nif n == {n} and not os.path.exists('spare'):\n    open('spare', 'w').close()\n"
KERNEL += "    os.kill(os.getpid(), 9)"


def quiet():
    """In a fork that ends soon: no progress, no traceback."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def file_kill(plan, folder, log, draw):
    fatal = draw.randrange(1, MOST_CALLS)
    forked(lambda: quiet() or sweep_counting_calls(plan, folder, log, fatal))


def file_error(plan, folder, log, draw):
    name, number = draw.choice(CALLS), draw.choice((errno.ENOSPC, errno.EIO, errno.EACCES))
    nth, real, calls = draw.randrange(1, 2 * POINTS + 1), getattr(os, name), []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == nth:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    def sweep():
        quiet()
        setattr(os, name, failing)
        run(plan, folder, InlinePool(), execute=logging(log))

    forked(sweep)


def client(plan, folder, log, draw):
    wait = partial(time.sleep, 0.05)  # five of these are longer than what follows
    child = start(lambda: quiet() or run(plan, folder, InlinePool(), execute=logging(log, wait)))
    time.sleep(0.2 * draw.random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def dying(victim, flag, log, name, notebook, code, given, folder, output):
    if given["n"] == victim and not os.path.exists(flag):
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return logging(Path(log))(name, notebook, code, given, folder, output)


def worker(plan, folder, log, draw):
    victim = draw.randrange(POINTS)
    execute = partial(dying, victim, str(folder) + ".flag", str(log))
    assert run(plan, folder, LocalPool(2), execute=execute).complete


def kernel(plan, folder, log, draw):
    place = folder.parent
    cell = KERNEL.format(n=draw.randrange(POINTS))
    noting = f"open({str(log)!r}, 'a').write('{{\"n\": %d}}\\n' % n)"
    plan = planned(place, cell, GLUE, noting)
    run(plan, folder, LocalPool(2), execute=run_point)
    return plan


def scheduler(plan, folder, log, draw):
    place = folder.parent
    noting = f"open({str(log)!r}, 'a').write('{{\"n\": %d}}\\n' % n)"
    plan = planned(place, "import time\ntime.sleep(0.3)", GLUE, noting)
    with clustered(place, ENVIRONMENT) as (address, (serving, *_)):
        sweeping = subprocess.Popen(
            [*COMMAND, str(place / "tiny.ipynb"), "--grid", f"n=0:{POINTS}", "--out", str(folder),
             "--scheduler", address], env=ENVIRONMENT, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not list(folder.glob("*.json")) and sweeping.poll() is None:
            time.sleep(0.05)
        time.sleep(draw.random())
        serving.kill()
        sweeping.wait(timeout=120)
    return plan


def planned(place, *cells):
    return make_plan(write_notebook(place / "tiny.ipynb", *cells), Space(grid={"n": f"0:{POINTS}"}))


def fault(kind, seed, place):
    """One fault and what came of it: points lost, doubled and wrong after going on."""
    folder, log, draw = place / "out", place / "log", random.Random(f"{kind} {seed}")
    plan = planned(place)
    plan = globals()[kind.replace(" ", "_")](plan, folder, log, draw) or plan
    whole = {store.read(s).provenance.parameters["n"] for s in readable(folder)}
    ran = len(logged(log))
    summary = run(plan, folder, InlinePool(), execute=logging(log))
    again = [json.loads(line)["n"] for line in logged(log)[ran:]]
    table = store.load(folder)
    wrong = (table["value"] != table["a"] * table["n"] + table["seed"]).sum()
    return {
        "lost": POINTS - len({*table["n"]}) + (not summary.complete),
        "doubled": len(table) - len({*table["n"]}) + len(whole & {*again}),
        "wrong": int(wrong),
    }


def readable(folder):
    found = store.results_below(folder) if folder.is_dir() else []
    return [stem for stem in found if not _damaged(stem)]


def _damaged(stem):
    try:
        store.read(stem)
    except store.DamagedResult:
        return True
    return False


def faults(share=1):
    """All seeded faults, or one in `share` of each kind; a row a kind."""
    rows = []
    for kind, number in COUNTS.items():
        found = {"lost": 0, "doubled": 0, "wrong": 0}
        seeds = range(0, number, share)
        for seed in seeds:
            with tempfile.TemporaryDirectory() as place:
                for name, value in fault(kind, seed, Path(place)).items():
                    found[name] += value
        rows.append({"kind": kind, "faults": len(seeds), **found})
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    begin = time.perf_counter()
    table = faults()
    room = Path(__file__).resolve().parents[2] / "lib" / "sweep" / "runner.py"
    store.save(STORED, table, parameters={"points": POINTS}, code=store.code_hash(room), seed=0,
               seconds=time.perf_counter() - begin)  # fmt: skip
