"""Sweeps: what is planned, what is refused before anything starts, what comes out, and where."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from papermill.iorw import papermill_io

from lib import store
from lib.store import code as code_version
from lib.store.claims import MIME, ClaimRecord
from lib.sweep import command as sweep
from lib.sweep.point import glued_scalars, run_point
from lib.sweep.points import (
    UNKNOWN,
    Plan,
    Space,
    coerce,
    make_plan,
    parameter_defaults,
    parse_values,
)
from lib.sweep.pools import LocalPool
from lib.sweep.runner import run
from tests.support.sweeping import InlinePool, logged, logging, write_notebook

ROOT = code_version.ROOT
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
COMMAND = [sys.executable, "-m", "lib.sweep.command"]


@pytest.fixture
def notebook(tmp_path):
    return write_notebook(tmp_path / "tiny.ipynb")


def given(notebook, **space):
    return [point.given for point in make_plan(notebook, Space(**space)).points]


# --- plan -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "default", "values"),
    [
        ("1,2.5", 1.0, [1.0, 2.5]),
        ("lin:0:1:3", 1.0, [0.0, 0.5, 1.0]),
        ("lin:1:3:3", 1, [1, 2, 3]),
        ("log:0.01:1:3", 1.0, [0.01, 0.1, 1.0]),
        ("0:3", 1, [0, 1, 2]),
        ("-1:1", 1.0, [-1.0, 0.0]),
        ("quick,full", "x", ["quick", "full"]),
        ("1,2", "x", ["1", "2"]),
        ("'a,b',c", "x", ["'a", "b'", "c"]),
        ("true,False", False, [True, False]),
        ("[1,2],[3]", [0], [[1, 2], [3]]),
        ("None,1,word", None, [None, 1, "word"]),
    ],
)
def test_values_are_parsed_to_the_type_of_the_default(text, default, values):
    found = parse_values("p", text, default)
    assert found == pytest.approx(values) if "log" in text else found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("value", "default"),
    [(1.5, 1), (True, 1), (True, 1.0), (1, False), (1, "x"), ("a", 1.0), (1, [1]), (math.nan, 1.0)],
)
def test_values_of_another_type_are_refused_by_name(value, default):
    with pytest.raises(ValueError, match="parameter 'p'"):
        coerce("p", value, default)


@pytest.mark.parametrize("text", ["lin:0:1:0", "log:0:1:3", "lin:a:1:3", "lin:0:inf:3", "3:3", ""])
def test_malformed_values_are_refused(text):
    with pytest.raises(ValueError, match="parameter 'p'"):
        parse_values("p", text, 1.0)


def test_grid_zip_and_repeats_multiply(notebook):
    points = given(
        notebook, grid={"seed": "0:2", "flag": "true,false"}, zipped={"a": "1,2", "n": "3,4"}
    )
    assert len(points) == 8
    assert {(point["a"], point["n"]) for point in points} == {(1.0, 3), (2.0, 4)}
    assert given(notebook) == [{}]


def test_a_point_given_twice_or_by_its_default_is_one_point(notebook):
    assert len(given(notebook, grid={"a": "1,1.0,2"})) == 2
    plain, named = (
        make_plan(notebook, Space(grid=grid)).points[0].key for grid in ({}, {"n": "2", "a": "1"})
    )
    assert plain == named


def test_random_draws_are_seeded_in_range_and_independent_of_other_names(notebook):
    random = {"a": "loguniform:0.001:1", "n": "integer:3:5", "mode": "choice:u,v"}
    points = given(notebook, random=random, draws=40, seed=1)
    assert len(points) == 40
    assert all(0.001 <= point["a"] <= 1 for point in points)
    assert {point["n"] for point in points} == {3, 4, 5}
    assert {point["mode"] for point in points} == {"u", "v"}
    alone = given(notebook, random={"a": random["a"]}, draws=40, seed=1)
    assert [point["a"] for point in alone] == [point["a"] for point in points]
    assert given(notebook, random={"a": "uniform:0:1"}, draws=3, seed=2) != alone[:3]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"grid": {"b": "1"}}, r"'b' is not one of .*: a, n, seed, mode, flag"),
        ({"grid": {"n": "1.5"}}, "'n' must be int"),
        ({"grid": {"n": "1"}, "zipped": {"n": "1"}}, "'n' must be given once"),
        ({"zipped": {"a": "1,2", "n": "1"}}, "one length, got: a has 2, n has 1"),
        ({"random": {"a": "normal:0:1"}, "draws": 2}, "'a' must be drawn from"),
        ({"random": {"a": "uniform:1:0"}, "draws": 2}, "'a' must be drawn from"),
        ({"random": {"a": "uniform:0:1"}}, "at least 1"),
        ({"random": {"n": "uniform:0:1"}, "draws": 1}, "'n' must be int"),
    ],
)
def test_plans_that_cannot_be_are_refused(notebook, space, message):
    with pytest.raises(ValueError, match=message):
        make_plan(notebook, Space(**space))


def test_defaults_that_are_no_literals_are_left_to_the_notebook(tmp_path):
    path = write_notebook(tmp_path / "x.ipynb", parameters="a = 1.5\nb = 2 * a\nc: list = [1, 2]\n")
    defaults = parameter_defaults(path)
    assert defaults == {"a": 1.5, "b": UNKNOWN, "c": [1, 2]}
    (point,) = make_plan(path, Space(grid={"a": "2"})).points
    assert point.parameters == {"a": 2.0, "c": [1, 2]}


def test_every_page_can_be_planned():
    for page in sorted((ROOT / "book").glob("*.ipynb")):
        assert len(make_plan(str(page), Space()).points) == 1


def test_addresses_that_papermill_knows_pass_through(notebook, tmp_path, monkeypatch):
    """A store in memory stands in for s3:// and its like, which need their own libraries."""

    class Memory:
        def read(self, path):
            return Path(notebook).read_text()

        def pretty_path(self, path):
            return path

    handlers = papermill_io._handlers
    monkeypatch.setattr(papermill_io, "_handlers", [("memory://", Memory()), *handlers])
    plan = make_plan("memory://bucket/tiny.ipynb", Space(grid={"n": "1"}))
    assert (plan.name, plan.code) == ("tiny", make_plan(notebook, Space()).code)
    outputs = []

    def execute(*arguments):
        outputs.append(arguments[-1])
        return {"row": {"value": 1.0}, "seconds": 0.0, "device": "none"}

    run(plan, tmp_path / "out", InlinePool(), notebooks="s3://bucket/runs/", execute=execute)
    assert outputs == [f"s3://bucket/runs/{plan.stem(plan.points[0])}.ipynb"]


