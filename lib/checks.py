"""Argument checks, one wording each: a ValueError names argument, value and allowed range."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor


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


def require_above(name: str, value: float, bound: int) -> None:
    """ValueError unless `value` is a finite number > `bound`."""
    if not (is_finite(value) and value > bound):
        raise ValueError(f"{name} must be a finite number > {bound}, got {value!r}")


def is_share(value: object) -> bool:
    """Whether `value` is a number in [0, 1]."""
    return is_finite(value) and 0 <= value <= 1  # type: ignore[operator]


def require_share(
    name: str, value: float, interval: Literal["[0, 1]", "[0, 1)", "(0, 1]"] = "[0, 1]"
) -> None:
    """ValueError unless `value` is in the unit interval, with or without its ends."""
    excluded = {"[0, 1)": 1, "(0, 1]": 0}.get(interval)
    if not is_share(value) or value == excluded:
        raise ValueError(f"{name} must be in {interval}, got {value!r}")


def require_count(name: str, value: int, least: int) -> None:
    """ValueError unless `value` is an integer ≥ `least`, Python's or NumPy's."""
    if not _is_integer(value) or value < least:
        raise ValueError(f"{name} must be an integer ≥ {least}, got {value!r}")


def require_seed(seed: int) -> None:
    """ValueError unless `seed` is an integer ≥ 0, Python's or NumPy's."""
    if not _is_integer(seed) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed!r}")


def require_batch(name: str, batch: int, size: int) -> None:
    """ValueError unless a batch, or a group, of `batch` samples fits its set of `size`."""
    if not 1 <= batch <= size:
        raise ValueError(f"{name} must be in [1, {size}], the size of its set, got {batch}")


def require_batches(family: object, algorithm: object) -> None:
    """ValueError if a batch of `algorithm` is larger than its set of `family`."""
    for name in ("retain", "forget"):
        batch, size = getattr(algorithm, f"{name}_batch"), getattr(family, f"n_{name}")
        require_batch(f"{name}_batch", batch, size)


def require_forget(forget: Tensor, n: int | None = None) -> int:
    """Number of samples, once `forget` is a (n,) bool mask with members in both sets."""
    if forget.ndim != 1 or forget.dtype != torch.bool or (n is not None and len(forget) != n):
        wanted = "n" if n is None else n
        raise ValueError(f"forget must be bool of shape ({wanted},), got {describe(forget)}")
    count = int(forget.sum())
    if not 0 < count < len(forget):
        raise ValueError(
            f"forget must mark at least one sample and leave at least one to retain, "
            f"got {count} of {len(forget)}"
        )
    return len(forget)


def require_finite(name: str, tensor: Tensor, *shape: int | str) -> None:
    """ValueError unless `tensor` has no NaN or ∞ and this shape, sizes given by name being free."""
    fits = len(shape) == tensor.ndim and all(
        isinstance(wanted, str) or wanted == size
        for wanted, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits or not bool(tensor.isfinite().all()):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} must be finite of shape ({wanted}), got {describe(tensor)}")


def describe(tensor: Tensor) -> str:
    """Type and shape, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def require_mask(forget: object, n: int) -> Tensor:
    """`forget`, a mask or the indices of samples as tensor, array or list, as a (n,) bool tensor.

    Raises:
        ValueError: for another type or shape, indices out of range or repeated, or an empty set.
    """
    try:
        marks = torch.as_tensor(forget)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"forget must be a mask or indices, got {forget!r}") from error
    if marks.dtype != torch.bool and not (marks.is_floating_point() or marks.is_complex()):
        inside = marks.ndim == 1 and bool(((marks >= 0) & (marks < n)).all())
        if not inside or len(marks.unique()) < len(marks):
            raise ValueError(
                f"forget must be a mask ({n},) or distinct indices in [0, {n}), "
                f"got {describe(marks)}"
            )
        indices = marks.long()
        marks = torch.zeros(n, dtype=torch.bool, device=indices.device)
        marks[indices] = True
    require_forget(marks, n)
    return marks
