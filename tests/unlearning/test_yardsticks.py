"""Yardsticks of deletion, by hand and against their published floors."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from lib.unlearning.yardsticks import (
    Accuracies,
    accuracy_gap,
    klom,
    klom_floor,
    margins,
    membership_score,
    output_gap,
    tug_of_war,
    tug_of_war_mia,
    u_lira,
    weight_gap,
)


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


def test_gaps_by_hand():
    gap = accuracy_gap(Accuracies(0.5, 0.9, 0.8), Accuracies(0.7, 1.0, 0.75))
    assert gap == pytest.approx((0.2, 0.1, 0.05))
    weights = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    torch.testing.assert_close(weight_gap(*weights), torch.tensor([0.8, 1.0], dtype=torch.float64))
    # Two samples: probabilities (½, ½) against (¾, ¼), and equal ones.
    u = torch.zeros(1, 2, 2, dtype=torch.float64)
    r = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(output_gap(u, r), torch.tensor([0.125], dtype=torch.float64))


def test_weight_gap_s_null_and_anti_null_where_there_is_one_optimum():
    """Ridge regression by gradient descent: retrained from two starts, and the original."""
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, dtype=torch.float64, generator=drawn)
    y = torch.randn(30, dtype=torch.float64, generator=drawn)

    def fitted(members, start):
        w = start.clone()
        for _ in range(3000):
            w -= 0.1 * (x[members].T @ (x[members] @ w - y[members]) / len(y[members]) + 0.1 * w)
        return w[None]

    kept, everyone = slice(10, 30), slice(0, 30)
    starts = torch.randn(3, 4, dtype=torch.float64, generator=drawn)
    reference = fitted(kept, starts[0])
    assert float(weight_gap(fitted(kept, starts[1]), reference)) < 1e-12
    assert float(weight_gap(fitted(everyone, starts[2]), reference)) > 0.1


def test_accuracies_null_is_no_gap_and_no_tug():
    same = Accuracies(0.6, 0.9, 0.8)
    assert accuracy_gap(same, same) == (0, 0, 0)
    assert tug_of_war_mia(same, same, 0.3, 0.3) == 1


def test_tug_of_war_with_membership_by_hand():
    u, r = Accuracies(0.0, 0.9, 0.8), Accuracies(1.0, 1.0, 0.75)
    assert tug_of_war_mia(u, r, 0.4, 0.7) == pytest.approx(0.7 * 0.9 * 0.95)
    with pytest.raises(ValueError, match="retrained_score"):
        tug_of_war_mia(u, r, 0.4, 70)


def test_membership_by_hand():
    """Members confident, others not: an attack that is right, whatever its boundary is."""
    sure, unsure = torch.full((20,), 0.99), torch.full((30,), 0.2)
    forget = torch.tensor([0.99, 0.98, 0.2, 0.21])
    assert membership_score(sure, unsure, forget) == 0.5
    assert membership_score(sure, unsure, forget[:2]) == 0
    assert membership_score(sure, unsure, forget[2:]) == 1
    with pytest.raises(ValueError, match="forget_confidence"):
        membership_score(sure, unsure, 2 * forget)


def lira_by_hand(u, r):
    """One sample's attack, each model against normal laws fitted without it."""
    told = []
    for own, other, sign in ((u, r, 1), (r, u, 1)):
        for i, margin in enumerate(own):
            rest = np.delete(own, i)
            mine = scipy.stats.norm.logpdf(margin, rest.mean(), rest.std(ddof=1))
            theirs = scipy.stats.norm.logpdf(margin, other.mean(), other.std(ddof=1))
            told.append((len(own), sign * mine > theirs))
    return sum(right / n for n, right in told) / 2


def test_u_lira_is_the_left_out_likelihood_ratio():
    rng = np.random.default_rng(3)
    u, r = rng.normal(1, 2, (9, 5)), rng.normal(0, 1, (12, 5))
    found = u_lira(torch.from_numpy(u), torch.from_numpy(r)).numpy()
    np.testing.assert_allclose(found, [lira_by_hand(u[:, j], r[:, j]) for j in range(5)])


def test_u_lira_of_equal_and_of_distant_models():
    equal, again = torch.randn(2, 100, 200, generator=torch.Generator().manual_seed(0)).double()
    # A sample's accuracy has standard error .035; the mean of 200 is within .01.
    assert float(u_lira(equal, again).mean()) == pytest.approx(0.49, abs=0.015)
    assert float(u_lira(equal, again + 20).min()) == 1
    same = torch.ones(5, 2)
    assert u_lira(same, same).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.full((4, 2), torch.nan), torch.zeros(2, 2)])
def test_u_lira_refuses_what_is_no_population(bad):
    with pytest.raises(ValueError, match="unlearned_margins"):
        u_lira(bad, torch.zeros(4, 2))


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
