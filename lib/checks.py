"""Argument checks, one wording each: an error names argument, value and allowed range.

ValueError for a value out of range, TypeError for an object of another kind. Checks of one
number return it as Python's int or float: a float32 scalar would compute in single precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

LARGEST = 1e100  # of a number: its square and its inverse's are still far inside float64's range
LARGEST_COUNT = 10**6  # of steps, runs, samples, dimensions: a loop of seconds, not of days
LARGEST_ARRAY = 2**27  # numbers that one call holds at a time, 1 GiB in float64
LARGEST_SEED = 2**63 - 1
WIDE = (torch.float32, torch.float64)


def is_finite(value: object) -> bool:
    """Whether `value` is one finite real number; False for a bool and for what is no number."""
    try:
        if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
            value = value.item()
        number = isinstance(value, Real) and not isinstance(value, bool)
        return number and math.isfinite(value)  # type: ignore[arg-type]
    except (RuntimeError, OverflowError):  # no number behind a meta tensor; 10**400
        return False


def require_nonnegative(name: str, value: float) -> float:
    """The number; ValueError unless it is finite and in [0, 1e100]."""
    if not (is_finite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number ≥ 0, got {shown(value)}")
    return _within_range(name, value)


def require_above(name: str, value: float, bound: int, largest: float = LARGEST) -> float:
    """The number; ValueError unless finite, > `bound` and in [1/largest, largest]."""
    if not (is_finite(value) and value > bound):
        raise ValueError(f"{name} must be a finite number > {bound}, got {shown(value)}")
    if float(value) < 1 / largest:
        raise ValueError(f"{name} must be at least {1 / largest:g}, got {shown(value)}")
    return _within_range(name, value, largest)


def _within_range(name: str, value: float, largest: float = LARGEST) -> float:
    number = float(value)  # a float32 cannot be compared with 1e100
    if number > largest:
        raise ValueError(f"{name} must be at most {largest:g}, got {shown(value)}")
    return number


def require_share(
    name: str, value: float, interval: Literal["[0, 1]", "[0, 1)", "(0, 1]"] = "[0, 1]"
) -> float:
    """The number; ValueError unless it is in the unit interval, with or without its ends."""
    excluded = {"[0, 1)": 1, "(0, 1]": 0}.get(interval)
    if not (is_finite(value) and 0 <= value <= 1) or value == excluded:
        raise ValueError(f"{name} must be in {interval}, got {shown(value)}")
    return float(value)


def require_count(name: str, value: int, least: int, most: int = LARGEST_COUNT) -> int:
    """The integer, Python's or NumPy's; ValueError unless it is in [least, most]."""
    if not _is_integer(value) or value < least:
        raise ValueError(f"{name} must be an integer ≥ {least}, got {shown(value)}")
    if value > most:
        raise ValueError(f"{name} must be an integer of at most {most}, got {shown(value)}")
    return int(value)


def require_room(name: str, *sizes: int) -> None:
    """ValueError if an array of these sizes, that `name` asks for, is beyond `LARGEST_ARRAY`."""
    if math.prod(sizes) > LARGEST_ARRAY:
        shape = " × ".join(map(str, sizes))
        raise ValueError(f"{name} must keep arrays below {LARGEST_ARRAY} numbers, got {shape}")


def require_seed(seed: int, name: str = "seed") -> int:
    """The seed; ValueError unless it is an integer, Python's or NumPy's, in [0, 2⁶³)."""
    if not _is_integer(seed) or not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"{name} must be an integer >= 0 and < 2**63, got {shown(seed)}")
    return int(seed)


def require_bool(name: str, value: object) -> bool:
    """The truth value; TypeError unless it is one, Python's or NumPy's."""
    require_kind(name, value, bool, np.bool_)
    return bool(value)


def require_choice(name: str, value: str, among: Iterable[str]) -> None:
    """ValueError unless `value` is one of these names."""
    names = tuple(among)
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{name} must be one of {names}, got {shown(value)}")


def require_kind(name: str, value: object, *kinds: type) -> None:
    """TypeError unless `value` is an instance of one of the classes."""
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be of type {wanted}, got {shown(value)}")


def require_items(name: str, values: Any, kind: type = object, least: int = 1) -> list[Any]:
    """The members of a sequence as a list; TypeError unless it is one, and all are of the class."""
    if (isinstance(values, Tensor) and holds_numbers(values)) or isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise TypeError(f"{name} must be a sequence, got {shown(values)}")
    if len(values) < least:
        raise ValueError(f"{name} must be a sequence of at least {least}, got {len(values)}")
    for value in values:
        require_kind(f"every member of {name}", value, kind)
    return list(values)


def require_numbers(
    name: str, values: Any, n: int, dtype: torch.dtype = torch.float64, device: Any = "cpu"
) -> Tensor:
    """One number, (), or one for each of n, (n,), in this dtype; ValueError unless all finite."""
    try:
        numbers = torch.as_tensor(values, dtype=dtype, device=device)
        fits = numbers.shape in ((), (n,)) and bool(numbers.isfinite().all())
    except (TypeError, ValueError, RuntimeError, OverflowError):
        fits = False
    if not fits or isinstance(values, bool | str):
        raise ValueError(f"{name} must be finite, one or ({n},), got {shown(values)}")
    return numbers


def require_device(device: Any) -> torch.device | None:
    """The device, or None; ValueError unless numbers can be held there."""
    try:
        found = None if device is None else torch.empty(0, device=device).device
    except (TypeError, RuntimeError, AssertionError, ValueError):  # PyTorch's, each build its own
        found = torch.device("meta")
    if found is not None and found.type == "meta":
        raise ValueError(f"device must be one that PyTorch can use here, got {shown(device)}")
    return found


def require_axis(name: str, axis: Any, names: Iterable[str]) -> tuple[str, list[Any]]:
    """An axis of a map: the name of what varies, one of `names`, and its values."""
    if not isinstance(axis, Sequence) or isinstance(axis, str) or len(axis) != 2:
        raise ValueError(f"{name} must be a pair (name, values), got {shown(axis)}")
    require_choice(f"the name in {name}", axis[0], names)
    return axis[0], require_items(f"the values of {name}", axis[1])


def require_batch(name: str, batch: int, size: int) -> int:
    """The size of a batch, or of a group; ValueError unless an integer that fits its set."""
    if not _is_integer(batch) or not 1 <= batch <= size:
        raise ValueError(f"{name} must be in [1, {size}], the size of its set, got {shown(batch)}")
    return int(batch)


def require_batches(family: object, algorithm: object) -> None:
    """ValueError if a batch of `algorithm` is larger than its set of `family`."""
    for name in ("retain", "forget"):
        batch, size = getattr(algorithm, f"{name}_batch"), getattr(family, f"n_{name}")
        require_batch(f"{name}_batch", batch, size)


def require_members(name: str, members: Any, n: int, of: str = "") -> Tensor:
    """(n,) bool, from a mask or from distinct indices: a tensor, an array or a list of them.

    of: the argument whose samples they are, for the message.

    Raises:
        ValueError: for another type or shape, an index out of [0, n) or twice, or no member.
    """
    try:
        marks = members if isinstance(members, Tensor) else torch.from_numpy(np.asarray(members))
    except (TypeError, ValueError, OverflowError):
        marks = torch.empty(0, 0, device="cpu")  # nothing that could fit
    held = holds_numbers(marks)
    if marks.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        inside = marks.ndim == 1 and held and bool(((marks >= 0) & (marks < n)).all())
        if inside and len(marks.unique()) == len(marks):
            places = marks.long()
            marks = torch.zeros(n, dtype=torch.bool, device=marks.device)
            marks[places] = True
    if marks.dtype != torch.bool or marks.shape != (n,) or not held:
        each = f", one for each sample of {of}" if of else ""
        raise ValueError(
            f"{name} must be bool of shape ({n},) or distinct indices in [0, {n}){each}, "
            f"got {shown(members)}"
        )
    if not bool(marks.any()):
        raise ValueError(f"{name} must mark at least one sample, got 0 of {n}")
    return marks


def require_mask(forget: Any, n: int, of: str = "") -> Tensor:
    """`require_members` for a forget set: ValueError unless it leaves some sample to retain."""
    marks = require_members("forget", forget, n, of)
    require_forget(marks, n)
    return marks


def require_forget(forget: Tensor, n: int | None = None) -> int:
    """Number of samples, once `forget` is a (n,) bool mask with members in both sets."""
    require_kind("forget", forget, Tensor)
    fits = forget.ndim == 1 and forget.dtype == torch.bool and holds_numbers(forget)
    if not fits or (n is not None and len(forget) != n):
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
    """ValueError unless `tensor` has no NaN or ∞ and this shape, sizes given by name being free.

    Its dtype must be float32 or float64: narrower numbers are too coarse for any curvature.
    """
    require_kind(name, tensor, Tensor)
    if tensor.dtype not in WIDE or not holds_numbers(tensor):
        raise ValueError(
            f"{name} must be real floating-point numbers, float32 or float64, "
            f"got {describe(tensor)}"
        )
    fits = len(shape) == tensor.ndim and all(
        isinstance(wanted, str) or wanted == size
        for wanted, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits or not bool(tensor.isfinite().all()):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} must be finite of shape ({wanted}), got {describe(tensor)}")


def require_shape(name: str, tensor: Tensor, *shape: int) -> None:
    """ValueError unless `tensor` is float32 or float64 of this shape; it may hold NaN and ∞."""
    require_kind(name, tensor, Tensor)
    if tensor.dtype not in WIDE or tensor.shape != shape or not holds_numbers(tensor):
        raise ValueError(
            f"{name} must be float32 or float64 of shape {shape}, got {describe(tensor)}"
        )


def holds_numbers(tensor: Tensor) -> bool:
    """Whether there is a number behind every place: neither on the meta device nor sparse."""
    return tensor.layout == torch.strided and not tensor.is_meta


def describe(tensor: Tensor) -> str:
    """Type and shape, for messages."""
    kind = "" if tensor.layout == torch.strided else "sparse "
    place = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{kind}{dtype} of shape {tuple(tensor.shape)}{place}"


def shown(value: object) -> str:
    """A value in a message, in a line of bounded length whatever it is."""
    if isinstance(value, Tensor) and (value.ndim or value.is_meta):
        return describe(value)
    if isinstance(value, int) and abs(value) >= 10**18:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
