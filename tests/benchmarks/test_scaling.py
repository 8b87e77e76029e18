"""Time and peak memory of S, η* and G against the number of samples n, with fitted exponents.

Worst case for sample space: linearly independent factors, so q = n. Run with -s to see the table.
"""

import time

import numpy as np
import pytest
import torch

from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.data_coherence import coherence_matrix
from lib.stability.dynamics import critical_learning_rate, noise_gain
from tests.stability.test_memory import peak_rise

SIZES = (50, 100, 200, 500, 1000)


def independent(n):
    """n Gaussian gradients in 2n dimensions through their Gram matrix, a quarter to forget."""
    gradients = torch.randn(n, 2 * n, generator=torch.Generator().manual_seed(0))
    curvature = Curvature.from_gram(gradients @ gradients.T / 2, torch.arange(n) >= 3 * n // 4)
    return curvature, AscentDescent(0.1, n // 10, n // 20, damping=1.0)


QUANTITIES = {
    "S": lambda curvature, algorithm: coherence_matrix(curvature),
    "eta": critical_learning_rate,
    "G": lambda curvature, algorithm: noise_gain(curvature, algorithm, 1e-3),
}


def seconds(name, n):
    """Least processor seconds, so that other work on the machine counts as little as can be."""
    curvature, algorithm = independent(n)
    best = np.inf
    for _ in range(5 if n < 1000 else 2):
        start = time.process_time()
        QUANTITIES[name](curvature, algorithm)
        best = min(best, time.process_time() - start)
    return best


def megabytes(name, n):
    """Peak resident memory, inputs included, of one call in a fresh process."""
    setup = "from tests.benchmarks.test_scaling import *; torch.set_default_dtype(torch.float64)"
    call = "QUANTITIES[{!r}](*independent({}))"
    return peak_rise(setup, call.format(name, 20), call.format(name, n))


@pytest.mark.parametrize("name", QUANTITIES)
def test_growth_with_the_number_of_samples(name, capsys):
    times = np.array([seconds(name, n) for n in SIZES])
    peaks = np.array([megabytes(name, n) for n in SIZES])
    large = np.log(SIZES[2:])  # below, fixed costs and the allocator's granularity rule
    time_slope = np.polyfit(large, np.log(times[2:]), 1)[0]
    peak_slope = np.polyfit(large, np.log(peaks[2:]), 1)[0]
    with capsys.disabled():
        print(f"\n{name}: time ~ n^{time_slope:.2f}, peak memory ~ n^{peak_slope:.2f}, n ≥ 200")
        for n, t, m in zip(SIZES, times, peaks, strict=True):
            squares = m * 2**20 / 8 / n**2
            print(f"  n = {n:4d}  {1e3 * t:9.2f} ms  {m:7.1f} MB, {squares:5.1f} n × n matrices")
    assert peak_slope < 2.5


@pytest.mark.parametrize("name", QUANTITIES)
def test_time_at_500_samples(benchmark, name):
    benchmark.pedantic(QUANTITIES[name], independent(500), rounds=3, warmup_rounds=1)
