"""Every door's function follows its inputs' device and dtype, whatever PyTorch's defaults are."""

import dataclasses
import importlib
from operator import attrgetter

import numpy as np
import pandas as pd
import pytest
import torch

from tests.support.calls import RESULTS, TABLES, VALID_CALLS


def flat(value):
    """All numbers in a result, as (path, value) pairs, bit for bit comparable."""
    if isinstance(value, torch.Tensor):
        assert value.device.type == "cpu"
        array = value.detach().numpy()
        return [(str(value.dtype), array.shape, array.tobytes())]
    if isinstance(value, np.ndarray):
        return [(str(value.dtype), value.shape, value.tobytes())]
    if isinstance(value, pd.DataFrame):
        return flat([value[name].to_numpy() for name in value])
    if isinstance(value, torch.nn.Module):
        return flat(list(value.parameters()))
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in flat(part)]
    if isinstance(value, dict):
        return flat(list(value.items()))
    if dataclasses.is_dataclass(value):
        return flat([getattr(value, f.name) for f in dataclasses.fields(value)])
    return [repr(value)]


@pytest.mark.parametrize(
    ("door", "name", "build"), VALID_CALLS, ids=[f"{door}.{name}" for door, name, _ in VALID_CALLS]
)
def test_results_do_not_depend_on_the_default_device_or_dtype(door, name, build):
    function = attrgetter(name)(importlib.import_module(f"lib.{door}"))
    expected = flat(function(**build()))
    arguments = build()
    state = torch.get_rng_state()
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float16)
        with torch.device("meta"):
            found = function(**arguments)
    finally:
        torch.set_default_dtype(before)
    assert flat(found) == expected
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("door", TABLES)
def test_every_name_behind_a_door_has_a_valid_call(door):
    exported = set(importlib.import_module(f"lib.{door}").__all__)
    assert {name.split(".")[0] for name, _ in TABLES[door]} | RESULTS[door] == exported
