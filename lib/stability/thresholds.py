"""Stability thresholds: two-sided and one-sided bounds from coherence, and the 2×2 block gain."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import brentq, minimize
from torch import Tensor

from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.data_coherence import coherence_matrix, sample_curvatures, within_coherence
from lib.stability.dynamics import noise_gain
from lib.stability.second_moment import SecondMoment, require_setting


def learning_rate_bounds(curvature: Curvature, algorithm: AscentDescent) -> tuple[float, float]:
    """(stable below, divergent above), on either side of η*.

    stable below 2/λ_max(A² + V; A),  V = Σ v_i H_i² − Σ_c s_c H_c²;
    divergent above min_u 2a/(a² + Σ_i v_i (uᵀH_iu)² − Σ_c s_c (uᵀH_cu)²),  a = uᵀAu, ‖u‖ = 1.

    Under Bernoulli sampling the noise of set c along u is ω_c²λ_c(u)²(n_c/B_c − 1)/σ_c(u), with
    σ_c(u) the directional coherence. The lower side is exact. The upper one is a minimum over a
    sphere of a function with many local minima, searched for from the eigenvectors of A, H_r, H_f,
    a mix of the H_i and the pencil (A² + V; A), and from every sample's own directions, the best
    refined by L-BFGS. Every u bounds η* from above, so a minimum that is only local still makes a
    true "divergent above". Both sides equal η* when the H_i commute.

    Directions that A leaves alone and no batch moves are left out, as in `critical_learning_rate`.

    Args:
        curvature: per-sample curvature at the optimum.
        algorithm: the update; all three sampling schemes.

    Returns:
        Two learning rates; (0.0, 0.0) where no step size is stable, and both infinite where every
        direction is neutral.

    Raises:
        ValueError: for a batch larger than its set.

    Source: book, thm-two-sided.
    """
    require_setting(curvature, algorithm)
    algorithm.require_plain("learning_rate_bounds")
    moment = SecondMoment.of(curvature, algorithm).contracting()
    if moment is None:
        return 0.0, 0.0
    lam = moment.eigenvalues
    if not len(lam):
        return math.inf, math.inf
    root = lam.rsqrt()
    V = moment.noise(torch.ones_like(lam).diag())
    values, vectors = torch.linalg.eigh(lam.diag() + root[:, None] * V * root[None, :])
    starts = _candidate_directions(moment, curvature.forget, root[:, None] * vectors)
    return 2 / float(values[-1]), _least_divergent_rate(moment, starts)


def coherence_bound(curvature: Curvature, algorithm: AscentDescent) -> float:
    """E‖δ_k‖² → ∞ above min_c σ_c / (ω_c λ_1(H_c) √(n_c/B_c − 1)), ω = 1−α or α.

    Sufficient only, from the noise of one set alone; never below the upper side of thm-two-sided.
    Infinite where neither set makes noise: full batches, weight zero, or no curvature.

    Raises:
        ValueError: for a batch larger than its set, or sampling other than Bernoulli.

    Source: book, thm-coherence-bound.
    """
    require_setting(curvature, algorithm)
    algorithm.require_plain("coherence_bound")
    if algorithm.sampling != "bernoulli":
        raise ValueError(f"algorithm.sampling must be 'bernoulli', got {algorithm.sampling!r}")
    bounds = [math.inf]
    for part in algorithm.sets(curvature.forget):
        sharpness = float(torch.linalg.matrix_norm(curvature.mean_hessian(part.members), ord=2))
        noise = part.weight * sharpness * math.sqrt(part.size / part.batch - 1)
        if noise > 0:
            bounds.append(within_coherence(curvature, part.members) / noise)
    return min(bounds)


def three_axis_bound(curvature: Curvature, algorithm: AscentDescent) -> float:
    """Divergent above 2 tr A / E tr Â², a number that S and the traces of H_i give.

    tr A = (1−α)t_r − αt_f + λq and, with m_ab the mean of S_ij² over a block, q_c that of S_ii²,
    t_c = mean tr H_i and e_c the scheme's noise term,
    E tr Â² = (1−α)²(m_rr + e_r) − 2α(1−α)m_rf + α²(m_ff + e_f) + 2λ tr A − λ²q,
    e_c = (1/B − 1/n)q_c (Bernoulli), (n−B)/(B(n−1))·(q_c − m_cc) (without replacement),
    (q_c − m_cc)/B (with replacement). For rank-one H_i, t_c is the mean of S_ii.

    Args:
        curvature: per-sample curvature at the optimum; q = dim U enters only with damping.
        algorithm: the update.

    Returns:
        A learning rate ≥ η*; 0.0 if tr A < 0, infinite if nothing ever moves.

    Raises:
        ValueError: for a batch larger than its set.

    Source: book, thm-three-axis (X = I), here with damping and for all three sampling schemes.
    """
    require_setting(curvature, algorithm)
    algorithm.require_plain("three_axis_bound")
    squares = coherence_matrix(curvature).square()
    traces = curvature.factors.square().sum(dim=(1, 2))
    damping, q = algorithm.damping, curvature.factors.shape[1]
    parts = algorithm.sets(curvature.forget)
    trace, second = damping * q, 0.0
    for part, sign in zip(parts, (1, -1), strict=True):
        inside = squares[part.members][:, part.members]
        trace += sign * part.weight * float(traces[part.members].mean())
        second += (part.weight**2 - part.per_set) * float(inside.mean())
        second += part.per_sample * float(inside.diagonal().sum())
    between = float(squares[parts[0].members][:, parts[1].members].mean())
    second -= 2 * parts[0].weight * parts[1].weight * between
    second += 2 * damping * trace - damping**2 * q
    if trace < 0:
        return 0.0
    return 2 * trace / second if second > 0 else math.inf


def _candidate_directions(moment: SecondMoment, forget: Tensor, pencil: Tensor) -> Tensor:
    """Unit starts for the upper side, (q, k), in the eigenbasis of A.

    The eigenvectors of a mix Σ w_i H_i with generic w are common to all H_i wherever they commute.
    """
    factors = moment.factors
    retain = (~forget).to(factors) / (~forget).sum()
    generator = torch.Generator().manual_seed(0)
    generic = torch.rand(len(factors), generator=generator, dtype=torch.float64, device="cpu")
    starts = [torch.ones_like(moment.eigenvalues).diag(), pencil]
    for weights in (retain, forget.to(factors) / forget.sum(), generic.to(factors)):
        weighted = (factors * weights[:, None, None].sqrt()).transpose(0, 1).flatten(1)
        starts.append(torch.linalg.eigh(weighted @ weighted.T)[1])
    own = torch.linalg.svd(factors, full_matrices=False)[0] if factors.shape[2] > 1 else factors
    starts.append(own.transpose(0, 1).flatten(1))
    candidates = torch.cat(starts, dim=1)
    lengths = torch.linalg.vector_norm(candidates, dim=0)
    return (candidates / lengths)[:, lengths > 0]


def _least_divergent_rate(moment: SecondMoment, starts: Tensor, refined: int = 4) -> float:
    """The least `_divergent_rates` of the starts, the best few of them refined by L-BFGS."""
    rates = _divergent_rates(moment, starts)
    order = rates.argsort()
    best = float(rates[order[0]])
    for start in starts[:, order[:refined]].T:
        result = minimize(_log_rate, start.cpu().numpy(), (moment,), "L-BFGS-B", jac=True)
        best = min(best, math.exp(result.fun))
    return best


def _divergent_rates(moment: SecondMoment, u: Tensor) -> Tensor:
    """2a‖u‖²/⟨uuᵀ, 𝒬 uuᵀ⟩ of every column of u, (q, k) → (k,), whatever its length."""
    a = moment.eigenvalues @ u.square()
    quartic = a.square() + moment.per_sample @ sample_curvatures(moment.factors, u).square()
    for weight, hessian, _ in moment.per_set:
        quartic = quartic - weight * (u * (hessian @ u)).sum(dim=0).square()
    return 2 * a * u.square().sum(dim=0) / quartic


def _log_rate(u: np.ndarray, moment: SecondMoment) -> tuple[float, np.ndarray]:
    """The logarithm of the one direction's rate, and its gradient."""
    x = torch.from_numpy(u).to(moment.factors, copy=True).requires_grad_()
    value = _divergent_rates(moment, x[:, None]).log().sum()
    (gradient,) = torch.autograd.grad(value, x)
    return float(value.detach()), gradient.cpu().numpy()


