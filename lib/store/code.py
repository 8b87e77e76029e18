"""Which code a result depends on: the modules of `lib/` behind a file, and a hash of what they do.

The hash is of the syntax tree, so it is the same whatever the comments, docstrings and layout, and
on every Python version this project supports.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# What a cell installs, or refuses to run without, is not what it computes.
PIP = re.compile(r"^(\s*)(?:[%!]\s*pip\b|raise ModuleNotFoundError\b).*$", re.M)


def code_hash(*sources: Path) -> str:
    """Sixteen hexadecimal digits that change when what the sources compute may have changed.

    Covers the sources and every file of `lib/` that they import, directly or through one another.
    Comments, docstrings, formatting, Markdown cells, outputs and `%pip` lines do not count;
    everything else does, default parameters included. A page and its notebook hash alike.

    Args:
        sources: Python files, notebooks (`.ipynb`) or MyST Markdown pages (`.md`).

    Raises:
        ValueError: no sources, or a file of another kind.
        SyntaxError: a source does not parse.
    """
    if not sources:
        raise ValueError("sources must be at least one file, got none")
    paths = [Path(source).resolve() for source in sources]
    inside = [path for path in paths if ROOT / "lib" in path.parents]
    texts = [python_code(path) for path in paths if path not in inside]
    return hash_of(texts, inside)


def hash_of(texts: Iterable[str], modules: Iterable[Path] = ()) -> str:
    """`code_hash` of Python texts, and of some modules of `lib/` besides those they import."""
    texts, modules = list(texts), list(modules)
    every = {*modules, *modules_behind([*texts, *(path.read_text("utf-8") for path in modules)])}
    digest = hashlib.sha256()
    for text in texts:
        digest.update(_syntax(text).encode() + b"\0")
    for path in sorted(every):
        name = path.relative_to(ROOT).as_posix()
        digest.update(f"{name}\0{_syntax(path.read_text('utf-8'))}\0".encode())
    return digest.hexdigest()[:16]


def python_code(path: Path) -> str:
    """The Python text of a module, or of all code cells of a notebook or page, magics rewritten."""
    if path.suffix == ".py":
        return path.read_text("utf-8")
    if path.suffix == ".ipynb":
        return notebook_code(json.loads(path.read_text("utf-8")))
    if path.suffix == ".md":
        import jupytext  # only the book's own tools have it; notebooks and modules do not need it

        return notebook_code(jupytext.read(path))
    raise ValueError(f"sources must be .py, .ipynb or .md files, got {path}")


def notebook_code(notebook: dict) -> str:
    """The Python text of a notebook's code cells (nbformat 4, as a dictionary)."""
    from IPython.core.inputtransformer2 import TransformerManager

    cells = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    texts = ("".join(cell) for cell in cells)
    rewrite = TransformerManager().transform_cell
    return "\n".join(rewrite(PIP.sub(r"\1pass", text) + "\n") for text in texts)


def modules_behind(texts: Iterable[str], root: Path | None = None) -> list[Path]:
    """Files of `root/lib/` that Python texts import, directly or through one another; sorted."""
    root = root or ROOT
    found: set[Path] = set()
    waiting = [path for text in texts for path in _modules(text, root)]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += _modules(module.read_text("utf-8"), root)
    return sorted(found)


def _modules(text: str, root: Path) -> Iterator[Path]:
    for name in _imported_names(text):
        module = root / name.replace(".", "/")
        for path in (module.with_suffix(".py"), module / "__init__.py"):
            if path.is_file():
                yield path


@lru_cache(maxsize=256)
def _imported_names(text: str) -> frozenset[str]:
    """Dotted names under `lib` that a text imports; absolute imports, as the house writes them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(name for name in names if name.split(".")[0] == "lib")


@lru_cache(maxsize=256)
def _syntax(text: str) -> str:
    """A text's syntax tree without docstrings, and without fields that are empty.

    `ast.dump` would do, were its text the same in every version of Python.
    """
    parts: list[str] = []
    _write(ast.parse(text), parts)
    return "".join(parts)


def _write(node: object, parts: list[str]) -> None:
    if isinstance(node, ast.AST):
        parts.append(f"{type(node).__name__}(")
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(node, DOCUMENTED) and _is_text(value[:1]):
                value = value[1:]
            if name == "values" and isinstance(node, ast.JoinedStr):  # Python 3.12 adds empty ones
                value = [part for part in value if getattr(part, "value", None) != ""]
            if value is not None and value != [] and name not in ("ctx", "kind", "type_comment"):
                parts.append(f"{name}=")
                _write(value, parts)
        # A constant None, alone among fields, means itself.
        parts.append("None)" if isinstance(node, ast.Constant) and node.value is None else ")")
    elif isinstance(node, list):
        parts.append("[")
        for item in node:
            _write(item, parts)
        parts.append("]")
    else:
        parts.append(f"{node!r},")


def _is_text(body: list[ast.stmt]) -> bool:
    return (
        bool(body)
        and isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    )
