"""What a sweep is to compute: its points, checked against the notebook before anything starts."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
import numpy as np
import papermill
from papermill.iorw import load_notebook_node

from lib.store import code as code_version

UNKNOWN = object()
MOST = 1_000_000  # points in a plan, and values of a parameter
# Where a notebook's text says which files it reads.
DEPENDS = "sweep_depends"
Values = dict[str, list[Any]]


@dataclass(frozen=True)
class Point:
    """One run of the notebook: what is passed to it, and all its parameters, defaults included."""

    key: str
    given: dict[str, Any]
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A notebook's text at the time of planning, the hash of its code and `lib`, and the points.

    `files` are those that the notebook reads, with a hash of each; they count as code.
    """

    name: str
    text: str
    folder: Path
    code: str
    points: list[Point]
    files: dict[Path, str] = field(default_factory=dict)

    def stem(self, point: Point) -> str:
        """Name of a point's files, without suffix: same name, same code and same parameters."""
        return f"{self.name}-{point.key}"


@dataclass(frozen=True)
class Space:
    """Values to run over: the product of a grid, of rows of a zip and of random draws.

    `random` maps names to distributions (`uniform:0:1`, `loguniform:1e-3:1`, `integer:0:9` with
    both ends, `choice:a,b`), drawn `draws` times from `seed`; each name has its own stream, so
    that a further name does not change the others' draws.
    """

    grid: dict[str, str] = field(default_factory=dict)
    zipped: dict[str, str] = field(default_factory=dict)
    random: dict[str, str] = field(default_factory=dict)
    draws: int = 0
    seed: int = 0


def make_plan(notebook: str, space: Space, depends: Iterable[Path] = ()) -> Plan:
    """Read a notebook (a path, or an address that papermill can read) and lay out the points.

    Args:
        notebook: the path or address.
        space: the parameters' values.
        depends: files that the notebook reads; a change of one makes its points new.

    Raises:
        ValueError: a name the notebook has no parameter of, or assigns anew after its parameters, a
            value of another type than its default, the same name twice, a malformed list or range,
            more than a million points, a page that is no notebook.
        OSError: a file cannot be read.
    """
    if not notebook.endswith(".ipynb"):
        raise ValueError(f"notebook must be an .ipynb file, got {notebook}")
    node = load_notebook_node(notebook)
    defaults = parameter_defaults(notebook)
    names = Counter([*space.grid, *space.zipped, *space.random])
    for name, times in names.items():
        if name not in defaults:
            raise ValueError(
                f"parameter {name!r} is not one of {notebook}'s: {', '.join(defaults) or 'none'}"
            )
        if times > 1:
            raise ValueError(f"parameter {name!r} must be given once, got {times} times")
        require_kept(name, node)
    local = Path(notebook).resolve().parent
    folder = local if local.is_dir() and "://" not in notebook else Path.cwd()
    files = {Path(path).resolve(): file_hash(Path(path)) for path in depends}
    if files:
        node.metadata[DEPENDS] = {os.path.relpath(path, folder): files[path] for path in files}
    code = code_version.hash_of([planned_code(node)])
    known = {name: value for name, value in defaults.items() if value is not UNKNOWN}
    points = {
        point.key: point
        for given in _combinations(space, defaults)
        for point in [make_point(code, given, {**known, **given})]
    }
    for cell in node.cells:  # outputs, pictures among them, need not travel to the workers
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    stem = PurePosixPath(notebook).stem.lstrip(".")  # hidden files are no results
    return Plan(stem, nbformat.writes(node), folder, code, list(points.values()), files)


def planned_code(notebook: dict[str, Any]) -> str:
    """The code of a plan's notebook, and what is known of the files that it reads."""
    files = notebook["metadata"].get(DEPENDS)
    named = f"\n{sorted(files.items())!r}\n" if files else ""
    return code_version.notebook_code(notebook) + named


