"""Sweeps under fault: kills at any moment, dead workers, a full disk, damage, company.

After each: nothing lost, nothing doubled, nothing silently wrong. Most tests run a fake point, so
that the many moments are affordable; the last ones kill a real sweep with real kernels.
"""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from lib import store
from lib.store import files as atomic_files
from lib.sweep.points import Space, make_plan
from lib.sweep.pools import LocalPool
from lib.sweep.runner import run
from tests.support.sweeping import InlinePool, forked, logged, logging, start, write_notebook
from tests.sweep.test_sweep import COMMAND, ENVIRONMENT

POINTS = 5
CALLS = ("open", "close", "fsync", "replace", "unlink")


@pytest.fixture
def plan(tmp_path):
    notebook = write_notebook(tmp_path / "tiny.ipynb")
    return make_plan(notebook, Space(grid={"n": f"0:{POINTS}"}))


def require_whole(plan, folder):
    """Every point there once, with its own value, and nothing else."""
    table = store.load(folder)
    assert sorted(table["n"]) == sorted(point.given["n"] for point in plan.points)
    assert (table["value"] == table["a"] * table["n"] + table["seed"]).all()
    stems = {plan.stem(point) for point in plan.points}
    assert {p.name for p in folder.iterdir()} == {
        s + end for s in stems for end in (".csv", ".json")
    }


def finished(plan, folder):
    """Parameters, as logged, of the points whose results are whole; their values are checked."""
    found = set()
    for stem in store.results_below(folder):
        result = store.read(stem)
        (value,) = result.table["value"]
        assert value == result.provenance.parameters["n"]
        found.add(json.dumps({"n": result.provenance.parameters["n"]}))
    return found


