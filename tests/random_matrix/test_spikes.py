"""Outlier formulas against dense eigenvalues, and the congruence behind them."""

import math

import numpy as np
import pytest
from scipy import linalg

from lib.random_matrix.free_difference import (
    critical_mixing,
    forget_condition,
    spectrum_edges,
)
from lib.random_matrix.spikes import (
    escape_steps,
    lowest_eigenvalue,
    own_signal_critical_mixing,
    own_signal_threshold,
    shared_signal_critical_mixing,
    shared_signal_outliers,
    single_set_outlier,
)


def wishart(dim, count, strength, rng):
    rows = rng.standard_normal((dim, count))
    rows[0] *= math.sqrt(1 + strength)
    return rows @ rows.T / count


def dense_pair(dim, ratios, strengths, seed):
    rng = np.random.default_rng(seed)
    return [wishart(dim, round(dim / c), s, rng) for c, s in zip(ratios, strengths, strict=True)]


@pytest.mark.parametrize(("strength", "ratio"), [(1.5, 0.25), (6.0, 0.5), (8.0, 4.0)])
def test_single_set_outlier_matches_dense(strength, ratio):
    tops = []
    for seed in range(20):
        values, vectors = np.linalg.eigh(
            wishart(200, round(200 / ratio), strength, np.random.default_rng(seed))
        )
        tops.append([values[-1], vectors[0, -1] ** 2])
    outlier = single_set_outlier(strength, ratio)
    error = np.std(tops, axis=0) / math.sqrt(20)
    assert outlier is not None
    bias = 5 / 200  # O(1/p)
    position, overlap = np.mean(tops, axis=0)
    assert abs(position - outlier.position) < 3 * error[0] + bias * outlier.position
    assert abs(overlap - outlier.overlap) < 3 * error[1] + bias


def test_single_set_outlier_starts_at_the_edge():
    assert single_set_outlier(0.5, 0.25) is None
    just = single_set_outlier(0.5 * (1 + 1e-9), 0.25)
    assert just is not None
    assert just.position == pytest.approx((1 + 0.5) ** 2)
    assert just.overlap == pytest.approx(0, abs=1e-7)


def test_one_set_of_the_shared_signal_is_the_single_set():
    (outlier,) = shared_signal_outliers(5.0, 0.0, 0.25, 1.0)
    single = single_set_outlier(5.0, 0.25)
    assert single is not None
    assert outlier.position == pytest.approx(single.position)
    assert outlier.overlap == pytest.approx(single.overlap)
    (mirrored,) = shared_signal_outliers(5.0, 1.0, 1.0, 0.25)
    assert mirrored.position == pytest.approx(-single.position)
    assert shared_signal_outliers(0.4, 0.0, 0.25, 1.0) == ()
    for ratio in (0.3, 4.1, 50.3):  # at ratios above 1 the support has a gap beside its atom
        for strength in np.geomspace(1e-2, 1e10, 40).tolist():
            single = single_set_outlier(strength, ratio)
            expected = () if single is None else (pytest.approx(single.position, rel=1e-12),)
            for mixing, ratios in ((0.0, (ratio, 1.0)), (1.0, (1.0, ratio))):
                found = shared_signal_outliers(strength, mixing, *ratios)
                assert tuple(abs(outlier.position) for outlier in found) == expected


@pytest.mark.parametrize(
    ("mixing", "ratios", "strength", "count"),
    [(0.1, (0.25, 1.0), 20.0, 1), (0.45, (0.25, 1.0), 50.0, 2), (0.7, (0.5, 0.5), 10.0, 2)],
)
def test_thm_shared_signal_outliers_match_dense(mixing, ratios, strength, count):
    dim, draws = 240, 20
    outliers = shared_signal_outliers(strength, mixing, *ratios)
    assert len(outliers) == count
    found = []
    for seed in range(draws):
        retain, forget = dense_pair(dim, ratios, (strength, strength), seed)
        values, vectors = np.linalg.eigh((1 - mixing) * retain - mixing * forget)
        found.append([[values[k], vectors[0, k] ** 2] for k in ([0, -1] if count == 2 else [-1])])
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / math.sqrt(draws)
    for k, outlier in enumerate(outliers):
        bias = 10 / dim
        assert abs(mean[k, 0] - outlier.position) < 3 * error[k, 0] + bias * abs(outlier.position)
        assert abs(mean[k, 1] - outlier.overlap) < 3 * error[k, 1] + bias


@pytest.mark.long
def test_thm_own_signal_matches_a_dense_generalised_eigenvalue():
    dim, draws = 240, 20
    for ratios, strength in [((0.25, 1.0), 5.0), ((0.2, 2.0), 7.0)]:
        found = []
        for seed in range(draws):
            retain, forget = dense_pair(dim, ratios, (0.0, strength), seed)
            kappa = linalg.eigh(forget, retain, eigvals_only=True)[-1]
            found.append(1 / (1 + kappa))
        limit = own_signal_critical_mixing(strength, *ratios)
        error = np.std(found) / math.sqrt(draws)
        assert abs(np.mean(found) - limit) < 3 * error + 10 / dim * limit