# --- what is computed anew ------------------------------------------------------------------------


def sweep_inline(notebook, tmp_path, **space):
    plan = make_plan(notebook, Space(**space))
    log = tmp_path / "log"
    before = len(logged(log))
    summary = run(plan, tmp_path / "out", InlinePool(), execute=logging(log))
    return plan, summary, logged(log)[before:]


def test_only_what_is_new_or_changed_is_computed(notebook, tmp_path):
    _, summary, ran = sweep_inline(notebook, tmp_path, grid={"n": "1,2"})
    assert (summary.computed, summary.reused, len(ran)) == (2, 0, 2)
    _, summary, ran = sweep_inline(notebook, tmp_path, grid={"n": "1,2,3"})
    assert (summary.computed, summary.reused, ran) == (1, 2, ['{"n": 3}'])
    write_notebook(tmp_path / "tiny.ipynb", "from myst_nb import glue  # only a comment more",
                   "glue('value', a * n + seed, display=False)")  # fmt: skip
    _, summary, ran = sweep_inline(notebook, tmp_path, grid={"n": "1,2,3"})
    assert (summary.computed, summary.reused) == (0, 3)
    write_notebook(tmp_path / "tiny.ipynb", "glue('value', a * n + seed + 1)")
    plan, summary, ran = sweep_inline(notebook, tmp_path, grid={"n": "1,2"})
    assert (summary.computed, summary.reused) == (2, 0)
    assert sweep.foreign_results(plan, tmp_path / "out") == 3
    with pytest.raises(store.StaleResult, match="several versions"):
        store.load(tmp_path / "out")
    assert len(store.load(tmp_path / "out", code=plan.code)) == 2