def block_gain(curvature: Curvature, algorithm: AscentDescent, learning_rate: float) -> Tensor:
    """g_ab = mean_{i∈a} Σ_{j∈b} G_ij: noise that set b injects, as a sample of set a receives it.

    Where the samples of each set are exchangeable, ρ(T) < 1 iff ρ(g) < 1, whose frontier is
    (1−g_rr)(1−g_ff) = g_rf g_fr; for others an approximation, of error to be measured.

    Returns:
        (2, 2) float64, retain before forget, dimensionless.

    Raises:
        ValueError: as `noise_gain`.

    Source: book, thm-noise-gain and the reduction after it.
    """
    gain = noise_gain(curvature, algorithm, learning_rate)
    sets = torch.stack([~curvature.forget, curvature.forget]).to(gain)
    return (sets / sets.sum(dim=1, keepdim=True)) @ gain @ sets.T


def block_critical_rate(curvature: Curvature, algorithm: AscentDescent) -> float:
    """The η at which ρ(g) = 1, so (1−g_rr)(1−g_ff) = g_rf g_fr: the 2×2 prediction of η*.

    Every G_ij grows with η, from 0 up to the mean dynamics' edge 2(1+β)/λ_max(A), so ρ(g) = 1 has
    one root; without noise it is that edge. (The equation alone may have a second, where the other
    eigenvalue is 1.)

    Returns:
        A learning rate; 0.0 where A is not positive definite on U. A prediction, not a bound.

    Raises:
        ValueError: for factors of rank above one, or sampling other than Bernoulli.

    Source: book, after thm-noise-gain.
    """
    moment = SecondMoment.of(curvature, algorithm)
    lowest, highest = float(moment.eigenvalues[0]), float(moment.eigenvalues[-1])
    if lowest <= moment.rounding:
        return 0.0
    end = 2 * (1 + algorithm.momentum) / highest
    edge = end * (1 - 1e-12)

    def excess(rate: float) -> float:
        rho = float(torch.linalg.eigvals(block_gain(curvature, algorithm, rate)).real.max())
        return (rho - 1) / (rho + 1)  # bounded, though ρ has a pole at the edge

    if excess(edge) < 0:
        return end
    return float(brentq(excess, 1e-9 * edge, edge, rtol=1e-10, xtol=1e-12 * edge))
