"""Times of the null model and of the limiting learning rate; run with `make benchmark`."""

import torch

from lib.random_matrix.equivalents import ProportionalLimit, limiting_learning_rate
from lib.random_matrix.free_difference import (
    critical_mixing,
    spectral_density,
    spectrum_edges,
)


def test_density_at_a_hundred_thousand_points(benchmark):
    points = torch.linspace(-5, 5, 100_000, dtype=torch.float64)
    density = benchmark(spectral_density, points, 0.3, 0.5, 2.0)
    assert bool(torch.isfinite(density).all())


def test_edges(benchmark):
    lower, upper = benchmark(spectrum_edges, 0.3, 0.5, 2.0)
    assert lower < upper


def test_damped_critical_mixing(benchmark):
    assert 0 < benchmark(critical_mixing, 0.5, 2.0, 0.3) < 1


def test_limiting_learning_rate(benchmark):
    limit = ProportionalLimit(0.1, 0.25, 1.0, 0.1, 0.2)
    assert benchmark(limiting_learning_rate, limit) > 0