def test_a_changed_default_or_lib_changes_the_key(notebook, tmp_path, monkeypatch):
    key = make_plan(notebook, Space()).points[0].key
    write_notebook(tmp_path / "tiny.ipynb", parameters="a = 1.0\nn = 3\n")
    assert make_plan(notebook, Space()).points[0].key != key
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    write_notebook(tmp_path / "tiny.ipynb", "from lib import thing")
    keys = set()
    for text in ("x = 1", "x = 2", "x = 2  # comment"):
        (tmp_path / "lib" / "thing.py").write_text(text)
        keys.add(make_plan(notebook, Space()).points[0].key)
    assert len(keys) == 2


def test_a_point_refuses_a_lib_it_was_not_planned_with(notebook, tmp_path):
    plan = make_plan(notebook, Space())
    with pytest.raises(RuntimeError, match="not 0000 as"):
        run_point(plan.name, plan.text, "0000", {}, str(tmp_path))
    other = Plan(plan.name, plan.text, plan.folder, "0000", plan.points)
    with pytest.raises(RuntimeError, match="lib differs"):
        run(other, tmp_path / "out", InlinePool())
    assert not list(store.results_below(tmp_path / "out"))


# --- rows -----------------------------------------------------------------------------------------


def test_glued_scalars_are_a_row_and_the_rest_is_left_out():
    def output(name, text, prefix="application/papermill.record/"):
        label = {"scrapbook": {"name": name, "mime_prefix": prefix}}
        return {"metadata": label, "data": {f"{prefix}text/plain": text}}

    values = {
        "i": (3, "3"),
        "f": (0.1, "0.1"),
        "np": (0.1, repr(np.float64(0.1))),
        "b": (True, "True"),
        "npb": (True, repr(np.bool_(True))),
        "inf": (-math.inf, "-inf"),
        "npinf": (math.inf, repr(np.float64("inf"))),
        "s": ("a 'b'", repr("a 'b'")),
        "list": (None, "[1, 2]"),
        "tensor": (None, "tensor(0.1235)"),
        "none": (None, "None"),
    }
    outputs = [output(name, text) for name, (_, text) in values.items()]
    cell = {"outputs": [*outputs, output("shown", "1", ""), {"metadata": {}, "data": {}}]}

    class Notebook:
        cells = (cell,)

    wanted = {name: value for name, (value, _) in values.items() if value is not None}
    assert glued_scalars(Notebook) == {**wanted, "shown": 1}
    with pytest.raises(ValueError, match="glued no number"):
        glued_scalars(type("Empty", (), {"cells": []}))


def claimed(**numbers):
    """A cell as a claim leaves it."""
    content = ClaimRecord("id", "Sentence.", "shown", numbers, {}).to_json()
    return {"outputs": [{"metadata": {MIME: content}, "data": {}}]}


def glued(name, text):
    label = {"scrapbook": {"name": name, "mime_prefix": ""}}
    return {"outputs": [{"metadata": label, "data": {"text/plain": text}}]}


class Cells:
    def __init__(self, *cells):
        self.cells = cells


@pytest.mark.parametrize("text", ["0.333", "0.3333333333333333", "np.float64(0.33)", "0"])
def test_what_was_claimed_and_glued_is_stored_as_claimed(text):
    row = glued_scalars(Cells(glued("a", text), claimed(a=1 / 3, b=np.array([1.0, 2.0]))))
    assert row == {"a": 1 / 3}


@pytest.mark.parametrize(
    "cells",
    [
        (claimed(a=1.0), claimed(a=1.0 + 1e-15)),
        (claimed(a=1), claimed(a=True)),
        (claimed(a=0.333), glued("a", "0.334")),
        (claimed(a="word"), glued("a", "1.0")),
        (glued("a", "1.0"), glued("a", "2.0")),
    ],
)
def test_a_name_with_two_values_is_refused(cells):
    with pytest.raises(ValueError, match="two values of 'a'"):
        glued_scalars(Cells(*cells))


def test_a_name_may_be_claimed_twice_with_one_value():
    row = glued_scalars(Cells(claimed(a=math.nan, b=2), claimed(a=math.nan, b=2)))
    assert math.isnan(float(row["a"]))
    assert row["b"] == 2


