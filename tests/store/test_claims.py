"""Records of claims, apart from the pages that make them: what comes back, and what is refused."""

import numpy as np
import pytest
import torch

from lib.store.claims import ClaimRecord, literal, plain

NUMBERS = {"share": 0.1, "n": 3, "flag": True, "word": "yes", "gap": -np.inf, "row": [0.5, 1e-300]}


def test_a_record_comes_back_bit_for_bit():
    numbers = {name: plain(name, value) for name, value in NUMBERS.items()}
    record = ClaimRecord("it-is", "It is.", "holds", numbers, {"share": [True, False]})
    back = ClaimRecord.from_json(record.to_json())
    assert list(back.numbers.pop("row")) == list(numbers.pop("row"))
    assert back.numbers == numbers
    assert [type(value) for value in back.numbers.values()] == [float, int, bool, str, float]
    assert (back.id, back.sentence, back.verdict, back.breaks) == (
        *(record.id, record.sentence, record.verdict, record.breaks),
    )


def test_a_number_that_is_no_literal_is_refused_by_name():
    content = ClaimRecord("it-is", "It is.", "holds", {"share": 0.1}, {}).to_json()
    for text in ("0.1.2", "share", "None", "[1]"):
        with pytest.raises(ValueError, match="share must be a Python literal, got"):
            ClaimRecord.from_json(content | {"numbers": {"share": text}})
    assert literal("None") is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int8(3), 3),
        (np.bool_(True), True),
        (np.str_("yes"), "yes"),
        (torch.tensor(0.25), 0.25),
        (torch.tensor(3), 3),
        (torch.tensor(0.1, dtype=torch.bfloat16), 0.10009765625),
    ],
)
def test_scalars_become_pythons_own(value, expected):
    found = plain("x", value)
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize("value", [None, 1j, np.array([]), [2**53 + 1], np.array(["a"])])
def test_what_float64_does_not_hold_is_refused_by_name(value):
    with pytest.raises(ValueError, match="share must be a number, bool or string"):
        plain("share", value)
