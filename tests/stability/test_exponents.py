import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.dynamics import critical_learning_rate, growth_factor
from lib.stability.exponents import (
    axis_laws,
    axis_multipliers,
    critical_moment,
    growth_exponents,
    moment_exponent,
)
from lib.stability.families import AxisFamily, axis_family, grouped_family
from lib.stability.sampling import SAMPLINGS, count_distribution
from lib.stability.second_moment import mean_operator
from lib.stability.simulation import lyapunov_exponent
from tests.support.commuting import (
    curvature_of,
    grouped_critical_learning_rate,
    grouped_lyapunov_exponent,
    mean_only_learning_rate,
)
from tests.support.dense import batches


def random_family(seed, q=3, forget_share=0.3):
    """Random group sizes and sharpness, flat samples included, small enough to enumerate."""
    random = np.random.default_rng(seed)
    retain, forget = random.integers(1, 3, q), random.integers(0, 2, q)
    return AxisFamily(
        int(retain.sum() + random.integers(0, 2)),
        int(forget.sum() + 1),
        retain,
        forget,
        random.uniform(0.5, 2, q),
        forget_share * random.uniform(0.5, 2, q) * (forget > 0),
    )


def random_algorithm(family, seed, sampling, damping=0.05):
    random = np.random.default_rng(seed + 1000)
    return AscentDescent(
        mixing=float(random.uniform(0.05, 0.4)),
        retain_batch=int(random.integers(1, family.n_retain)),
        forget_batch=int(random.integers(1, family.n_forget + 1)),
        damping=damping,
        sampling=sampling,
    )


def enumerated_multipliers(family, algorithm, learning_rate):
    """Probability and multipliers (q,) of every pair of batches, from the Hessians."""
    curvature = curvature_of(family)
    hessians = (curvature.factors @ curvature.factors.transpose(1, 2)).numpy()
    retain = list(range(family.n_retain))
    forget = list(range(family.n_retain, family.n_retain + family.n_forget))
    weights, multipliers = [], []
    for (p_r, R), (p_f, F) in itertools.product(
        batches(retain, algorithm.retain_batch, algorithm.sampling),
        list(batches(forget, algorithm.forget_batch, algorithm.sampling)),
    ):
        step = algorithm.damping * np.eye(hessians.shape[1])
        for i in R:
            step = step + (1 - algorithm.mixing) / algorithm.retain_batch * hessians[i]
        for j in F:
            step = step - algorithm.mixing / algorithm.forget_batch * hessians[j]
        weights.append(p_r * p_f)
        multipliers.append(np.diag(np.eye(len(step)) - learning_rate * step))
    return np.array(weights), np.array(multipliers)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("seed", range(6))
def test_theorem_three_frontiers_closed_forms(seed, sampling):
    """Part (i) against the general solvers, part (ii)'s exponent against every pair of batches."""
    family = random_family(seed, q=2)
    algorithm, eta = random_algorithm(family, seed, sampling), 0.3 + 0.2 * seed
    curvature = curvature_of(family)
    exponents = growth_exponents(family, algorithm, eta)
    weights, X = enumerated_multipliers(family, algorithm, eta)
    J = torch.eye(2) - eta * mean_operator(curvature, algorithm)
    assert exponents.mean == pytest.approx(
        math.log(float(torch.linalg.eigvalsh(J).abs().max())), abs=1e-12
    )
    assert exponents.mean_square == pytest.approx(
        0.5 * math.log(growth_factor(curvature, algorithm, eta)), abs=1e-9
    )
    assert exponents.typical == pytest.approx(float(max(weights @ np.log(np.abs(X)))), abs=1e-9)
    assert grouped_lyapunov_exponent(family, algorithm, eta) == exponents.typical


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("seed", range(10))
def test_theorem_three_frontiers_critical_learning_rate(seed, sampling):
    """η* = min_a 2λ_a/(λ_a² + V_a), against the general Lanczos solver; 0 if some λ_a < 0."""
    family = random_family(seed, forget_share=1.5 if seed % 3 == 0 else 0.2)
    algorithm = random_algorithm(family, seed, sampling)
    closed, curvature = grouped_critical_learning_rate(family, algorithm), curvature_of(family)
    assert closed == pytest.approx(critical_learning_rate(curvature, algorithm), rel=1e-8)
    lam = torch.linalg.eigvalsh(mean_operator(curvature, algorithm))
    expected = 0.0 if lam[0] < 0 else 2 / float(lam[-1])
    assert mean_only_learning_rate(family, algorithm) == pytest.approx(expected, rel=1e-12)
    if closed:
        for factor, sign in ((0.999, -1), (1.001, 1)):
            exponents = growth_exponents(family, algorithm, factor * closed)
            assert sign * exponents.mean_square > 0


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("seed", range(20))
def test_theorem_three_frontiers_order(seed, sampling):
    """Part (iii): mean-square growth is the largest; typical ≤ mean if no multiplier is < 0."""
    family = random_family(seed, forget_share=0.5 + seed / 10)
    algorithm = random_algorithm(family, seed, sampling)
    for eta in (0.01, 0.1, 0.5, 2.0):
        exponents = growth_exponents(family, algorithm, eta)
        assert exponents.typical <= exponents.mean_square + 1e-12
        assert exponents.mean <= exponents.mean_square + 1e-12
        signs = [X.min() for _, X in axis_laws(family, algorithm, eta)]
        if min(signs) >= 0:
            assert exponents.typical <= exponents.mean + 1e-12


