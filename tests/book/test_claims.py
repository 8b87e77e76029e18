"""Claims: what is shown, refused, found too weak and recorded; and the pages that make them."""

import math
import re

import jupytext
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import papermill
import pytest
import torch

from lib.book import ClaimFailed, WeakGuard, agrees, captioned, claim, pages
from lib.book import claims as room
from lib.store.claims import MIME, ClaimRecord, claims_in, plain

ROLE = re.compile(r"\{[\w:.+-]+\}`")
each_page = pytest.mark.parametrize("page", pages.executable_pages(), ids=lambda page: page.stem)


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, as data and metadata."""
    outputs = []

    def display(output, metadata=None):
        data, own = output._repr_mimebundle_()
        outputs.append((data, {**own, **(metadata or {})}))

    monkeypatch.setattr(room, "display", display)
    return outputs


def record(shown):
    return ClaimRecord.from_json(shown[-1][1][MIME])


def test_a_claim_shows_its_sentence_and_records_what_it_rests_on(shown):
    sentence = r"At least {share:.1f} % of {n} cells, $\lambda_{min}^{n}$ and {{braces}}."
    claim(sentence, lambda share: share >= 97, share=98.25, n=400)
    data, _ = shown[0]
    text = r"At least 98.2 % of 400 cells, $\lambda_{min}^{n}$ and {braces}."
    assert data == {"text/markdown": text, "text/plain": text}
    found = record(shown)
    assert (found.sentence, found.verdict) == (text, "holds")
    assert found.numbers == {"share": 98.25, "n": 400}
    assert found.breaks == {"share": [True, False]}
    claim("Only {n} shown.", None, n=3)
    assert (record(shown).verdict, record(shown).breaks) == ("shown", {})


def test_the_identity_of_a_claim_is_that_of_its_words(shown):
    ids = []
    for value in (1.0, 2.0):
        claim("It is {a}.", None, a=value)
        ids.append(record(shown).id)
    claim("It was {a}.", None, a=1.0)
    assert ids[0] == ids[1] != record(shown).id
    assert re.fullmatch(r"it-was-[0-9a-f]{6}", record(shown).id)


@pytest.mark.parametrize("share", [96.0, math.nan, math.inf])
def test_a_claim_that_does_not_hold_fails_and_says_with_what(shown, share):
    with pytest.raises(ClaimFailed, match=r"(?s)The share is .*'share': (96|nan|inf)"):
        claim("The share is {share}.", lambda share: share >= 97 or math.isnan(share), share=share)
    assert not shown


@pytest.mark.parametrize(
    ("holds", "numbers"),
    [
        (lambda share: share > 10, {"share": 97.0}),
        (lambda: True, {"share": 97.0}),
        (lambda share: True, {"share": 97.0}),
        (lambda a: a == 0, {"a": 0.0}),
        (lambda flag: flag is not None, {"flag": True}),
        (lambda word: len(word) > 0, {"word": "yes"}),
        (lambda a: [1, 2, 3][int(a)] > 0 if isinstance(a, int) else 1 / 0, {"a": 1}),
    ],
)
def test_a_condition_that_no_other_number_breaks_is_too_weak(shown, holds, numbers):
    with pytest.raises(WeakGuard):
        claim("Weak.", holds, **numbers)
    assert not shown


@pytest.mark.parametrize(
    ("holds", "numbers"),
    [
        (lambda n: n == 5, {"n": 5}),
        (lambda flag: flag, {"flag": np.bool_(True)}),
        (lambda word: word == "yes", {"word": "yes"}),
        (lambda a, b: abs(a - b) < 0.1, {"a": 1.0, "b": np.float32(1.05)}),
        (lambda a, b=2: a < 0.6 * b, {"a": 1.1}),
        (lambda **all: all["a"] < 1.1, {"a": 1.0}),
        (lambda a: a <= 1.0, {"a": 1.0, "unused": math.nan}),
        (lambda p: agrees(p, [1.0, 2.0], within=0.1), {"p": torch.tensor([1.0, 2.1])}),
    ],
)
def test_a_condition_that_some_other_number_breaks_is_guarded(shown, holds, numbers):
    claim("Guarded.", holds, **numbers)
    assert any(any(found) for found in record(shown).breaks.values())


@pytest.mark.parametrize(
    ("sentence", "numbers", "message"),
    [
        ("See {ref}`thm`.", {}, "without roles"),
        ("It is {glue:text}`a`.", {"a": 1}, "without roles"),
        ("```{note}\nx\n```", {}, "without roles"),
        ("It is {b}.", {"a": 1}, r"among \['a'\]"),
        ("It is {a:.2q}.", {"a": 1}, r"among \['a'\]"),
        ("It is $x = {a:.2f}$.", {"a": 1}, r"\{a\} outside formulas"),
        ("It is {a}.", {"a": None}, "a must be a number"),
        ("It is {a}.", {"a": 1j}, "a must be a number"),
        ("It is {a}.", {"a": [1.0, 2.0]}, "among"),
        ("It is {a}.", {"a": np.array([])}, "a must be a number"),
    ],
)
def test_sentences_and_numbers_that_cannot_be_are_refused(shown, sentence, numbers, message):
    with pytest.raises(ValueError, match=message):
        claim(sentence, None, **numbers)
    assert not shown


def test_a_condition_that_takes_what_is_not_given_is_refused(shown):
    with pytest.raises(ValueError, match=r"holds must take some of \['a'\], got 'b'"):
        claim("It is {a}.", lambda b: b > 1, a=1)


VALUES = [
    0.1,
    5,
    True,
    "it's {a} \n",
    2**62,
    np.float64(1 / 3),
    np.float32(0.1),
    np.float16(0.1),
    np.int64(-(2**63)),
    np.uint64(2**64 - 1),
    np.bool_(False),
    np.array(1 / 3),
    np.str_("word"),
    torch.tensor(1 / 3),
    torch.tensor(0.1, dtype=torch.float32),
    torch.tensor(0.1, dtype=torch.bfloat16, requires_grad=True),
    torch.tensor(7),
    torch.tensor(True),
    5e-324,
    -0.0,
    math.inf,
    math.nan,
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_numbers_come_back_to_the_last_bit(shown, value):
    claim("Value.", None, a=value)
    found = record(shown).numbers["a"]
    item = value.item() if hasattr(value, "item") else value
    assert type(found) is type(item)
    assert repr(found) == repr(item)
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        assert torch.equal(torch.tensor(found, dtype=value.dtype), value.detach())


def test_arrays_come_back_in_their_shape(shown):
    array = np.random.default_rng(0).standard_normal((2, 3))
    claim("Array.", None, a=array, b=torch.arange(3))
    found = record(shown).numbers
    np.testing.assert_array_equal(found["a"], array, strict=True)
    np.testing.assert_array_equal(found["b"], [0.0, 1.0, 2.0], strict=True)
    with pytest.raises(ValueError, match="a must be"):
        plain("a", np.array([2**53 + 1]))


@pytest.mark.parametrize(
    ("predicted", "measured", "options", "result"),
    [
        (1.0, 1.05, {"within": 0.1}, True),
        (1.0, 1.2, {"within": 0.1}, False),
        ([1.0, 2.0], np.array([1.05, 2.1]), {"within": 0.1}, True),
        ([1.0, 3.0], [1.05, 2.1], {"within": 0.1}, False),
        (torch.ones(2, 1), torch.ones(3), {"within": 0.0}, True),
        ([0.0, 1.0], [0.05, 1.0], {"within": 0.1, "atol": 0.05}, True),
        ([1.0, math.nan], [1.0, math.nan], {"within": 0.1}, False),
        (1.0, math.inf, {"within": 0.1}, False),
        (math.inf, math.inf, {"within": 0.1}, False),
    ],
)
def test_agreement_is_elementwise_and_of_finite_numbers(predicted, measured, options, result):
    assert agrees(predicted, measured, **options) is result


@pytest.mark.parametrize(
    ("predicted", "measured", "options"),
    [
        (1.0, 1.0, {"within": 0.25}),
        (1.1, 1.0, {"within": 0.15}),
        (0.0, 0.0, {"within": 0.1}),
        ([1e-6, 2e-6], [1e-6, 2e-6], {"within": 0.1, "atol": 1e-3}),
    ],
)
def test_agreement_that_does_not_see_twenty_per_cent_is_too_weak(predicted, measured, options):
    with pytest.raises(WeakGuard):
        agrees(predicted, measured, **options)


@pytest.mark.parametrize(
    ("predicted", "measured", "options", "message"),
    [
        ([], [], {"within": 0.1}, "predicted must be"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], {"within": 0.1}, "broadcast"),
        (1.0, 1.0, {"within": -0.1}, "within must be"),
        (1.0, 1.0, {"within": 0.1, "atol": math.nan}, "atol must be"),
        ("a", 1.0, {"within": 0.1}, "predicted must be"),
    ],
)
def test_what_cannot_be_compared_is_refused(predicted, measured, options, message):
    with pytest.raises(ValueError, match=message):
        agrees(predicted, measured, **options)


def test_a_captioned_figure_is_a_picture_with_words_for_it_and_a_claim(shown):
    figure, _ = plt.subplots()
    captioned(figure, "fig-x", "A line.", "Slope {a:.1f}.", lambda a: a < 1.1, a=1.0)
    (picture, metadata), (caption, _) = shown
    assert picture["text/plain"] == "Figure fig-x: A line."
    assert picture["image/png"].startswith("iVBOR")
    assert metadata == {"image/png": {"alt": "A line."}}
    assert caption["text/markdown"] == "Slope 1.0."
    assert record(shown).verdict == "holds"
    assert not plt.get_fignums()
    for name, alt in (("x", "A line."), ("fig-x", "Two\nlines."), ("fig-x", "")):
        with pytest.raises(ValueError, match="must be"):
            captioned(figure, name, alt, "Caption.")


# --- the pages ------------------------------------------------------------------------------------


def require_complete(notebook):
    """Every claim has its numbers, and no output a role, wherever the notebook is opened."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/markdown", "")
            assert not ROLE.search(text), text
            # What is left in braces is TeX's.
            assert "{" not in re.sub(r"\$.*?\$", "", text), text
            assert not re.search(r"\bnan\b", text), text
    claims = list(claims_in(notebook))
    assert claims
    assert len({found.id for found in claims}) == len(claims)
    for found in claims:
        assert found.verdict == "shown" or any(any(broken) for broken in found.breaks.values())
    return claims


