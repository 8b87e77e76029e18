"""The console script: its own example, options that win, and a folder called lib in the way."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import lib
from lib.unlearning.command import EXAMPLE, main

SETUP = """
from tests.unlearning.test_planning import DATASET, FORGET, HOLDOUT, QUICK, trained
def setup():
    return {"model": trained(), "dataset": DATASET, "forget": FORGET, "holdout": HOLDOUT, **QUICK}
def wrong():
    return 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "given_setup", raising=False)
    (tmp_path / "given_setup.py").write_text(SETUP)
    return tmp_path


@pytest.mark.long
def test_a_plan_and_its_report(folder, capsys):
    assert main(["given_setup:setup", "--seeds", "1", "--verify", "0", "--out", "r.html"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 11
    assert (folder / "r.html").read_text().startswith("<!DOCTYPE html>")


def test_options_win_over_the_setup(folder, capsys):
    assert main(["given_setup:setup", "--target", "1e-6"]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["given_setup"], "module:function"),
        (["given_setup:absent"], "absent"),
        (["given_setup:wrong"], "must return a dict"),
        (["given_setup:FORGET"], "must be a function, got list"),
        ([".given_setup:setup"], "module:function"),
        (["given_setup:setup", "--out", "absent/r.html"], "--out must be a file"),
        (["given_setup:setup", "--out", "."], "--out must be a file"),
        (["given_setup:setup", "--target", "nan"], "target must be"),
        (["no_such_module:setup"], "no_such_module"),
        (["given_setup:setup", "--steps", "0"], "steps"),
    ],
)
def test_what_is_wrong_is_said(folder, capsys, arguments, said):
    with pytest.raises(SystemExit):
        main(arguments)
    assert said in capsys.readouterr().err


def test_a_users_own_lib_is_named_with_the_way_out(folder, capsys):
    (folder / "lib").mkdir()
    (folder / "lib" / "mine.py").write_text("")
    (folder / "given_setup.py").write_text("import lib.mine\n")
    with pytest.raises(SystemExit):
        main(["given_setup:setup"])
    assert "your own" in capsys.readouterr().err
    (folder / "given_setup.py").write_text(SETUP)
    sys.modules.pop("given_setup", None)
    assert main(["given_setup:setup", "--target", "1e-6"]) == 0  # not imported, not in the way


@pytest.mark.long
def test_the_example_of_the_help_runs(tmp_path):
    script = EXAMPLE.split("\n\n", 1)[1]
    command = f"{sys.executable} -m lib.unlearning.command"
    script = textwrap.dedent(script).replace("unlearning-plan", command)
    root = str(Path(lib.__file__).parents[1])
    ended = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "report.html").stat().st_size > 10_000
