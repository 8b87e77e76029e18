"""Tidy tables as CSV text and back, bit for bit.

Strings are written as they are: a spreadsheet takes one that begins with =, +, - or @ for a
formula.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import pandas as pd

READERS: dict[str, Callable[[str], Any]] = {
    "float64": float,
    "int64": int,
    "bool": "True".__eq__,
    "str": str,
}
COLUMN_TYPES = tuple(READERS)


def serialise(table: pd.DataFrame) -> tuple[bytes, dict[str, str]]:
    """A table as CSV text, and the types of its columns, which `parse` needs.

    Floats are written with the shortest digits that read back as the same number.

    Raises:
        ValueError: columns other than float64, int64, bool and str, missing strings, names that are
            not distinct strings, an index that is not 0, 1, 2, …
    """
    types = {name: _column_type(name, table[name]) for name in _column_names(table)}
    # Strings quoted: else carriage returns in them would end a row.
    text = table.to_csv(
        index=False, lineterminator="\n", na_rep="nan", quoting=csv.QUOTE_NONNUMERIC
    ).encode()
    if not parse(text, types).equals(table.astype(types)):
        raise ValueError("table does not survive being written as CSV")
    return text, types


def _column_names(table: pd.DataFrame) -> list[str]:
    names = list(table.columns)
    if not names or len({*names}) < len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"table's columns must be distinct strings, at least one, got {names}")
    if not table.index.equals(pd.RangeIndex(len(table))):
        raise ValueError("table's index must be 0, 1, 2, … (reset_index), got another")
    return names


def _column_type(name: str, column: pd.Series) -> str:
    found = str(column.dtype)
    if found in COLUMN_TYPES[:3]:
        return found
    if found in ("object", "str", "string") and all(isinstance(value, str) for value in column):
        return "str"
    raise ValueError(
        f"table's column {name!r} must be of {', '.join(COLUMN_TYPES)} without missing strings, "
        f"got {found}"
    )


def parse(text: bytes, types: dict[str, str]) -> pd.DataFrame:
    """The table that `serialise` wrote.

    Raises:
        ValueError: a text that is not what `serialise` writes for columns of these types.
    """
    # As strings first: no text is taken for a number or a gap, and float() rounds correctly.
    table = pd.read_csv(io.BytesIO(text), dtype=str, keep_default_na=False, na_filter=False)
    if list(table) != list(types) or not {*types.values()} <= {*READERS}:
        raise ValueError(f"columns must be {types}, got {list(table)}")
    cells = [_written(list(table[name]), name, kind) for name, kind in types.items()]
    rows = [",".join(row) + "\n" for row in [map(_quoted, types), *zip(*cells, strict=True)]]
    if "".join(rows).encode() != text:
        raise ValueError(f"columns must be written as {types}: strings, and they alone, in quotes")
    for name in (name for name, kind in types.items() if kind == "bool"):
        table[name] = table[name] == "True"
    return table.astype({name: kind for name, kind in types.items() if kind != "bool"})


def _written(texts: list[str], name: str, kind: str) -> list[str]:
    """A column's cells with their quotes, if they are texts of the kind."""
    wrong = [text for text in texts if str(READERS[kind](text)) != text]
    if wrong:
        raise ValueError(f"column {name!r} must be {kind} as Python writes it, got {wrong[0]!r}")
    # NaN is written as a word, as pandas does.
    return [_quoted(text) if kind == "str" or text == "nan" else text for text in texts]


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
