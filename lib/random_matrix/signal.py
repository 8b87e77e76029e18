"""Coherence from the signal-to-noise ratio, and the line at which the signal can be seen at all.

Model: rank-one curvature H_i = h_ih_iᵀ in d dimensions, h_i = y_i μ + ξ_i with y_i = ±1 and
ξ_i ~ N(0, σ_p²(I − μμᵀ/‖μ‖²)); SNR = ‖μ‖/(σ_p√d), energy ‖μ‖² + E‖ξ‖² = 1. H_i is blind to y_i.
"""

import math
from dataclasses import dataclass

from scipy.integrate import quad
from scipy.special import chdtr, gammaln
from scipy.stats import chi2, norm

from lib.checks import require_above, require_count

LARGEST_EXACT = 2**53  # of counts in closed forms: integers that float64 holds exactly
LARGEST_SNR = 1e20  # and its inverse the smallest


@dataclass(frozen=True)
class ExpectedCoherence:
    """Expectations: `pair` of S_ij (i ≠ j), `retain` of σ_r, `forget` of σ_f, `cross` of χ."""

    pair: float
    retain: float
    forget: float
    cross: float


def noise_floor(dim: int) -> float:
    """√(2/(πd)): mean |cosine| of two independent directions, the coherence that pure noise shows.

    Raises ValueError for dim < 2.
    """
    dim = require_count("dim", dim, 2, LARGEST_EXACT)
    return math.sqrt(2 / (math.pi * dim))


def expected_coherence(snr: float, dim: int, n_retain: int, n_forget: int) -> ExpectedCoherence:
    """E S_ij, and σ_r, σ_f, χ with expectations taken in numerator and denominator apart.

    With e = ‖μ‖² and s² = σ_p⁴(d−1): ⟨h_i,h_j⟩ = ±(e + s·g), g nearly standard normal. E S_ij is
    the mean of a folded normal, which falls to `noise_floor` as SNR → 0; E S_ij² = e² + s², so

        χ ≈ (e²+s²)/√(q_r q_f),  q_c = (E S_ii² − E S_ij²)/n_c + E S_ij²,  E S_ii² = 1 + 2s²;

    σ_c = λ_1(S_cc)/max_i S_ii by second-order perturbation about the mean matrix over the mean
    maximum of n_c chi-squared norms. Biases are of order 1/d in the pair and in σ (−6 to −8 %
    at d = 10, SNR .02, n = 200 and 400), 1/n in χ; the book measures them at its own size.
    Raises ValueError for snr not a finite number > 0, dim < 2 or a sample count < 2.
    """
    snr = require_above("snr", snr, 0, LARGEST_SNR)
    dim = require_count("dim", dim, 2)
    n_retain = require_count("n_retain", n_retain, 2)
    n_forget = require_count("n_forget", n_forget, 2)
    noise = 1.0 / (dim - 1 + snr**2 * dim)  # σ_p²
    energy, spread = snr**2 * dim * noise, noise * math.sqrt(dim - 1)
    square = energy**2 + spread**2
    pair = _folded_mean(energy, spread, dim)
    own = 1.0 + 2 * spread**2
    norms = [math.sqrt((own - square) / n + square) for n in (n_retain, n_forget)]
    retain, forget = (
        _top_eigenvalue(n, pair, square, spread) / (energy + noise * _largest_chi2(dim - 1, n))
        for n in (n_retain, n_forget)
    )
    return ExpectedCoherence(pair, retain, forget, square / (norms[0] * norms[1]))


def _folded_mean(energy: float, spread: float, dim: int) -> float:
    """E|energy + ⟨ξ,ξ'⟩|: normal given ‖ξ‖, its scale put at E‖ξ‖ (exact for energy 0)."""
    log_ratio = gammaln(dim / 2) - gammaln((dim - 1) / 2)
    scale = spread * math.sqrt(2 / (dim - 1)) * math.exp(log_ratio)
    c = energy / scale
    return scale * math.sqrt(2 / math.pi) * math.exp(-c * c / 2) + energy * math.erf(c / 2**0.5)


def _top_eigenvalue(n: int, pair: float, square: float, spread: float) -> float:
    """E λ_1 of an n×n coherence matrix: mean row sum, plus row-sum variance over the gap n·pair."""
    fluctuation = (n - 1) * (square - pair**2) + 2 * spread**2
    return 1.0 + (n - 1) * pair + (1 - 1 / n) * fluctuation / (n * pair)


def _largest_chi2(degrees: int, n: int) -> float:
    """Mean of the largest of n independent χ² variables."""
    low, high = chi2.ppf(1e-18, degrees), chi2.isf(1e-18, degrees)

    return float(low + quad(lambda x: 1 - chdtr(degrees, x) ** n, low, high, limit=200)[0])


def detectability(snr: float, n_samples: int, dim: int) -> float:
    """τ = SNR⁴·n·d = n‖μ‖⁴/(σ_p⁴d): the signal's outlier leaves the bulk for √τ > 1 + √(n/d).

    The rows yμ + ξ with ξ ⟂ μ have population eigenvalue θ² = ‖μ‖²/σ_p² = SNR²d along the signal
    and 1 across it, so that with c = d/n the outlier is `single_set_outlier(θ² − 1, c)`, there for
    θ² > 1 + √c. Only in the limit d/n → ∞ is that τ > 1.
    τ alone decides benign against harmful overfitting in Kou et al. (ICML 2023), up to constants.
    Raises ValueError for snr not a finite number > 0, or counts < 2.
    """
    snr = require_above("snr", snr, 0, LARGEST_SNR)
    n_samples = require_count("n_samples", n_samples, 2, LARGEST_EXACT)
    dim = require_count("dim", dim, 2, LARGEST_EXACT)
    return snr**4 * n_samples * dim


def critical_snr(n_samples: int, dim: int) -> float:
    """(n d)^{-1/4}: the SNR at which `detectability` is 1, critical as d/n → ∞.

    At finite d/n the signal's outlier needs √(1 + √(n/d)) times as much.
    Raises ValueError for counts < 2.
    """
    n_samples = require_count("n_samples", n_samples, 2, LARGEST_EXACT)
    dim = require_count("dim", dim, 2, LARGEST_EXACT)
    return float((n_samples * dim) ** -0.25)


def averaging_test_error(ratio: float) -> float:
    """Φ(−√ratio), ratio = `detectability`: test error of the averaging classifier w = Σ y_i x_i.

    One gradient step from zero on a linear model: yᵢ⟨w, x⟩ has mean n‖μ‖² and standard deviation
    σ_p²√(nd), so the error depends on n‖μ‖⁴/(σ_p⁴d) only.
    Raises ValueError unless ratio is a finite number > 0.
    """
    ratio = require_above("ratio", ratio, 0)
    return float(norm.cdf(-math.sqrt(ratio)))
