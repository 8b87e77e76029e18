"""Claims: a sentence, its numbers and the condition they meet, in one call.

    claim("At least {share:.1f} % of the cells agree.", lambda share: share >= 97, share=share)

The sentence is plain Markdown, shown as the cell's output: so it reads the same in the book, in
JupyterLab, in Colab and in what papermill writes. Numbers are filled in as `str.format` does, but
not between dollar signs, where braces are TeX's: write `$\\chi =$ {chi:.3f}`, with the number
outside the formula. Roles such as `{ref}` are refused, for only the book resolves them: write
Markdown links.

A claim is guarded: it must break when a number it rests on is another, see `WeakGuard`. And it is
recorded, with its numbers to the last bit, in the metadata of its output (`lib.store.claims`).
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.core.pylabtools import print_figure
from IPython.display import display
from matplotlib.figure import Figure

from lib.store.claims import MIME, ClaimRecord, plain

FACTORS = (0.8, 1.2)
MATHS = re.compile(r"(\$\$.+?\$\$|(?<!\\)\$.+?(?<!\\)\$)", re.S)
ROLE = re.compile(r"(?<!`)\{[\w:.+-]+\}`|[`:]{3}\{")
FIGURE_NAME = re.compile(r"fig-[a-z0-9-]+")
Condition = Callable[..., Any] | None


class ClaimFailed(AssertionError):
    """A claim does not hold."""


class WeakGuard(AssertionError):
    """A claim that would hold as well for other numbers: its condition is too loose to test it."""


def claim(sentence: str, holds: Condition, /, **numbers: Any) -> None:
    """Show a sentence with its numbers, if what it says holds.

    Args:
        sentence: Markdown with `{name}` or `{name:.2f}` for numbers, as the module describes.
        holds: the condition, a function of numbers that is called by its parameters' names; it need
            not take all of them. None for numbers that are shown and claim nothing.
        numbers: numbers, bools and strings of Python, NumPy and torch, of any type. Arrays, too, as
            a condition may need; they cannot be shown.

    Raises:
        ClaimFailed: the condition does not hold, or takes a number that is NaN or infinite.
        WeakGuard: it holds whichever of its numbers is multiplied by 0.8 or by 1.2 (an array as a
            whole; a bool is reversed and a string replaced instead).
        ValueError: a sentence that cannot be filled in, or has a role in it; a condition that takes
            what is not among the numbers; a number of another kind.
    """
    record = _record(sentence, holds, numbers)
    display(_Output({"text/markdown": record.sentence, "text/plain": record.sentence}, record))


def captioned(
    figure: Figure, name: str, alt: str, caption: str, holds: Condition = None, /, **numbers: Any
) -> None:
    """Show a figure, and below it a caption that is a claim.

    Args:
        figure: shown as PNG, then closed.
        name: `fig-…`, by which the book's pages can refer to it.
        alt: what the figure shows, for those who do not see it: one line without numbers.
        caption: as `claim`'s sentence; the first paragraph is the caption of the book's figure.
        holds: as in `claim`.
        numbers: as in `claim`.

    Raises:
        ClaimFailed, WeakGuard, ValueError: as `claim` does; also for a name of another form and an
            alt text that is not one line.
    """
    if not FIGURE_NAME.fullmatch(name):
        raise ValueError(f"name must be fig- and lower-case letters, digits, hyphens, got {name!r}")
    if len(alt.splitlines()) != 1:
        raise ValueError(f"alt must be one line of text, got {alt!r}")
    record = _record(caption, holds, numbers)
    picture = {
        "image/png": print_figure(figure, "png", base64=True),
        "text/plain": f"Figure {name}: {alt}",  # read by lib.book.captions
    }
    plt.close(figure)
    display(_Output(picture), metadata={"image/png": {"alt": alt}})
    display(_Output({"text/markdown": record.sentence, "text/plain": record.sentence}, record))


def agrees(predicted: Any, measured: Any, *, within: float, atol: float = 0.0) -> bool:
    """Whether |p − m| ≤ within·|m| + atol for every element p of a prediction, m measured.

    Args:
        predicted: number or array, of a shape that broadcasts with `measured`'s.
        measured: number or array. Only finite numbers agree.
        within: relative tolerance, at least 0.
        atol: absolute tolerance, at least 0.

    Raises:
        WeakGuard: they agree, and so would 0.8 or 1.2 times the prediction.
        ValueError: an empty array, shapes that do not broadcast, a tolerance that is negative or
            not finite.
    """
    for name, tolerance in (("within", within), ("atol", atol)):
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {tolerance}")
    p, m = _array("predicted", predicted), _array("measured", measured)

    def passes(p: np.ndarray) -> bool:
        finite = np.isfinite(p) & np.isfinite(m)
        return bool(np.all(finite & (np.abs(p - m) <= within * np.abs(m) + atol)))

    with np.errstate(invalid="ignore", over="ignore"):  # infinite numbers do not agree
        agree, too = passes(p), [factor for factor in FACTORS if passes(factor * p)]
    if agree and too:
        raise WeakGuard(
            f"{too[0]} times the prediction agrees as well: within={within}, atol={atol} are too "
            "wide to test it"
        )
    return agree


def _array(name: str, value: Any) -> np.ndarray:
    found = np.asarray(plain(name, value))
    if found.dtype.kind == "U":
        raise ValueError(f"{name} must be a number or an array of numbers, got {value!r}")
    return found.astype(float)


def _record(sentence: str, holds: Condition, numbers: dict[str, Any]) -> ClaimRecord:
    values = {name: plain(name, value) for name, value in numbers.items()}
    text = _filled(sentence, values)
    breaks: dict[str, list[bool]] = {}
    if holds is not None:
        taken = {name: values[name] for name in _taken(holds, values)}
        if not all(np.all(np.isfinite(v)) for v in taken.values() if not isinstance(v, str)):
            raise ClaimFailed(f"{text}\n  rests on a number that is not finite: {taken}")
        if not holds(**taken):
            raise ClaimFailed(f"{text}\n  does not hold with {taken}")
        for name, value in taken.items():
            breaks[name] = [not _survives(holds, {**taken, name: v}) for v in _others(value)]
        if not any(any(found) for found in breaks.values()):
            raise WeakGuard(f"{text}\n  would hold with any one of these 20 % up or down: {taken}")
    return ClaimRecord(_slug(sentence), text, "shown" if holds is None else "holds", values, breaks)


def _filled(sentence: str, values: dict[str, Any]) -> str:
    parts = MATHS.split(sentence)  # text, formula, text, …
    if ROLE.search(sentence):
        raise ValueError(f"sentence must be without roles, which only the book shows: {sentence!r}")
    for name in re.findall(r"(?<![\w^}]){(\w+)(?::[^}]*)?}", "".join(parts[1::2])):
        if name in values:
            raise ValueError(f"sentence must have {{{name}}} outside formulas, got {sentence!r}")
    shown = {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
    try:
        parts[::2] = [part.format_map(shown) for part in parts[::2]]
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(
            f"sentence must have numbers among {sorted(shown)} in its braces ({error!r}): "
            f"{sentence!r}"
        ) from None
    return "".join(parts).strip()


def _taken(holds: Callable[..., Any], values: dict[str, Any]) -> list[str]:
    """Names of the numbers that a condition takes."""
    parameters = inspect.signature(holds).parameters.values()
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return list(values)
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in values:
            raise ValueError(f"holds must take some of {sorted(values)}, got {parameter.name!r}")
    return [parameter.name for parameter in parameters if parameter.name in values]


def _others(value: Any) -> Iterator[Any]:
    """What a number is replaced by to see whether the claim rests on it."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, str):
        yield f"not {value}"
    else:
        yield from (factor * value for factor in FACTORS)


def _survives(holds: Callable[..., Any], values: dict[str, Any]) -> bool:
    """Whether a claim's condition holds for other numbers; one it cannot judge does not count."""
    try:
        return bool(holds(**values))
    except Exception:  # a `WeakGuard` says that it holds; no other error says that it does not
        return True


def _slug(sentence: str) -> str:
    """A claim's identity: its first words, and a hash of all, its numbers left out."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"\{.*?\}", "", sentence).lower())
    return "-".join([*words[:6], hashlib.sha256(sentence.encode()).hexdigest()[:6]])


class _Output:
    """Something to display: what it is in each format, and the claim it makes, if any."""

    def __init__(self, data: dict[str, str], record: ClaimRecord | None = None):
        self.data, self.metadata = data, {MIME: record.to_json()} if record else {}

    def __repr__(self) -> str:
        return self.data["text/plain"]

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        return self.data, self.metadata