def test_noise_alone_can_hold_a_typical_run():
    """Part (iii) is strict: the mean grows, almost every single run decays."""
    family = AxisFamily(2, 1, np.array([1]), np.array([1]), np.array([1.0]), np.array([1.02]))
    algorithm = AscentDescent(
        mixing=0.5, retain_batch=1, forget_batch=1, sampling="without_replacement"
    )
    exponents = growth_exponents(family, algorithm, 0.9)
    assert exponents.mean > 0 > exponents.typical


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("seed", range(5))
def test_theorem_moment_ladder_exponents(seed, sampling):
    """(1/p) log E|X|^p rises in p, from the typical exponent to the mean-square one at p = 2."""
    family = random_family(seed)
    algorithm = random_algorithm(family, seed, sampling)
    exponents = growth_exponents(family, algorithm, 0.37)
    laws = axis_laws(family, algorithm, 0.37)
    ladder = [moment_exponent(laws, p) for p in (1e-6, 0.1, 0.5, 1, 2, 4)]
    assert ladder == sorted(ladder)
    assert ladder[4] == pytest.approx(exponents.mean_square, abs=1e-12)
    assert ladder[0] == pytest.approx(exponents.typical, abs=1e-4)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("seed", range(5))
def test_critical_moment_is_where_the_moment_neither_grows_nor_falls(seed, sampling):
    family = random_family(seed)
    algorithm = random_algorithm(family, seed, sampling)
    for eta in (0.2, 0.8, 1.6):
        laws, exponents = (
            axis_laws(family, algorithm, eta),
            growth_exponents(family, algorithm, eta),
        )
        p = critical_moment(laws)
        assert (p == 0) == (exponents.typical >= 0)
        assert (p < 2) == (exponents.mean_square > 0)
        if 0 < p < math.inf:
            assert max(weights @ np.abs(X) ** p for weights, X in laws) == pytest.approx(1)
    if edge := grouped_critical_learning_rate(family, algorithm):
        assert critical_moment(axis_laws(family, algorithm, edge)) == pytest.approx(2, rel=1e-6)
    assert critical_moment(axis_laws(family, AscentDescent(0.0, 1, 1), 1e-6)) == math.inf


@pytest.mark.parametrize("sampling", ["without_replacement", "bernoulli"])
@pytest.mark.parametrize(
    ("sizes", "eta", "mixing"),
    [
        ((20, 10, 10, 5), 0.3, 0.1),  # two axes, equal: the estimate must not be the larger of two
        pytest.param((20, 10, 10, 5), 1.6, 0.2, marks=pytest.mark.long),
        pytest.param(
            (20, 5, 10, 5), 0.8, 0.3, marks=pytest.mark.long
        ),  # two axes, one of which the forget set shares
        ((20, 8, 4, 2), 0.8, 0.1),  # five axes, four of them equal
    ],
)
def test_lyapunov_exponent_matches_the_closed_form_on_the_grouped_family(
    sampling, sizes, eta, mixing
):
    n_retain, n_forget, retain_group, forget_group = sizes
    curvature = grouped_family(n_retain, n_forget, retain_group, forget_group, 2.0, 1.0)
    algorithm = AscentDescent(mixing=mixing, retain_batch=4, forget_batch=2, sampling=sampling)
    exact = grouped_lyapunov_exponent(axis_family(curvature), algorithm, eta)
    estimate, error = lyapunov_exponent(curvature, algorithm, eta, steps=2000, runs=64, seed=0)
    assert 0 < error < 0.02
    assert abs(estimate - exact) <= 3 * error


def test_lyapunov_exponent_of_a_run_that_is_wiped_out():
    curvature = grouped_family(2, 2, 1, 2, 2.0, 1.0)
    algorithm = AscentDescent(mixing=0.0, retain_batch=1, forget_batch=1)
    exact = grouped_lyapunov_exponent(axis_family(curvature), algorithm, 0.25)
    estimate, _ = lyapunov_exponent(curvature, algorithm, 0.25, steps=200, runs=4, seed=0)
    assert exact == estimate == -math.inf


