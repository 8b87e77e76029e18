"""Heavy ball against the dense 4q² × 4q² operator of (δ_k, δ_{k−1}), from the definition alone."""

import random

import numpy as np
import pytest
import torch

from lib.stability import dynamics, thresholds
from lib.stability.algorithm import SAMPLINGS, AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.families import AxisFamily
from lib.stability.momentum import critical_forms, growth_factor, kernel, mean_growth
from lib.stability.second_moment import SecondMoment, largest_eigenpair
from lib.stability.simulation import simulate
from lib.stability.window import unlearning_window
from tests.support.commuting import axis_moments, curvature_of
from tests.support.dense import (
    dense_mean,
    dense_second_moment,
    random_instance,
    spectral_radius,
    tabled_second_moment,
)
from tests.support.marks import long_but

INSTANCES = 300  # 250 of them with a critical learning rate, as counted below
SIZES = [(5, 3, 3, 1), (6, 2, 4, 1), (4, 3, 4, 2), (5, 2, 3, 3), (6, 3, 2, 1), (5, 3, 4, 3)]


def dense_heavy_ball(hessians, forget, algorithm, learning_rate, momentum):
    """E[Ĉ ⊗ Ĉ], Ĉ = [[(1+β)I − ηÂ, −βI], [I, 0]], from the dense second moment of one SGD step."""
    p = hessians.shape[1]
    eye, A = torch.eye(p), dense_mean(hessians, forget, algorithm)
    noise = tabled_second_moment(hessians, forget, algorithm, 1.0) - torch.kron(eye - A, eye - A)
    companion = torch.zeros(2 * p, 2 * p)
    companion[:p, :p] = (1 + momentum) * eye - learning_rate * A
    companion[:p, p:] = -momentum * eye
    companion[p:, :p] = eye
    newest = torch.zeros(2 * p, p)
    newest[:p] = eye
    lift = torch.kron(newest, newest)
    return torch.kron(companion, companion) + learning_rate**2 * lift @ noise @ lift.T


def bisected(hessians, forget, algorithm, momentum, high):
    low = 0.0
    for _ in range(50):
        middle = (low + high) / 2
        dense = dense_heavy_ball(hessians, forget, algorithm, middle, momentum)
        low, high = (middle, high) if spectral_radius(dense) < 1 else (low, middle)
    return (low + high) / 2


def instance(number):
    draw = random.Random(number)
    n_r, n_f, p, rank = SIZES[number % len(SIZES)]
    hessians, forget = random_instance(n_r, n_f, p, rank, number)
    sampling = SAMPLINGS[number % 3]
    algorithm = AscentDescent(
        draw.choice([0.0, 0.05, 0.1, 0.2]),
        draw.randint(1, n_r),
        draw.randint(1, n_f),
        draw.choice([0.0, 0.3, 1.0]),
        sampling,
    )
    moment = SecondMoment.of(Curvature.from_hessians(hessians, forget), algorithm)
    return hessians, forget, algorithm, moment, draw.choice([0.0, 0.3, 0.6, 0.9, 0.97])


def critical_rate(moment, momentum):
    total, bend = critical_forms(moment.eigenvalues, momentum)
    root = total.rsqrt()

    def whitened(N):
        return root * (bend * (root * N) + moment.noise(root * N))

    return 1 / largest_eigenpair(whitened, moment.eigenvalues)[0]


@pytest.mark.parametrize("number", long_but(range(15), range(INSTANCES)))
def test_thm_momentum_against_the_dense_operator(number):
    hessians, forget, algorithm, moment, momentum = instance(number)
    # Nearly singular means leave the reference, bisection on a nonsymmetric 4q² × 4q² matrix, fewer
    # than nine digits; there the growth factor is compared.
    if float(moment.eigenvalues[0]) <= 0.01 * float(moment.eigenvalues[-1]):
        rate = 0.3
        assert growth_factor(moment, rate, momentum) == pytest.approx(
            spectral_radius(dense_heavy_ball(hessians, forget, algorithm, rate, momentum)), rel=1e-9
        )
        return
    rate = critical_rate(moment, momentum)
    assert rate == pytest.approx(
        bisected(hessians, forget, algorithm, momentum, 3 * rate), rel=1e-9
    )
    for share in (0.3, 0.9, 1.3):
        dense = dense_heavy_ball(hessians, forget, algorithm, share * rate, momentum)
        assert growth_factor(moment, share * rate, momentum) == pytest.approx(
            spectral_radius(dense), rel=1e-9
        )


def test_dense_reference_is_the_enumeration_of_batches():
    hessians, forget = random_instance(4, 2, 3, 2, 7)
    for sampling in SAMPLINGS:
        algorithm = AscentDescent(0.2, 2, 1, 0.3, sampling)
        plain = dense_second_moment(hessians, forget, algorithm, 0.4)
        heavy = dense_heavy_ball(hessians, forget, algorithm, 0.4, 0.0)
        assert spectral_radius(heavy) == pytest.approx(spectral_radius(plain), rel=1e-12)


def test_kernel_is_its_series():
    lam, rate, momentum, growth = torch.tensor([0.2, 1.0, 2.5]), 0.6, 0.5, 1.1
    total = torch.zeros(3, 3)
    power = torch.eye(2).expand(3, 2, 2)
    companion = torch.zeros(3, 2, 2)
    companion[:, 0, 0] = 1 + momentum - rate * lam
    companion[:, 0, 1], companion[:, 1, 0] = -momentum, 1.0
    for k in range(400):
        total += power[:, 0, 0, None] * power[None, :, 0, 0] / growth ** (k + 1)
        power = companion @ power
    assert torch.allclose(kernel(lam, rate, momentum, growth), total, rtol=1e-12)


