import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.dynamics import (
    critical_learning_rate,
    critical_mixing,
    growth_factor,
    growth_mode,
    mean_square_path,
    noise_gain,
    steps_to_amplify,
)
from lib.stability.families import gaussian_curvature, grouped_family
from lib.stability.sampling import SAMPLINGS
from lib.stability.second_moment import mean_operator
from lib.stability.simulation import lyapunov_exponent, simulate
from tests.support.dense import (
    bisected_rate,
    dense_mean,
    dense_second_moment,
    random_instance,
    spectral_radius,
    tabled_second_moment,
)
from tests.support.marks import long_but

# (n_retain, n_forget, p, rank, mixing, retain_batch, forget_batch, damping); U = R^p in each.
CASES = [
    (5, 3, 3, 1, 0.1, 2, 1, 0.0),
    (4, 2, 6, 1, 0.3, 2, 1, 0.8),
    (5, 3, 4, 2, 0.15, 2, 2, 0.0),
    (3, 2, 5, 3, 0.4, 1, 1, 1.0),
    (4, 3, 3, 1, 0.2, 4, 3, 0.3),
    (5, 2, 1, 1, 0.1, 1, 1, 0.0),
    (5, 1, 2, 1, 0.05, 2, 1, 0.0),
]


def build(case, sampling, seed=0):
    n_r, n_f, p, rank, mixing, b_r, b_f, damping = case
    hessians, forget = random_instance(n_r, n_f, p, rank, seed)
    algorithm = AscentDescent(mixing, b_r, b_f, damping, sampling)
    return hessians, forget, Curvature.from_hessians(hessians, forget), algorithm


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("case", long_but([0, 1, 2, 3, 5, 6], CASES))
def test_growth_factor_is_the_spectral_radius_over_all_batches(case, sampling):
    hessians, forget, curvature, algorithm = build(case, sampling)
    for learning_rate in (0.0, 0.03, 0.3, 1.5):
        dense = spectral_radius(dense_second_moment(hessians, forget, algorithm, learning_rate))
        assert growth_factor(curvature, algorithm, learning_rate) == pytest.approx(dense, rel=1e-9)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("case", long_but([0, 1, 2, 3, 5, 6], CASES))
def test_critical_learning_rate_is_where_bisection_of_the_dense_operator_ends(case, sampling):
    hessians, forget, curvature, algorithm = build(case, sampling)
    rate = critical_learning_rate(curvature, algorithm)
    assert rate == pytest.approx(bisected_rate(hessians, forget, algorithm), rel=1e-9)
    assert rate == 0 or abs(growth_factor(curvature, algorithm, rate) - 1) < 1e-8


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_growth_is_one_at_the_critical_rate_in_larger_problems(sampling, rank):
    hessians, forget = random_instance(60, 20, 25, rank, seed=5)
    curvature = Curvature.from_hessians(hessians, forget)
    algorithm = AscentDescent(0.05, 6, 4, 0.0, sampling)
    rate = critical_learning_rate(curvature, algorithm)
    assert rate > 0
    assert abs(growth_factor(curvature, algorithm, rate) - 1) < 1e-8


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("rank", [1, 2])
def test_growth_factor_where_the_spectrum_of_the_curvature_is_spread(sampling, rank):
    """Eigenvalues over five decades crowd the top of T; growth below, at and above η*."""
    hessians, forget = random_instance(20, 8, 9, rank, seed=3)
    axes = torch.logspace(-2.5, 0, 9)
    hessians = axes[:, None] * hessians * axes
    curvature = Curvature.from_hessians(hessians, forget)
    for algorithm in (
        AscentDescent(0.1, 4, 2, 1e-5, sampling),
        AscentDescent(0.6, 4, 2, 0, sampling),
    ):
        for learning_rate in (1e-3, 0.1, 0.3, 0.5, 2.0):
            dense = tabled_second_moment(hessians, forget, algorithm, learning_rate)
            expected = float(torch.linalg.eigvalsh(dense)[-1])
            measured = growth_factor(curvature, algorithm, learning_rate)
            assert measured == pytest.approx(expected, rel=1e-9)


