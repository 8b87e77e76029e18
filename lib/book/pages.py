"""The book's pages as files: their pairs, what they depend on, and the address they install from.

As a Sphinx extension (`_config.yml`) it makes the build see `lib/`: a page is read again, and
executed again, when a module it imports has changed, and for as long as it fails. As a command,
`python -m lib.book.pages`, it writes each page's paired notebook with outputs; with
`stamp OWNER/NAME` it gives this checkout the address under which it is published.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import logging
import os
import re
import textwrap
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jupytext
import nbclient
import nbformat
from docutils import nodes
from jupyter_cache import get_cache
from myst_nb.core.execute import create_client
from myst_nb.core.read import create_nb_reader
from sphinx.application import ENV_PICKLE_FILENAME, Sphinx
from sphinx.errors import ExtensionError

from lib.book.plain import names, plain
from lib.store import code as code_version

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
KERNELSPEC = re.compile(r"\A---\n.*?^kernelspec:\n", re.S | re.M)
FORMULA_AND_STOP = re.compile(
    r"\(?<span class=\"math notranslate nohighlight\">[^<]*</span>[,.;:!?)’”]+"
)
# Half a minute each: executed first, so that no processor waits for another at the end.
LONGEST = ("hessian_tests", "random_matrices", "sweeps", "signal_noise_cnn", "your_model")
READS = re.compile(r"\A---\n(?:(?!---).*\n)*?reads: \[(.*)\]\n")
SPECIAL = re.compile(r"(\*[a-z]+\*)|[|*]|_(?!\w)")  # what reST would read, but for emphasis
THEOREM = re.compile(r"\b(?:lem|prop|thm)-[a-z-]+\b")
PLACEHOLDER = "__OWNER__"
GITHUB_NAME = re.compile(r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*/[\w-][\w.-]*", re.A)
INSTALL = re.compile(r"^    (?:%pip install|raise ModuleNotFoundError)\b.*$", re.M)
# Published notebooks are on a branch of their own (_config.yml, .github/workflows/book.yml); the
# package they install is the one they were computed with. Sweeps want papermill.
INSTALL_LINE = "    %pip install --quiet git+{url}@notebooks papermill"
# The other places where a reader is told the address: what stands there, stamped or not.
ADDRESSES = [
    ("pyproject.toml", re.compile(r"^Repository = .*$", re.M), 'Repository = "{url}"'),
    ("README.md", re.compile(r"in a clone( \(.*\))?:$", re.M), "in a clone (`git clone {url}`):"),
    (
        "CITATION.cff",
        re.compile(r"^(repository-code: .*\n)?references:$", re.M),
        'repository-code: "{url}"\nreferences:',
    ),
]


def repository_url() -> str:
    """The project's address, from its one place: `[project.urls]` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def stamp(repository: str) -> None:
    """Give this checkout the address of a published copy, wherever it tells a reader an address.

    Pages and notebooks install from it, README clones it, CITATION.cff names it, and the launch
    buttons of the next build open its notebooks, whose text is made plain (`lib.book.plain`) for
    Colab. Stamping again, or anew, is no different.

    Args:
        repository: `OWNER/NAME` on GitHub.

    Raises:
        ValueError: no such name can be, or a file does not have the one place to write it to.
    """
    if not GITHUB_NAME.fullmatch(repository):
        raise ValueError(f"repository must be OWNER/NAME as GitHub allows them, got {repository!r}")
    url = f"https://github.com/{repository}"
    for name, place, text in ADDRESSES:
        path = ROOT / name
        path.write_text(_put(text.format(url=url), place, path.read_text(), name))
    line = INSTALL_LINE.format(url=url)
    known = names(sorted(BOOK.glob("*.md")), BOOK / "references.bib")
    for page in executable_pages():
        page.write_text(_put(line, INSTALL, page.read_text(), page.name))
        notebook = nbformat.read(pair(page), as_version=4)
        cell = next(cell for cell in notebook.cells if INSTALL.search(cell.source))
        cell.source = _put(line, INSTALL, cell.source, pair(page).name)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = plain(cell.source, known, page.stem)
        pair(page).write_text(nbformat.writes(notebook) + "\n")


def _put(text: str, place: re.Pattern[str], into: str, name: str) -> str:
    """`into` with `text` where `place` matches, once."""
    into, places = place.subn(lambda _: text, into)
    if places != 1:
        raise ValueError(f"{name} must have one place for the project's address, got {places}")
    return into