def file_hash(path: Path) -> str:
    """Sixteen digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def require_kept(name: str, notebook: Any) -> None:
    """Refuse a notebook that gives a swept parameter a value of its own after its parameters.

    A value computed from the parameter, or given under a condition on it, is none of its own.

    Raises:
        ValueError: naming the cell, counted from 0.
    """
    past = False
    for number, cell in enumerate(notebook.cells):
        if past and cell.cell_type == "code":
            code = code_version.notebook_code({"cells": [cell]})
            if any(_overwrites(node, name) for node in ast.parse(code).body):
                raise ValueError(
                    f"parameter {name!r} must keep its value after the parameters cell, but cell "
                    f"{number} assigns another: every point would use that one"
                )
        past = past or "parameters" in cell.metadata.get("tags", [])


def _overwrites(node: ast.AST, name: str) -> bool:
    """Whether a statement at a notebook's top level assigns a name without using it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name == name
    if isinstance(node, ast.Import | ast.ImportFrom):
        return any((alias.asname or alias.name) == name for alias in node.names)
    inside = [part for field in ("body", "orelse", "finalbody", "handlers", "cases")
              for part in getattr(node, field, []) if isinstance(part, ast.AST)]  # fmt: skip
    head = [part for part in ast.iter_child_nodes(node) if part not in inside]
    parts = [part for start in head for part in ast.walk(start)]
    own = {id(part.target) for part in parts if isinstance(part, ast.comprehension)}
    uses = {
        type(part.ctx)
        for part in parts
        if isinstance(part, ast.Name) and part.id == name and id(part) not in own
    }
    bare = isinstance(node, ast.AnnAssign) and node.value is None  # a type, and no value
    if ast.Load in uses or isinstance(node, ast.AugAssign) or bare:
        return False
    return ast.Store in uses or any(_overwrites(part, name) for part in inside)


def make_point(code: str, given: dict[str, Any], parameters: dict[str, Any]) -> Point:
    """A point with its key, a hash of code and parameters."""
    content = json.dumps([code, parameters], sort_keys=True, allow_nan=False)
    return Point(hashlib.sha256(content.encode()).hexdigest()[:16], given, parameters)


def parameter_defaults(notebook: str) -> dict[str, Any]:
    """The notebook's parameters with their defaults; `UNKNOWN` where that is no plain literal."""
    found = {}
    for name, parameter in papermill.inspect_notebook(notebook).items():
        try:
            value = ast.literal_eval(parameter["default"])
            found[name] = json.loads(json.dumps(value, allow_nan=False))
        except (ValueError, SyntaxError, TypeError):
            found[name] = UNKNOWN
    return found


def _combinations(space: Space, defaults: dict[str, Any]) -> Iterator[dict[str, Any]]:
    grid = {name: parse_values(name, text, defaults[name]) for name, text in space.grid.items()}
    zipped = {name: parse_values(name, text, defaults[name]) for name, text in space.zipped.items()}
    sizes = [*map(len, grid.values()), *map(len, [*zipped.values()][:1]), max(space.draws, 1)]
    if math.prod(sizes) > MOST:
        raise ValueError(f"points must be at most {MOST:,}, got {math.prod(sizes):,}")
    if len({len(values) for values in zipped.values()}) > 1:
        lengths = ", ".join(f"{name} has {len(values)}" for name, values in zipped.items())
        raise ValueError(f"zipped lists must be of one length, got: {lengths}")
    drawn = {name: _draw(name, text, defaults[name], space) for name, text in space.random.items()}
    for point, row, draw in itertools.product(
        _rows(grid, itertools.product), _rows(zipped, zip), _rows(drawn, zip)
    ):
        yield {**point, **row, **draw}


def _rows(columns: Values, combine: Callable[..., Iterable[Any]]) -> list[dict[str, Any]]:
    """Values by name, combined; one empty row where no names are."""
    rows = combine(*columns.values()) if columns else [()]
    return [dict(zip(columns, row, strict=True)) for row in rows]


def parse_values(name: str, text: str, default: Any) -> list[Any]:
    """Values of one parameter, of its default's type.

    `text` is a list `a,b,c`, `lin:low:high:count` (evenly spaced), `log:low:high:count` (evenly
    spaced logarithms) or, for integers, `low:high` (high left out).

    Raises:
        ValueError: naming parameter, value and type.
    """
    kind, *parts = text.split(":")
    if kind in ("lin", "log") and len(parts) == 3:
        values = _spaced(name, kind, *parts)
    elif len(parts) == 1 and kind.lstrip("-").isdigit() and parts[0].lstrip("-").isdigit():
        _require_few(name, text, int(parts[0]) - int(kind))
        values = list(range(int(kind), int(parts[0])))
    else:
        values = _literals(text, isinstance(default, str))
    if not values:
        raise ValueError(f"parameter {name!r} must have at least one value, got {text!r}")
    return [coerce(name, value, default) for value in values]


