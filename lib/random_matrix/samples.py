"""Samples to hold against random-matrix predictions: Gaussian curvature of finite size.

Draw k of a run with seed s uses the generator seeded by (s, k), so more draws extend a run without
changing it. All results are torch.float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from lib.checks import (
    describe,
    require_above,
    require_bool,
    require_count,
    require_finite,
    require_kind,
    require_nonnegative,
    require_room,
    require_seed,
    require_share,
)
from lib.random_matrix.equivalents import ProportionalLimit
from lib.random_matrix.free_difference import FreeDifference, spectral_distribution
from lib.random_matrix.signal import LARGEST_SNR
from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.dynamics import critical_learning_rate, steps_to_grow
from lib.stability.families import LARGEST_FAMILY
from lib.stability.sampling import Sampling


@dataclass(frozen=True)
class GaussianEnsemble:
    """Rank-one factors h_i ~ N(0, I + θ²e₁e₁ᵀ) in `dim` dimensions, for both sets.

    θ² = `shared_strength` in both sets plus `forget_strength` in the forget set only; noise
    variance 1. `projected`: h_i = θe₁ + ξ_i with ξ_i ⟂ e₁ instead, population eigenvalue θ² along
    e₁ and not 1 + θ² (a sign of h_i would not show in h_ih_iᵀ, and is left out).
    Raises ValueError for a count < 1 or a strength that is not a finite number ≥ 0.
    """

    dim: int
    n_retain: int
    n_forget: int
    shared_strength: float = 0.0
    forget_strength: float = 0.0
    projected: bool = False

    def __post_init__(self) -> None:
        for name in ("dim", "n_retain", "n_forget"):
            object.__setattr__(self, name, require_count(name, getattr(self, name), 1, 10**12))
        for name in ("shared_strength", "forget_strength"):
            object.__setattr__(self, name, require_nonnegative(name, getattr(self, name)))
        object.__setattr__(self, "projected", require_bool("projected", self.projected))

    @classmethod
    def from_ratios(
        cls,
        dim: int,
        retain_ratio: float,
        forget_ratio: float,
        *,
        shared_strength: float = 0.0,
        forget_strength: float = 0.0,
    ) -> GaussianEnsemble:
        """With n_c = dim/c rounded to the nearest count; `ratios` are the ones attained."""
        counts = round(dim / retain_ratio), round(dim / forget_ratio)
        return cls(dim, *counts, shared_strength, forget_strength)

    @property
    def ratios(self) -> tuple[float, float]:
        """(p/n_r, p/n_f), exactly."""
        return self.dim / self.n_retain, self.dim / self.n_forget

    @property
    def null_critical_mixing(self) -> float:
        """α* to expect without signal at this very size, the Tracy–Widom shift included; p < n_r.

        α* = 1/(1 + κ) with log(κ n_f/n_r) = m + s·TW, TW of mean −1.2065 (real matrices), and

            m = 2 log tan((φ + γ)/2),   s³ = 16/(N² sin²(φ + γ) sin φ sin γ),   N = n_r + n_f − 1,
            sin²(γ/2) = (min(p, n_f) − ½)/N,   sin²(φ/2) = (max(p, n_f) − ½)/N.

        Source: Johnstone, "Multivariate analysis and Jacobi ensembles", Annals of Statistics 36
        (2008) 2638–2716: the law of the logit, centred and scaled, is TW's up to O(p^{-2/3}).
        Raises ValueError for p > n_r, where α* = 0, for p = n_r, where m = ∞ (a hard edge, under
        another law), and for an ensemble with a signal.
        """
        if self.dim >= self.n_retain or self.shared_strength or self.forget_strength:
            raise ValueError(f"ensemble must be without signal, dim < n_retain, got {self}")
        total = self.n_retain + self.n_forget - 1
        shares = [(pick(self.dim, self.n_forget) - 0.5) / total for pick in (min, max)]
        gamma, phi = (2 * math.asin(math.sqrt(share)) for share in shares)
        center = 2 * math.log(math.tan((phi + gamma) / 2))
        sines = math.sin(phi + gamma) ** 2 * math.sin(phi) * math.sin(gamma)
        logit = center - 1.2065 * (16 / (total**2 * sines)) ** (1 / 3)
        return 1 / (1 + math.exp(logit) * self.n_retain / self.n_forget)

    @property
    def forget(self) -> Tensor:
        """(n,) bool: retain samples first."""
        return torch.arange(self.n_retain + self.n_forget, device="cpu") >= self.n_retain

    def rows(self, seed: int, draw: int = 0) -> Tensor:
        """(n, dim) factors h_i, retain rows first."""
        n = self.n_retain + self.n_forget
        require_room("dim, n_retain and n_forget of ensemble", n, self.dim)
        rng = np.random.default_rng((require_seed(seed), draw))
        rows = rng.standard_normal((n, self.dim))
        strength = self.shared_strength + self.forget_strength * self.forget.numpy()
        rows[:, 0] = np.sqrt(strength) if self.projected else rows[:, 0] * np.sqrt(1 + strength)
        return torch.from_numpy(rows)

    def curvature(self, seed: int, draw: int = 0) -> Curvature:
        """Per-sample curvature H_i = h_ih_iᵀ of one draw."""
        rows = self.rows(seed, draw)
        if len(rows) >= self.dim:
            return Curvature(rows[:, :, None], self.forget)
        return Curvature.from_gram(rows @ rows.T, self.forget)

    def means(self, seed: int, draw: int = 0) -> tuple[Tensor, Tensor]:
        """(H_r, H_f), each (dim, dim): means of h_ih_iᵀ over the set, exact in law without rows.

        By `_triangle`; a signal lengthens the rows' first column, and so R's first entry alone. Not
        the means of `rows(seed, draw)`, but of rows with the same law.
        """
        require_seed(seed)
        require_count("dim of ensemble", self.dim, 1, LARGEST_FAMILY)
        rng = np.random.default_rng((seed, draw))
        both = []
        for count, own in ((self.n_retain, 0.0), (self.n_forget, self.forget_strength)):
            R, strength = _triangle(count, self.dim, rng), self.shared_strength + own
            R[0, 0] = (
                math.sqrt(count * strength) if self.projected else R[0, 0] * (1 + strength) ** 0.5
            )
            both.append(R.T @ R / count)
        return both[0], both[1]

    def differences(self, mixing: float, draws: int, seed: int) -> Iterator[Tensor]:
        """(1−α)H_r − αH_f, (dim, dim), of every draw; ValueError for mixing outside [0, 1]."""
        mixing = require_share("mixing", mixing)
        for draw in require_draws(draws):
            retain, forget = self.means(seed, draw)
            yield (1 - mixing) * retain - mixing * forget


def require_draws(draws: int) -> range:
    """The draws 0 … draws − 1; ValueError unless their number is in [1, 10,000]."""
    return range(require_count("draws", draws, 1, 10_000))


def _triangle(count: int, dim: int, rng: np.random.Generator) -> Tensor:
    """R, (min(count, dim), dim) upper triangular, of a QR of `count` standard normal rows, in law.

    R_ii² ~ χ²(count − i), i = 0, 1, …, the entries above are standard normal, all independent.
    Source: Bartlett's decomposition of a Wishart matrix (1933).
    """
    R = np.triu(rng.standard_normal((min(count, dim), dim)))
    np.fill_diagonal(R, np.sqrt(rng.chisquare(count - np.arange(len(R)))))
    return torch.from_numpy(R)


def sample_spectra(ensemble: GaussianEnsemble, mixing: float, *, draws: int, seed: int) -> Tensor:
    """(draws, dim): eigenvalues of (1−α)H_r − αH_f, ascending in each draw.

    Raises ValueError for mixing outside [0, 1].
    """
    require_kind("ensemble", ensemble, GaussianEnsemble)
    differences = ensemble.differences(mixing, draws, seed)
    return torch.stack([torch.linalg.eigvalsh(A) for A in differences])


def kolmogorov_distance(values: Tensor, mixing: float, ensemble: GaussianEnsemble) -> float:
    """sup_t |F_p(t) − F(t)|, F_p the distribution of `values`, (dim,), F the limit at these ratios.

    Eigenvalues within rounding of zero count as zero, so that an atom there is compared as one.
    Errors as `spectral_distribution`.
    """
    require_kind("ensemble", ensemble, GaussianEnsemble)
    require_finite("values", values, "n")
    if not len(values):
        raise ValueError(f"values must not be empty, got {describe(values)}")
    rounding = 1e-10 * float(values.abs().max())
    t = torch.where(values.abs() < rounding, 0.0, values).sort().values
    limit = spectral_distribution(t, mixing, *ensemble.ratios)
    atom = FreeDifference(mixing, *ensemble.ratios).atom
    before = limit - atom * (t == 0)
    above = torch.searchsorted(t, t, right=True) / len(t) - limit
    below = torch.searchsorted(t, t) / len(t) - before
    return float(torch.maximum(above.abs(), below.abs()).max())


def sample_top_pairs(ensemble: GaussianEnsemble, mixing: float, *, draws: int, seed: int) -> Tensor:
    """(draws, 2): top eigenvalue of (1−α)H_r − αH_f, its eigenvector's squared overlap with e₁.

    Raises ValueError for mixing outside [0, 1].
    """
    require_kind("ensemble", ensemble, GaussianEnsemble)
    pairs = []
    for A in ensemble.differences(mixing, draws, seed):
        last = [len(A) - 1, len(A) - 1]
        values, vectors = linalg.eigh(A.numpy(), subset_by_index=last)
        pairs.append([values[0], vectors[0, 0] ** 2])
    return torch.from_numpy(np.array(pairs))


def sample_escape_steps(
    ensemble: GaussianEnsemble, mixing: float, amplification: float = 1e3, *, draws: int, seed: int
) -> Tensor:
    """(draws,): log τ/log(1 − ηλ_min(A)), η = 1/((1−α)λ_max(H_r)), as `spikes.escape_steps`.

    inf in a draw without negative eigenvalue. Raises ValueError for mixing outside [0, 1).
    """
    require_kind("ensemble", ensemble, GaussianEnsemble)
    mixing = require_share("mixing", mixing, "[0, 1)")
    amplification = require_above("amplification", amplification, 1)
    steps = []
    for draw in require_draws(draws):
        retain, forget = ensemble.means(seed, draw)
        lowest = float(torch.linalg.eigvalsh((1 - mixing) * retain - mixing * forget)[0])
        sharpness = (1 - mixing) * float(torch.linalg.eigvalsh(retain)[-1])
        steps.append(steps_to_grow(amplification, math.log1p(max(-lowest, 0.0) / sharpness)))
    return torch.from_numpy(np.array(steps))


def sample_critical_mixing(
    ensemble: GaussianEnsemble, damping: float = 0.0, *, draws: int, seed: int
) -> Tensor:
    """(draws,): α* = min(1, 1/λ_max(H_r + H_f ; H_r + λI)), exact for each draw.

    As `lib.stability.critical_mixing`; 0 where H_r alone is singular, p > n_r without damping.
    Raises ValueError for damping that is not a finite number ≥ 0.
    """
    require_kind("ensemble", ensemble, GaussianEnsemble)
    damping, numbers = require_nonnegative("damping", damping), require_draws(draws)
    if damping == 0 and ensemble.dim > ensemble.n_retain:
        return torch.zeros(draws, dtype=torch.float64, device="cpu")
    found = []
    for draw in numbers:
        retain, forget = ensemble.means(seed, draw)
        root = torch.linalg.cholesky(
            retain + damping * torch.eye(ensemble.dim, dtype=torch.float64, device=retain.device)
        )
        half = torch.linalg.solve_triangular(root, retain + forget, upper=False)
        pencil = torch.linalg.solve_triangular(root, half.T, upper=False)
        found.append(1 / torch.linalg.eigvalsh(pencil)[-1])
    return torch.stack(found).clamp(max=1)


def sample_learning_rates(limit: ProportionalLimit, dim: int, *, draws: int, seed: int) -> Tensor:
    """(draws,): η* of `lib.stability.critical_learning_rate` on Gaussian curvature, exact.

    n_c = dim/c and B_c = b n_c must be whole numbers, so that no rounding stands between sample
    and limit.
    Raises ValueError where they are not.
    """
    require_kind("limit", limit, ProportionalLimit)
    dim = require_count("dim", dim, 1, LARGEST_FAMILY)
    counts = dim / np.array([limit.retain_ratio, limit.forget_ratio])
    batches = counts * [limit.retain_fraction, limit.forget_fraction]
    whole = np.rint([counts, batches])
    if not np.allclose([counts, batches], whole, rtol=1e-9, atol=0) or whole.min() < 1:
        raise ValueError(
            f"dim and limit must make n = dim/c and B = b*n whole, got {dim}: {counts}, {batches}"
        )
    (n_retain, n_forget), (retain_batch, forget_batch) = whole.astype(int).tolist()
    sampling: Sampling = "with_replacement" if limit.with_replacement else "bernoulli"
    algorithm = AscentDescent(limit.mixing, retain_batch, forget_batch, limit.damping, sampling)
    ensemble = GaussianEnsemble(dim, n_retain, n_forget)
    curves = (ensemble.curvature(seed, draw) for draw in require_draws(draws))
    return torch.from_numpy(np.array([critical_learning_rate(c, algorithm) for c in curves]))


def sample_coherence(
    snr: float, dim: int, n_retain: int, n_forget: int, *, draws: int, seed: int
) -> Tensor:
    """(draws, 4): mean S_ij between the sets, σ_r, σ_f, χ under signal plus noise.

    Rows yμ + ξ as in `lib.random_matrix.signal`, energy 1; the sign is left out.
    As `lib.stability.coherence`, from the Gram matrix alone.
    Raises ValueError for snr not a finite number > 0, dim < 2 or an empty set.
    """
    snr = require_above("snr", snr, 0, LARGEST_SNR)
    dim = require_count("dim", dim, 2)
    for name, n in (("n_retain", n_retain), ("n_forget", n_forget)):
        require_count(name, n, 1, LARGEST_FAMILY // 2)
    require_seed(seed)
    scale = 1 / (dim - 1 + snr**2 * dim)
    found = []
    for draw in require_draws(draws):
        # The noise's Gram matrix, of n samples in d − 1 dimensions, is d − 1 columns' product.
        R = _triangle(dim - 1, n_retain + n_forget, np.random.default_rng((seed, draw)))
        S = (scale * (R.T @ R + snr**2 * dim)).abs()
        retain, forget, between = (
            S[:n_retain, :n_retain],
            S[n_retain:, n_retain:],
            S[:n_retain, n_retain:],
        )
        axes = [torch.linalg.eigvalsh(own)[-1] / own.diagonal().max() for own in (retain, forget)]
        lengths = (each.square().mean() for each in (retain, forget))
        cross = between.square().mean() / math.prod(lengths) ** 0.5
        found.append(torch.stack([between.mean(), *axes, cross]))
    return torch.stack(found)


def sample_averaging_error(
    snr: float, dim: int, n_samples: int, *, draws: int, seed: int
) -> Tensor:
    """(draws,): test error of the averaging classifier w = Σ y_i x_i, exact given w; SNR as above.

    On fresh x = yμ + ξ, y⟨w, x⟩ is normal with mean ⟨w, μ⟩ and deviation σ_p‖w_⊥‖.
    Raises ValueError for snr not a finite number > 0, dim < 2 or no samples.
    """
    snr = require_above("snr", snr, 0, LARGEST_SNR)
    dim, n_samples = require_count("dim", dim, 2), require_count("n_samples", n_samples, 1)
    require_room("dim and n_samples", dim, n_samples)
    noise = GaussianEnsemble(dim, n_samples, 1)
    signal = snr * math.sqrt(dim)
    drawn = (noise.rows(seed, draw) for draw in require_draws(draws))
    across = [rows[:n_samples, 1:].mean(dim=0).norm() for rows in drawn]
    return torch.special.ndtr(-(signal**2) / torch.stack(across))