def executable_pages() -> list[Path]:
    """The Markdown files of `book/` that have code to run, in name order."""
    return [page for page in sorted(BOOK.glob("*.md")) if KERNELSPEC.match(page.read_text())]


def dependencies(page: Path) -> list[Path]:
    """Files of `lib/` that a page's cells import, directly or through one another.

    And what stands beside such a module under its name: `explorer.js` beside `explorer.py`, say.
    """
    modules = code_version.modules_behind([code_version.python_code(page)], root=ROOT)
    beside = (other for path in modules for other in path.parent.glob(f"{path.stem}*"))
    return sorted({*modules, *(path for path in beside if path.suffix in (".js", ".html", ".css"))})


def stored_results(page: Path) -> list[Path]:
    """What a page reads of what others computed.

    Files below `book/results/` whose path there starts with the page's name, or with one that its
    front matter gives: `reads: [tangent_model]`. `reads: [pages]` are the pairs of all others, and
    `reads: [sources]` all pages' Markdown with the table of contents.
    """
    folder, names = page.parent / "results", [page.stem, *_reads(page)]
    found = (path for path in sorted(folder.rglob("*.*")) if path.suffix in (".csv", ".json"))
    results = [path for path in found if path.relative_to(folder).parts[0].startswith((*names,))]
    results += [pair(other) for other in _readable()] if "pages" in names else []
    sources = [ROOT / "_toc.yml", *sorted(page.parent.glob("*.md"))] if "sources" in names else []
    return results + [path for path in sources if path != page]


def _reads(page: Path) -> list[str]:
    """The names that a page's front matter says it reads; one with "pages" is written last."""
    head = READS.match(page.read_text())
    return head[1].split(", ") if head else []


def _readable() -> list[Path]:
    """The pages that do not read pages themselves, and whose pairs have been written."""
    others = (other for other in executable_pages() if "pages" not in _reads(other))
    return [other for other in others if pair(other).exists()]


def fingerprint(page: Path) -> str:
    """Hash of everything beside the page's own cells that its outputs depend on.

    The modules of `lib/` that it imports, the stored results that it reads, and the pinned versions
    of all libraries.
    """
    digest = hashlib.sha256()
    for path in [*dependencies(page), *stored_results(page), ROOT / "constraints.txt"]:
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def pair(page: Path) -> Path:
    """The notebook beside a page."""
    return page.with_suffix(".ipynb")


def write_pair(page: Path) -> bool:
    """Execute a page and write its notebook, unless cells and fingerprint are those already there.

    Returns whether it executed.
    """
    notebook = jupytext.read(page)
    notebook.metadata["fingerprint"] = fingerprint(page)
    target = pair(page)
    if target.exists():
        stored = nbformat.read(target, as_version=4)
        same = [(c.cell_type, c.source, c.metadata) for c in stored.cells] == [
            (c.cell_type, c.source, c.metadata) for c in notebook.cells
        ]
        if same and stored.metadata.get("fingerprint") == notebook.metadata["fingerprint"]:
            return False
    resources = {"metadata": {"path": BOOK}}
    nbclient.NotebookClient(notebook, timeout=None, resources=resources).execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("language_info", None)
    target.write_text(nbformat.writes(notebook) + "\n")
    return True


