"""The null model against dense eigenvalues, numerical quadrature and known special cases."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, linalg

from lib.random_matrix import free_difference as random_matrix
from lib.random_matrix.free_difference import (
    FreeDifference,
    critical_mixing,
    edge_scales,
    forget_condition,
    spectral_density,
    spectral_distribution,
    spectrum_edges,
    support,
)
from tests.support.marks import long_but

RATIOS = [(0.1, 0.1), (0.1, 4.0), (0.5, 1.25), (1.25, 0.5), (0.9, 0.9), (4.0, 0.1), (4.0, 4.0)]
MIXINGS = [0.0, 0.1, 0.4, 0.8, 1.0]


def dense_spectrum(dim, mixing, counts, seed):
    n_retain, n_forget = counts
    rng = np.random.default_rng(seed)
    h_r = rng.standard_normal((dim, n_retain))
    h_f = rng.standard_normal((dim, n_forget))
    matrix = (1 - mixing) * h_r @ h_r.T / n_retain - mixing * h_f @ h_f.T / n_forget
    values = np.linalg.eigvalsh(matrix)
    return np.where(abs(values) < 1e-10 * abs(values).max(), 0.0, values)


def kolmogorov_distance(sample, distribution):
    """sup |F_n − F| for a law with a possible atom at zero: compare on both sides of every jump."""
    below = sample - 1e-9 * (1 + abs(sample))
    right = np.searchsorted(sample, sample, side="right") / len(sample)
    left = np.searchsorted(sample, sample, side="left") / len(sample)
    return max(
        abs(distribution(torch.tensor(sample)).numpy() - right).max(),
        abs(distribution(torch.tensor(below)).numpy() - left).max(),
    )


def quadrature(function, intervals):
    """∫ over the intervals, with the square-root edges substituted away."""
    total = 0.0
    for low, high in intervals:
        theta = (np.arange(4000) + 0.5) * np.pi / 4000
        points = torch.tensor((low + high) / 2 + (high - low) / 2 * np.cos(theta))
        total += (function(points).numpy() * np.sin(theta)).sum() * (high - low) / 2 * np.pi / 4000
    return total


@pytest.mark.parametrize("ratios", RATIOS)
@pytest.mark.parametrize("mixing", MIXINGS)
def test_thm_free_difference_density_integrates_to_one_with_its_atom(mixing, ratios):
    law = FreeDifference(mixing, *ratios)
    mass = quadrature(lambda t: spectral_density(t, mixing, *ratios), support(mixing, *ratios))
    assert mass + law.atom == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("ratios", RATIOS)
@pytest.mark.parametrize("mixing", MIXINGS)
def test_density_has_the_moments_of_the_free_difference(mixing, ratios):
    a_r, a_f = 1 - mixing, -mixing
    mean = a_r + a_f
    variance = a_r**2 * ratios[0] + a_f**2 * ratios[1]  # free cumulants add
    third = a_r**3 * ratios[0] ** 2 + a_f**3 * ratios[1] ** 2
    expected = [mean, variance + mean**2, third + 3 * mean * variance + mean**3]
    for power, moment in enumerate(expected, start=1):
        found = quadrature(
            lambda t, k=power: t**k * spectral_density(t, mixing, *ratios), support(mixing, *ratios)
        )
        assert found == pytest.approx(moment, abs=1e-8 * (1 + abs(moment)))


@pytest.mark.parametrize("ratios", RATIOS)
@pytest.mark.parametrize("mixing", long_but([1], [0.1, 0.4, 1.0]))
def test_thm_free_difference_matches_a_dense_sample(mixing, ratios):
    dim = 700
    counts = [round(dim / c) for c in ratios]
    attained = [dim / n for n in counts]
    sample = dense_spectrum(dim, mixing, counts, 0)
    distance = kolmogorov_distance(sample, lambda t: spectral_distribution(t, mixing, *attained))
    assert distance <= 0.02
    # One extreme eigenvalue fluctuates by Tracy–Widom, 99.9% of it within γp^{-2/3}(−5, 3).
    if mixing < 1:
        lower, upper = spectrum_edges(mixing, *attained)
        low, high = (g * dim ** (-2 / 3) for g in edge_scales(mixing, *attained))
        assert -5 * high < sample[-1] - upper < 3 * high
        assert -5 * low < lower - sample[0] < 3 * low


def test_mean_edges_less_the_tracy_widom_shift_are_within_two_percent_of_the_range():
    dim, draws = 200, 20
    for ratios in [(0.1, 4.0), (4.0, 0.1), (1.25, 0.5)]:
        counts = [round(dim / c) for c in ratios]
        attained = [dim / n for n in counts]
        samples = [dense_spectrum(dim, 0.4, counts, s)[[0, -1]] for s in range(draws)]
        extremes = np.mean(samples, axis=0)
        edges = np.array(spectrum_edges(0.4, *attained))
        shift = 1.2065 * dim ** (-2 / 3) * np.array(edge_scales(0.4, *attained)) * [1, -1]
        # Measured against the edge moved by the known mean of Tracy–Widom at this size.
        assert abs(extremes - edges - shift).max() <= 0.02 * (extremes[1] - extremes[0])


def test_thm_free_difference_distribution_is_the_integral_of_the_density():
    for mixing, ratios in [(0.3, (0.5, 2.0)), (0.6, (3.0, 0.4)), (0.0, (2.0, 1.0))]:
        low, high = support(mixing, *ratios)[-1]
        point = low + 0.3 * (high - low)

        def density(t, mixing=mixing, ratios=ratios):
            return float(spectral_density(torch.tensor(t), mixing, *ratios))

        mass, _ = integrate.quad(density, point, high, limit=200)
        below = float(spectral_distribution(torch.tensor(point), mixing, *ratios))
        assert below == pytest.approx(1 - mass, abs=1e-7)


@pytest.mark.parametrize("ratio", [0.2, 1.0, 3.0])
def test_one_set_alone_is_marchenko_pastur(ratio):
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    points = torch.linspace(low + 1e-3, high - 1e-3, 50)
    expected = ((high - points) * (points - low)).sqrt() / (2 * math.pi * ratio * points)
    assert torch.allclose(spectral_density(points, 0.0, ratio, 0.7), expected, rtol=1e-8)
    assert torch.allclose(spectral_density(-points, 1.0, 0.7, ratio), expected, rtol=1e-8)
    assert spectrum_edges(0.0, ratio, 0.7) == pytest.approx((low if ratio < 1 else 0.0, high))
    assert spectrum_edges(1.0, 0.7, ratio) == pytest.approx((-high, -low if ratio < 1 else 0.0))


def test_thm_free_difference_atom_at_zero_is_what_the_ranks_leave():
    assert FreeDifference(0.3, 4.0, 4.0).atom == pytest.approx(0.5)
    assert FreeDifference(0.3, 2.0, 2.0).atom == 0
    assert FreeDifference(0.0, 4.0, 0.1).atom == pytest.approx(0.75)
    jump = spectral_distribution(torch.tensor([-1e-9, 0.0]), 0.3, 4.0, 4.0).diff()
    assert float(jump) == pytest.approx(0.5)
    assert float(spectral_density(torch.tensor(0.0), 0.3, 4.0, 4.0)) == 0
    assert float(spectral_density(torch.tensor(0.0), 0.3, 2.0, 2.0)) == math.inf


def test_gap_around_zero_is_empty_and_edges_are_where_the_density_starts():
    intervals = support(0.3, 4.0, 4.0)
    assert len(intervals) == 2
    assert intervals[0][1] < 0 < intervals[1][0]
    gap = torch.linspace(intervals[0][1] + 1e-6, intervals[1][0] - 1e-6, 101)
    assert torch.equal(spectral_density(gap, 0.3, 4.0, 4.0), torch.zeros(101))
    for low, high in intervals:
        inside = spectral_density(torch.tensor([low + 1e-6, high - 1e-6]), 0.3, 4.0, 4.0)
        assert bool((inside > 0).all())


def test_critical_mixing_matches_the_values_of_the_f_matrix():
    found = [critical_mixing(*c) for c in [(0.25, 1.0), (0.1, 0.5), (0.5, 2.0)]]
    assert found == pytest.approx([0.12329, 0.21076, 0.04808], abs=5e-6)
    assert critical_mixing(1.0, 0.5) == 0
    assert critical_mixing(3.0, 0.5) == 0


@pytest.mark.parametrize("ratios", [(0.25, 1.0), (0.1, 0.5), (0.5, 2.0), (0.9, 0.05)])
def test_thm_limiting_critical_mixing_is_where_the_lower_edge_reaches_zero(ratios):
    assert spectrum_edges(critical_mixing(*ratios), *ratios)[0] == pytest.approx(0, abs=1e-12)
    assert critical_mixing(ratios[0], ratios[1], damping=1e-9) == pytest.approx(
        critical_mixing(*ratios), rel=1e-5
    )


@pytest.mark.parametrize("ratios", [(0.25, 1.0), (2.0, 1.0), (0.5, 4.0)])
def test_thm_limiting_critical_mixing_damped_matches_a_generalised_eigenvalue(ratios):
    dim, damping, draws = 150, 0.5, 10
    n_retain, n_forget = (round(dim / c) for c in ratios)
    found = []
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        h_r, h_f = rng.standard_normal((dim, n_retain)), rng.standard_normal((dim, n_forget))
        retain, forget = h_r @ h_r.T / n_retain, h_f @ h_f.T / n_forget
        top = linalg.eigh(retain + forget, retain + damping * np.eye(dim), eigvals_only=True)[-1]
        found.append(1 / top)
    attained = dim / n_retain, dim / n_forget
    limit, step = critical_mixing(*attained, damping), 1e-4
    # At finite p the lowest eigenvalue lies inside the edge by the mean of Tracy–Widom.
    shift = 1.2065 * dim ** (-2 / 3) * edge_scales(limit, *attained)[0]
    slope = (
        spectrum_edges(limit, *attained)[0] - spectrum_edges(limit + step, *attained)[0]
    ) / step
    assert np.mean(found) == pytest.approx(limit + shift / slope, rel=0.03)


def test_damped_critical_mixing_rises_to_one():
    values = [
        critical_mixing(2.0, 1.0, damping) for damping in (0.0, 1e-8, 0.1, 1.0, 3.9, 4.0, 9.0)
    ]
    assert values == sorted(values)
    assert values[0] == 0
    assert 0 < values[1] < 1e-6
    assert values[-2:] == [1.0, 1.0]


def test_edge_scale_of_one_set_is_johnstones():
    n, ratio = 1000, 0.25
    p = ratio * n
    upper = (math.sqrt(n) + math.sqrt(p)) * (p**-0.5 + n**-0.5) ** (1 / 3) / n
    lower = (math.sqrt(n) - math.sqrt(p)) * (p**-0.5 - n**-0.5) ** (1 / 3) / n
    expected = [lower * p ** (2 / 3), upper * p ** (2 / 3)]
    assert edge_scales(0.0, ratio, 1.0) == pytest.approx(expected)
    assert edge_scales(1.0, 1.0, ratio) == pytest.approx(expected[::-1])
    for mixing, ratios in ((0.0, (2.0, 1.0)), (1.0, (1.0, 2.0))):
        with pytest.raises(ValueError, match="mixing"):
            edge_scales(mixing, *ratios)


def test_the_ratio_of_a_set_of_weight_zero_does_not_count():
    points = torch.linspace(-3.0, 3.0, 25)
    for mixing, own in ((0.0, 0), (1.0, 1)):
        for ratio in (0.5, 3.0):
            found = []
            for other in (1e-12, 1.0, 1e12):
                ratios = (ratio, other) if own == 0 else (other, ratio)
                found.append(spectral_distribution(points, mixing, *ratios))
            for distribution in found[1:]:
                torch.testing.assert_close(distribution, found[0], rtol=0, atol=1e-9)


@pytest.mark.long
def test_distance_to_the_edge_falls_as_the_two_thirds_power():
    sizes, draws, mixing, ratios = [40, 80, 160, 320], 40, 0.1, (0.25, 1.0)
    upper = spectrum_edges(mixing, *ratios)[1]
    deviations = []
    for dim in sizes:
        tops = [
            dense_spectrum(dim, mixing, (4 * dim, dim), seed)[-1] - upper for seed in range(draws)
        ]
        deviations.append(np.sqrt(np.mean(np.square(tops))))
    slope = np.polyfit(np.log(sizes), np.log(deviations), 1)[0]
    # 40 draws put the standard error of the slope near 0.07.
    assert slope == pytest.approx(-2 / 3, abs=0.2)


def test_no_branch_jump_and_no_complex_residue_over_a_sweep():
    """F only rises, and the density is positive on the support only: a wrong root breaks both."""
    points = torch.linspace(-12.0, 12.0, 1000)
    for mixing in np.linspace(0, 1, 60):
        for ratios in [(0.25, 1.0), (4.0, 3.0), (1.5, 3.0)]:
            density = spectral_density(points, float(mixing), *ratios)
            distribution = spectral_distribution(points, float(mixing), *ratios)
            assert bool(torch.isfinite(density).all())
            assert bool((density >= 0).all())
            assert float(distribution.diff().min()) > -1e-9
            inside = torch.zeros(1000, dtype=torch.bool)
            for low, high in support(float(mixing), *ratios):
                inside |= (points > low) & (points < high)
            assert torch.equal(density > 0, inside)


def test_edges_move_continuously_in_every_parameter():
    for ratios in [(0.25, 1.0), (4.0, 3.0), (1.0, 1.0)]:
        edges = np.array([spectrum_edges(m, *ratios) for m in np.linspace(0, 1, 1001)])
        assert abs(np.diff(edges, axis=0)).max() < 0.1
        assert np.diff(edges[:, 0]).max() <= 1e-12  # A falls in the mixing
        assert np.diff(edges[:, 1]).max() <= 1e-12


@pytest.mark.parametrize("ratio", [1e-8, 1e-3, 1e3, 1e8])
@pytest.mark.parametrize("mixing", [1e-10, 0.5, 1 - 1e-10])
def test_extreme_parameters_stay_finite_and_ordered(ratio, mixing):
    for ratios in [(ratio, 1.0), (1.0, ratio), (ratio, ratio)]:
        lower, upper = spectrum_edges(mixing, *ratios)
        assert math.isfinite(lower)
        assert math.isfinite(upper)
        assert lower < upper
        assert all(a < b for a, b in support(mixing, *ratios))


def test_points_keep_their_shape_and_type():
    points = torch.linspace(-1, 2, 6, dtype=torch.float32).reshape(2, 3)
    density = spectral_density(points, 0.3, 0.5, 2.0)
    assert density.shape == points.shape
    assert density.dtype == torch.float32


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["retain_ratio", "forget_ratio"])
def test_ratios_out_of_domain_raise(name, bad):
    ratios = {"retain_ratio": 0.5, "forget_ratio": 0.5} | {name: bad}
    points = torch.zeros(1)
    for call in (
        lambda: spectrum_edges(0.5, **ratios),
        lambda: spectral_density(points, 0.5, **ratios),
        lambda: spectral_distribution(points, 0.5, **ratios),
        lambda: random_matrix.critical_mixing(**ratios),
        lambda: forget_condition(**ratios),
    ):
        with pytest.raises(ValueError, match=f"{name} must be a finite number > 0"):
            call()


def test_other_bad_input_raises():
    for mixing in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="mixing must lie in"):
            spectrum_edges(mixing, 0.5, 0.5)
    with pytest.raises(ValueError, match="damping"):
        critical_mixing(0.5, 0.5, -1.0)
    with pytest.raises(ValueError, match="points"):
        spectral_density(torch.tensor([math.nan]), 0.3, 0.5, 0.5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex128])
def test_points_that_cannot_hold_a_density_raise(dtype):
    for function in (spectral_density, spectral_distribution):
        with pytest.raises(ValueError, match="points must be real floating-point numbers"):
            function(torch.tensor([0, 1]).to(dtype), 0.3, 0.5, 2.0)


@pytest.mark.parametrize("bad", ["0.5", None])
def test_what_is_no_number_raises(bad):
    with pytest.raises(ValueError, match="mixing must lie in"):
        spectrum_edges(bad, 0.5, 0.5)
    with pytest.raises(ValueError, match="forget_ratio must be a finite number > 0"):
        spectrum_edges(0.5, 0.5, bad)
    with pytest.raises(ValueError, match="damping must be a finite number"):
        critical_mixing(0.5, 0.5, bad)
