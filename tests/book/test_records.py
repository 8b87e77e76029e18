"""What the claims of the stored notebooks rest on, read from their records; no page is executed."""

import itertools
import re

import nbformat
import numpy as np
import pytest

from lib.book import pages
from lib.store.claims import claims_in

CONVERTED = [
    "intro",
    "hessian_tests",
    "random_matrices",
    "signal_noise_cnn",
    "benign_overfitting",
    "heat_maps",
    "real_images",
    "linearized_dynamics",
    "coherence",
    "thresholds",
    "tangent_model",
    "your_model",
    "deletion",
    "explorer",
    "claims",
    "performance",
]
WORDS = 90  # of a caption
# A page, words of a claim on it, and a prediction that the claim must refuse 20 % down and 20 % up.
PREDICTIONS = [
    ("random_matrices", "The exponent is seen as well", "predicted"),  # slope −2/3
    ("random_matrices", "Critical mixing $\\alpha^\\ast$ over the two ratios", "null"),  # α*, κ
    ("random_matrices", "The excess is the Tracy–Widom shift", "predicted"),
    ("random_matrices", "Critical learning rate $\\eta^\\ast$", "predicted"),
    ("random_matrices", "The transition in one set", "predicted"),  # spike
    ("random_matrices", "A signal of the forget set's own", "predicted"),
    ("random_matrices", "A shared signal", "overlaps"),
    ("hessian_tests", "the last is measured", "typical"),
    ("heat_maps", "the measured frontier rises", "typical"),
    ("heat_maps", "The typical prediction counts them right", "typical"),
    ("heat_maps", "The forget batch matters least", "typical"),
    ("heat_maps", "the learning rate alone decides", "predicted"),
    ("heat_maps", "Two factors make that up", "common"),
    ("signal_noise_cnn", "The memorised share", "predicted"),
    ("signal_noise_cnn", "Coherence against the signal-to-noise ratio", "predicted"),
    ("signal_noise_cnn", "Both factors are large", "linear"),
    ("benign_overfitting", "Five published numbers", "mean"),
    ("benign_overfitting", "The law holds in the middle", "law"),
    ("linearized_dynamics", "Wherever the sampled mean's standard error", "predicted"),  # trusted
    ("linearized_dynamics", "In the example $\\kappa =$", "kappa"),
    ("linearized_dynamics", "In the example $\\kappa =$", "alpha"),
    ("linearized_dynamics", "some rate is stable", "rates_found"),  # η*
    ("thresholds", "The threshold is attained at every pair", "formula"),
    ("coherence", "The coherence matrix of three data sets", "predicted_cross"),
    ("tangent_model", "Steps at which the forget loss passes", "predicted"),
    ("tangent_model", "Two orthogonal unit samples", "distance"),
    ("your_model", "the run on all of them is expected", "predicted"),
    ("deletion", "The null: a second set", "floor"),
    ("deletion", "Stable, and drifting away", "rest"),
    ("intro", "Most of that is the step size", "step_size"),
    ("intro", "Most of that is the step size", "by_curvature"),
]
# The same for a number that is held from one side: a floor or a ceiling close to it.
LIMITS = [
    ("hessian_tests", "Escape against mixing $\\alpha$ and the alignment", "typical"),  # cross map
    ("hessian_tests", "Escape against mixing $\\alpha$ and the alignment", "mean_square"),
    ("hessian_tests", "Per cent of near cells", "square"),
    ("heat_maps", "Typical beats mean-square", "typical"),
    ("heat_maps", "Typical beats mean-square", "square"),
    ("heat_maps", "A prediction that is off does worse", "moved"),
    ("heat_maps", "A prediction that is off does worse", "near"),
    ("signal_noise_cnn", "Both factors are large", "step_size"),
    ("signal_noise_cnn", "Both factors are large", "common"),
    ("thresholds", "The bounds around the exact threshold", "above"),
]


def source_of(page):
    return nbformat.read(pages.BOOK / f"{page}.ipynb", as_version=4)


def guarded(page):
    """The claims that have a condition."""
    return [found for found in claims_in(source_of(page)) if found.verdict == "holds"]


def claim_on(page, words):
    (found,) = (found for found in guarded(page) if words in found.sentence)
    return found


@pytest.mark.parametrize("page", CONVERTED)
def test_each_claim_of_a_page_is_recorded_and_broken_by_another_number(page):
    code = [cell.source for cell in source_of(page).cells if cell.cell_type == "code"]
    made = re.findall(r"^\s*(?:claim|captioned)\(", "\n".join(code), re.M)
    found = list(claims_in(source_of(page)))
    assert len({record.id for record in found}) == len(found) == len(made)
    assert not re.search(r"^\s*assert\b|\bglue\b", "\n".join(code), re.M)
    assert "{glue:" not in (pages.BOOK / f"{page}.md").read_text()
    assert guarded(page)
    for record in guarded(page):
        assert {*record.breaks} <= {*record.numbers}
        assert any(any(broken) for broken in record.breaks.values()), record.sentence


def test_the_pages_together_refuse_hundreds_of_other_numbers():
    broken = [
        is_broken
        for page in CONVERTED
        for record in guarded(page)
        for both in record.breaks.values()
        for is_broken in both
    ]
    assert sum(broken) >= 250


@pytest.mark.parametrize(("page", "words", "number"), PREDICTIONS)
def test_a_prediction_twenty_per_cent_off_is_refused_both_ways(page, words, number):
    assert claim_on(page, words).breaks[number] == [True, True]


@pytest.mark.parametrize(("page", "words", "number"), LIMITS)
def test_a_limit_is_within_twenty_per_cent_of_what_was_measured(page, words, number):
    assert any(claim_on(page, words).breaks[number])


@pytest.mark.parametrize("page", CONVERTED)
def test_recorded_predictions_fit_better_than_those_twenty_per_cent_off(page):
    """Evaluated again from the record alone, without the condition that the page had."""
    for record in guarded(page):
        if not {"predicted", "measured"} <= {*record.numbers}:
            continue
        predicted, measured = (np.ravel(record.numbers[n]) for n in ("predicted", "measured"))
        ratio = (predicted / measured)[measured != 0]
        errors = [np.mean((factor * ratio - 1) ** 2) for factor in (0.8, 1.0, 1.2)]
        assert errors[1] == min(errors), record.sentence


def test_the_recorded_slopes_tell_two_thirds_from_one():
    slopes = claim_on("random_matrices", "The exponent is seen as well").numbers["measured"]
    assert np.abs(slopes + 2 / 3).max() < 0.1 < 0.25 < np.abs(slopes + 1).min()


@pytest.mark.parametrize("page", CONVERTED)
def test_captions_are_short(page):
    """The first paragraph is the figure's caption; what is more stands below it."""
    for cell in source_of(page).cells:
        outputs = cell.get("outputs", [])
        for picture, words in itertools.pairwise(outputs):
            if picture.get("data", {}).get("text/plain", "").startswith("Figure fig-"):
                caption = words["data"]["text/markdown"].split("\n\n")[0]
                assert len(caption.split()) <= WORDS, caption
