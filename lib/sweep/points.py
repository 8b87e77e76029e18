"""What a sweep is to compute: its points, checked against the notebook before anything starts."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import math
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
Values = dict[str, list[Any]]


@dataclass(frozen=True)
class Point:
    """One run of the notebook: what is passed to it, and all its parameters, defaults included."""

    key: str
    given: dict[str, Any]
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A notebook's text at the time of planning, the hash of its code and `lib`, and the points."""

    name: str
    text: str
    folder: Path
    code: str
    points: list[Point]

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


def make_plan(notebook: str, space: Space) -> Plan:
    """Read a notebook (a path, or an address that papermill can read) and lay out the points.

    Raises:
        ValueError: a name the notebook has no parameter of, a value of another type than its
            default, the same name twice, a malformed list or range, a page that is no notebook.
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
    code = code_version.hash_of([code_version.notebook_code(node)])
    known = {name: value for name, value in defaults.items() if value is not UNKNOWN}
    points = {
        point.key: point
        for given in _combinations(space, defaults)
        for point in [make_point(code, given, {**known, **given})]
    }
    local = Path(notebook).resolve().parent
    folder = local if local.is_dir() and "://" not in notebook else Path.cwd()
    for cell in node.cells:  # outputs, pictures among them, need not travel to the workers
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    stem = PurePosixPath(notebook).stem
    return Plan(stem, nbformat.writes(node), folder, code, list(points.values()))


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
        values = list(range(int(kind), int(parts[0])))
    else:
        values = _literals(text, isinstance(default, str))
    if not values:
        raise ValueError(f"parameter {name!r} must have at least one value, got {text!r}")
    return [coerce(name, value, default) for value in values]


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
