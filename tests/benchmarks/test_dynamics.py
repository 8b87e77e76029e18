"""Cost of the exact solvers, one thread. Ratios in one run; the machine is whatever it is."""

import time

import pytest
import torch

from lib.stability.algorithm import AscentDescent
from lib.stability.dynamics import critical_learning_rate, growth_factor
from lib.stability.families import gaussian_curvature
from lib.stability.sampling import SAMPLINGS
from tests.support.dense import tabled_second_moment


def instance(q, sampling):
    curvature = gaussian_curvature(4 * q, q, q, seed=0)
    return curvature, AscentDescent(0.1, q // 5, q // 10, sampling=sampling)


def bisected_densely(curvature, algorithm, steps=50):
    """η* by bisection; T's q² × q² matrix is a quadratic in η, built once, so this is generous."""
    hessians = curvature.factors @ curvature.factors.transpose(1, 2)
    zero, plus, minus = (
        tabled_second_moment(hessians, curvature.forget, algorithm, rate)
        for rate in (0.0, 1.0, -1.0)
    )
    linear, square = (plus - minus) / 2, (plus + minus) / 2 - zero
    low, high = 0.0, 4 / float(torch.linalg.eigvalsh(curvature.retain_hessian)[-1])
    for _ in range(steps):
        middle = (low + high) / 2
        top = torch.linalg.eigvalsh(zero + middle * linear + middle**2 * square)[-1]
        low, high = (middle, high) if top < 1 else (low, middle)
    return (low + high) / 2


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_critical_learning_rate_at_200_dimensions(benchmark, sampling):
    curvature, algorithm = instance(200, sampling)
    rate = benchmark(critical_learning_rate, curvature, algorithm)
    assert abs(growth_factor(curvature, algorithm, rate) - 1) < 1e-8


def test_growth_factor_at_200_dimensions(benchmark):
    curvature, algorithm = instance(200, "without_replacement")
    rate = critical_learning_rate(curvature, algorithm)
    benchmark(growth_factor, curvature, algorithm, 0.9 * rate)


def test_ratio_to_bisection_with_a_dense_operator(benchmark, capsys):
    curvature, algorithm = instance(24, "bernoulli")
    ours = benchmark(critical_learning_rate, curvature, algorithm)
    begin = time.perf_counter()
    dense = bisected_densely(curvature, algorithm)
    seconds = time.perf_counter() - begin
    assert abs(ours / dense - 1) < 1e-9
    median = benchmark.stats.stats.median
    peer = {"peer": "bisection with the dense operator", "ratio": seconds / median}
    benchmark.extra_info.update(peer)
    with capsys.disabled():
        print(
            f"\nη* at q = 24: {1e3 * median:.1f} ms; bisection with the dense operator "
            f"{1e3 * seconds:.0f} ms, ratio {seconds / median:.0f}"
        )
