import pytest
import torch

from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.dynamics import critical_learning_rate, noise_gain
from lib.stability.thresholds import block_critical_rate, block_gain
from tests.support.dense import dense_mean, dense_second_moment, random_instance, spectral_radius


def gaussian(p, seed=0):
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(6 * p, p, 1, generator=generator)
    return Curvature(factors, torch.arange(6 * p) >= 4 * p)


def test_theorem_7_noise_gain():
    """Rank one, Bernoulli, |1 − ηλ(A)| < 1: ρ(T) < 1 iff ρ(G) < 1, on both sides of it."""
    sides = {True: 0, False: 0}
    for seed in range(12):
        hessians, forget = random_instance(5, 3, 3, seed=seed)
        algorithm = AscentDescent((0.02, 0.06)[seed % 2], 2, 1, damping=(0.0, 0.5)[seed // 2 % 2])
        lam = torch.linalg.eigvalsh(dense_mean(hessians, forget, algorithm))
        if lam[0] <= 0:
            continue
        curvature = Curvature.from_hessians(hessians, forget)
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            rate = share * 2 / float(lam[-1])
            T = spectral_radius(dense_second_moment(hessians, forget, algorithm, rate))
            G = spectral_radius(noise_gain(curvature, algorithm, rate))
            assert (T < 1) == (G < 1)
            sides[T < 1] += 1
    assert min(sides.values()) >= 10


def test_noise_gain_grows_with_the_learning_rate():
    """Every entry does, which makes both frontiers single points (lemma after thm-noise-gain)."""
    curvature, algorithm = gaussian(4), AscentDescent(0.05, 4, 2)
    edge = block_critical_rate(curvature, algorithm)
    previous = torch.zeros(24, 24)
    for share in (0.01, 0.2, 0.5, 0.8, 1.0, 1.05):
        gain = noise_gain(curvature, algorithm, share * edge)
        assert bool((gain >= previous).all())
        previous = gain


def test_block_gain_is_the_mean_over_receivers_of_the_sum_over_senders():
    hessians, forget = random_instance(5, 3, 4, seed=1)
    curvature, algorithm = Curvature.from_hessians(hessians, forget), AscentDescent(0.02, 2, 1)
    G = noise_gain(curvature, algorithm, 0.05)
    g = block_gain(curvature, algorithm, 0.05)
    for a, receivers in enumerate((~forget, forget)):
        for b, senders in enumerate((~forget, forget)):
            assert float(g[a, b]) == pytest.approx(float(G[receivers][:, senders].sum(1).mean()))


def test_block_gain_is_exact_when_samples_are_exchangeable():
    """Copies of one retain and one forget curvature: the 2×2 frontier is η* itself."""
    h = torch.tensor([[1.0, 0.2], [0.5, 0.4]])
    factors = torch.cat([h[0].repeat(6, 1), h[1].repeat(4, 1)])[:, :, None]
    curvature, algorithm = Curvature(factors, torch.arange(10) >= 6), AscentDescent(0.1, 2, 1, 0.3)
    rate = block_critical_rate(curvature, algorithm)
    assert rate == pytest.approx(critical_learning_rate(curvature, algorithm), rel=1e-8)
    g = block_gain(curvature, algorithm, rate)
    assert float((1 - g[0, 0]) * (1 - g[1, 1])) == pytest.approx(float(g[0, 1] * g[1, 0]), abs=1e-7)


def test_block_prediction_approaches_the_threshold_for_isotropic_curvature():
    gaps = []
    for p in (20, 40):
        curvature, algorithm = gaussian(p), AscentDescent(0.05, p // 5, p // 10)
        rate = block_critical_rate(curvature, algorithm)
        gaps.append(abs(rate / critical_learning_rate(curvature, algorithm) - 1))
    assert gaps[1] < 0.7 * gaps[0] < 0.1


def test_block_critical_rate_at_its_ends():
    curvature = gaussian(4)
    full = AscentDescent(0.05, 16, 8)
    edge = critical_learning_rate(curvature, full)
    assert block_critical_rate(curvature, full) == pytest.approx(edge, rel=1e-9)
    assert block_critical_rate(curvature, AscentDescent(0.9, 2, 2)) == 0.0
    with pytest.raises(ValueError, match="bernoulli"):
        block_critical_rate(curvature, AscentDescent(0.05, 2, 2, sampling="with_replacement"))