def test_a_family_survives_the_round_trip_through_curvature():
    family = AxisFamily(
        9, 5, np.array([3, 4, 0]), np.array([0, 2, 2]), np.array([1.0, 2, 0]), np.array([0, 1, 3.0])
    )
    back = axis_family(curvature_of(family))
    for name in ("retain_group", "forget_group", "retain_sharpness", "forget_sharpness"):
        np.testing.assert_allclose(getattr(back, name), getattr(family, name), rtol=1e-12)
    grouped = axis_family(grouped_family(12, 6, 4, 2, 2.0, 1.5))
    np.testing.assert_array_equal(grouped.retain_group, [4, 4, 4])
    np.testing.assert_allclose(grouped.forget_sharpness, [1.5] * 3)
    np.testing.assert_allclose(
        np.diag(curvature_of(family).retain_hessian), family.retain_sharpness, rtol=1e-12
    )


def test_a_curvature_off_the_axes_is_refused():
    forget = torch.tensor([False, True])
    with pytest.raises(ValueError, match="one axis"):
        axis_family(Curvature(torch.tensor([[[1.0], [1]], [[1.0], [0]]]), forget))
    forget = torch.tensor([False, False, True])
    with pytest.raises(ValueError, match="equal within"):
        axis_family(Curvature(torch.tensor([[[1.0]], [[2.0]], [[1.0]]]), forget))
    plane = torch.tensor([[[1.0, 0], [0, 0.5]], [[1.0, 0], [0, 0]]])
    with pytest.raises(ValueError, match="each sample on one axis"):
        axis_family(Curvature(plane, torch.tensor([False, True])))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_count_distribution_against_every_batch(sampling):
    n, group, batch = 5, 2, 3
    pmf = count_distribution(group, n, batch, sampling)
    expected = np.zeros(len(pmf))
    for p, chosen in batches(list(range(n)), batch, sampling):
        expected[sum(i < group for i in chosen)] += p
    np.testing.assert_allclose(pmf, expected, atol=1e-14)


def test_a_multiplier_that_rounds_to_nothing_is_nothing():
    """η c m/B = (1/49)·49 is 1, but not in floating point."""
    assert 1 - (1 / 49) * 49 != 0
    family = AxisFamily(10, 1, np.array([1]), np.array([1]), np.array([4.9]), np.array([1.0]))
    algorithm = AscentDescent(mixing=0.0, retain_batch=1, forget_batch=1)
    X = axis_multipliers(family, algorithm, 1 / 49, np.array([[1]]), np.array([[0]]))
    assert X[0, 0] == 0
    assert growth_exponents(family, algorithm, 1 / 49).typical == -math.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"retain_group": np.array([-1])}, "retain_group must be ≥ 0"),
        ({"retain_group": np.array([9])}, "sum of at most n_retain = 4"),
        ({"retain_group": np.array([1.5])}, "integers"),
        ({"forget_group": np.array([1, 1])}, "forget_sharpness"),
        ({"retain_sharpness": np.array([-1.0])}, "retain_sharpness must be finite"),
        ({"retain_sharpness": np.array([np.nan])}, "retain_sharpness must be finite"),
        ({"forget_group": np.array([0])}, "forget_sharpness must be 0"),
        ({"n_retain": 0}, "n_retain"),
    ],
)
def test_a_family_refuses_bad_input(change, message):
    good: dict[str, Any] = {
        "n_retain": 4,
        "n_forget": 2,
        "retain_group": np.array([2]),
        "forget_group": np.array([1]),
        "retain_sharpness": np.array([1.0]),
        "forget_sharpness": np.array([1.0]),
    }
    AxisFamily(**good)
    with pytest.raises(ValueError, match=message):
        AxisFamily(**(good | change))


def test_predictions_refuse_bad_input():
    family = random_family(0)
    algorithm = random_algorithm(family, 0, "bernoulli")
    with pytest.raises(ValueError, match="learning_rate"):
        growth_exponents(family, algorithm, -1.0)
    with pytest.raises(ValueError, match="order"):
        moment_exponent(axis_laws(family, algorithm, 0.1), 0.0)
    half = np.full(2, 0.5)
    no_laws: list[Any] = [
        ([0.5, 0.5], [0.9, 1.1]),
        (half, np.array([0.9, math.nan])),
        (half[:, None], np.array([[0.9], [1.1]])),
        (np.array([]), np.array([])),
        (half, np.array([0.9])),
        (0 * half, np.array([0.9, 1.1])),
    ]
    for law in no_laws:
        with pytest.raises(ValueError, match="laws must be pairs"):
            critical_moment([law])
    large = AscentDescent(mixing=0.1, retain_batch=99, forget_batch=1)
    for solve in (grouped_critical_learning_rate, mean_only_learning_rate):
        with pytest.raises(ValueError, match="retain_batch must be in"):
            solve(family, large)
    with pytest.raises(ValueError, match="retain_batch must be in"):
        growth_exponents(family, large, 0.1)
