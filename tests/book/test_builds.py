"""Builds that fail: they go on failing until what is wrong is put right, and say what to do."""

import re
import shutil
import subprocess
import sys

import pytest

from lib import store
from lib.book import pages
from tests.sweep.test_sweep import ENVIRONMENT

HEAD = """---
jupytext: {text_representation: {format_name: myst}}
kernelspec:
  display_name: Python 3
  name: python3
---
# A page

```{code-cell} ipython3
from pathlib import Path
from lib import store
print(store.read(Path("results/page-table")).table["dim"][0])
```
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def tree(tmp_path):
    """A book of one page, which reads a stored table, with this one's `lib/` and settings."""
    for name in ("lib", "constraints.txt", "pyproject.toml", "_config.yml"):
        copy = shutil.copytree if (pages.ROOT / name).is_dir() else shutil.copy
        copy(pages.ROOT / name, tmp_path / name)
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/page\n")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "page.md").write_text(HEAD)
    (tmp_path / "book" / "references.bib").touch()
    copy_result(tmp_path)
    return tmp_path


def copy_result(tree):
    """A stored table of the book."""
    stem = store.results_below(pages.BOOK / "results" / "benign_overfitting")[0]
    for end in (".csv", ".json"):
        text = stem.with_name(stem.name + end).read_text()
        (tree / "book" / "results").mkdir(exist_ok=True)
        (tree / "book" / "results" / f"page-table{end}").write_text(text)


def build(tree):
    """As `make book` does; the exit status and all that was printed."""
    start = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command = [*start, "build", ".", "-W", "-n", "--keep-going"]
    done = subprocess.run(
        command, cwd=tree, env={**ENVIRONMENT, "PYTHONPATH": str(tree)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def require_green(tree):
    status, text = build(tree)
    assert status == 0, text


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_edited_result_fails_the_build_until_it_is_put_right(tree):
    page, csv = tree / "book" / "page.md", tree / "book" / "results" / "page-table.csv"
    change(page, '["dim"][0]', '["dim"][0]')
    require_green(tree)
    whole = csv.read_text()
    csv.write_text(re.sub(r"\d", "9", whole, count=1))
    for _ in range(3):
        status, text = build(tree)
        assert status != 0
        assert "truncated or edited; run `make sweep`" in text
    csv.write_text(whole)
    require_green(tree)
    assert "Traceback" not in (tree / "_build" / "html" / "book" / "page.html").read_text()


def test_a_page_that_warns_fails_the_build_until_it_is_put_right(tree):
    page = tree / "book" / "page.md"
    change(page, '["dim"][0]', '["dim"][0]')
    with page.open("a") as file:
        file.write("\nSee {ref}`nowhere`.\n")
    for _ in range(2):
        status, text = build(tree)
        assert status != 0
        assert "nowhere" in text
    change(page, "{ref}`nowhere`", "nowhere")
    require_green(tree)


def test_a_damaged_cache_of_pages_says_what_to_do(tree):
    change(tree / "book" / "page.md", '["dim"][0]', '["dim"][0]')
    require_green(tree)
    (tree / "_build" / ".jupyter_cache" / "global.db").write_bytes(b"no database" * 100)
    status, text = build(tree)
    assert status != 0
    assert "run `make clean`" in text