def _require_few(name: str, text: str, number: int) -> None:
    if number > MOST:
        raise ValueError(f"parameter {name!r} must have at most {MOST:,} values, got {text}")


def _spaced(name: str, kind: str, low: str, high: str, count: str) -> list[float]:
    try:
        first, last, number = float(low), float(high), int(count)
        lowest = min(first, last) if kind == "log" else math.inf
        if number < 1 or not math.isfinite(first + last) or lowest <= 0:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"parameter {name!r}: {kind}:low:high:count must have finite numbers"
            f"{' > 0' if kind == 'log' else ''} and a count >= 1, got {kind}:{low}:{high}:{count}"
        ) from None
    _require_few(name, f"{kind}:{low}:{high}:{count}", number)
    spaced = (np.linspace if kind == "lin" else np.geomspace)(first, last, number).tolist()
    # A range of whole numbers may serve a parameter that is one.
    return [int(value) if value.is_integer() else value for value in spaced]


def _literals(text: str, strings: bool) -> list[Any]:
    """A comma list: Python literals where all are, words otherwise, words alone if `strings`."""
    words = [word.strip() for word in text.split(",")]
    values = _literal(f"[{text}]")
    if isinstance(values, str):  # it is no list of literals
        return words if strings else [_literal(word) for word in words]
    return values if not strings or all(isinstance(value, str) for value in values) else words


def _literal(word: str) -> Any:
    """What a word says in Python or JSON, or else itself."""
    try:
        return ast.literal_eval({"true": "True", "false": "False", "null": "None"}.get(word, word))
    except (ValueError, SyntaxError):
        return word


def coerce(name: str, value: Any, default: Any) -> Any:
    """A value as the type of the parameter's default: an int may serve a float, no bool an int.

    A default of None, or one that is not a literal, takes any JSON value.
    """
    try:
        value = json.loads(json.dumps(value, allow_nan=False))
    except (ValueError, TypeError):
        raise ValueError(f"parameter {name!r} must be a finite JSON value, got {value!r}") from None
    if default is None or default is UNKNOWN:
        return value
    wanted = type(default)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ValueError(
            f"parameter {name!r} must be {wanted.__name__}, as its default {default!r} is, "
            f"got {value!r} ({type(value).__name__})"
        )
    return value


def _draw(name: str, text: str, default: Any, space: Space) -> list[Any]:
    if space.draws < 1:
        raise ValueError(f"random draws must be at least 1, got {space.draws}")
    kind, _, rest = text.partition(":")
    stream = np.random.default_rng([space.seed, *name.encode()])
    if kind == "choice":
        values = parse_values(name, rest, default)
        return [values[index] for index in stream.integers(len(values), size=space.draws)]
    try:
        low, high = (float(part) for part in rest.split(":"))
        drawn = _distribution(kind, low, high, stream, space.draws)
    except ValueError:
        raise ValueError(
            f"parameter {name!r} must be drawn from uniform:low:high, loguniform:low:high (> 0), "
            f"integer:low:high or choice:a,b,…, low <= high, got {text!r}"
        ) from None
    return [coerce(name, value, default) for value in drawn]


def _distribution(
    kind: str, low: float, high: float, stream: np.random.Generator, draws: int
) -> Iterable[Any]:
    if not (math.isfinite(low) and low <= high < math.inf):
        raise ValueError
    if kind == "uniform":
        return stream.uniform(low, high, draws).tolist()
    if kind == "loguniform" and low > 0:
        return np.exp(stream.uniform(math.log(low), math.log(high), draws)).tolist()
    if kind == "integer" and low.is_integer() and high.is_integer():
        return stream.integers(int(low), int(high), draws, endpoint=True).tolist()
    raise ValueError
