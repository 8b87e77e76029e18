"""Records of claims: what a page's sentences say, whether they hold, and on which numbers.

A record rides in the metadata of the output that shows the sentence, under `MIME`; a glued number
that a sweep keeps, in that of its own, under `GLUED`. Numbers are
written as Python literals (`0.1`, `5`, `True`, `'word'`, `nan`), each a JSON string: they come back
bit for bit, whatever saved the notebook in between. Arrays are lists of these.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

MIME = "application/vnd.unlearning-stability.claim+json"
GLUED = "application/vnd.unlearning-stability.glued+json"
Scalar = bool | int | float | str


@dataclass(frozen=True)
class ClaimRecord:
    """A sentence as a reader saw it, and what it rests on.

    `verdict` is "holds" for a claim and "shown" for numbers that claim nothing. `breaks` tells, for
    each number that the condition takes, whether other values of it break the claim: 0.8 and 1.2
    times a number or an array, the opposite of a bool, another word for a string.
    """

    id: str
    sentence: str
    verdict: Literal["holds", "shown"]
    numbers: dict[str, Any]
    breaks: dict[str, list[bool]]

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values; `from_json` reads it."""
        return {**vars(self), "numbers": {name: _text(v) for name, v in self.numbers.items()}}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ClaimRecord:
        """The record that `to_json` wrote.

        Raises:
            ValueError: a number that is no literal.
        """
        numbers = {name: _value(name, text) for name, text in content["numbers"].items()}
        return cls(**{**content, "numbers": numbers})


def claims_in(notebook: Any) -> Iterator[ClaimRecord]:
    """The claims of an executed notebook (nbformat 4), in order."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            content = output.get("metadata", {}).get(MIME)
            if content:
                yield ClaimRecord.from_json(content)


def plain(name: str, value: Any) -> Any:
    """A scalar of Python, NumPy or torch as Python's own, exactly; an array in float64.

    Args:
        name: of the number, for the error.
        value: a number, bool or string, a tensor or array of any size, or a list of numbers.

    Raises:
        ValueError: another kind of value, or one that float64 does not hold exactly.
    """
    if type(value) in (bool, int, float, str):
        return value
    if hasattr(value, "detach"):  # a tensor, of any type and on any device
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    scalar, kind = not array.ndim, array.dtype.kind
    if scalar and kind in "bUiu":
        return array.item()
    if array.size and kind in "iuf":
        found = array.astype(float)
        if np.array_equal(found.astype(array.dtype), array, equal_nan=kind == "f"):
            return float(found) if scalar else found
    raise ValueError(
        f"{name} must be a number, bool or string, or an array of numbers, that float64 holds "
        f"exactly, got {value!r}"
    )


def keep_glued() -> None:
    """From here on, what a kernel glues keeps its scalars to the last bit, whatever it displays."""
    from IPython.core import formatters

    display = formatters.format_display_data

    def display_and_keep(variable: Any, *options: Any, **more: Any) -> tuple[Any, dict[str, Any]]:
        data, metadata = display(variable, *options, **more)
        with suppress(ValueError):  # a figure, say: no number
            if not getattr(variable, "ndim", 0):
                value = plain("variable", variable)
                return data, {**metadata, GLUED: repr(value)}
        return data, metadata

    formatters.format_display_data = display_and_keep  # type: ignore[assignment]


def literal(text: str) -> Scalar | None:
    """The number, bool or string whose Python literal a text is, or None."""
    if text in ("inf", "-inf", "nan"):
        return float(text)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, Scalar) else None


def _text(value: Any) -> Any:
    """Literals of a number, or of an array's numbers, nested as it is."""
    parts = value.tolist() if isinstance(value, np.ndarray) else value
    return [_text(part) for part in parts] if isinstance(parts, list) else repr(parts)


def _value(name: str, text: Any) -> Any:
    if isinstance(text, list):
        return np.array([_value(name, part) for part in text])
    value = literal(text)
    if value is None:
        raise ValueError(f"{name} must be a Python literal, got {text!r}")
    return value