def main() -> None:
    """Stamp an address, or write the pairs of all pages, saying what was done."""
    parser = argparse.ArgumentParser(prog="python -m lib.book.pages")
    parser.add_argument("command", nargs="?", choices=["pairs", "stamp"], default="pairs")
    parser.add_argument("repository", nargs="?", default=os.environ.get("GITHUB_REPOSITORY", ""))
    given = parser.parse_args()
    if given.command == "stamp":
        stamp(given.repository)
        return
    for page in sorted(executable_pages(), key=lambda page: "pages" in _reads(page)):
        done = "executed" if write_pair(page) else "unchanged"
        print(f"{page.relative_to(ROOT)}: {done}", flush=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.connect("config-inited", _set_address)
    app.connect("source-read", _note_dependencies)
    app.connect("builder-inited", _require_cache)
    app.connect("env-get-outdated", _failed_pages)
    app.connect("env-before-read-docs", _execute_ahead)
    app.connect("build-finished", _forget_warnings)
    app.connect("html-page-context", _describe)
    app.connect("html-page-context", _typeset)
    app.connect("autodoc-process-docstring", _escape_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _shorten_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _set_address(app: Sphinx, config: Any) -> None:
    if PLACEHOLDER in repository_url():  # nothing there to open
        config.html_theme_options["launch_buttons"] = {}
    else:
        config.html_theme_options["repository_url"] = repository_url()


def _describe(app: Sphinx, name: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """A page's first paragraph is its description, for search engines and previews."""
    if tree is None:
        return
    for paragraph in tree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if len(text) > 40:
            content = html.escape(textwrap.shorten(text, 200, placeholder=" …"))
            context["metatags"] += f'\n<meta name="description" content="{content}" />'
            return


def _typeset(app: Sphinx, name: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """No line breaks between a formula and the stop after it, nor between a number and its unit."""
    if tree is None:
        return
    # sphinxcontrib-bibtex's list has children that are no items: to a screen reader it is none.
    body = context["body"].replace('<div role="list" class="citation-list">', "<div>")
    body = FORMULA_AND_STOP.sub(r'<span class="bound">\g<0></span>', body)
    context["body"] = re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", body)


def _escape_docstring(app: Sphinx, what: str, name: str, of: Any, _: Any, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks: |x| and α_ mean themselves.

    Labels of the book's theorems become links; what Python itself says of named tuples goes.
    """
    parts = "\n".join(line for line in lines if not line.startswith("Alias for field")).split("`")
    prose = (SPECIAL.sub(lambda mark: mark[1] or "\\" + mark[0], text) for text in parts[::2])
    parts[::2] = [THEOREM.sub(r":prf:ref:`\g<0>`", text) for text in prose]
    lines[:] = "``".join(parts).split("\n")


def _shorten_signature(
    app: Sphinx, what: str, name: str, of: Any, _: Any, arguments: str | None, answer: str | None
) -> tuple[str | None, str | None]:
    """Types by their last name, also where a default's text keeps autodoc from reading them."""
    return arguments and re.sub(r"~(?:\w+\.)+", "", arguments), answer


def _require_cache(app: Sphinx) -> None:
    """Say what to do about a cache of executed pages that a kill or a full disk damaged."""
    try:
        for record in get_cache(app.env.mystnb_config.execution_cache_path).list_cache_records():
            _ = record.data
    except Exception as error:
        raise ExtensionError(
            f"the cache of executed pages is damaged ({error}): run `make clean`"
        ) from None


def _failed_pages(app: Sphinx, env: Any, *_: Any) -> list[str]:
    """Pages whose last execution failed: a build is green only when they have run."""
    known = getattr(env, "nb_metadata", {}).items()
    return [name for name, of in known if not of.get("exec_data", {"succeeded": True})["succeeded"]]


def _forget_warnings(app: Sphinx, exception: Exception | None) -> None:
    """After a build with warnings, read all pages again, so that the next one has them as well."""
    if exception or app._warncount:
        Path(app.doctreedir, ENV_PICKLE_FILENAME).unlink(missing_ok=True)


def _execute_ahead(app: Sphinx, env: Any, docnames: list[str]) -> None:
    """Execute the pages that will be read into the cache, one a processor; Sphinx runs them singly.

    A page that fails is left to Sphinx, which runs it again and reports.
    """
    sources = {page: page.read_text() for page in executable_pages()}
    names = {Path(env.doc2path(name)) for name in docnames}
    pages = sorted((page for page in sources if page in names), key=lambda p: p.stem not in LONGEST)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for page in pages:
            pool.submit(_execute, page, _with_fingerprint(page, sources[page]), env)


def _execute(page: Path, text: str, env: Any) -> None:
    reader = create_nb_reader(str(page), env.myst_config, env.mystnb_config, text)
    notebook = reader.read(text)
    quiet = logging.Logger("ahead", logging.CRITICAL)
    with create_client(notebook, str(page), env.mystnb_config, quiet, reader.read_fmt):
        pass


def _with_fingerprint(page: Path, text: str) -> str:
    head = KERNELSPEC.match(text)
    assert head is not None
    return f"{head[0]}  fingerprint: {fingerprint(page)}\n{text[head.end() :]}"


def _note_dependencies(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make the page depend on its modules and stored results, for Sphinx and the execution cache.

    Sphinx reads a page again when a noted file is newer. The cache compares code cells and the
    kernel's metadata only, so the fingerprint rides there.
    """
    page = Path(app.env.doc2path(docname))
    if page not in executable_pages():
        return
    for path in [*dependencies(page), *stored_results(page), ROOT / "constraints.txt"]:
        app.env.note_dependency(str(path))
    source[0] = _with_fingerprint(page, source[0])


if __name__ == "__main__":
    main()
