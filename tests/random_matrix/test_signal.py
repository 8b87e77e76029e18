"""Expected coherence against dumb samples, and the detectability line against both its meanings."""

import math

import numpy as np
import pytest
from scipy import linalg

from lib.random_matrix.signal import (
    averaging_test_error,
    critical_snr,
    detectability,
    expected_coherence,
    noise_floor,
)
from lib.random_matrix.spikes import single_set_outlier


def sample(snr, sizes, seed):
    dim, n_retain, n_forget = sizes
    rng = np.random.default_rng(seed)
    noise = 1 / (dim - 1 + snr**2 * dim)
    rows = rng.standard_normal((n_retain + n_forget, dim)) * math.sqrt(noise)
    rows[:, 0] = math.sqrt(snr**2 * dim * noise) * rng.choice([-1, 1], len(rows))
    S = abs(rows @ rows.T)
    retain, forget, cross = (
        S[:n_retain, :n_retain],
        S[n_retain:, n_retain:],
        S[:n_retain, n_retain:],
    )
    axes = [np.linalg.eigvalsh(block)[-1] / block.diagonal().max() for block in (retain, forget)]
    chi = (cross**2).mean() / math.sqrt((retain**2).mean() * (forget**2).mean())
    return [cross.mean(), *axes, chi]


