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
    texts = list(texts)
    digest = hashlib.sha256()
    for text in texts:
        digest.update(_syntax(text).encode() + b"\0")
    for path in modules_behind(texts, modules):
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


def modules_behind(
    texts: Iterable[str], modules: Iterable[Path] = (), root: Path | None = None
) -> list[Path]:
    """Rooms of `root/lib/` that Python texts use, directly or through one another; sorted.

    A name taken from a door (`__init__.py`) counts as the room that defines it; a door used in
    another way than by the names of its attributes, or asked for a name that it does not hand on,
    as all its rooms. The doors themselves define nothing and are never among the rooms.

    Args:
        texts: Python code from outside `lib/`.
        modules: rooms that count besides those used.
        root: the folder that holds `lib/`; by default this project's.
    """
    root = root or ROOT
    waiting = [*modules, *(room for text in texts for room in _rooms_used(text, "", root))]
    found: set[Path] = set()
    while waiting:
        room = waiting.pop()
        if room not in found:
            found.add(room)
            package = ".".join(room.relative_to(root).parent.parts)
            waiting += _rooms_used(room.read_text("utf-8"), package, root)
    return sorted(found)


def _rooms_used(text: str, package: str, root: Path) -> set[Path]:
    return {room for name in _names_used(text, package) for room in _rooms(name, root)}


def _rooms(name: str, root: Path) -> set[Path]:
    """The room that a dotted name leads into, or all behind the last door on its way."""
    folder, parts = root, name.split(".")
    for place, part in enumerate(parts):
        room, target = folder / f"{part}.py", _handed_on(folder, root).get(part)
        found = {room} if room.is_file() else set()
        if target and target != name:
            found |= _rooms(".".join([target, *parts[place + 1 :]]), root)
        if found:
            return found
        if not (folder / part).is_dir():
            break
        folder = folder / part
    inside = {room for room in folder.rglob("*.py") if room.name != "__init__.py"}
    elsewhere = (_rooms(target, root) for target in _handed_on(folder, root).values())
    return inside.union(*elsewhere)


def _handed_on(folder: Path, root: Path) -> dict[str, str]:
    """What the door of a folder of `lib/` hands on: name to dotted origin."""
    door = folder / "__init__.py"
    package = ".".join(folder.relative_to(root).parts)
    return dict(_imports(door.read_text("utf-8"), package)) if package and door.is_file() else {}


@lru_cache(maxsize=256)
def _names_used(text: str, package: str) -> frozenset[str]:
    """Dotted names under `lib` that a text uses, with their attributes as far as it spells them."""
    chains = set(_chains(ast.parse(text)))
    used = set()
    for local, origin in _imports(text, package):
        uses = {chain for chain in chains if f"{chain}.".startswith(f"{local}.")}
        used |= {origin + use.removeprefix(local) for use in uses or {local}}
        if (
            local.split(".")[0] == "lib"
        ):  # `import lib.a` lets a text use lib.b, if others import that
            used |= {chain for chain in chains if chain.split(".")[0] == "lib"}
    return frozenset(used)


@lru_cache(maxsize=256)
def _imports(text: str, package: str) -> list[tuple[str, str]]:
    """Local name and dotted origin of all that a text imports from `lib`, from its package on."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(alias.asname or alias.name, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            start = ".".join(filter(None, [*above, node.module]))
            for alias in node.names:
                ending = "" if alias.name == "*" else f".{alias.name}"
                found.append((alias.asname or alias.name, start + ending))
    return [(local, origin) for local, origin in found if origin.split(".")[0] == "lib"]


def _chains(node: ast.AST) -> Iterator[str]:
    """Names that a syntax tree uses, each with its attributes: `a.b.c`, and not also `a`."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        yield ".".join([node.id, *attributes])
    for child in ast.iter_child_nodes(node):
        yield from _chains(child)


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
            if name == "body" and isinstance(node, DOCUMENTED):
                value = value[ast.get_docstring(node, clean=False) is not None :]
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
