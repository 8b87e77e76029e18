"""The limit of the noise gain against dense gains, dense double resolvents and exact η*."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.random_matrix.equivalents import (
    ProportionalLimit,
    gain_matrix,
    limiting_learning_rate,
)
from lib.random_matrix.free_difference import FreeDifference
from lib.random_matrix.samples import sample_learning_rates

CASES = [
    ProportionalLimit(0.1, 0.25, 1.0, 0.1, 0.2),
    ProportionalLimit(0.0, 0.5, 0.5, 0.05, 0.05),
    ProportionalLimit(0.3, 2.0, 2.0, 0.1, 0.2, damping=8.0),
    ProportionalLimit(0.2, 3.0, 0.5, 0.3, 0.2, damping=2.0, with_replacement=True),
]


def dense_gain(limit, dim, learning_rate, seed):
    """Mean row sums of G over the blocks, from every pair of eigenvectors (thm-noise-gain)."""
    rng = np.random.default_rng(seed)
    sizes = [round(dim / limit.retain_ratio), round(dim / limit.forget_ratio)]
    h = rng.standard_normal((dim, sum(sizes)))
    share = np.array([(1 - limit.mixing) / sizes[0], limit.mixing / sizes[1]]).repeat(sizes)
    sign = np.array([1, -1]).repeat(sizes)
    values, basis = np.linalg.eigh((h * share * sign) @ h.T + limit.damping * np.eye(dim))
    fractions = np.array([limit.retain_fraction, limit.forget_fraction]).repeat(sizes)
    v = share**2 * (1 / fractions - (not limit.with_replacement))
    outer = np.outer(values, values)
    kernel = 1 / (values[:, None] + values[None, :] - learning_rate * outer)
    blocks = np.split(basis.T @ h, [sizes[0]], axis=1)
    weights = np.split(v, [sizes[0]])
    return learning_rate * np.array(
        [
            [
                ((a @ a.T) * ((b * w) @ b.T) * kernel).sum() / a.shape[1]
                for b, w in zip(blocks, weights, strict=True)
            ]
            for a in blocks
        ]
    )


@pytest.mark.parametrize("limit", CASES)
def test_thm_limiting_gain_matches_dense_row_sums(limit):
    rate = 0.7 * limiting_learning_rate(limit)
    found = np.mean([dense_gain(limit, 240, rate, seed) for seed in range(4)], axis=0)
    expected = gain_matrix(limit, rate).numpy()
    assert found == pytest.approx(expected, rel=0.02, abs=1e-12)


def test_gain_error_falls_as_one_over_the_dimension():
    limit = CASES[0]
    rate = 0.7 * limiting_learning_rate(limit)
    expected = gain_matrix(limit, rate).numpy()
    errors = [
        abs(
            np.mean([dense_gain(limit, p, rate, s) for s in range(draws)], axis=0) / expected - 1
        ).max()
        for p, draws in [(16, 400), (64, 100)]
    ]
    assert errors[1] < errors[0] / 2  # a factor 4 in the limit, less the noise of the draws


def test_thm_limiting_gain_double_resolvent_matches_a_dense_sample():
    """(1/p) tr W_c R(z) W_c' R(z') = Γ/(d_c d_c'(z) d_c d_c'(z')) + [c = c'] c_c u_c(z) u_c(z')."""
    mixing, ratios, dim = 0.3, (0.5, 1.25), 800
    rng = np.random.default_rng(0)
    sets = [rng.standard_normal((dim, round(dim / c))) for c in ratios]
    W = [h @ h.T / h.shape[1] for h in sets]
    z = [-2.5, 4.0]
    A = (1 - mixing) * W[0] - mixing * W[1]
    R = [np.linalg.inv(value * np.eye(dim) - A) for value in z]
    w = FreeDifference(mixing, *ratios).reciprocal_transform(torch.tensor(z)).real.numpy()
    g = 1 / w
    d = np.array([1 - (1 - mixing) * ratios[0] * g, 1 + mixing * ratios[1] * g])  # (set, point)
    gamma = (g[0] - g[1]) / (z[1] - z[0])
    for a in range(2):
        for b in range(2):
            found = np.trace(W[a] @ R[0] @ W[b] @ R[1]) / dim
            expected = gamma / (d[a].prod() * d[b].prod())
            if a == b:
                expected += ratios[a] * g.prod() / d[a].prod()
            assert found == pytest.approx(expected, rel=0.01)


def test_thm_limiting_gain_rate_approaches_the_exact_one_from_above():
    """Exact η* lies below its limit, by O(1/p)."""
    limit = ProportionalLimit(0.05, 0.25, 0.5, 0.05, 0.05)
    expected = limiting_learning_rate(limit)
    gaps = [
        1 - float(sample_learning_rates(limit, dim, draws=draws, seed=0).mean()) / expected
        for dim, draws in [(20, 20), (80, 6)]
    ]
    assert gaps[0] < 0.15
    assert 0 < gaps[1] < gaps[0] / 2


def test_gain_solves_the_two_set_equation_at_the_limit():
    close = ProportionalLimit(0.0, 0.5, 0.5, 0.4, 0.4)  # 8e-4 below the edge 2/λ_max
    assert limiting_learning_rate(close) < (1 - 5e-4) * 2 / close.edges[1]
    for limit in [*CASES, close]:
        (g_rr, g_rf), (g_fr, g_ff) = gain_matrix(limit, limiting_learning_rate(limit)).tolist()
        assert (1 - g_rr) * (1 - g_ff) == pytest.approx(g_rf * g_fr, abs=1e-7)


def test_full_batch_is_the_edge_of_stability():
    limit = ProportionalLimit(0.1, 0.25, 1.0, 1.0, 1.0)
    assert limiting_learning_rate(limit) == pytest.approx(2 / limit.edges[1])
    assert torch.equal(gain_matrix(limit, 0.5), torch.zeros(2, 2))


def test_rate_is_zero_beyond_the_critical_mixing_and_falls_towards_it():
    limits = [ProportionalLimit(m, 0.25, 1.0, 0.1, 0.1) for m in (0.0, 0.05, 0.1, 0.12, 0.123)]
    rates = [limiting_learning_rate(limit) for limit in limits]
    assert all(rate > 0 for rate in rates)
    assert rates[-1] < rates[0]
    assert limiting_learning_rate(ProportionalLimit(0.2, 0.25, 1.0, 0.1, 0.1)) == 0


def test_small_batches_give_the_small_step_law():
    """As b → 0, η* → 2/ρ of the noise weights with Lyapunov kernel 1/(s+t): linear in b."""
    rates = [
        limiting_learning_rate(ProportionalLimit(0.1, 0.25, 1.0, b, b, with_replacement=True))
        for b in (1e-4, 1e-5)
    ]
    assert rates[0] / rates[1] == pytest.approx(10, rel=1e-2)


def test_bad_input_raises():
    for name, value in [
        ("retain_fraction", 0.0),
        ("forget_fraction", 1.5),
        ("retain_ratio", 0.0),
        ("damping", -1.0),
        ("mixing", 2.0),
    ]:
        with pytest.raises(ValueError, match=name):
            replace(CASES[0], **{name: value})  # type: ignore[arg-type]
    for rate in (math.nan, 0.0, 2 / CASES[0].edges[1]):
        with pytest.raises(ValueError, match="learning_rate"):
            gain_matrix(CASES[0], rate)
    with pytest.raises(ValueError, match="mixing"):
        gain_matrix(ProportionalLimit(0.5, 0.25, 1.0, 0.1, 0.1), 0.1)
    with pytest.raises(ValueError, match="dim"):
        sample_learning_rates(CASES[0], 7, draws=1, seed=0)
