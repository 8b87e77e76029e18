"""Sweeps: what is planned, what is refused before anything starts, what comes out, and where."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from papermill.iorw import papermill_io

from lib import store
from lib.store import code as code_version
from lib.store.claims import MIME, ClaimRecord
from lib.sweep import command as sweep
from lib.sweep.point import CodeChanged, glued_scalars, run_point
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
COMMAND = [sys.executable, "-m", "lib.sweep"]


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


@pytest.mark.parametrize(
    "cell",
    ["n = 5", "x, n = 1, 2", "n: int = 3", "for n in range(3): print(n)", "with f() as n: ...",
     "if True:\n    n = 5", "try:\n    n = 1\nexcept OSError:\n    pass", "import math as n",
     "def n(): pass", "%matplotlib inline\n(n := 3)"],
)  # fmt: skip
def test_a_swept_parameter_that_the_notebook_overwrites_is_refused(tmp_path, cell):
    path = write_notebook(tmp_path / "x.ipynb", "m = n", cell)
    with pytest.raises(ValueError, match=r"parameter 'n' must keep its value .* cell 2 assigns"):
        make_plan(path, Space(grid={"n": "1,2"}))
    make_plan(path, Space(grid={"a": "1,2"}))


@pytest.mark.parametrize(
    "cell",
    ["n = int(n)", "n += 1", "if n < 0:\n    n = 0", "def f():\n    n = 5", "[n for n in range(3)]",
     "f(n=3)", "x.n = 3", "n: int", "for i in range(n):\n    n = n + i"],
)  # fmt: skip
def test_a_parameter_that_is_worked_on_is_kept(tmp_path, cell):
    path = write_notebook(tmp_path / "x.ipynb", cell)
    assert len(make_plan(path, Space(grid={"n": "1,2"})).points) == 2


def test_files_that_a_notebook_reads_count_as_code(notebook, tmp_path):
    data = tmp_path / "data.csv"
    data.write_text("1")
    plain, one = make_plan(notebook, Space()), make_plan(notebook, Space(), [data])
    assert one.code != plain.code
    assert make_plan(notebook, Space(), [data]).points == one.points
    run(one, tmp_path / "out", InlinePool(), execute=logging(tmp_path / "log"))
    known = store.read(tmp_path / "out" / one.stem(one.points[0]), code=one.code).provenance
    assert known.versions["data.csv"] == one.files[data]
    run_point(one.name, one.text, one.code, {}, str(tmp_path))  # a worker finds the same hash
    data.write_text("2")
    assert make_plan(notebook, Space(), [data]).points != one.points
    with pytest.raises(CodeChanged, match=r"changed since .*data\.csv"):
        run(one, tmp_path / "new", InlinePool(), execute=logging(tmp_path / "log"))


@pytest.mark.parametrize("name", ["x.hid.ipynb", ".hid.ipynb"])
def test_results_of_a_notebook_of_any_name_are_found(tmp_path, name):
    _, summary, _ = sweep_inline(write_notebook(tmp_path / name), tmp_path)
    assert summary.computed == len(store.load(tmp_path / "out")) == 1


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


@pytest.mark.long
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


GLUED = """
%precision 3
import numpy as np, torch
from myst_nb import glue
glue("third", 1 / 3)
glue("hidden", 1 / 3, display=False)
glue("single", np.float32(0.1))
glue("tensor", torch.tensor(1 / 7))
glue("double", torch.tensor(1 / 7, dtype=torch.float64), display=False)
glue("zero", np.array(1 / 7))
glue("count", torch.tensor(3))
glue("flag", torch.tensor(True))
glue("vector", torch.ones(3))
"""


@pytest.mark.long
def test_glued_numbers_come_from_a_kernel_to_the_last_bit(tmp_path):
    notebook = write_notebook(tmp_path / "tiny.ipynb", GLUED)
    plan = make_plan(notebook, Space(grid={"n": "3"}))
    row = run_point(plan.name, plan.text, plan.code, {"n": 3}, str(tmp_path))["row"]
    single = float(np.float32(0.1))
    assert row == {
        "third": 1 / 3, "hidden": 1 / 3, "single": single, "tensor": float(np.float32(1 / 7)),
        "double": 1 / 7, "zero": 1 / 7, "count": 3, "flag": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "timeout", "error"),
    [
        pytest.param(
            "while True: pass",
            3.0,
            "TimeoutError: its cells took more than 3 s",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "import time\nfor _ in range(100): time.sleep(0.1)",
            3.0,
            "TimeoutError",
            marks=pytest.mark.long,
        ),
        ("while True: print('x' * 1000)", None, "TooMuchOutput: more than 10,000,000 characters"),
        ("assert n == 1, 'n'", None, "cell 1: AssertionError: n"),
    ],
)
def test_a_notebook_that_hangs_or_runs_away_is_a_failed_point(tmp_path, cell, timeout, error):
    notebook = write_notebook(tmp_path / "tiny.ipynb", cell)
    execute = partial(run_point, timeout=timeout)
    plan = make_plan(notebook, Space(grid={"n": "2"}))
    begin = time.monotonic()
    summary = run(plan, tmp_path / "out", InlinePool(), execute=execute)
    assert time.monotonic() - begin < 30
    (line,) = summary.failed.values()
    assert error in line


def test_temporary_folders_of_killed_points_are_removed_at_the_next_start(
    notebook, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    dead = os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    names = [f"unlearning-sweep-{owner}-x" for owner in (dead, os.getpid())]
    for name in [*names, "unlearning-sweep-other", "else"]:
        (tmp_path / "tmp" / name / "deep").mkdir(parents=True)
    sweep_inline(notebook, tmp_path)
    left = {path.name for path in (tmp_path / "tmp").iterdir()}
    assert left == {names[1], "unlearning-sweep-other", "else"}


def test_a_complete_folder_need_not_be_writable(notebook, tmp_path, monkeypatch):
    sweep_inline(notebook, tmp_path, grid={"n": "1,2"})
    real = os.open

    def read_only(path, flags, *mode, **where):
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Read-only file system", path)
        return real(path, flags, *mode, **where)

    monkeypatch.setattr(os, "open", read_only)
    arguments = [notebook, "--grid", "n=1,2", "--out", str(tmp_path / "out"), "--workers", "1"]
    assert sweep.main(arguments) == 0
    assert sweep.main([*arguments, "--grid", "a=5"]) == 1


def test_progress_is_lines_where_no_terminal_shows_a_bar(notebook, tmp_path):
    command = [*COMMAND, notebook, "--out", str(tmp_path / "out"), "--grid", "n=0:50"]
    sweep_inline(notebook, tmp_path, grid={"n": "0:50"})
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert len(lines) == 20
    assert (lines[0], lines[-1]) == ("3 of 50 points, 0 failed", "50 of 50 points, 0 failed")


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
        (["--workers", str(10**9)], "workers must be at least 1 and at most 1024"),
        (["--workers", str(10**9), "--dry-run"], "workers must be"),
        (["--repeat", "n=0:999999999999"], "'n' must have at most 1,000,000 values"),
        (["--grid", "a=lin:0:1:999999999999"], "'a' must have at most 1,000,000 values"),
        (["--grid", "n=0:1001", "seed=0:1000"], "points must be at most 1,000,000, got 1,001,000"),
        (["--random", "999999999999", "a=uniform:0:1"], "points must be at most"),
        (["--timeout", "0"], "timeout must be seconds > 0"),
        (["--depends", "absent.csv"], "absent.csv"),
        (["--scheduler", "tcp://127.0.0.1:9"], "no scheduler answers"),
        (["--scheduler", "foo://bar"], "scheduler must be an address"),
        (["--scheduler", "nowhere"], "scheduler must be an address"),
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


def other_lib(folder, file, old, new):
    """A copy of `lib/` with one place edited; the folder that holds it."""
    shutil.copytree(ROOT / "lib", folder / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "lib" / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return folder


DOUBLING = (
    "sweep/point.py",
    'return {"row": glued_scalars(done)}',
    'return {"row": {k: 2 * v for k, v in glued_scalars(done).items()}}',
)
OTHER_NUMPY = ("store/results.py", "found[name] = version(name)", 'found[name] = "0.1"')


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "message"),
    [(DOUBLING, "a worker has runner"), (OTHER_NUMPY, r"numpy 0\.1 instead of")],
    ids=["runner", "library"],
)
def test_a_worker_whose_runner_or_libraries_differ_is_refused(tmp_path, notebook, edit, message):
    theirs = {**ENVIRONMENT, "PYTHONPATH": str(other_lib(tmp_path / "theirs", *edit))}
    out = tmp_path / "out"
    with clustered(tmp_path, theirs) as (address, _):
        command = [*COMMAND, notebook, "--grid", "n=1,2", "--out", str(out), "--scheduler", address]
        done = subprocess.run(
            command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
    assert not store.results_below(out)


@pytest.mark.slow
def test_a_cluster_without_workers_is_not_waited_for(tmp_path, notebook, capsys, monkeypatch):
    monkeypatch.setattr("lib.sweep.pools.ClusterPool.TIMEOUT", 3.0)
    with clustered(tmp_path, ENVIRONMENT, workers=0) as (address, _):
        assert sweep.main([notebook, "--out", str(tmp_path / "o"), "--scheduler", address]) == 2
    assert "has had no workers for 3 s" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cluster_that_loses_all_its_workers_is_not_waited_for(
    tmp_path, cluster, capsys, monkeypatch
):
    monkeypatch.setattr("lib.sweep.pools.ClusterPool.TIMEOUT", 3.0)
    address, workers = cluster
    killing = f"import os\nfor worker in {[w.pid for w in workers]}: os.kill(worker, 9)"
    notebook = write_notebook(tmp_path / "tiny.ipynb", killing)
    assert sweep.main([notebook, "--out", str(tmp_path / "o"), "--scheduler", address]) == 1
    assert "has had no workers for 3 s" in capsys.readouterr().err


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers on loopback, as processes; the address and the workers."""
    with clustered(tmp_path, ENVIRONMENT, workers=2) as (address, processes):
        yield address, processes[1:]


@contextmanager
def clustered(tmp_path, environment, workers=1):
    """The address of a scheduler, and the processes: its own, then the workers'."""
    where = tmp_path / "scheduler.json"
    options = {"env": {**environment, "DASK_DISTRIBUTED__ADMIN__LOG_LENGTH": "1"}, "cwd": tmp_path,
               "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # fmt: skip
    dask = [sys.executable, "-m", "distributed.cli"]
    serve = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    commands = [
        [*dask[:2], "distributed.cli.dask_scheduler", *serve, "--scheduler-file", str(where)],
        *[
            [*dask[:2], "distributed.cli.dask_worker", "--scheduler-file", str(where), "--no-nanny",
             "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
        ] * workers,
    ]  # fmt: skip
    processes = [subprocess.Popen(command, **options) for command in commands]
    while not where.exists():
        time.sleep(0.05)
        assert processes[0].poll() is None
    try:
        yield json.loads(where.read_text())["address"], processes
    finally:
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
