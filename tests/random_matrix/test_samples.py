"""The samplers against numpy, from the same rows."""

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from lib import stability
from lib.random_matrix.equivalents import ProportionalLimit
from lib.random_matrix.free_difference import critical_mixing
from lib.random_matrix.samples import (
    GaussianEnsemble,
    kolmogorov_distance,
    sample_averaging_error,
    sample_coherence,
    sample_critical_mixing,
    sample_escape_steps,
    sample_learning_rates,
    sample_spectra,
    sample_top_pairs,
)
from lib.random_matrix.signal import averaging_test_error, detectability
from lib.stability import AscentDescent, Curvature

ENSEMBLE = GaussianEnsemble(12, 30, 9, shared_strength=8.0)


def dense(ensemble, draw):
    return (mean.numpy() for mean in ensemble.means(5, draw))


def row_means(ensemble, draw):
    """The two means from all rows, as they are defined."""
    rows = ensemble.rows(7, draw).numpy()
    retain, forget = rows[: ensemble.n_retain], rows[ensemble.n_retain :]
    return retain.T @ retain / len(retain), forget.T @ forget / len(forget)


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("counts", [(30, 9), (5, 40)])
def test_means_have_the_law_of_the_means_of_rows(counts, projected):
    ensemble = GaussianEnsemble(12, counts[0], counts[1], 2.0, 3.0, projected)
    draws = range(400)
    fast = [[mean.numpy() for mean in ensemble.means(5, draw)] for draw in draws]
    plain = [row_means(ensemble, draw) for draw in draws]
    statistics = (
        lambda r, f: np.linalg.eigvalsh(r)[-1],
        lambda r, f: np.linalg.eigvalsh(r - f)[0],
        lambda r, f: np.linalg.eigvalsh(f)[-min(counts[1], 12)],
        lambda r, f: np.linalg.eigh(0.7 * r - 0.3 * f)[1][0, -1] ** 2,
        lambda r, f: np.trace(r @ f),
        lambda r, f: r[0, 1] + f[3, 0],
    )
    for value in statistics:
        samples = [[value(*pair) for pair in pairs] for pairs in (fast, plain)]
        assert stats.ks_2samp(*samples).pvalue > 1e-3


def test_spectra_and_top_pairs_are_those_of_the_dense_difference():
    spectra = sample_spectra(ENSEMBLE, 0.3, draws=3, seed=5).numpy()
    pairs = sample_top_pairs(ENSEMBLE, 0.3, draws=3, seed=5).numpy()
    for draw in range(3):
        retain, forget = dense(ENSEMBLE, draw)
        values, vectors = np.linalg.eigh(0.7 * retain - 0.3 * forget)
        assert spectra[draw] == pytest.approx(values)
        assert pairs[draw] == pytest.approx([values[-1], vectors[0, -1] ** 2])


def test_escape_steps_are_those_of_the_dense_difference():
    found = sample_escape_steps(ENSEMBLE, 0.6, draws=3, seed=5).numpy()
    for draw in range(3):
        retain, forget = dense(ENSEMBLE, draw)
        rate = 1 / (0.4 * np.linalg.eigvalsh(retain)[-1])
        lowest = np.linalg.eigvalsh(0.4 * retain - 0.6 * forget)[0]
        assert found[draw] == pytest.approx(np.log(1e3) / np.log(1 - rate * lowest))
    assert bool(torch.isinf(sample_escape_steps(ENSEMBLE, 0.0, draws=1, seed=5)).all())


def test_kolmogorov_distance_counts_the_atom():
    ensemble = GaussianEnsemble(400, 100, 100)
    values = sample_spectra(ensemble, 0.3, draws=1, seed=0)[0]
    assert kolmogorov_distance(values, 0.3, ensemble) < 0.02
    assert kolmogorov_distance(values + 0.5, 0.3, ensemble) > 0.3  # the atom has left zero


@pytest.mark.parametrize("damping", [0.0, 0.4])
def test_critical_mixing_is_a_generalised_eigenvalue(damping):
    found = sample_critical_mixing(ENSEMBLE, damping, draws=2, seed=5).numpy()
    for draw in range(2):
        retain, forget = dense(ENSEMBLE, draw)
        pull = retain + damping * np.eye(12)
        assert found[draw] == pytest.approx(
            1 / linalg.eigh(retain + forget, pull, eigvals_only=True)[-1]
        )


def test_critical_mixing_is_that_of_the_curvature():
    retain, forget = ENSEMBLE.means(5)
    # Columns whose sum of squares is the mean: p of them for either set.
    roots = [torch.linalg.cholesky(mean + 1e-14 * torch.eye(12)) for mean in (retain, forget)]
    factors = torch.cat([root.T for root in roots])[:, :, None] * 12**0.5
    curvature = Curvature(factors, torch.arange(24) >= 12)
    for damping in (0.0, 0.4):
        found = float(sample_critical_mixing(ENSEMBLE, damping, draws=1, seed=5))
        assert found == pytest.approx(stability.critical_mixing(curvature, damping))
    wide = GaussianEnsemble(12, 11, 30)
    assert float(sample_critical_mixing(wide, draws=1, seed=0)) == 0


