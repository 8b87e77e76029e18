"""Every function behind a door under hostile and under random valid arguments.

A hostile call has one argument of a valid call (`tests/support/calls.py`) replaced or damaged. It
may give finite numbers, or refuse with a ValueError or TypeError whose message has the argument's
name, or raise or warn of a RuntimeError of the package's own. All is seeded. FUZZ=full makes at
least 10,000 hostile and 5,000 valid calls, else a tenth of that.
"""

import dataclasses
import importlib
import math
import numbers
import os
import re
import resource
import signal
import traceback
import types
import warnings
import zlib
from fractions import Fraction
from operator import attrgetter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.support import calls
from tests.support.calls import VALID_CALLS, rule

FULL = os.environ.get("FUZZ") == "full"
HOSTILE, VALID = (
    math.ceil(total / (1 if FULL else 10) / len(VALID_CALLS)) for total in (10_000, 5_000)
)
SECONDS = 10
MEMORY = 6 << 30  # bytes that a call may ask for on top of what the process has
each_call = pytest.mark.parametrize(
    ("door", "name", "build"), VALID_CALLS, ids=[f"{door}.{name}" for door, name, _ in VALID_CALLS]
)
# Documented: the only answers that are infinite or NaN.
INFINITE: set[str] = set()
# An argument whose validity hangs on another one may be the one that is named.
COUPLED: dict[str, set[str]] = {}

WRONG = [
    *(lambda value=value: value for value in (None, "", "word", b"1", 1j, True, False, [], {}, ())),
    *(lambda value=value: value for value in (math.nan, math.inf, -math.inf, 0, -1, 2.5, -0.5)),
    *(lambda value=value: value for value in (1e308, 1e-320, 1e150, 10**6, 2**63, -(2**63), 10**400)),
    *(lambda value=value: value for value in (int, len, range(3), {1}, [None], [[1], [1, 2]])),
    *(lambda value=value: value for value in (np.nan, np.int8(3), np.float32(0.3), np.bool_(True))),
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
DAMAGES = [
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


def hostile(value):
    """A strategy for what to put in the place of an argument: a function that makes it."""
    ways = [ANYTHING.map(lambda wrong: lambda: wrong)]
    if isinstance(value, torch.Tensor):
        ways.append(st.sampled_from(DAMAGES).map(lambda damage: lambda: damage(value)))
    if isinstance(value, list | tuple) and value:
        places = st.integers(0, len(value) - 1)
        parts = places.flatmap(lambda i: hostile(value[i]).map(lambda make: (i, make)))
        ways.append(
            parts.map(
                lambda part: lambda: type(value)(
                    [*value[: part[0]], part[1](), *value[part[0] + 1 :]]
                )
            )
        )
        ways.append(st.sampled_from([lambda: value[:1], lambda: value * 2, lambda: value[::-1]]))
    if dataclasses.is_dataclass(value):
        fields = st.sampled_from([f.name for f in dataclasses.fields(value) if f.init])
        ways.append(
            fields.flatmap(lambda f: hostile(getattr(value, f)).map(lambda make: (f, make))).map(
                lambda part: lambda: dataclasses.replace(value, **{part[0]: part[1]()})
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
    if isinstance(value, list | tuple):
        return {name}.union(*(names_in(part, name) for part in value))
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {name}.union(*(names_in(getattr(value, f.name), f.name) for f in fields))
    return {name} | COUPLED.get(name, set())


def own(error):
    """Whether the package raised it, or warned of it, on purpose."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return "/lib/" in last.filename and bool(re.match(r"raise|warnings\.warn", last.line or ""))


def complaint(function, arguments, names=None):
    """What is wrong with how a call ended, or None; without names it may refuse nothing."""
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            result = function(**{name: make() for name, make in arguments.items()})
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
        if not finite and function.__qualname__ not in INFINITE:
            return f"not finite: {result}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if (torch.get_rng_state() != states[0]).any() or np.random.get_state()[1].tolist() != states[1]:  # noqa: NPY002
        return "moved a global random state"
    return None


class TooLong(Exception):
    """A call that had to be stopped."""


@pytest.fixture(autouse=True)
def _bounded():
    """Stops what runs for too long or takes too much memory, with an exception."""

    def stop(*_):
        raise TooLong

    before = signal.signal(signal.SIGPROF, stop)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    signal.signal(signal.SIGPROF, before)


def settled(examples):
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.long
@each_call
def test_hostile_arguments_give_numbers_or_are_refused_by_name(door, name, build):
    function, good = attrgetter(name)(importlib.import_module(f"lib.{door}")), build()
    made = 0

    @seed(zlib.crc32(f"{door}.{name}".encode()))
    @settled(HOSTILE)
    @given(st.data())
    def call(data):
        nonlocal made
        made += 1
        changed = data.draw(st.sampled_from(sorted(good)))
        arguments = {key: lambda key=key: build()[key] for key in good}
        arguments[changed] = data.draw(hostile(build()[changed]))
        assert complaint(function, arguments, names_in(good[changed], changed)) is None

    call()
    assert made >= HOSTILE