def test_the_table_of_sampling_schemes_is_what_enumeration_gives():
    for sampling in SAMPLINGS:
        hessians, forget, _, algorithm = build(CASES[2], sampling)
        torch.testing.assert_close(
            tabled_second_moment(hessians, forget, algorithm, 0.4),
            dense_second_moment(hessians, forget, algorithm, 0.4),
        )


def test_overparameterised_problem_on_its_span():
    """p > n·rank: on U the dense operator restricted to the span must agree."""
    hessians, forget = random_instance(4, 2, 11, seed=2)
    curvature = Curvature.from_hessians(hessians, forget)
    basis = torch.linalg.svd(hessians.sum(0)).U[:, :6]
    reduced = basis.T @ hessians @ basis
    algorithm = AscentDescent(0.2, 2, 1, 0.5, "without_replacement")
    dense = spectral_radius(dense_second_moment(reduced, forget, algorithm, 0.2))
    assert growth_factor(curvature, algorithm, 0.2) == pytest.approx(dense, rel=1e-9)


def test_mean_operator_matches_its_definition():
    hessians, forget, curvature, algorithm = build(CASES[2], "bernoulli")
    expected = torch.linalg.eigvalsh(dense_mean(hessians, forget, algorithm))
    torch.testing.assert_close(torch.linalg.eigvalsh(mean_operator(curvature, algorithm)), expected)


@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_critical_mixing_is_where_the_mean_operator_turns_indefinite(damping):
    for seed in range(5):
        hessians, forget = random_instance(8, 3, 4, seed=seed)
        curvature = Curvature.from_hessians(hessians, forget)
        alpha = critical_mixing(curvature, damping)
        assert 0 < alpha < 1
        A = dense_mean(hessians, forget, AscentDescent(alpha, 1, 1, damping))
        assert abs(torch.linalg.eigvalsh(A)[0]) < 1e-10 * torch.linalg.eigvalsh(A)[-1]


def test_critical_mixing_at_its_ends():
    independent = Curvature.from_hessians(*random_instance(3, 2, 9))
    assert critical_mixing(independent) == 0.0
    assert critical_mixing(independent, damping=1e6) == 1.0
    assert 0 < critical_mixing(independent, damping=0.1) < 1


def test_indefinite_mean_is_unstable_at_every_rate():
    curvature = Curvature.from_hessians(*random_instance(3, 2, 9))
    algorithm = AscentDescent(0.01, 1, 1)
    assert critical_learning_rate(curvature, algorithm) == 0.0
    for rate in (1e-4, 1e-2, 1.0):
        assert growth_factor(curvature, algorithm, rate) > 1


def test_pure_descent_ignores_directions_that_only_the_forget_set_curves():
    hessians, forget = random_instance(4, 2, 9)
    algorithm = AscentDescent(0.0, 2, 1)
    curvature = Curvature.from_hessians(hessians, forget)
    rate = critical_learning_rate(curvature, algorithm)
    retained = hessians[~forget]
    basis = torch.linalg.svd(retained.sum(0)).U[:, :4]
    inside = basis.T @ retained @ basis
    # The reference, on the retain set's own span, with a forget sample that curves nothing.
    alone = torch.cat([torch.zeros(1, 4, 4), inside])
    mask = torch.tensor([True, False, False, False, False])
    assert rate == pytest.approx(bisected_rate(alone, mask, algorithm), rel=1e-9)
    assert growth_factor(curvature, algorithm, 0.9 * rate) == pytest.approx(1.0, abs=1e-10)
    assert growth_factor(curvature, algorithm, 1.1 * rate) > 1.001


