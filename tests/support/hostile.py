"""Hostile arguments, and what a call may do with them."""

import dataclasses
import math
import numbers
import random
import re
import signal
import traceback
import types
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st

import lib
from tests.support import calls
from tests.support.calls import VALID_CALLS, rule

SECONDS = 10  # of the processor that a call may take
BUILT = {name for _, name, _ in VALID_CALLS}  # classes among them are made by hand, and check
# Where a sequence's member is named, or another argument of which each needs as many.
ALSO = {"seeds": {"seed"}, "batches": {"batch"}, "sigmas": {"sigma"}, "crossings": {"dims"}}
ALSO |= {"factors": {"forget"}, "signal_norms": {"errors"}, "setting": {"dims"}}
ALSO |= {"unlearned_margins": {"retrained_margins"}, "outputs": {"targets"}}
ALSO |= {"inputs": {"targets", "forget", "trained"}}
ALSO |= {"algorithm": {"learning_rate"}}  # a sound algorithm may leave a rate no room


class TooLong(Exception):
    """A call that had to be stopped."""


def constant(value: Any) -> Callable[[], Any]:
    return lambda: value


WRONG: list[Callable[[], Any]] = [
    *map(constant, (None, "", "word", b"1", 1j, True, False, {}, (), 0, -1, 2.5, -0.5, 10**6)),
    *map(constant, (math.nan, math.inf, -math.inf, 1e308, 1e-320, 1e150, 2**63, -(2**63))),
    *map(constant, (10**400, int, len, range(3), {1}, [], [None], [[1], [1, 2]])),
    *map(constant, (np.nan, np.int8(3), np.float32(0.3), np.bool_(True))),
    lambda: Fraction(1, 3),
    lambda: object(),
    lambda: np.array([]),
    lambda: np.array(["a"]),
    lambda: np.array([None]),
    lambda: torch.tensor(math.nan),
    lambda: torch.tensor(0.3),
    lambda: torch.empty(0),
    lambda: torch.ones(3, dtype=torch.float16),
    lambda: torch.ones(3, 3, dtype=torch.complex128),
    lambda: torch.ones(3, device="meta"),
    lambda: torch.eye(3).to_sparse(),
    lambda: pd.DataFrame(),
    lambda: torch.nn.Linear(2, 2),
    lambda: types.SimpleNamespace(),
    calls.curvature,
    calls.grouped,
    calls.family,
    rule,
    calls.data,
    calls.trained,
    calls.small_network,
    calls.setting,
    calls.limit,
    calls.ensemble,
    calls.criterion,
    lambda: rule(momentum=0.5),
    lambda: rule(damping=1e9),
    lambda: rule(mixing=0.0),
    lambda: rule(mixing=1.0),
    lambda: rule(retain_batch=99),
    lambda: rule(sampling="without_replacement"),
    lambda: rule(sampling="reshuffled"),
]
ANYTHING = st.one_of(
    st.sampled_from(WRONG).map(lambda make: make()),
    st.floats(),
    st.integers(),
    st.text(max_size=3),
    st.lists(st.floats(), max_size=3),
)
DAMAGES: list[Callable[[torch.Tensor], Any]] = [
    *(lambda x, t=t: x.to(t) for t in (torch.float16, torch.bfloat16, torch.int64, torch.bool)),
    *(lambda x, t=t: x.to(t) for t in (torch.float32, torch.complex128, torch.uint8)),
    *(lambda x, c=c: x * c for c in (-1, 0, 1e-200, 1e200, math.nan, math.inf)),
    lambda x: x.index_fill(0, torch.tensor([0]), x.dtype != torch.bool and math.nan),
    lambda x: x.to("meta"),
    lambda x: x.numpy(),
    lambda x: x.tolist(),
    lambda x: x[:0],
    lambda x: x[:1],
    lambda x: x[1:],
    lambda x: x[None],
    lambda x: x[..., None],
    lambda x: x.flatten(),
    lambda x: x.mT,
    lambda x: torch.cat([x, x]),
    lambda x: x.clone().requires_grad_(),
    lambda x: x.to_sparse(),
    lambda x: ~x,
]


