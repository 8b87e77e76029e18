"""The house: doors that only hand names on, and open without what only book and sweeps need."""

import ast
import importlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOORS = sorted((ROOT / "lib").glob("*/__init__.py"))
WINGS = [door.parent.name for door in DOORS]
each_door = pytest.mark.parametrize("door", DOORS, ids=lambda door: door.parent.name)
# What a bare install lacks, by import name; myst_nb, which pages glue with, brings Sphinx itself.
EXTRAS = ["dask", "distributed", "hypothesis", "jupyter_book", "jupytext", "mypy", "nbval"]
EXTRAS += [
    "axe_playwright_python",
    "bokeh",
    "papermill",
    "playwright",
    "pydata_sphinx_theme",
    "pytest",
    "pytest_benchmark",
    "ruff",
    "tqdm",
    "xdist",
]
EXTRAS += ["sphinx_book_theme", "sphinx_mathjax_offline", "sphinx_proof"]
BARE = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def test_the_house_has_few_entries():
    entries = {path.name for path in (ROOT / "lib").iterdir()} - {"__pycache__"}
    assert len(entries) <= 14
    assert "py.typed" in entries
    assert {f"tests/{door.parent.name}" for door in DOORS} <= {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").iterdir()
    }


@each_door
def test_a_door_hands_names_on_and_does_nothing_else(door):
    tree = ast.parse(door.read_text())
    assert ast.get_docstring(tree)
    *imports, last = tree.body[1:]
    assert all(isinstance(node, ast.ImportFrom) and node.level == 0 for node in imports)
    assert isinstance(last, ast.Assign)
    assert [ast.unparse(target) for target in last.targets] == ["__all__"]
    imported = [alias.asname or alias.name for node in imports for alias in node.names]
    exported = ast.literal_eval(last.value)
    assert sorted(imported) == sorted(exported)
    # In the order that ruff keeps: constants, classes, functions.
    assert exported == sorted(exported, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert not {path.stem for path in door.parent.iterdir()} & {*exported}


@each_door
def test_every_name_of_a_door_resolves(door):
    module = importlib.import_module(f"lib.{door.parent.name}")
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("wings", [[w for w in WINGS if w != "sweep"], ["sweep"]], ids=len)
def test_doors_open_without_the_extras_except_for_sweeps(wings):
    imports = "\n".join(f"import lib.{wing}" for wing in wings)
    command = [sys.executable, "-c", f"{BARE}\n{imports}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (wings != ["sweep"]), done.stderr


def test_the_names_kept_out_are_those_of_the_extras():
    """Every distribution of an extra is among `EXTRAS`, or is a command line tool only."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {text for extra in project["optional-dependencies"].values() for text in extra}
    wanted = {name.split(">")[0].split("=")[0].replace("-", "_") for name in names}
    assert wanted - {"pytest_xdist", "check_jsonschema", "import_linter"} <= {*EXTRAS}


def test_records_are_frozen():
    """What was checked when a record was made stays true; the bare `@dataclass` keeps a state."""
    marks = [
        ast.unparse(mark)
        for room in (ROOT / "lib").rglob("*.py")
        for node in ast.walk(ast.parse(room.read_text()))
        for mark in getattr(node, "decorator_list", [])
    ]
    assert {mark for mark in marks if mark.startswith("dataclass(")} <= {
        "dataclass(frozen=True)",
        "dataclass(frozen=True, eq=False)",
        "dataclass(frozen=True, eq=False, repr=False)",
        "dataclass(frozen=True, kw_only=True)",
    }


@pytest.mark.slow
def test_a_bare_install_opens_every_door_from_any_folder(tmp_path):
    """`pip install .` into an empty environment, beside the dependencies of this one."""
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    ignored = ("__pycache__", "*.egg-info")
    for name in ("lib", "pyproject.toml", "README.md", "LICENSE"):  # pip builds in the tree
        source, target = ROOT / name, tmp_path / "tree" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*ignored))
        else:
            shutil.copy(source, target)
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", site, tmp_path / "tree"], check=True, cwd=tmp_path)
    (site / "dependencies.pth").write_text(str(Path(pytest.__file__).parents[1]))
    imports = "\n".join(f"import lib.{wing}" for wing in WINGS if wing != "sweep")
    program = f"{BARE}\n{imports}\nprint(lib.__file__)"
    done = subprocess.run(
        [python, "-c", program],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    installed = Path(done.stdout.strip()).parent
    assert installed.is_relative_to(site)
    assert (installed / "py.typed").exists()
