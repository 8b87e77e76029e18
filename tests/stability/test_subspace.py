import pytest

from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
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