def test_full_batches_leave_the_mean_dynamics_alone():
    hessians, forget = random_instance(6, 2, 3)
    curvature = Curvature.from_hessians(hessians, forget)
    for sampling in SAMPLINGS[:2]:
        algorithm = AscentDescent(0.02, 6, 2, 0.0, sampling)
        top = float(torch.linalg.eigvalsh(mean_operator(curvature, algorithm))[-1])
        assert critical_learning_rate(curvature, algorithm) == pytest.approx(2 / top, rel=1e-9)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_growth_mode_is_a_fixed_direction_of_the_operator(sampling):
    _, _, curvature, algorithm = build(CASES[1], sampling)
    rho, X = growth_mode(curvature, algorithm, 0.4)
    assert torch.linalg.eigvalsh(X)[0] > -1e-9
    path = mean_square_path(curvature, algorithm, 0.4, steps=30, start=X)
    torch.testing.assert_close(path, rho ** torch.arange(31.0), rtol=1e-7, atol=0)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_mean_square_path_is_the_dense_operators(sampling):
    hessians, forget, curvature, algorithm = build(CASES[0], sampling)
    T = dense_second_moment(hessians, forget, algorithm, 0.3)
    N, expected = torch.eye(3).flatten() / 3, []
    for _ in range(6):
        expected.append(N.view(3, 3).trace())
        N = T @ N
    path = mean_square_path(curvature, algorithm, 0.3, steps=5)
    torch.testing.assert_close(path, torch.stack(expected), rtol=1e-10, atol=0)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("rank", [1, 2])
def test_simulated_mean_square_agrees_with_the_exact_path(sampling, rank):
    hessians, forget = random_instance(6, 3, 4, rank, seed=1)
    curvature = Curvature.from_hessians(hessians, forget)
    algorithm = AscentDescent(0.1, 3, 2, 0.1, sampling)
    rate = 0.5 * critical_learning_rate(curvature, algorithm)
    runs = simulate(curvature, algorithm, rate, steps=6, runs=40_000, seed=0)
    exact = mean_square_path(curvature, algorithm, rate, steps=6)
    error = runs.std(dim=1) / math.sqrt(runs.shape[1])
    assert runs.shape == (7, 40_000)
    assert bool(((runs.mean(dim=1) - exact).abs() <= 4 * error + 1e-12).all())


def test_steps_to_amplify_is_where_the_exact_path_crosses():
    _, _, curvature, _ = build(CASES[0], "bernoulli")
    algorithm = AscentDescent(0.6, 2, 1)
    for amplification in (1.5, 50.0):
        steps = steps_to_amplify(curvature, algorithm, 0.1, amplification)
        path = mean_square_path(curvature, algorithm, 0.1, steps=steps)
        assert path[-1] >= amplification > path[-2]
    with pytest.raises(ValueError, match="amplification must be > 1"):
        steps_to_amplify(curvature, algorithm, 0.1, 1.0)
    with pytest.raises(ValueError, match="learning_rate must make"):
        steps_to_amplify(curvature, AscentDescent(0.0, 5, 3), 0.1, 10.0)


def test_steps_to_amplify_gives_up_after_the_most_applications_it_makes(monkeypatch):
    _, _, curvature, _ = build(CASES[0], "bernoulli")
    algorithm, amplification = AscentDescent(0.6, 2, 1), 50.0
    steps = steps_to_amplify(curvature, algorithm, 0.1, amplification)
    rho = growth_factor(curvature, algorithm, 0.1)
    assert math.log(amplification) / math.log(rho) < steps - 1  # ρ alone would not tell
    monkeypatch.setattr("lib.stability.dynamics.MOST_APPLICATIONS", steps)
    assert steps_to_amplify(curvature, algorithm, 0.1, amplification) == steps
    monkeypatch.setattr("lib.stability.dynamics.MOST_APPLICATIONS", steps - 1)
    with pytest.raises(ValueError, match=f"must amplify within {steps - 1} steps"):
        steps_to_amplify(curvature, algorithm, 0.1, amplification)


def test_simulate_and_lyapunov_are_reproducible():
    _, _, curvature, algorithm = build(CASES[0], "without_replacement")
    first = simulate(curvature, algorithm, 0.1, steps=5, runs=3, seed=1)
    assert torch.equal(first, simulate(curvature, algorithm, 0.1, steps=5, runs=3, seed=1))
    assert not torch.equal(first, simulate(curvature, algorithm, 0.1, steps=5, runs=3, seed=2))
    one = lyapunov_exponent(curvature, algorithm, 0.1, steps=20, runs=4, seed=0)
    assert one == lyapunov_exponent(curvature, algorithm, 0.1, steps=20, runs=4, seed=0)


