import pytest

from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.dynamics import critical_learning_rate
from lib.stability.second_moment import SecondMoment
from lib.stability.subspace import GrowingSubspace
from tests.support.dense import random_instance, spectral_radius, tabled_second_moment


@pytest.mark.parametrize("sampling", ["bernoulli", "without_replacement", "with_replacement"])
@pytest.mark.parametrize("rank", [1, 2])
def test_warm_starts_change_nothing_and_agree_with_the_dense_operator(sampling, rank):
    for seed in range(3):
        hessians, forget = random_instance(9, 5, 7, rank=rank, seed=seed)
        curvature = Curvature.from_hessians(hessians, forget)
        algorithm = AscentDescent(0.2, 3, 2, damping=0.1 * seed, sampling=sampling)
        moment = SecondMoment.of(curvature, algorithm)
        warm = GrowingSubspace(moment)
        for rate in (0.4, 0.1, 0.11, 0.2, 0.01, 0.4):
            dense = spectral_radius(tabled_second_moment(hessians, forget, algorithm, rate))
            assert GrowingSubspace(moment).growth(rate) == pytest.approx(dense, rel=1e-9)
            assert warm.growth(rate) == pytest.approx(dense, rel=1e-9)


@pytest.mark.parametrize("sampling", ["bernoulli", "without_replacement", "with_replacement"])
@pytest.mark.parametrize("rank", [1, 2])
def test_the_critical_rate_is_that_of_the_lanczos_run(sampling, rank):
    for seed in range(3):
        hessians, forget = random_instance(9, 5, 7, rank=rank, seed=seed)
        curvature = Curvature.from_hessians(hessians, forget)
        algorithm = AscentDescent(0.0, 3, 2, damping=0.1 * seed, sampling=sampling)
        moment = SecondMoment.of(curvature, algorithm).contracting()
        assert moment is not None
        expected = critical_learning_rate(curvature, algorithm)
        assert GrowingSubspace(moment).critical() == pytest.approx(expected, rel=1e-11)
        dense = tabled_second_moment(hessians, forget, algorithm, expected)
        assert spectral_radius(dense) == pytest.approx(1, abs=1e-9)
