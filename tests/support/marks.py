"""Parameters that the inner loop can do without."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def long_but(kept: Container[int], values: Iterable[Any]) -> list[Any]:
    """Values of one parameter: those at the places `kept` as they are, the rest marked long."""
    return [
        value if place in kept else pytest.param(value, marks=pytest.mark.long)
        for place, value in enumerate(values)
    ]