def test_lyapunov_exponent_of_full_batches_is_the_mean_operators_growth():
    hessians, forget = random_instance(5, 2, 3, seed=4)
    curvature = Curvature.from_hessians(hessians, forget)
    algorithm = AscentDescent(0.1, 5, 2)
    A = dense_mean(hessians, forget, algorithm)
    expected = float((1 - 0.2 * torch.linalg.eigvalsh(A)).abs().max().log())
    estimate, _ = lyapunov_exponent(curvature, algorithm, 0.2, steps=2000, runs=4, seed=0)
    assert estimate == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("steps", [5, 6, 7, 8, 401])
def test_lyapunov_exponent_of_one_axis_is_exact_at_every_number_of_steps(steps):
    curvature = Curvature(torch.ones(3, 1, 1), torch.tensor([False, False, True]))
    for mixing in (0.1, 0.9):
        algorithm = AscentDescent(mixing, 2, 1)
        found = lyapunov_exponent(curvature, algorithm, 0.3, steps=steps, runs=2, seed=0)
        expected = math.log(abs(1 - 0.3 * (1 - 2 * mixing)))
        assert found == pytest.approx((expected, 0.0), abs=1e-12)


def test_lyapunov_exponent_lies_below_half_the_mean_square_growth():
    _, _, curvature, algorithm = build(CASES[0], "bernoulli")
    rate = critical_learning_rate(curvature, algorithm)
    estimate, error = lyapunov_exponent(curvature, algorithm, rate, steps=500, runs=50, seed=0)
    assert error > 0
    assert estimate < -3 * error


@pytest.mark.parametrize("seed", range(4))
def test_noise_gain_sums_the_squared_powers(seed):
    hessians, forget = random_instance(7, 3, 4, seed=seed)
    curvature = Curvature.from_hessians(hessians, forget)
    algorithm = AscentDescent(0.03, 3, 1)
    rate = 0.6 * critical_learning_rate(curvature, algorithm)
    h = curvature.factors[:, :, 0]
    J = torch.eye(4) - rate * mean_operator(curvature, algorithm)
    total, power = torch.zeros(10, 10), torch.eye(4)
    for _ in range(5_000):
        total += (h @ power @ h.T).square()
        power = J @ power
    v = torch.where(forget, 0.03**2 / 3 * (1 - 1 / 3), 0.97**2 / 7 * (1 / 3 - 1 / 7))
    expected = rate**2 * v[None, :] * total
    gain = noise_gain(curvature, algorithm, rate)
    torch.testing.assert_close(gain, expected, rtol=1e-9, atol=1e-14)
    assert (spectral_radius(gain) < 1) == (growth_factor(curvature, algorithm, rate) < 1)


def test_bad_input_is_refused_by_name():
    _, _, curvature, algorithm = build(CASES[0], "bernoulli")
    for mixing in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"mixing must be in \[0, 1\]"):
            AscentDescent(mixing, 1, 1)
    for size in (0, 1.5, True):
        with pytest.raises(ValueError, match="retain_batch must be an integer"):
            AscentDescent(0.1, size, 1)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="forget_batch must be an integer"):
            AscentDescent(0.1, 1, size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="damping must be a finite number ≥ 0"):
        AscentDescent(0.1, 1, 1, damping=-1.0)
    with pytest.raises(ValueError, match="sampling must be one of"):
        AscentDescent(0.1, 1, 1, sampling="epoch")  # type: ignore[arg-type]
    for function in (growth_factor, noise_gain):
        for rate in (-0.1, math.nan, math.inf):
            with pytest.raises(ValueError, match="learning_rate must be a finite number ≥ 0"):
                function(curvature, algorithm, rate)
    with pytest.raises(ValueError, match=r"retain_batch must be in \[1, 5\]"):
        critical_learning_rate(curvature, AscentDescent(0.1, 6, 1))
    with pytest.raises(ValueError, match=r"forget_batch must be in \[1, 3\]"):
        growth_factor(curvature, AscentDescent(0.1, 1, 4), 0.1)
    with pytest.raises(ValueError, match="damping must be a finite number"):
        critical_mixing(curvature, damping=-1.0)
    with pytest.raises(ValueError, match="runs must be an integer ≥ 2"):
        lyapunov_exponent(curvature, algorithm, 0.1, steps=10, runs=1, seed=0)
    with pytest.raises(ValueError, match="steps must be an integer ≥ 0"):
        simulate(curvature, algorithm, 0.1, steps=-1, runs=1, seed=0)
    with pytest.raises(ValueError, match="sampling must be 'bernoulli'"):
        noise_gain(curvature, AscentDescent(0.1, 1, 1, sampling="with_replacement"), 0.1)
    with pytest.raises(ValueError, match="curvature must have rank 1"):
        noise_gain(build(CASES[2], "bernoulli")[2], algorithm, 0.1)
    sharpest = float(torch.linalg.eigvalsh(mean_operator(curvature, algorithm))[-1])
    for momentum in (0.0, 0.5):  # the sum over the past converges below 2(1 + β)/λ, and there only
        heavy, edge = replace(algorithm, momentum=momentum), 2 * (1 + momentum) / sharpest
        assert bool((noise_gain(curvature, heavy, 0.99 * edge) >= 0).all())
        with pytest.raises(ValueError, match="learning_rate must keep"):
            noise_gain(curvature, heavy, 1.01 * edge)
    trace = float(curvature.retain_hessian.trace())
    descent = AscentDescent(0.0, 5, 3)  # one step of it moves by at most η tr H_r
    assert growth_factor(curvature, descent, 0.8e60 / trace) > 1
    with pytest.raises(ValueError, match="learning_rate must keep one step inside"):
        growth_factor(curvature, descent, 1.2e60 / trace)


