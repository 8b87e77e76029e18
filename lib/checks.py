"""Argument checks, one wording each: a ValueError names argument, value and allowed range."""

from __future__ import annotations

import math
from numbers import Integral


def is_finite(value: object) -> bool:
    """Whether `value` is one finite real number; False for what is no number at all."""
    try:
        return not isinstance(value, str) and math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False


def require_nonnegative(name: str, value: float) -> None:
    """ValueError unless `value` is a finite number ≥ 0."""
    if not (is_finite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number ≥ 0, got {value!r}")


def require_count(name: str, value: int, least: int) -> None:
    """ValueError unless `value` is an integer ≥ `least`, Python's or NumPy's."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer ≥ {least}, got {value!r}")


def require_batch(name: str, batch: int, size: int) -> None:
    """ValueError unless 1 ≤ `batch` ≤ `size`, the number of samples in its set."""
    if not 1 <= batch <= size:
        raise ValueError(f"{name} must be in [1, {size}], the size of its set, got {batch}")


def check_ratio(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a finite number > 0."""
    if not (is_finite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number > 0, got {value}")


def check_mixing(value: float) -> None:
    """Raise ValueError unless 0 ≤ `value` ≤ 1."""
    if not (is_finite(value) and 0 <= value <= 1):
        raise ValueError(f"mixing must lie in [0, 1], got {value}")


def require_batches(family: object, algorithm: object) -> None:
    """ValueError if a batch is larger than its set."""
    for name in ("retain", "forget"):
        n, batch = getattr(family, f"n_{name}"), getattr(algorithm, f"{name}_batch")
        if batch > n:
            raise ValueError(f"{name}_batch must be in [1, {n}], the size of its set, got {batch}")
