"""Yardsticks of deletion, by hand and against their published floors."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from lib.unlearning.yardsticks import Accuracies, klom, klom_floor, margins, tug_of_war


def test_tug_of_war_by_hand():
    score = tug_of_war(Accuracies(0.5, 0.9, 0.8), Accuracies(0.7, 1.0, 0.75))
    assert score == pytest.approx(0.8 * 0.9 * 0.95)
    assert tug_of_war(Accuracies(0.3, 0.9, 0.8), Accuracies(0.3, 0.9, 0.8)) == 1
    with pytest.raises(ValueError, match=r"unlearned\.retain"):
        tug_of_war(Accuracies(0.3, 90, 0.8), Accuracies(0.3, 0.9, 0.8))


def test_margins_are_log_odds():
    outputs = torch.randn(5, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(4, (7,), generator=torch.Generator().manual_seed(1))
    p = outputs.softmax(-1)[:, torch.arange(7), targets]
    torch.testing.assert_close(margins(outputs, targets), (p / (1 - p)).log())


def by_hand(u, r):
    """One sample's KLoM with NumPy's histograms and SciPy's entropy."""
    u, r = np.clip(u, -100, 100), np.clip(r, -100, 100)
    edges = np.histogram_bin_edges(np.concatenate([u, r]), 20)
    p, q = (np.histogram(m, edges)[0] / len(m) + 1e-5 for m in (u, r))
    return scipy.stats.entropy(p, q)


def test_klom_is_the_divergence_of_histograms():
    rng = np.random.default_rng(0)
    u, r = rng.normal(1, 2, (120, 6)), rng.normal(0, 1, (100, 6))
    u[0, 0], r[3, 1] = 1e4, -1e4
    found = klom(torch.from_numpy(u), torch.from_numpy(r)).numpy()
    np.testing.assert_allclose(found, [by_hand(u[:, j], r[:, j]) for j in range(6)], rtol=1e-9)


def test_klom_of_the_same_models_is_nothing_and_of_far_ones_is_its_largest():
    same = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
    assert float(klom(same, same).abs().max()) < 1e-12
    far = klom(same * 0 + 5, same * 0 - 5)
    assert float(far[0]) == pytest.approx(math.log(1 / 1e-5), rel=1e-3)
    assert float(klom(same * 0 + 5, same * 0 + 5).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("models", "mean"), [(10, 5.6), (20, 3.0), (50, 0.88), (100, 0.35), (200, 0.15)]
)
def test_the_floor_is_that_of_the_number_of_models(models, mean):
    found, _ = klom_floor(models, repeats=4000, seed=0)
    assert found == pytest.approx(mean, rel=0.08)


def test_the_floor_s_upper_end():
    assert klom_floor(100, repeats=4000, seed=1)[1] == pytest.approx(0.65, rel=0.08)


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.full((4, 2), torch.nan), torch.zeros(1, 2)])
def test_margins_that_are_no_matrix_are_refused(bad):
    with pytest.raises(ValueError, match="unlearned_margins"):
        klom(bad, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="retrained_margins"):
        klom(torch.zeros(4, 2), bad)


@pytest.mark.parametrize(
    ("outputs", "targets", "named"),
    [
        (torch.zeros(5, 1), torch.zeros(5, dtype=torch.int64), "outputs"),  # no other class
        (torch.full((5, 4), -torch.inf), torch.zeros(5, dtype=torch.int64), "outputs"),
        (
            torch.tensor([[1e308, -1e308]], dtype=torch.float64),
            torch.tensor([0]),
            "outputs",
        ),  # overflows
        (torch.zeros(5, 4), torch.full((5,), -1), "targets"),
        (torch.zeros(5, 4), torch.full((5,), 4), "targets"),
        (torch.zeros(5, 4), torch.full((5,), torch.nan), "targets"),
        (torch.zeros(5, 4), torch.zeros(4, dtype=torch.int64), "targets"),
    ],
)
def test_margins_refuse_what_has_none(outputs, targets, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        margins(outputs, targets)


def test_sets_of_models_that_take_too_much_memory_are_refused():
    with pytest.raises(ValueError, match="models and repeats"):
        klom_floor(10**5, repeats=10**3)
