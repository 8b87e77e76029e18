"""The pages as files: pairs, address, dependencies, and each notebook alone in the world."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import jupytext
import nbformat
import papermill
import pytest
from jupytext.compare import compare_notebooks

import lib
from lib.book import pages

ROOT = pages.ROOT
PAGES = pages.executable_pages()
# Without the repository's stored results the page computes its map, at full size for two minutes.
QUICKER = {"benign_overfitting": ["-p", "norm_step", "0.2", "-p", "dim_step", "50"]}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def test_the_installed_lib_is_this_repository():
    assert Path(lib.__file__ or "").resolve().is_relative_to(ROOT)


def test_every_page_of_the_book_is_in_the_table_of_contents():
    listed = set(re.findall(r"(?:file|root): book/(\w+)", (ROOT / "_toc.yml").read_text()))
    assert listed == {page.stem for page in pages.BOOK.glob("*.md")}


@each_page
def test_pair_has_the_same_cells_and_stored_outputs(page):
    stored = nbformat.read(pages.pair(page), as_version=4)
    compare_notebooks(stored, jupytext.read(page), fmt="md:myst", raise_on_first_difference=True)
    for cell in stored.cells:
        # nbval passes a cell without a count uncompared: a stripped notebook would test nothing.
        assert cell.cell_type != "code" or cell.execution_count is not None
    assert not re.search(r"/(home|root|work|tmp)/", pages.pair(page).read_text())


@each_page
def test_parameters_are_named_explained_and_of_plain_types(page):
    parameters = papermill.inspect_notebook(str(pages.pair(page)))
    assert parameters
    for name, parameter in parameters.items():
        assert parameter["help"] or name.endswith("batch"), name


def test_the_address_stands_in_one_place_and_nobody_can_own_the_placeholder():
    url = pages.repository_url()
    owner = url.removeprefix("https://github.com/").split("/")[0]
    # GitHub names are letters, digits and single inner hyphens.
    assert owner == "__OWNER__" or re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*", owner)
    for page in PAGES:
        assert pages.INSTALL.findall(page.read_text()) == [url]
    for name in ("README.md", "CITATION.cff"):
        assert url in (ROOT / name).read_text()
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in tracked:
        text = (ROOT / name).read_text(errors="ignore")
        for found in re.findall(r"github\.com/[\w-]+/unlearning-stability", text):
            assert url.endswith(found), name


def test_environment_yml_has_the_dependencies_of_pyproject_at_the_pins_of_constraints():
    def normal(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    def pinned(text):
        found = re.findall(r"^(?:\s*- )?([\w.-]+)==(\S+)$", text, re.M)
        return {normal(name): version for name, version in found}

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = project["dependencies"] + [text for extra in extras for text in extra]
    names = {normal(re.split(r"[^\w.-]", text)[0]) for text in wanted}
    pins = pinned((ROOT / "constraints.txt").read_text())
    assert pinned((ROOT / "environment.yml").read_text()) == {name: pins[name] for name in names}


def test_dependencies_follow_imports_through_lib():
    found = {path.stem for path in pages.dependencies(pages.BOOK / "intro.md")}
    assert {"data_coherence", "dynamics", "second_moment", "algorithm", "curvature"} <= found
    assert "unlearning" not in found
    assert "pages" not in found


def test_fingerprint_sees_a_change_in_an_indirect_import(tmp_path, monkeypatch):
    for name in ("lib", "book"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    page = tmp_path / "book" / "intro.md"
    before = pages.fingerprint(page)
    with open(tmp_path / "lib" / "stability" / "second_moment.py", "a") as file:
        file.write("# changed\n")
    assert pages.fingerprint(page) != before
    shutil.copy(ROOT / "lib" / "stability" / "second_moment.py", tmp_path / "lib" / "stability")
    with open(tmp_path / "lib" / "cnn" / "unlearning.py", "a") as file:
        file.write("# changed\n")
    assert pages.fingerprint(page) == before


def test_fingerprint_sees_a_pages_stored_results(tmp_path, monkeypatch):
    for name in ("lib", "book"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    page, results = tmp_path / "book" / "intro.md", tmp_path / "book" / "results"
    before = pages.fingerprint(page)
    (results / "coherence").mkdir(parents=True, exist_ok=True)
    (results / "coherence" / "map.csv").write_text("1")
    assert pages.fingerprint(page) == before
    (results / "intro-map.json").write_text("1")
    after = pages.fingerprint(page)
    assert after != before
    (results / "intro-map.json").write_text("2")
    assert pages.fingerprint(page) not in (before, after)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A local clone of the working tree as it stands, committed, to install from."""
    target = tmp_path_factory.mktemp("clone") / "unlearning-stability"
    shutil.copytree(
        ROOT, target, ignore=shutil.ignore_patterns(".venv", "_build", ".git", ".*_cache")
    )
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(target)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "tree"]):
        subprocess.run(git + command, check=True)
    return target


def colab_like(folder):
    """A fresh environment with the dependencies but not the project, as Colab is."""
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python*/site-packages"))
    ours = re.compile(r"(__editable__.*)?unlearning_stability.*", re.I)
    for entry in Path(pytest.__file__).parent.parent.iterdir():
        if not ours.fullmatch(entry.name):
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


@each_page
def test_notebook_runs_alone_where_the_project_is_absent(page, clone, tmp_path):
    """Empty folder, fresh environment, address pointed at a local clone: what Colab does."""
    python = colab_like(tmp_path / "env")
    away = tmp_path / "empty"
    away.mkdir()
    shutil.copy(pages.pair(page), away)
    absent = subprocess.run(
        [python, "-c", "import lib"], cwd=away, capture_output=True, check=False
    )
    assert absent.returncode != 0
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{clone}.insteadOf",
        "GIT_CONFIG_VALUE_0": pages.repository_url(),
        "PIP_NO_BUILD_ISOLATION": "0",
        "JUPYTER_PATH": str(kernel_for(python, tmp_path)),
    }
    command = [sys.executable, "-m", "papermill", "--cwd", str(away), f"{away}/{page.stem}.ipynb"]
    done = subprocess.run(
        [*command, "out.ipynb", "-k", "alone", *QUICKER.get(page.stem, [])],
        cwd=away,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    where = subprocess.run(
        [python, "-c", "import lib; print(lib.__file__)"],
        cwd=away,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(tmp_path / "env")


def kernel_for(python, folder):
    """A folder for JUPYTER_PATH whose kernel `alone` is this Python."""
    spec = folder / "jupyter" / "kernels" / "alone"
    spec.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": argv, "display_name": "alone", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(kernel))
    return folder / "jupyter"