@pytest.mark.parametrize("snr", [0.02, 0.2, 0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("sizes", [(400, 45, 15), (100, 60, 40)])
def test_thm_expected_coherence_matches_samples(snr, sizes):
    draws = np.array([sample(snr, sizes, seed) for seed in range(40)])
    expected = expected_coherence(snr, *sizes)
    found = [expected.pair, expected.retain, expected.forget, expected.cross]
    error = draws.std(axis=0) / math.sqrt(40)
    assert (abs(found - draws.mean(axis=0)) < 3.5 * error + 0.01 * draws.mean(axis=0)).all()


def test_coherence_of_few_samples_in_few_dimensions_is_the_ratio_of_its_two_expectations():
    """Where a sample is a quarter of its set, second order in the fluctuations still counts."""
    snr, dim, n, draws = 0.8, 6, 4, 40_000
    rows = np.random.default_rng(0).standard_normal((draws, n, dim))
    rows[:, :, 0] = snr * math.sqrt(dim)  # a sign would not show in |⟨h_i, h_j⟩|
    S = abs(rows @ rows.transpose(0, 2, 1))
    tops, lengths = np.linalg.eigvalsh(S)[:, -1], S.diagonal(axis1=1, axis2=2).max(axis=1)
    found = tops.mean() / lengths.mean()
    error = np.std(tops - found * lengths) / lengths.mean() / math.sqrt(draws)
    expected = expected_coherence(snr, dim, n, n)
    assert expected.retain == expected.forget == pytest.approx(found, abs=3 * error + 5e-3 * found)


def test_thm_expected_coherence_second_moments_are_exact():
    """E S_ij² = e² + s², E S_ii² = 1 + 2s², by plain sampling at a small dimension."""
    dim, snr, draws = 6, 0.7, 200_000
    noise = 1 / (dim - 1 + snr**2 * dim)
    energy, square = snr**2 * dim * noise, noise**2 * (dim - 1)
    rng = np.random.default_rng(0)
    xi = rng.standard_normal((2, draws, dim - 1)) * math.sqrt(noise)
    pair = (energy + (xi[0] * xi[1]).sum(-1)) ** 2
    own = (energy + (xi[0] ** 2).sum(-1)) ** 2
    for values, expected in [(pair, energy**2 + square), (own, 1 + 2 * square)]:
        assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(draws)


def test_pure_noise_sits_on_the_floor():
    pair = expected_coherence(1e-6, 2000, 20, 10).pair
    assert pair == pytest.approx(noise_floor(2000), rel=1e-3)
    # Across a signal in the plane there is one direction: the pair is (E|g|)², g standard normal.
    assert expected_coherence(1e-9, 2, 20, 10).pair == pytest.approx(2 / math.pi)


def test_pure_signal_is_fully_coherent():
    expected = expected_coherence(1e6, 100, 30, 10)
    assert expected.pair == pytest.approx(1)
    assert expected.retain == pytest.approx(30)
    assert expected.forget == pytest.approx(10)
    assert expected.cross == pytest.approx(1)


def overlap(tau, dim, count):
    """Limit of the squared overlap of the leading eigenvector with the signal, 0 if blind to it."""
    strength = math.sqrt(tau * dim / count)  # θ², as τ = θ⁴/c
    outlier = single_set_outlier(max(strength - 1, 0.0), dim / count)
    return outlier.overlap if outlier else 0.0


@pytest.mark.parametrize("ratio", [0.1, 1.0, 7.0])
def test_thm_one_curve_threshold_is_that_of_projected_noise(ratio):
    """√τ > 1 + √(n/d), which is θ² > 1 + √c; the unprojected θ⁴ > c would be τ > 1."""
    count = 80
    dim = round(ratio * count)
    tau = (1 + math.sqrt(count / dim)) ** 2
    assert overlap(0.999 * tau, dim, count) == 0
    assert overlap(1.001 * tau, dim, count) > 0
    snr = critical_snr(count, dim) * math.sqrt(1 + math.sqrt(count / dim))
    assert detectability(snr, count, dim) == pytest.approx(tau)
    assert snr**2 * dim == pytest.approx(1 + math.sqrt(dim / count))


def test_thm_one_curve_threshold_tends_to_one_in_high_dimension():
    count = 10
    assert detectability(critical_snr(count, 10**9), count, 10**9) == pytest.approx(1)
    assert overlap(1 - 1e-3, 10**9, count) == 0
    assert overlap(1 + 1e-3, 10**9, count) > 0


@pytest.mark.parametrize(
    ("tau", "dim", "count", "draws", "expected"),
    [
        (8, 600, 600, 12, 0.453),
        pytest.param(15, 300, 1200, 100, 0.564, marks=pytest.mark.long),
        pytest.param(4, 1200, 300, 12, 0.238, marks=pytest.mark.long),
    ],
)
def test_thm_one_curve_overlap_matches_projected_rows(tau, dim, count, draws, expected):
    assert overlap(tau, dim, count) == pytest.approx(expected, abs=5e-4)
    found = []
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((count, dim))
        rows[:, 0] = (tau * dim / count) ** 0.25 * rng.choice([-1, 1], count)
        few = rows @ rows.T if count < dim else rows.T @ rows
        vector = linalg.eigh(few, subset_by_index=[len(few) - 1] * 2)[1][:, 0]
        vector = rows.T @ vector if count < dim else vector
        found.append(vector[0] ** 2 / (vector @ vector))
    error = np.std(found) / math.sqrt(draws)
    assert abs(np.mean(found) - expected) < 3 * error
    unprojected = single_set_outlier(math.sqrt(tau * dim / count), dim / count)
    assert unprojected is not None
    assert abs(np.mean(found) - unprojected.overlap) > 3 * error


def test_thm_one_curve_averaging_error_matches_a_simulated_classifier():
    dim, count, snr = 400, 50, 0.1
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(40):
        labels = rng.choice([-1, 1], count)
        train = rng.standard_normal((count, dim))
        train[:, 0] = labels * snr * math.sqrt(dim)
        fresh = rng.standard_normal((500, dim))
        fresh[:, 0] = snr * math.sqrt(dim)
        errors.append((fresh @ (labels @ train) < 0).mean())
    expected = averaging_test_error(detectability(snr, count, dim))
    assert np.mean(errors) == pytest.approx(expected, abs=4 * np.std(errors) / math.sqrt(40))


def test_bad_input_raises():
    for snr in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="snr must be"):
            expected_coherence(snr, 100, 10, 10)
    with pytest.raises(ValueError, match="n_forget must be"):
        expected_coherence(1.0, 100, 10, 1)
    with pytest.raises(ValueError, match="dim must be"):
        noise_floor(1)
    with pytest.raises(ValueError, match="ratio must be"):
        averaging_test_error(0.0)
