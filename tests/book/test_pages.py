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
from types import SimpleNamespace

import jupytext
import nbformat
import papermill
import pytest
from jupytext.compare import compare_notebooks

import lib
from lib.book import pages

ROOT = pages.ROOT
PAGES = pages.executable_pages()
# Without the repository's stored results these pages compute their maps, at full size for minutes.
QUICKER = {
    "benign_overfitting": ["-p", "norm_step", "0.2", "-p", "dim_step", "50"],
    "heat_maps": ["-p", "live_cells", "11"],
}
FORK = "someone/their-fork"
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
        assert len(pages.INSTALL.findall(page.read_text())) == 1
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in tracked:
        text = (ROOT / name).read_text(errors="ignore")
        # Neither a placeholder to clone or install from, nor a name that is not ours on PyPI.
        assert not re.search(rf"(clone|install|git\+).*{pages.PLACEHOLDER}", text), name
        assert not re.search(r"install [^.\n]*unlearning.stability[\['\"]", text), name
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
    for name in ("constraints.txt", "_toc.yml"):
        shutil.copy(ROOT / name, tmp_path)
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
    for name in ("constraints.txt", "_toc.yml"):
        shutil.copy(ROOT / name, tmp_path)
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
def published(tmp_path_factory):
    """A copy of the working tree as it stands, stamped and committed as a fork publishes it."""
    target = tmp_path_factory.mktemp("published") / "fork"
    ignored = (".venv", "_build", ".git", ".*_cache", "shared", "*.egg-info")
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*ignored))
    stamp(target, FORK)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(target)]
    for command in (["init", "-qb", "notebooks"], ["add", "-A"], ["commit", "-qm", "tree"]):
        subprocess.run(git + command, check=True)
    return target


def stamp(tree, repository):
    command = [sys.executable, "-m", "lib.book.pages", "stamp", repository]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    subprocess.run(command, cwd=tree, env=environment, check=True)


@pytest.mark.long
def test_a_stamped_copy_points_at_its_own_address_wherever_a_reader_is_told_one(published):
    url = f"https://github.com/{FORK}"
    for name in ("README.md", "CITATION.cff", "pyproject.toml"):
        assert url in (published / name).read_text(), name
    for page in PAGES:
        for name in (page.name, pages.pair(page).name):
            text = (published / "book" / name).read_text()
            assert text.count(f"%pip install --quiet git+{url}@notebooks") == 1, name
            assert "ModuleNotFoundError" not in text
        assert nbformat.read(published / "book" / pages.pair(page).name, as_version=4).cells
    before = {path: path.read_bytes() for path in published.rglob("*.*") if path.is_file()}
    stamp(published, FORK)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    "name", ["", "a", "__OWNER__/a", "a/b/c", "-a/b", "a/..", "a b/c", "a/b\n"]
)
def test_an_address_that_cannot_be_is_refused(name):
    with pytest.raises(ValueError, match="repository must be OWNER/NAME"):
        pages.stamp(name)


@pytest.mark.parametrize(("url", "links"), [("__OWNER__/x", 0), (FORK, 1)])
def test_launch_buttons_open_the_notebooks_of_a_published_copy_only(monkeypatch, url, links):
    monkeypatch.setattr(pages, "repository_url", lambda: f"https://github.com/{url}")
    config = SimpleNamespace(html_theme_options={"launch_buttons": {"colab_url": "https://colab"}})
    pages._set_address(SimpleNamespace(), config)
    options = config.html_theme_options
    assert len(options["launch_buttons"]) == links
    assert options.get("repository_url") == (f"https://github.com/{url}" if links else None)
    assert "branch: notebooks" in (ROOT / "_config.yml").read_text()


def empty_environment(folder):
    """A fresh environment with the dependencies but not the project, as Colab is."""
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python*/site-packages"))
    ours = re.compile(r"(__editable__.*)?unlearning_stability.*", re.I)
    for entry in Path(pytest.__file__).parent.parent.iterdir():
        if not ours.fullmatch(entry.name):
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def elsewhere():
    """The environment variables of a process that does not know this repository."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


def lib_of(python, folder):
    """Where an environment finds `lib`; empty if nowhere."""
    command = [python, "-c", "import lib; print(lib.__file__)"]
    found = subprocess.run(
        command, cwd=folder, env=elsewhere(), capture_output=True, text=True, check=False
    )
    return found.stdout.strip()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """An environment without the project; the first notebook that runs in it installs it."""
    folder = tmp_path_factory.mktemp("alone")
    python = empty_environment(folder / "env")
    assert not lib_of(python, folder)
    kernel_for(python, folder)
    return folder


@pytest.mark.slow
@each_page
def test_notebook_runs_alone_where_the_project_is_absent(page, published, alone, tmp_path):
    """Empty folder, fresh environment, address pointed at a local clone: what Colab does."""
    shutil.copy(published / "book" / pages.pair(page).name, tmp_path)
    environment = {
        **elsewhere(),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{published}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{FORK}",
        "PIP_NO_BUILD_ISOLATION": "0",
        "JUPYTER_PATH": str(alone / "jupyter"),
    }
    command = [sys.executable, "-m", "papermill", "--cwd", ".", f"{page.stem}.ipynb"]
    done = subprocess.run(
        [*command, "out.ipynb", "-k", "alone", *QUICKER.get(page.stem, [])],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert Path(lib_of(alone / "env" / "bin" / "python", tmp_path)).is_relative_to(alone / "env")


def kernel_for(python, folder):
    """Make `folder/jupyter` a folder for JUPYTER_PATH whose kernel `alone` is this Python."""
    spec = folder / "jupyter" / "kernels" / "alone"
    spec.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": argv, "display_name": "alone", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(kernel))