def test_mean_growth_is_the_companion_s_radius():
    for momentum in (0.0, 0.4, 0.9):
        for rate in (0.1, 1.0, 3.0):
            lam = torch.tensor([-0.3, 0.0, 0.7, 2.0])
            radii = [
                spectral_radius(torch.tensor([[1 + momentum - rate * x, -momentum], [1.0, 0.0]]))
                for x in lam.tolist()
            ]
            assert mean_growth(lam, rate, momentum) == pytest.approx(max(radii) ** 2, rel=1e-12)


def test_enough_instances_have_a_critical_rate():
    moments = (instance(number)[3] for number in range(INSTANCES))
    definite = [float(m.eigenvalues[0]) > 0.01 * float(m.eigenvalues[-1]) for m in moments]
    assert sum(definite) >= 200


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_public_functions_take_momentum(momentum):
    hessians, forget = random_instance(8, 4, 4, 1, 3)
    curvature = Curvature.from_hessians(hessians, forget)
    algorithm = AscentDescent(0.05, 2, 2, 0.1, momentum=momentum)
    rate = dynamics.critical_learning_rate(curvature, algorithm)
    assert abs(dynamics.growth_factor(curvature, algorithm, rate) - 1) < 1e-8
    for share in (0.9, 1.1):
        gain = dynamics.noise_gain(curvature, algorithm, share * rate)
        assert (spectral_radius(gain) < 1) == (share < 1)
    for rate in (0.0, 1.0):
        dense = spectral_radius(dense_heavy_ball(hessians, forget, algorithm, rate, momentum))
        assert dynamics.growth_factor(curvature, algorithm, rate) == pytest.approx(dense, rel=1e-9)
    plain = dynamics.critical_mixing(curvature, 0.1)
    assert dynamics.critical_learning_rate(
        curvature, AscentDescent(plain * 1.01, 2, 2, 0.1, momentum=momentum)
    ) == 0  # fmt: skip


def test_commuting_curvature_has_the_closed_form():
    family = AxisFamily(
        12, 8, np.array([4, 3]), np.array([2, 1]), np.array([1.0, 0.6]), np.array([0.4, 0.1])
    )
    for momentum in (0.0, 0.4, 0.9):
        algorithm = AscentDescent(0.2, 3, 2, 0.05, momentum=momentum)
        lam, variance = axis_moments(family, algorithm)
        expected = (
            2 * lam * (1 - momentum**2) / ((1 - momentum) * lam**2 + (1 + momentum) * variance)
        ).min()
        found = dynamics.critical_learning_rate(curvature_of(family), algorithm)
        assert found == pytest.approx(expected, rel=1e-9)


def test_sampled_heavy_ball_runs_have_the_exact_mean_square():
    hessians, forget = random_instance(6, 3, 3, 1, 5)
    curvature = Curvature.from_hessians(hessians, forget)
    algorithm, rate, steps, runs = AscentDescent(0.1, 3, 2, momentum=0.6), 0.05, 12, 40_000
    path = simulate(curvature, algorithm, rate, steps=steps, runs=runs, seed=0)
    q = curvature.factors.shape[1]
    H = [f @ f.T for f in curvature.factors]
    operator = dense_heavy_ball(torch.stack(H), curvature.forget, algorithm, rate, 0.6)
    both = torch.block_diag(torch.eye(q), torch.zeros(q, q)) / q
    both[q:, q:] = both[:q, q:] = both[q:, :q] = torch.eye(q) / q  # δ_{−1} = δ_0: no velocity yet
    for k in range(steps + 1):
        exact = float(both[:q, :q].trace())
        error = float(path[k].std()) / runs**0.5
        assert abs(float(path[k].mean()) - exact) <= 4 * error + 1e-12
        both = (operator @ both.flatten()).view(2 * q, 2 * q)


@pytest.mark.parametrize(
    "call",
    [
        lambda c, a: thresholds.learning_rate_bounds(c, a),
        lambda c, a: thresholds.coherence_bound(c, a),
        lambda c, a: thresholds.three_axis_bound(c, a),
        lambda c, a: unlearning_window(c, a, steps=5, amplification=10.0),
        lambda c, a: dynamics.growth_mode(c, a, 0.1),
        lambda c, a: dynamics.mean_square_path(c, a, 0.1, steps=2),
        lambda c, a: dynamics.steps_to_amplify(c, a, 3.0, 10.0),
    ],
)
def test_without_an_exact_form_momentum_and_epochs_are_refused_by_name(call):
    curvature = Curvature.from_hessians(*random_instance(6, 3, 3, 1, 5))
    with pytest.raises(ValueError, match=r"algorithm\.momentum must be 0"):
        call(curvature, AscentDescent(0.1, 3, 3, momentum=0.5))
    with pytest.raises(ValueError, match=r"algorithm\.sampling must be"):
        call(curvature, AscentDescent(0.1, 3, 3, sampling="reshuffled"))


def test_momentum_outside_its_range_is_refused():
    for momentum in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="momentum must be in"):
            AscentDescent(0.1, 3, 3, momentum=momentum)