def test_own_signal_joins_the_null_model_at_its_threshold():
    threshold = own_signal_threshold(0.25, 1.0)
    assert threshold == pytest.approx((1 + 1) / 0.75)
    null = critical_mixing(0.25, 1.0)
    assert own_signal_critical_mixing(threshold - 1 - 1e-6, 0.25, 1.0) == null
    assert own_signal_critical_mixing(threshold - 1 + 1e-6, 0.25, 1.0) == pytest.approx(null)
    assert own_signal_critical_mixing(50.0, 0.25, 1.0) < null
    assert own_signal_threshold(1.5, 1.0) == math.inf
    assert own_signal_critical_mixing(50.0, 1.5, 1.0) == 0


def test_thm_shared_signal_leaves_the_undamped_critical_mixing_alone():
    """Exact at every size: a shared invertible map keeps the generalised eigenvalues."""
    kappas = []
    for strength in (0.0, 3.0, 300.0):
        retain, forget = dense_pair(60, (0.25, 1.0), (strength, strength), seed=0)
        kappas.append(linalg.eigh(forget, retain, eigvals_only=True)[-1])
    assert kappas == pytest.approx([kappas[0]] * 3)
    for strength in (0.0, 3.0, 300.0):
        assert shared_signal_critical_mixing(strength, 0.25, 1.0) == critical_mixing(0.25, 1.0)


def test_thm_shared_signal_scales_negative_eigenvalues_by_at_most_its_strength():
    """(1+θ²) λ_min(A₀) ≤ λ_min(A) ≤ λ_min(A₀) < 0 on random instances, at every size."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        null = wishart(8, 20, 0.0, rng) - 1.5 * wishart(8, 12, 0.0, rng)
        root = np.diag([2.0] + [1.0] * 7)  # Σ^{1/2} with θ² = 3
        before, after = np.linalg.eigvalsh(null), np.linalg.eigvalsh(root @ null @ root)
        assert (before < 0).sum() == (after < 0).sum()
        assert before[0] < 0
        assert 4 * before[0] - 1e-12 <= after[0] <= before[0] + 1e-12


def test_shared_signal_can_only_lower_the_damped_critical_mixing():
    for damping in (0.1, 1.0, 3.0):
        values = [
            shared_signal_critical_mixing(s, 0.25, 1.0, damping) for s in (0.0, 1.0, 10.0, 100.0)
        ]
        assert values == sorted(values, reverse=True)
        assert (values[-1] < values[0]) == (damping >= 1)  # the outlier stays inside before
        assert lowest_eigenvalue(100.0, values[-1], 0.25, 1.0) == pytest.approx(-damping)


def test_shared_signal_slows_the_escape():
    steps = [escape_steps(s, 0.3, 0.25, 1.0) for s in (0.0, 1.0, 10.0, 100.0)]
    assert steps == sorted(steps)
    assert steps[-1] > 10 * steps[0]
    assert escape_steps(1.0, 0.1, 0.25, 1.0) == math.inf


def test_outliers_are_outside_the_support_over_a_sweep():
    for mixing in np.linspace(0, 1, 21):
        lower, upper = spectrum_edges(float(mixing), 0.5, 2.0)
        for strength in np.geomspace(1e-3, 1e5, 30):
            outliers = shared_signal_outliers(float(strength), float(mixing), 0.5, 2.0)
            assert len(outliers) <= 2
            for outlier in outliers:
                assert outlier.position > upper or outlier.position < lower
                assert 0 <= outlier.overlap <= 1


def test_bad_input_raises():
    for call in (
        lambda: single_set_outlier(-1.0, 0.5),
        lambda: own_signal_critical_mixing(math.nan, 0.5, 0.5),
        lambda: shared_signal_outliers(-1.0, 0.5, 0.5, 0.5),
        lambda: shared_signal_critical_mixing(-1.0, 0.5, 0.5),
    ):
        with pytest.raises(ValueError, match="strength must be"):
            call()
    with pytest.raises(ValueError, match="ratio must be"):
        single_set_outlier(1.0, 0.0)
    with pytest.raises(ValueError, match="retain_ratio must be"):
        own_signal_critical_mixing(1.0, -1.0, 0.5)
    with pytest.raises(ValueError, match="amplification"):
        escape_steps(1.0, 0.3, 0.5, 0.5, amplification=1.0)
    with pytest.raises(ValueError, match="mixing"):
        escape_steps(1.0, 1.0, 0.5, 0.5)
    assert forget_condition(2.0, 0.5) == math.inf


def test_escape_steps_of_a_signal_too_weak_to_leave_the_bulk_are_the_bulks():
    lower, _ = spectrum_edges(0.3, 0.25, 1.0)
    growth = 1 - lower / (0.7 * (1 + math.sqrt(0.25)) ** 2)
    assert single_set_outlier(0.01, 0.25) is None
    assert escape_steps(0.01, 0.3, 0.25, 1.0) == pytest.approx(math.log(1e3) / math.log(growth))