def test_curvature_keeps_the_gram_matrix_with_few_and_with_many_samples():
    for ensemble in (ENSEMBLE, GaussianEnsemble(40, 6, 5)):
        rows = ensemble.rows(0)
        assert torch.allclose(ensemble.curvature(0).gram, rows @ rows.T)


def test_learning_rates_of_batches_of_one_are_those_of_the_curvature():
    limit = ProportionalLimit(0.05, 0.25, 0.5, 1 / 32, 1 / 16)  # n = 32 and 16
    found = sample_learning_rates(limit, 8, draws=2, seed=3).tolist()
    ensemble, algorithm = GaussianEnsemble(8, 32, 16), AscentDescent(0.05, 1, 1)
    for draw, rate in enumerate(found):
        rows = ensemble.rows(3, draw)
        curvature = Curvature.from_gram(rows @ rows.T, torch.arange(48) >= 32)
        assert rate == pytest.approx(stability.critical_learning_rate(curvature, algorithm))


def test_more_draws_extend_a_run():
    few = sample_spectra(ENSEMBLE, 0.3, draws=2, seed=1)
    more = sample_spectra(ENSEMBLE, 0.3, draws=4, seed=1)
    assert torch.equal(few, more[:2])
    assert not torch.equal(more[0], more[1])


def test_strengths_enter_the_covariance():
    ensemble = GaussianEnsemble(3, 40000, 40000, shared_strength=2.0, forget_strength=5.0)
    retain, forget = ensemble.means(0)
    assert float(retain[0, 0]) == pytest.approx(3, rel=0.03)
    assert float(forget[0, 0]) == pytest.approx(8, rel=0.03)
    assert float(forget[1, 1]) == pytest.approx(1, rel=0.03)


def test_projected_rows_have_the_signal_alone_along_its_axis():
    ensemble = GaussianEnsemble(
        3, 40000, 40000, shared_strength=2.0, forget_strength=5.0, projected=True
    )
    retain, forget = ensemble.means(0)
    assert float(retain[0, 0]) == pytest.approx(2)
    assert float(forget[0, 0]) == pytest.approx(7)
    assert float(forget[1, 1]) == pytest.approx(1, rel=0.03)
    assert float(retain[0, 1]) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("ratios", [(0.2, 2.0), (0.5, 0.25), (0.8, 1.0)])
def test_critical_mixing_to_expect_matches_samples_where_the_limit_does_not(ratios):
    ensemble = GaussianEnsemble.from_ratios(80, *ratios)
    found = sample_critical_mixing(ensemble, draws=100, seed=0).numpy()
    error = found.std() / 10
    assert abs(found.mean() - ensemble.null_critical_mixing) < 3 * error
    assert found.mean() - critical_mixing(*ensemble.ratios) > 3 * error


def test_critical_mixing_to_expect_tends_to_the_limit():
    ensemble = GaussianEnsemble.from_ratios(10**9, 0.25, 1.0)
    assert ensemble.null_critical_mixing == pytest.approx(critical_mixing(0.25, 1.0), rel=1e-4)


def test_coherence_of_a_pure_signal_is_full():
    found = sample_coherence(1e4, 50, 8, 5, draws=1, seed=0)[0]
    assert found.numpy() == pytest.approx([1, 8, 5, 1], rel=1e-3)


def test_coherence_has_the_law_of_rows():
    snr, dim, counts, draws = 0.4, 30, (12, 7), 300
    found = sample_coherence(snr, dim, *counts, draws=draws, seed=0)
    ensemble = GaussianEnsemble(dim, *counts, snr**2 * dim, 0.0, True)
    plain = []
    for draw in range(draws):
        curvature = ensemble.curvature(1, draw)
        axes = stability.coherence(curvature)
        scale = dim - 1 + snr**2 * dim  # to energy 1
        between = stability.coherence_matrix(curvature)[: counts[0], counts[0] :].mean() / scale
        plain.append([float(between), axes.retain, axes.forget, axes.cross])
    for fast, slow in zip(found.T.numpy(), np.transpose(plain), strict=True):
        assert stats.ks_2samp(fast, slow).pvalue > 1e-3


def test_averaging_error_concentrates_on_its_limit():
    found = sample_averaging_error(0.1, 2000, 40, draws=10, seed=0)
    expected = averaging_test_error(detectability(0.1, 40, 2000))
    assert float(found.mean()) == pytest.approx(expected, rel=0.05)


def test_bad_input_raises():
    with pytest.raises(ValueError, match="n_forget"):
        GaussianEnsemble(3, 4, 0)
    assert GaussianEnsemble(3, 4, 10**12).ratios == (3 / 4, 3e-12)
    with pytest.raises(ValueError, match=r"n_forget must be an integer of at most 10{12}"):
        GaussianEnsemble(3, 4, 10**12 + 1)
    with pytest.raises(ValueError, match="shared_strength"):
        GaussianEnsemble(3, 4, 5, shared_strength=-1.0)
    for ensemble in (ENSEMBLE, GaussianEnsemble(3, 2, 5), GaussianEnsemble(3, 3, 5)):
        with pytest.raises(ValueError, match="without signal"):
            _ = ensemble.null_critical_mixing
    with pytest.raises(ValueError, match="mixing"):
        sample_spectra(ENSEMBLE, 1.5, draws=1, seed=0)
    with pytest.raises(ValueError, match="snr"):
        sample_coherence(0.0, 50, 8, 5, draws=1, seed=0)
