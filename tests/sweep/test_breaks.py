"""Ctrl-C at any moment: exit status 130, one line, no traceback, no process left."""

import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from lib import store
from tests.support.sweeping import write_notebook
from tests.sweep.test_sweep import COMMAND, ENVIRONMENT

SLEEPY = "import time\ntime.sleep(0.5)\nfrom myst_nb import glue\nglue('value', n)"
STARTED = 0.15  # seconds until Python itself runs; before, Ctrl-C is Python's own affair


@pytest.mark.parametrize("status", [0, 1, 130])
def test_the_status_stands_though_an_interruption_went_through_exec(tmp_path, status):
    """As where Ctrl-C comes while a dataclass is made: `sys.exit(130)` would end by the signal."""
    interrupted = "try:\n    exec('raise KeyboardInterrupt')\nexcept KeyboardInterrupt:\n    pass\n"
    code = "from lib.sweep.breaks import leave\n" + (interrupted if status == 130 else "")
    (tmp_path / "leaving.py").write_text(f"{code}print('said')\nleave({status})\n")
    command = [sys.executable, "-m", "leaving"]
    ended = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, text=True, capture_output=True)
    assert (ended.returncode, ended.stdout) == (status, "said\n"), ended.stderr


def test_no_worker_is_started_while_an_interruption_gets_through():
    """The tracker that the first worker needs unblocks the signal when it starts."""
    code = """
from multiprocessing import resource_tracker
from lib.sweep.breaks import undisturbed
from lib.sweep.pools import LocalPool
import signal
LocalPool(1)
with undisturbed():
    resource_tracker.ensure_running()
    print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""
    found = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, text=True, capture_output=True, check=True
    )
    assert found.stdout == "True\n"


@pytest.mark.slow
def test_an_interruption_at_any_moment_ends_with_130_and_one_line(tmp_path):
    """As a terminal does it: every process of the group hears it."""
    notebook, out = write_notebook(tmp_path / "tiny.ipynb", SLEEPY), tmp_path / "out"
    command = [*COMMAND, notebook, "--out", str(out), "--workers", "2"]
    draw = random.Random(0)
    moments = [STARTED + draw.random() * spread for spread in (0.5, 0.5, 1, 2, 4, 6)]
    for number, moment in enumerate(moments):
        sweeping = subprocess.Popen(
            [*command, "--grid", f"seed={number}", "n=0:40"], env=ENVIRONMENT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        time.sleep(moment)
        family = psutil.Process(sweeping.pid).children(recursive=True)
        os.killpg(sweeping.pid, signal.SIGINT)
        _, errors = sweeping.communicate(timeout=30)
        assert sweeping.returncode == 130, (moment, errors)
        *progress, last = errors.splitlines()
        assert last == "interrupted; the same command goes on from here", (moment, errors)
        assert all(" of 40 points" in line for line in progress), (moment, errors)
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive, (moment, alive)
        assert all((store.read(stem).table["value"] < 40).all() for stem in results(out))


def results(out):
    return store.results_below(out) if out.exists() else []