def test_growth_factor_where_the_noise_almost_cancels():
    # One retain sample of rank 2 drawn with replacement makes no noise at all, though v ≠ 0.
    hessians, forget = random_instance(1, 4, 5, 2, seed=4)
    curvature = Curvature.from_hessians(hessians, forget)
    algorithm = AscentDescent(0.0, 1, 3, sampling="with_replacement")
    for learning_rate in (0.01, 0.1, 0.5, 1.0, 3.0):
        dense = spectral_radius(dense_second_moment(hessians, forget, algorithm, learning_rate))
        assert growth_factor(curvature, algorithm, learning_rate) == pytest.approx(dense, rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sampling", ["without_replacement", "with_replacement"])
def test_growth_factor_of_near_duplicates(sampling, seed):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(1, 7, generator=generator) + 1e-5 * torch.randn(10, 7, generator=generator)
    hessians, forget = torch.einsum("na,nb->nab", h, h), torch.arange(10) >= 8
    curvature = Curvature.from_hessians(hessians, forget)
    algorithm = AscentDescent(0.4, 7, 1, 0.01, sampling)
    q = curvature.factors.shape[1]
    hessians = torch.einsum("nar,nbr->nab", curvature.factors, curvature.factors)
    scale = float(torch.linalg.eigvalsh(mean_operator(curvature, algorithm))[-1])
    assert q > 4
    for step in (0.5, 1.0, 1.9, 2.2):
        eta = step / scale
        dense = torch.linalg.eigvalsh(tabled_second_moment(hessians, forget, algorithm, eta))[-1]
        assert growth_factor(curvature, algorithm, eta) == pytest.approx(float(dense), rel=1e-9)


@pytest.mark.parametrize("sampling", ["without_replacement", "with_replacement"])
@pytest.mark.parametrize("copies", [1, 2, 3, 7])
@pytest.mark.parametrize("scale", [2.0**-20, 1.0, 2.0**20])  # powers of two round alike
def test_copies_of_one_sample_with_the_same_weight_never_move(sampling, copies, scale):
    h = scale * torch.tensor([[0.7, -1.3, 0.2]]).expand(2 * copies, 3)
    curvature = Curvature.from_gram(h @ h.T, torch.arange(2 * copies) >= copies)
    algorithm = AscentDescent(0.5, 1, 1, sampling=sampling)
    assert growth_factor(curvature, algorithm, 0.3 / scale**2) == pytest.approx(1.0, rel=1e-12)
    assert critical_learning_rate(curvature, algorithm) == math.inf
    if copies > 1:  # Bernoulli batches vary in size, so these do move
        assert critical_learning_rate(curvature, AscentDescent(0.5, 1, 1)) == 0.0


@pytest.mark.parametrize("bad", ["0.1", None, torch.tensor([0.1, 0.2]), 1j, [0.1]])
def test_what_is_no_number_is_refused_by_name(bad):
    curvature, algorithm = build(CASES[0], "bernoulli")[2:]
    with pytest.raises(ValueError, match="mixing must be"):
        AscentDescent(bad, 1, 1)
    with pytest.raises(ValueError, match="damping must be"):
        AscentDescent(0.1, 1, 1, damping=bad)
    with pytest.raises(ValueError, match="learning_rate must be"):
        growth_factor(curvature, algorithm, bad)


def test_numpy_integers_are_integers_and_single_precision_is_left_behind():
    curvature, algorithm = build(CASES[0], "bernoulli")[2:]
    sizes: Any = np.uint8(algorithm.retain_batch), np.int64(algorithm.forget_batch)
    assert AscentDescent(algorithm.mixing, *sizes) == algorithm
    mixing: Any = np.float32(algorithm.mixing)
    single, double = AscentDescent(mixing, 2, 1), AscentDescent(float(mixing), 2, 1)
    assert critical_learning_rate(curvature, single) == critical_learning_rate(curvature, double)
    counts: Any = {"steps": np.int64(2), "runs": np.int32(3)}
    path = simulate(curvature, algorithm, 0.1, **counts, seed=0)
    assert path.shape == (3, 3)


def test_lyapunov_exponent_does_not_overflow_in_silence():
    curvature, algorithm = build(CASES[0], "bernoulli")[2:]
    with pytest.raises(ValueError, match="learning_rate must keep one step inside"):
        lyapunov_exponent(curvature, algorithm, 1e300, steps=10, runs=3, seed=0)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("learning_rate", [1e-3, 0.1, 0.5])
def test_growth_mode_is_psd_where_many_directions_share_the_growth(sampling, learning_rate):
    curvature = grouped_family(12, 6, 2, 1, 1.0, 0.3)
    algorithm = AscentDescent(0.1, 2, 2, 0.5, sampling)
    H = torch.einsum("nar,nbr->nab", curvature.factors, curvature.factors)
    T = tabled_second_moment(H, curvature.forget, algorithm, learning_rate)
    rho, X = growth_mode(curvature, algorithm, learning_rate)
    assert float(X.trace()) == pytest.approx(1.0, rel=1e-12)
    assert float(torch.linalg.eigvalsh(X)[0]) > -1e-12
    assert torch.allclose(T @ X.flatten(), rho * X.flatten(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_same_call_gives_the_same_bits(sampling):
    curvature = grouped_family(12, 6, 2, 1, 1.0, 0.3)
    algorithm = AscentDescent(0.1, 2, 2, 0.5, sampling)
    rho, X = growth_mode(curvature, algorithm, 0.1)
    rate = critical_learning_rate(curvature, algorithm)
    for _ in range(20):
        again, Y = growth_mode(curvature, algorithm, 0.1)
        assert again == rho
        assert torch.equal(X, Y)
        assert critical_learning_rate(curvature, algorithm) == rate


def test_steps_to_amplify_refuses_a_neutral_direction_whose_growth_is_rounding():
    # Retain axis contracts, forget axis does not move: rho(T) = 1, here 1 + 4e-16 by rounding.
    curvature = gaussian_curvature(45, 15, 400, alignment=0.9, seed=0)
    rate = 0.9 / float(torch.linalg.eigvalsh(curvature.retain_hessian)[-1])
    with pytest.raises(ValueError, match="ρ"):
        steps_to_amplify(curvature, AscentDescent(0.0, 9, 3), rate, 1e3)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("seed", range(6))
def test_growth_is_one_at_the_critical_rate_beside_nearly_flat_axes(sampling, seed):
    generator = torch.Generator().manual_seed(seed)
    roots = torch.randn(7, 6, 2, generator=generator) * torch.logspace(0, -4, 6)[:, None]
    curvature = Curvature.from_hessians(roots @ roots.transpose(1, 2), torch.arange(7) >= 6)
    algorithm = AscentDescent(0.0, 2, 1, sampling=sampling)
    rate = critical_learning_rate(curvature, algorithm)
    assert growth_factor(curvature, algorithm, rate) == pytest.approx(1.0, abs=1e-9)
