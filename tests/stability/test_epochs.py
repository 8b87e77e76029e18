"""A loader's epochs against every order, the generating function and sampled runs."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.signal import convolve2d

from lib.stability.algorithm import AscentDescent
from lib.stability.dynamics import critical_learning_rate, growth_factor
from lib.stability.epochs import epoch_growth
from lib.stability.families import AxisFamily, gaussian_curvature, grouped_family
from lib.stability.simulation import simulate
from tests.support.commuting import curvature_of


def one_axis(n_r, sigma_r, n_f, sigma_f, sharpness=(1.0, 1.0)):
    return AxisFamily(
        n_r, n_f, np.array([sigma_r]), np.array([sigma_f]),
        np.array([sharpness[0] * (sigma_r > 0)]), np.array([sharpness[1] * (sigma_f > 0)]),
    )  # fmt: skip


def squared(family, update, rate, m, k):
    c_r, c_f = (float(c[0]) for c in family.curvatures())
    descent = (1 - update.mixing) * c_r * m / update.retain_batch
    ascent = update.mixing * c_f * k / update.forget_batch
    return (1 - rate * (descent - ascent + update.damping)) ** 2


def counts_of_epochs(n, sigma, batch):
    """How many of the group each batch of an epoch holds, for every set of places of the group."""
    return [
        [sum(place // batch == k for place in places) for k in range(n // batch)]
        for places in itertools.combinations(range(n), sigma)
    ]


def enumerated(family, update, rate):
    sizes = (family.n_retain, update.retain_batch), (family.n_forget, update.forget_batch)
    groups = int(family.retain_group[0]), int(family.forget_group[0])
    epochs = [counts_of_epochs(n, g, b) for (n, b), g in zip(sizes, groups, strict=True)]
    steps = math.lcm(*(n // b for n, b in sizes))
    sequences = [
        [[*itertools.chain(*parts)] for parts in itertools.product(epoch, repeat=steps // (n // b))]
        for epoch, (n, b) in zip(epochs, sizes, strict=True)
    ]
    square = [
        [squared(family, update, rate, m, k) for k in range(update.forget_batch + 1)]
        for m in range(update.retain_batch + 1)
    ]
    products = [
        math.prod(square[m][k] for m, k in zip(first, second, strict=True))
        for first in sequences[0]
        for second in sequences[1]
    ]
    return (sum(products) / len(products)) ** (1 / steps)


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ((6, 3, 3, 2), (2, 1)),
        ((6, 3, 4, 2), (2, 2)),
        ((4, 4, 4, 1), (1, 2)),
        ((6, 0, 2, 1), (3, 1)),
    ],
)
def test_thm_loader_against_enumeration_of_every_order(sizes, batches):
    family = one_axis(sizes[0], sizes[1], sizes[2], sizes[3], (1.3, 0.7))
    update = AscentDescent(0.2, batches[0], batches[1], damping=0.1)
    for rate in (0.3, 0.7, 1.9):
        assert epoch_growth(family, update, rate) == pytest.approx(
            enumerated(family, update, rate), rel=1e-12
        )


def test_equal_epochs_are_the_coefficient_of_a_generating_function():
    family = one_axis(40, 8, 20, 6, sharpness=(1.0, 1.5))
    update, rate, epoch = AscentDescent(0.2, 8, 4, damping=0.05), 0.9, 5
    table = np.array(
        [
            [
                math.comb(8, m) * math.comb(4, k) * squared(family, update, rate, m, k)
                for k in range(5)
            ]
            for m in range(9)
        ]
    )
    power = table
    for _ in range(epoch - 1):
        power = convolve2d(power, table)[:9, :7]
    expected = power[8, 6] / (math.comb(40, 8) * math.comb(20, 6))
    assert epoch_growth(family, update, rate) == pytest.approx(expected ** (1 / epoch), rel=1e-12)


def test_published_critical_rates():
    def critical(n, sigma, batch):
        family, update = one_axis(n, sigma, 1, 0), AscentDescent(0.0, batch, 1)
        return brentq(lambda rate: epoch_growth(family, update, rate) - 1, 1.0, 2.5)

    assert critical(100, 20, 10) == pytest.approx(1.7344, abs=1e-4)
    # Larger batches may be less stable, which under independent batches they never are.
    assert critical(24, 23, 2) == pytest.approx(2.129, abs=1e-3)
    assert critical(24, 23, 3) == pytest.approx(2.043, abs=1e-3)
    assert critical(24, 23, 24) == pytest.approx(2.0, abs=1e-6)


def test_sampled_epochs_agree_within_three_standard_errors():
    family, update, rate = one_axis(12, 5, 6, 4), AscentDescent(0.3, 3, 2), 0.8
    generator = np.random.default_rng(0)
    runs, steps = 40_000, 12
    totals = np.ones(runs)
    for _ in range(steps // 12):
        retain = np.concatenate(
            [generator.permuted(np.tile(np.arange(12) < 5, (runs, 1)), axis=1) for _ in range(3)], 1
        )
        forget = np.concatenate(
            [generator.permuted(np.tile(np.arange(6) < 4, (runs, 1)), axis=1) for _ in range(4)], 1
        )
        m = retain.reshape(runs, 12, 3).sum(2)
        k = forget.reshape(runs, 12, 2).sum(2)
        totals *= squared(family, update, rate, m, k).prod(axis=1)
    error = totals.std() / math.sqrt(runs)
    assert abs(totals.mean() - epoch_growth(family, update, rate) ** steps) < 3 * error


def test_batches_that_do_not_divide_their_set_are_refused_by_name():
    family = one_axis(10, 3, 6, 2)
    with pytest.raises(ValueError, match="retain_batch must divide 10"):
        epoch_growth(family, AscentDescent(0.2, 3, 2), 0.5)
    with pytest.raises(ValueError, match="forget_batch must divide 6"):
        epoch_growth(family, AscentDescent(0.2, 5, 4), 0.5)
    assert epoch_growth(family, AscentDescent(0.0, 5, 4), 0.5) > 0  # no ascent, no forget epoch


def test_epochs_too_long_or_too_wide_to_sum_are_refused_by_name(monkeypatch):
    wide = one_axis(177, 177, 177, 177)  # 178⁴ products, just above 10⁹
    with pytest.raises(ValueError, match=r"keep an epoch of 1 steps .* below 1e\+09 products"):
        epoch_growth(wide, AscentDescent(0.2, 177, 177), 0.5)
    long, update = one_axis(4, 2, 4, 2), AscentDescent(0.2, 1, 2)
    monkeypatch.setattr("lib.stability.epochs.LARGEST_EPOCH", 4)
    assert epoch_growth(long, update, 0.5) == pytest.approx(enumerated(long, update, 0.5))
    monkeypatch.setattr("lib.stability.epochs.LARGEST_EPOCH", 3)
    with pytest.raises(ValueError, match="at most 3 steps, got epochs of 4 and 2"):
        epoch_growth(long, update, 0.5)


def test_public_functions_take_reshuffled_epochs():
    family = one_axis(100, 20, 10, 0)
    curvature = curvature_of(family)
    update = AscentDescent(0.0, 10, 5, sampling="reshuffled")
    assert critical_learning_rate(curvature, update) == pytest.approx(1.7344, abs=1e-4)
    assert growth_factor(curvature, update, 0.5) == pytest.approx(
        epoch_growth(family, update, 0.5), rel=1e-12
    )
    independent = AscentDescent(0.0, 10, 5, sampling="without_replacement")
    assert critical_learning_rate(curvature, independent) == pytest.approx(1.467, abs=1e-3)


@pytest.mark.parametrize("n", [120, 130, 400])
def test_critical_rate_is_found_however_small_it_is(n):
    # Each axis is one sample, drawn once an epoch: its multiplier is 1 − nη once, and 1 else.
    curvature = grouped_family(n, 1, 1, 1, 1.0, 0.0)
    update = AscentDescent(0.0, 1, 1, sampling="reshuffled")
    assert critical_learning_rate(curvature, update) == pytest.approx(2 / n, rel=1e-9)


def test_neutral_axes_are_left_out_of_the_critical_rate():
    update = AscentDescent(0.0, 2, 2, sampling="reshuffled")
    rate = critical_learning_rate(grouped_family(8, 4, 4, 1, 1.0, 1.0), update)  # 2 of 4 axes
    assert enumerated(one_axis(8, 4, 2, 0), update, rate) == pytest.approx(1, rel=1e-9)
    # Ascent and descent that cancel on every batch: whole groups, whole sets.
    whole = AscentDescent(0.5, 4, 4, sampling="reshuffled")
    assert critical_learning_rate(grouped_family(4, 4, 4, 4, 0.3, 0.3), whole) == math.inf
    third = AscentDescent(1 / 3, 4, 4, sampling="reshuffled")
    assert critical_learning_rate(grouped_family(4, 4, 4, 4, 0.1, 0.2), third) == math.inf
    # Cancelled in the mean alone, at B = 1: (1 − η)(1 + η) and its like, squared, over two steps.
    noisy = AscentDescent(0.5, 1, 1, sampling="reshuffled")
    rate = critical_learning_rate(curvature_of(one_axis(2, 1, 2, 1)), noisy)
    assert 0.5 < rate < math.inf
    assert growth_factor(curvature_of(one_axis(2, 1, 2, 1)), noisy, rate) == pytest.approx(1)


def test_stiff_axes_each_have_their_own_scale():
    family = AxisFamily(
        8, 1, np.array([4, 4]), np.array([0, 0]), np.array([1.0, 1e-14]), np.zeros(2)
    )
    update = AscentDescent(0.0, 2, 1, sampling="reshuffled")
    alone = critical_learning_rate(curvature_of(one_axis(8, 4, 1, 0)), update)
    both = critical_learning_rate(curvature_of(family), update)
    assert both == pytest.approx(alone, rel=1e-9)


def test_critical_rate_is_the_first_crossing_of_the_enumerated_growth():
    generator = np.random.default_rng(5)
    outcomes = []
    for _ in range(60):
        n_r, n_f = (int(n) for n in generator.choice([1, 2, 3, 4], 2))
        sigmas = int(generator.integers(0, n_r + 1)), int(generator.integers(0, n_f + 1))
        if sum(sigmas) == 0:
            continue
        family = one_axis(n_r, sigmas[0], n_f, sigmas[1], tuple(generator.exponential(size=2)))
        update = AscentDescent(
            float(generator.choice([0.0, 0.2, 0.5, 1.0])),
            int(generator.choice([b for b in range(1, n_r + 1) if n_r % b == 0])),
            int(generator.choice([b for b in range(1, n_f + 1) if n_f % b == 0])),
            damping=float(generator.choice([0.0, 0.3])),
            sampling="reshuffled",
        )
        rate = critical_learning_rate(curvature_of(family), update)
        outcomes.append(rate)
        if rate == 0:
            assert enumerated(family, update, 1e-4) > 1
        elif math.isinf(rate):
            assert enumerated(family, update, 10.0) == pytest.approx(1, rel=1e-12)
        else:
            assert enumerated(family, update, rate) == pytest.approx(1, rel=1e-9)
            for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
                assert enumerated(family, update, share * rate) < 1
            assert enumerated(family, update, 1.001 * rate) > 1
    assert len(set(outcomes)) > 20
    assert {0.0, math.inf} <= set(outcomes)


def test_off_the_axes_and_with_momentum_there_is_no_exact_form():
    curvature = gaussian_curvature(6, 4, 3, seed=0)
    with pytest.raises(ValueError, match="reshuffled"):
        growth_factor(curvature, AscentDescent(0.1, 3, 2, sampling="reshuffled"), 0.1)
    with pytest.raises(ValueError, match="momentum must be 0"):
        growth_factor(
            curvature_of(one_axis(4, 2, 4, 2)),
            AscentDescent(0.1, 2, 2, sampling="reshuffled", momentum=0.5),
            0.1,
        )


def test_sampled_reshuffled_runs_follow_the_exact_growth():
    family = one_axis(12, 5, 6, 4)
    update, rate, runs = AscentDescent(0.3, 3, 2, sampling="reshuffled"), 0.8, 20_000
    path = simulate(curvature_of(family), update, rate, steps=12, runs=runs, seed=1)
    error = float(path[-1].std()) / math.sqrt(runs)
    assert abs(float(path[-1].mean()) - epoch_growth(family, update, rate) ** 12) < 3 * error