CLAIMS = """
%precision 3
import numpy as np, torch
from lib.book import claim
from myst_nb import glue
third = 1 / 3
claim("{third:.2f}", lambda third: third < 0.34, third=third, single=np.float32(0.1),
      tensor=torch.tensor(1 / 7), half=torch.tensor(0.1, dtype=torch.bfloat16), count=2**53 + 1,
      double=torch.tensor(1 / 7, dtype=torch.float64), word="it's")
glue("third", third)
"""


def test_claims_come_from_a_kernel_to_the_last_bit(tmp_path):
    notebook = write_notebook(tmp_path / "tiny.ipynb", CLAIMS)
    plan = make_plan(notebook, Space())
    summary = run(plan, tmp_path / "out", LocalPool(1))
    assert summary.complete, summary.failed
    row = store.load(tmp_path / "out").iloc[0]
    assert row["third"] == 1 / 3
    assert row["single"] == float(np.float32(0.1))
    assert row["tensor"] == float(np.float32(1 / 7))
    assert row["double"] == 1 / 7
    assert row["half"] == 0.10009765625
    assert (row["count"], row["word"]) == (2**53 + 1, "it's")


def test_a_kernel_that_never_came_up_is_started_once_more(notebook, tmp_path, monkeypatch):
    calls = []

    def dying(*arguments, **options):
        calls.append(arguments)
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr("papermill.execute_notebook", dying)
    monkeypatch.setattr("lib.sweep.point._set_environment", lambda: None)
    plan = make_plan(notebook, Space())
    outcome = run_point(plan.name, plan.text, plan.code, {}, str(tmp_path))
    assert outcome["failure"]["error"] == "RuntimeError"
    assert len(calls) == 2


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "b=1"], "'b' is not one of"),
        (["--grid", "n=word"], "'n' must be int"),
        (["--grid", "n"], "name=values"),
        (["--grid", "n=1", "--repeat", "n=0:2"], "given once"),
        (["--random", "a=uniform:0:1"], "number of draws"),
        (["--workers", "0"], "workers must be at least 1"),
        (["--scheduler", "tcp://127.0.0.1:9"], "no scheduler answers"),
    ],
)
def test_bad_arguments_stop_before_anything_starts(
    notebook, tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.setattr("lib.sweep.pools.ClusterPool.TIMEOUT", 0.5)
    assert sweep.main([notebook, "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_notebook_is_a_bad_argument(tmp_path, capsys):
    for name in ("no.ipynb", "page.md"):
        assert sweep.main([str(tmp_path / name), "--out", str(tmp_path)]) == 2
        assert name in capsys.readouterr().err


def test_dry_run_prints_points_and_time_and_computes_nothing(notebook, tmp_path, capsys):
    command = [notebook, "--grid", "n=0:30", "--out", str(tmp_path / "out"), "--dry-run"]
    assert sweep.main(command) == 0
    text = capsys.readouterr().out
    assert "30 points, 0 already there" in text
    assert "and 10 more" in text
    assert "time unknown" in text
    assert not (tmp_path / "out").exists()
    plan, *_ = sweep_inline(notebook, tmp_path, grid={"n": "0:2"})
    point = plan.points[0]
    store.save(tmp_path / "out" / plan.stem(point), store.load(tmp_path / "out")[["value"]][:1],
               parameters=point.parameters, code=plan.code, seconds=10.0)  # fmt: skip
    assert sweep.main([*command, "--workers", "2"]) == 0
    assert "2 already there" in (text := capsys.readouterr().out)
    assert "about 70 s, at 5.0 s a point and 2 at a time" in text


SLEEPY = "import time, os\ntime.sleep(0.3)\nprint(open('runs', 'a').write(f'{n}\\n'))"


@pytest.mark.slow
def test_a_real_sweep_by_the_command_with_a_failing_point(tmp_path, capsys):
    """papermill, worker processes, kernels: a row each, one failure, one kernel per point."""
    (tmp_path / "book").mkdir()
    poison = "assert n != 2, f'{n} is poison'"
    notebook = write_notebook(tmp_path / "book" / "tiny.ipynb", SLEEPY, poison,
                              "from myst_nb import glue\nglue('value', a * n)")  # fmt: skip
    out, kept = tmp_path / "out", tmp_path / "kept"
    kept.mkdir()
    command = [notebook, "--grid", "n=1,2,3", "--out", str(out), "--workers", "2",
               "--keep-notebooks", str(kept)]  # fmt: skip
    assert sweep.main(command) == 1
    text = capsys.readouterr().out
    assert "FAILED n=2: cell 2: AssertionError: 2 is poison" in text
    assert "3 points: 2 computed, 0 already there, 1 failed" in text
    assert list(store.load(out)["value"]) == [1.0, 3.0]
    (failed,) = out.glob("*.failed.json")
    assert poison in failed.read_text()
    assert "Traceback" in failed.read_text()
    assert sorted((tmp_path / "book" / "runs").read_text().split()) == ["1", "2", "3"]
    assert len(list(kept.iterdir())) == 3
    known = store.read(store.results_below(out)[0]).provenance
    assert known.parameters == {
        "a": 1.0,
        "n": known.parameters["n"],
        "seed": 0,
        "mode": "x",
        "flag": False,
    }
    assert known.seconds > 0.3
    assert known.device.endswith("one thread")
    assert known.seed == 0


MATRIX = """
import numpy as np
from myst_nb import glue
samples = np.random.default_rng(seed).standard_normal((300, 400))
glue("value", np.linalg.eigvalsh(np.cov(samples) ** n).sum())
glue("product", float((samples.T @ samples)[0, 1]))
"""


@pytest.mark.slow
def test_results_are_the_same_bits_whatever_the_workers_and_the_order(tmp_path):
    notebook = write_notebook(tmp_path / "tiny.ipynb", MATRIX)
    plan = make_plan(notebook, Space(grid={"n": "1,2", "seed": "0,1"}))
    shuffled = random.Random(0).sample(plan.points, len(plan.points))
    orders = {1: plan.points, 3: shuffled}
    for workers, points in orders.items():
        ordered = Plan(plan.name, plan.text, plan.folder, plan.code, points)
        summary = run(ordered, tmp_path / str(workers), LocalPool(workers))
        assert summary.complete, summary.failed
    one, three = (
        {p.name: p.read_bytes() for p in (tmp_path / str(w)).glob("*.csv")} for w in orders
    )
    assert one == three
    assert len(one) == 4


# --- a cluster ------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers on loopback, as processes; the address and the workers."""
    where = tmp_path / "scheduler.json"
    options = {"env": {**ENVIRONMENT, "DASK_DISTRIBUTED__ADMIN__LOG_LENGTH": "1"}, "cwd": tmp_path,
               "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # fmt: skip
    dask = [sys.executable, "-m", "distributed.cli"]
    serve = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    commands = [
        [*dask[:2], "distributed.cli.dask_scheduler", *serve, "--scheduler-file", str(where)],
        *[
            [*dask[:2], "distributed.cli.dask_worker", "--scheduler-file", str(where), "--no-nanny",
             "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
        ] * 2,
    ]  # fmt: skip
    processes = [subprocess.Popen(command, **options) for command in commands]
    while not where.exists():
        time.sleep(0.05)
        assert processes[0].poll() is None
    yield json.loads(where.read_text())["address"], processes[1:]
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_still_brings_every_point_once(tmp_path, cluster):
    address, workers = cluster
    notebook = write_notebook(tmp_path / "tiny.ipynb", SLEEPY, "from myst_nb import glue",
                              "glue('value', a * n)")  # fmt: skip
    out = tmp_path / "out"
    command = [*COMMAND, notebook, "--grid", "n=0:8", "--out", str(out), "--scheduler", address]
    sweeping = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    while len(list(out.glob("*.csv"))) < 3:
        assert sweeping.poll() is None
        time.sleep(0.05)
    workers[0].send_signal(signal.SIGKILL)
    text, _ = sweeping.communicate(timeout=60)
    assert sweeping.returncode == 0, text
    assert "8 points: 8 computed, 0 already there, 0 failed" in text
    table = store.load(out)
    assert sorted(table["n"]) == list(range(8))
    assert (table["value"] == table["a"] * table["n"]).all()
    runs = Path(tmp_path, "runs").read_text().split()
    assert {*runs} == {str(n) for n in range(8)}
    assert len(runs) <= 9  # the lost worker's point may have run to its end twice