def damaged(value, damage):
    """A tensor after a damage, or None where the damage is not one for its type."""
    try:
        return damage(value)
    except (RuntimeError, TypeError):
        return None


def like(value, parts):
    """A list, tuple or named tuple of these parts."""
    return value._make(parts) if hasattr(value, "_make") else type(value)(parts)


def hostile(value):
    """A strategy for what to put in the place of an argument: a function that makes it."""
    ways = [ANYTHING.map(lambda wrong: lambda: wrong)]
    if isinstance(value, torch.Tensor):
        ways.append(st.sampled_from(DAMAGES).map(lambda damage: lambda: damaged(value, damage)))
    if isinstance(value, list | tuple) and value:
        places = st.integers(0, len(value) - 1)
        parts = places.flatmap(lambda i: hostile(value[i]).map(lambda make: (i, make)))
        ways.append(
            parts.map(
                lambda part: (
                    lambda: like(value, [*value[: part[0]], part[1](), *value[part[0] + 1 :]])
                )
            )
        )
        ways.append(st.sampled_from([lambda: value[:1], lambda: value * 2, lambda: value[::-1]]))
    if dataclasses.is_dataclass(value) and type(value).__name__ in BUILT:  # an instance
        fields = st.sampled_from([f.name for f in dataclasses.fields(value) if f.init])
        ways.append(
            fields.flatmap(lambda f: hostile(getattr(value, f)).map(lambda make: (f, make))).map(
                lambda part: lambda: dataclasses.replace(value, **{part[0]: part[1]()})  # type: ignore[type-var]
            )
        )
    return st.one_of(ways)


def leaves(value):
    """All numbers of a result, as arrays."""
    if isinstance(value, torch.Tensor):
        assert value.device.type == "cpu", f"a tensor on {value.device}"
        value = value.detach().to_dense()
        return [value.double().numpy() if value.is_floating_point() else value.numpy()]
    if isinstance(value, pd.DataFrame):
        return [array for name in value for array in leaves(value[name].tolist())]
    if isinstance(value, torch.nn.Module):
        return leaves(list(value.parameters()))
    if dataclasses.is_dataclass(value):
        return leaves([getattr(value, field.name) for field in dataclasses.fields(value)])
    if isinstance(value, dict):
        return leaves(list(value.values()))
    if isinstance(value, list | tuple):
        return [array for part in value for array in leaves(part)]
    if isinstance(value, numbers.Real):
        return [np.asarray(float(value))]
    return [value] if isinstance(value, np.ndarray) and value.dtype.kind != "O" else []


def names_in(value, name):
    """The argument's name and, for one of the package's own objects, those of its parts."""
    names = {name} | ALSO.get(name, set())
    if isinstance(value, str):  # the axis of a map: a name and its values
        return names | {value}
    if isinstance(value, list | tuple):
        return names.union(*(names_in(part, name) for part in value))
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return names.union(*(names_in(getattr(value, f.name), f.name) for f in fields))
    return names


def own(error):
    """Whether the package raised it, or warned of it, on purpose."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    inside = Path(last.filename).is_relative_to(Path(lib.__file__).parent)
    return inside and bool(re.match(r"raise|warnings\.warn", last.line or ""))


def random_states():
    """The global random states of PyTorch, NumPy and Python."""
    numpy = np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
    return torch.get_rng_state().tolist(), numpy, random.getstate()


def complaint(function, arguments, *, names=None, infinite=False):
    """What is wrong with how a call ended, or None.

    arguments: functions that make them. names: one of which a refusal must have; without them
    nothing may be refused. infinite: whether numbers that are not finite are documented.
    """
    states = None
    try:
        made = {name: make() for name, make in arguments.items()}
        states = random_states()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            result = function(**made)
            finite = all(np.isfinite(array).all() for array in leaves(result))
    except (RuntimeError, RuntimeWarning) as error:
        if names is None or not own(error):
            return f"{type(error).__name__}: {error}"
    except (ValueError, TypeError) as error:
        named = names is not None and re.search(rf"\b({'|'.join(names)})\b", str(error))
        if not named:
            return f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        if not (finite or infinite):
            return f"not finite: {result}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if states and random_states() != states:
        return "moved a global random state"
    return None