def sweep_counting_calls(plan, folder, log, fatal):
    """Sweep in this process, killed at its `fatal`-th system call; writes may be half done."""
    calls = 0

    def count():
        nonlocal calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def counting(call):
        def wrapped(*arguments, **options):
            count()
            return call(*arguments, **options)

        return wrapped

    def write_in_halves(path, text):
        with open(path, "xb") as file:
            file.write(text[: len(text) // 2])
            file.flush()
            count()
            file.write(text[len(text) // 2 :])
            file.flush()
            os.fsync(file.fileno())

    atomic_files._write_synced = write_in_halves
    for name in CALLS:
        setattr(os, name, counting(getattr(os, name)))
    run(plan, folder, InlinePool(), execute=logging(log))
    return calls


@pytest.mark.slow
def test_kills_between_and_inside_writes(plan, tmp_path):
    """Forty seeded moments of a sweep, spread over all its system calls."""
    counter = tmp_path / "calls"

    def counted():
        calls = sweep_counting_calls(plan, tmp_path / "counted", tmp_path / "counted.log", 0)
        counter.write_text(str(calls))

    assert forked(counted) == 0
    require_whole(plan, tmp_path / "counted")
    total = int(counter.read_text())
    progress, late = set(), 0
    for fatal in random.Random(0).sample(range(1, total + 1), 40):
        folder, log = tmp_path / f"{fatal}", tmp_path / f"{fatal}.log"
        status = forked(lambda f=folder, g=log, k=fatal: sweep_counting_calls(plan, f, g, k))
        if status == 0:  # a sweep on a busy machine may need a few calls fewer than the counted one
            late += 1
            require_whole(plan, folder)
            continue
        assert os.WTERMSIG(status) == signal.SIGKILL
        before, ran = finished(plan, folder), len(logged(log))
        summary = run(plan, folder, InlinePool(), execute=logging(log))
        assert summary.complete
        assert not summary.damaged
        again = logged(log)[ran:]
        assert not before & {*again}, "a finished point was run again"
        assert len(again) == summary.computed == POINTS - len(before)
        require_whole(plan, folder)
        progress.add(len(before))
    assert progress >= set(range(POINTS))
    assert late <= 2


def test_a_kill_upon_a_kill(plan, tmp_path):
    """The same folder, killed again and again until the sweep gets through."""
    folder, log, draw = tmp_path / "out", tmp_path / "log", random.Random(1)
    kills = 0
    while True:
        fatal = draw.randrange(1, 60)
        status = forked(lambda k=fatal: sweep_counting_calls(plan, folder, log, k))
        kills += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status):
            break
    assert kills >= 2
    require_whole(plan, folder)
    assert len(logged(log)) <= POINTS + kills


@pytest.mark.parametrize("nth", [1, 2, 3, 5, 8])
def test_a_full_disk_stops_the_sweep_and_costs_nothing_stored(plan, tmp_path, monkeypatch, nth):
    folder, log, real, calls = tmp_path / "out", tmp_path / "log", os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) >= nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(plan, folder, InlinePool(), execute=logging(log))
    monkeypatch.setattr(os, "fsync", real)
    before = finished(plan, folder)
    assert len(before) >= nth // 3 - 1
    ran = len(logged(log))
    assert run(plan, folder, InlinePool(), execute=logging(log)).complete
    assert not before & {*logged(log)[ran:]}
    require_whole(plan, folder)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_device_that_is_full_for_real(plan, tmp_path, monkeypatch):
    def onto_full(path, text):
        path.symlink_to("/dev/full")
        with open(path, "wb") as file:
            file.write(text)

    monkeypatch.setattr(atomic_files, "_write_synced", onto_full)
    with pytest.raises(OSError, match="No space left"):
        run(plan, tmp_path / "out", InlinePool(), execute=logging(tmp_path / "log"))
    assert not any((tmp_path / "out").iterdir())


def truncate(stem):
    path = stem.with_name(stem.name + ".csv")
    path.write_bytes(path.read_bytes()[:-3])


def edit_table(stem):
    path = stem.with_name(stem.name + ".csv")
    path.write_text('"value"\n99.0\n')


def edit_sidecar(stem):
    path = stem.with_name(stem.name + ".json")
    path.write_text(path.read_text().replace('"n": 3', '"n": 4'))


def swap(stem):
    """A whole result, but of another point, under this one's name."""
    other = next(s for s in store.results_below(stem.parent) if s != stem)
    for end in (".csv", ".json"):
        source, target = (s.with_name(s.name + end) for s in (other, stem))
        target.write_bytes(source.read_bytes())


@pytest.mark.parametrize("harm", [truncate, edit_table, edit_sidecar, swap])
def test_damage_is_reported_and_computed_anew(plan, tmp_path, harm):
    folder, log = tmp_path / "out", tmp_path / "log"
    run(plan, folder, InlinePool(), execute=logging(log))
    point = plan.points[3]
    harm(folder / plan.stem(point))
    if harm is not swap:
        with pytest.raises(store.DamagedResult, match=plan.stem(point)):
            store.load(folder)
    summary = run(plan, folder, InlinePool(), execute=logging(log))
    assert (summary.computed, summary.reused) == (1, POINTS - 1)
    (report,) = summary.damaged
    assert plan.stem(point) in report
    assert logged(log)[POINTS:] == ['{"n": 3}']
    require_whole(plan, folder)


def test_a_poisoned_point_is_recorded_and_tried_again(plan, tmp_path):
    folder, log = tmp_path / "out", tmp_path / "log"
    healthy = logging(log)

    def poisoned(name, notebook, code, given, where, output):
        if given["n"] == 2:
            raise ZeroDivisionError("poison")
        return healthy(name, notebook, code, given, where, output)

    summary = run(plan, folder, InlinePool(), execute=poisoned)
    assert (summary.computed, len(summary.failed), summary.complete) == (POINTS - 1, 1, False)
    (path,) = folder.glob("*.failed.json")
    record = json.loads(path.read_text())
    assert (record["error"], record["parameters"]["n"]) == ("ZeroDivisionError", 2)
    assert len(store.load(folder)) == POINTS - 1
    assert run(plan, folder, InlinePool(), execute=healthy).complete
    require_whole(plan, folder)


@pytest.mark.parametrize("sweeps", [2, 4])
def test_sweeps_into_one_folder_at_once_share_the_points(tmp_path, sweeps):
    plan = make_plan(write_notebook(tmp_path / "tiny.ipynb"), Space(grid={"n": "0:25"}))
    folder, log = tmp_path / "out", tmp_path / "log"

    def work():
        execute = logging(log, wait=lambda: time.sleep(0.01))
        assert run(plan, folder, InlinePool(), execute=execute).complete

    for child in [start(work) for _ in range(sweeps)]:
        assert os.waitpid(child, 0)[1] == 0
    require_whole(plan, folder)
    assert set(Counter(logged(log)).values()) == {1}
    assert len(logged(log)) == 25


def test_a_sweep_beside_one_that_is_killed_takes_over_its_point(plan, tmp_path):
    folder, log = tmp_path / "out", tmp_path / "log"

    def stuck():
        run(plan, folder, InlinePool(), execute=logging(log, wait=lambda: time.sleep(60)))

    child = start(stuck)
    while not logged(log):
        time.sleep(0.01)
    other = start(lambda: run(plan, folder, InlinePool(), execute=logging(log)))
    while len(store.results_below(folder)) < POINTS - 1:
        time.sleep(0.01)
    assert os.waitpid(other, os.WNOHANG) == (0, 0), "it did not wait for the other's point"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert os.waitpid(other, 0)[1] == 0
    require_whole(plan, folder)


def deadly(name, notebook, code, given, folder, output):
    """A point whose worker dies at n = 1, as one does that runs out of memory."""
    if given["n"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return {"row": {"value": float(given["n"])}, "seconds": 0.0, "device": "none"}


@pytest.mark.slow
def test_a_point_that_kills_its_worker_is_found_out_and_the_others_finish(plan, tmp_path):
    summary = run(plan, tmp_path / "out", LocalPool(2), execute=deadly)
    (line,) = summary.failed.values()
    assert line.startswith("n=1: the worker died")
    assert summary.computed == POINTS - 1
    assert sorted(store.load(tmp_path / "out")["n"]) == [0, 2, 3, 4]


def descendants(process):
    return psutil.Process(process.pid).children(recursive=True)


SLEEPY = (
    "import os, time\nfrom myst_nb import glue\nopen('runs', 'a').write(f'{n}\\n')",
    "time.sleep(0.2)\nglue('value', a * n)\nif n == 3 and not os.path.exists('spare'):\n"
    "    open('spare', 'w').close()\n    os._exit(1)",
)


@pytest.mark.slow
def test_a_real_sweep_killed_twice_goes_on_and_leaves_no_process(tmp_path):
    """kill -9 of the runner; then of a kernel (by the point itself); Ctrl-C; then to the end."""
    notebook = write_notebook(tmp_path / "tiny.ipynb", *SLEEPY)
    folder = tmp_path / "out"
    command = [*COMMAND, notebook, "--grid", "n=0:7", "--out", str(folder), "--workers", "2"]
    orphans = []
    for number, kill in enumerate((signal.SIGKILL, signal.SIGINT)):
        sweeping = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while len(store.results_below(folder)) < 2 * (number + 1):
            assert sweeping.poll() is None, sweeping.communicate()
            time.sleep(0.02)
        orphans += descendants(sweeping)
        sweeping.send_signal(kill)
        sweeping.communicate(timeout=30)
        assert sweeping.returncode == (-9 if kill == signal.SIGKILL else 130)
    stored = {
        p: p.stat().st_mtime_ns for p in folder.glob("*.csv") if p.with_suffix(".json").exists()
    }
    ran = len((tmp_path / "runs").read_text().split())
    (tmp_path / "spare").touch()
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        f"7 points: {7 - len(stored)} computed, {len(stored)} already there, 0 failed"
        in done.stdout
    )
    assert all(path.stat().st_mtime_ns == when for path, when in stored.items())
    assert len((tmp_path / "runs").read_text().split()) == ran + 7 - len(stored)
    table = store.load(folder)
    assert sorted(table["n"]) == list(range(7))
    assert (table["value"] == table["n"]).all()
    _, alive = psutil.wait_procs(orphans, timeout=20)
    assert not alive, alive


@pytest.mark.slow
def test_a_kernel_that_dies_is_a_failed_point(tmp_path):
    notebook = write_notebook(tmp_path / "tiny.ipynb", "import os\nif n == 1: os._exit(1)",
                              "from myst_nb import glue\nglue('value', n)")  # fmt: skip
    command = [*COMMAND, notebook, "--grid", "n=0,1", "--out", "out", "--workers", "1"]
    done = subprocess.run(
        command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "FAILED n=1: DeadKernelError" in done.stdout
    assert list(store.load(tmp_path / "out")["n"]) == [0]
    assert sys.getsizeof(done.stderr) < 3000


@pytest.mark.slow
def test_a_tenth_of_all_seeded_faults_loses_doubles_and_changes_nothing():
    """The whole of them is `python -m tests.support.faults`, counted on the page "Sweeps"."""
    from tests.support.faults import faults  # which takes from this file

    table = faults(share=10)
    assert table["faults"].sum() >= 20
    assert not table[["lost", "doubled", "wrong"]].to_numpy().any(), table
