import math

import pytest
import torch

from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.dynamics import critical_learning_rate, growth_factor
from lib.stability.families import grouped_family
from lib.stability.window import stopping_step, unlearning_window
from tests.support.dense import dense_second_moment, random_instance, spectral_radius

SAMPLINGS = ("bernoulli", "without_replacement", "with_replacement")


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_window_edges_are_where_the_dense_operator_puts_them(sampling):
    for seed in range(4):
        hessians, forget = random_instance(5, 3, 4, rank=1 + seed % 2, seed=seed)
        curvature = Curvature.from_hessians(hessians, forget)
        algorithm = AscentDescent(0.3, 2, 1, damping=0.1 * (seed // 2), sampling=sampling)
        window = unlearning_window(curvature, algorithm, steps=40, amplification=1e4)
        growth = spectral_radius(dense_second_moment(hessians, forget, algorithm, window.low))
        assert growth**40 == pytest.approx(1e4, rel=1e-5)
        # Without the forget set's curvature, its terms vanish and the retain weight 1−α stays.
        alone = torch.where(forget[:, None, None], 0.0, hessians)
        edge = spectral_radius(dense_second_moment(alone, forget, algorithm, window.high))
        assert edge == pytest.approx(1.0, abs=1e-8)
        beyond = dense_second_moment(alone, forget, algorithm, 1.001 * window.high)
        assert spectral_radius(beyond) > 1


def test_growth_factor_is_convex_in_the_learning_rate():
    for seed in range(6):
        hessians, forget = random_instance(5, 3, 4, seed=seed)
        curvature, algorithm = Curvature.from_hessians(hessians, forget), AscentDescent(0.1, 2, 1)
        rates = torch.linspace(0, 0.5, 21)
        rho = torch.tensor([growth_factor(curvature, algorithm, float(r)) for r in rates])
        assert float(rho[0]) == pytest.approx(1.0)
        assert bool((rho[2:] - 2 * rho[1:-1] + rho[:-2] > -1e-10).all())


def test_aligned_data_resist_and_orthogonal_data_do_not():
    algorithm = AscentDescent(0.2, 4, 4)
    aligned = grouped_family(8, 4, 8, 4, 1.0, 1.0)
    resisting = unlearning_window(aligned, algorithm, steps=20, amplification=1e3)
    assert resisting.resists
    assert resisting.low > resisting.high
    assert resisting.learning_rate == resisting.high
    assert resisting.stop_step > 20
    # Eight retain axes and the forget set on one of them, sharper there than all of retain.
    apart = grouped_family(8, 4, 1, 4, 1.0, 12.0)
    yielding = unlearning_window(apart, AscentDescent(0.3, 8, 4), steps=20, amplification=1e3)
    assert not yielding.resists
    assert yielding.learning_rate == pytest.approx(math.sqrt(yielding.low * yielding.high))
    assert yielding.stop_step < 20


def test_stopping_step_meets_the_budget_at_the_lower_edge():
    curvature, algorithm = grouped_family(8, 4, 2, 2, 1.0, 6.0), AscentDescent(0.3, 4, 2)
    window = unlearning_window(curvature, algorithm, steps=50, amplification=1e3)

    def at(rate):
        return stopping_step(curvature, algorithm, rate, amplification=1e3)

    assert at(window.low) == pytest.approx(50)
    assert at(window.learning_rate) == window.stop_step
    assert at(window.high) < window.stop_step
    stable = AscentDescent(0.01, 4, 2)
    rate = critical_learning_rate(curvature, stable) / 2
    assert stopping_step(curvature, stable, rate, amplification=1e3) == math.inf


def test_window_at_its_ends():
    curvature = grouped_family(6, 6, 1, 1, 1.0, 1.0)
    ascent = unlearning_window(curvature, AscentDescent(1.0, 6, 6), steps=10, amplification=1e3)
    assert ascent.high == math.inf
    assert not ascent.resists
    assert (ascent.learning_rate, ascent.stop_step) == (ascent.low, pytest.approx(10))
    assert (1 + ascent.low) ** 20 == pytest.approx(1e3)
    still = unlearning_window(curvature, AscentDescent(0.5, 6, 6), steps=10, amplification=1e3)
    assert still.low == math.inf
    assert still.high == pytest.approx(4.0)
    assert still.resists
    pulled = AscentDescent(1.0, 6, 6, damping=2.0)
    assert unlearning_window(curvature, pulled, steps=9, amplification=2.0).high == 1.0


@pytest.mark.parametrize(
    ("steps", "amplification", "message"),
    [
        (0, 10.0, "steps must be an integer ≥ 1, got 0"),
        (10, 1.0, "amplification must be a finite number > 1, got 1.0"),
        (10, math.inf, "amplification must be a finite number > 1, got inf"),
    ],
)
def test_window_refuses_bad_input(steps, amplification, message):
    curvature, algorithm = grouped_family(6, 6, 1, 1, 1.0, 1.0), AscentDescent(0.5, 2, 2)
    with pytest.raises(ValueError, match=message):
        unlearning_window(curvature, algorithm, steps=steps, amplification=amplification)


def test_growth_factor_of_a_step_that_kills_everything_is_zero():
    """J = 0 and no noise: one step ends at w*, so ρ(T) = 0 (in more than four dimensions too)."""
    for axes in (3, 4, 6, 9):
        curvature = grouped_family(axes, 6, 1, 6, 1.0, 0.0)
        rho = growth_factor(curvature, AscentDescent(0.0, axes, 6), 1.0)
        assert rho == pytest.approx(0.0, abs=1e-12)


def test_a_stopping_step_of_no_algorithm_is_refused():
    with pytest.raises(TypeError, match="algorithm must be"):
        stopping_step(grouped_family(6, 6, 1, 1, 1.0, 1.0), None, 0.1, amplification=2.0)  # type: ignore[arg-type]


def test_window_refuses_a_growth_too_slow_to_resolve():
    curvature, algorithm = grouped_family(6, 6, 1, 1, 1.0, 1.0), AscentDescent(0.5, 2, 2)
    with pytest.raises(ValueError, match="amplification must exceed"):
        unlearning_window(curvature, algorithm, steps=10**9, amplification=1 + 1e-7)