@each_page
def test_stored_notebook_has_every_number(page):
    for found in require_complete(nbformat.read(pages.pair(page), as_version=4)):
        shown_numbers = [v for v in found.numbers.values() if isinstance(v, int | float)]
        assert not shown_numbers or re.search(r"\d", found.sentence)


@each_page
def test_cells_are_science_and_prose_has_no_numbers_glued_in(page):
    for cell in jupytext.read(page).cells:
        if cell.cell_type == "markdown":
            assert "{glue:" not in cell.source
        else:
            shown = page.stem == "sweeps" and "computation =" in cell.source  # a reader's notebook
            assert shown or not re.search(r"\bglue\b", cell.source), cell.source
            assert not re.search(r"^\s*assert\b|^\s*def ", cell.source, re.M), cell.source


@pytest.mark.parametrize("name", ["intro", "real_images"])
def test_the_pages_opened_first_have_no_role_that_jupyter_would_show_raw(name):
    for cell in jupytext.read(pages.BOOK / f"{name}.md").cells:
        assert not ROLE.search(cell.source), cell.source
        if cell.cell_type == "markdown":
            assert not re.search(r"^\s*([`:]{3,})\{|^: ", cell.source, re.M), cell.source


@pytest.mark.long
@pytest.mark.parametrize("name", ["intro", "real_images"])
def test_papermill_s_output_has_every_number(name, tmp_path):
    """Of two pages; the others' outputs are compared with the stored ones, cell by cell."""
    source, target = tmp_path / f"{name}.ipynb", tmp_path / "out.ipynb"
    jupytext.write(jupytext.read(pages.BOOK / f"{name}.md"), source)
    papermill.execute_notebook(str(source), str(target), progress_bar=False)
    require_complete(nbformat.read(target, as_version=4))
