"""Linearised ascent–descent around an interpolating optimum: exact mean-square stability.

One step is δ ← (I − ηÂ)δ with Â = (1−α)/B_r Σ_{i∈R_k} H_i − α/B_f Σ_{j∈F_k} H_j + λI over fresh
mini-batches R_k, F_k. Its second moment moves by the linear operator

    T(N) = J N J + η² [Σ_i v_i H_i N H_i − s_r H_r N H_r − s_f H_f N H_f],   J = I − ηA,  A = EÂ.

All statements hold on U, the span of the samples' curvature (`Curvature`'s coordinates).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch
from scipy.linalg import eigvalsh
from torch import Tensor

from lib.checks import (
    is_finite,
    require_above,
    require_count,
    require_finite,
    require_kind,
    require_nonnegative,
    require_share,
)
from lib.stability import momentum
from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.epochs import critical_epoch_rate, epoch_growth, on_axes
from lib.stability.sampling import RESHUFFLED
from lib.stability.second_moment import (
    SecondMoment,
    largest_eigenpair,
    perron_pair,
    require_setting,
)

MOST_APPLICATIONS = 100_000  # of T by `steps_to_amplify`: seconds at q = 10, a day at q = 1000


def growth_factor(curvature: Curvature, algorithm: AscentDescent, learning_rate: float) -> float:
    """ρ(T), the factor by which E‖δ‖² grows per step in the long run.

    Below 1, E‖δ_k‖² → 0 from every start in U; above 1, E‖δ_k‖² → ∞ from almost every start. T maps
    PSD matrices to PSD matrices and is self-adjoint, so ρ(T) is its largest eigenvalue. With
    momentum it is the spectral radius of the second moment of (δ_k, δ_{k−1}); under "reshuffled"
    batches the growth over an epoch, per step.

    Args:
        curvature: per-sample curvature at the optimum.
        algorithm: the update.
        learning_rate: η ≥ 0 (0 gives 1).

    Raises:
        ValueError: for a negative or not finite rate, a batch larger than its set, or "reshuffled"
            batches with momentum, off the axes or of a size that does not divide its set.
        RuntimeError: with the residual, if the Lanczos run does not converge.

    Source: book, thm-exact-criterion, thm-momentum, thm-loader.
    """
    require_setting(curvature, algorithm)
    if algorithm.sampling == RESHUFFLED:
        return epoch_growth(on_axes(curvature, algorithm), algorithm, learning_rate)
    moment = SecondMoment.of(curvature, algorithm)
    learning_rate = moment.require_rate(learning_rate)
    if algorithm.momentum:
        return momentum.growth_factor(moment, learning_rate, algorithm.momentum)
    return perron_pair(moment, learning_rate)[0]


def growth_mode(
    curvature: Curvature, algorithm: AscentDescent, learning_rate: float
) -> tuple[float, Tensor]:
    """ρ(T) and its PSD eigenmatrix X, T(X) = ρX, of trace 1: started with Eδδᵀ = X, E‖δ_k‖² = ρ^k.

    Arguments and errors as `growth_factor`; X is (q, q). Source: book, thm-exact-criterion.
    """
    require_setting(curvature, algorithm)
    algorithm.require_plain("growth_mode")
    moment = SecondMoment.of(curvature, algorithm)
    learning_rate = moment.require_rate(learning_rate)
    rho, X = perron_pair(moment, learning_rate)
    # A multiple ρ has eigenmatrices of any sign, and trace 0 among them; but T maps PSD to PSD, so
    # the absolute value (MᵀM)^{1/2} of a symmetric or antisymmetric one belongs to ρ as well.
    M = max((X + X.T, X - X.T), key=lambda part: float(torch.linalg.norm(part)))
    _, singular, right = torch.linalg.svd(M)
    X = (right.T * (singular / singular.sum())) @ right
    return rho, moment.basis @ X @ moment.basis.T


def critical_learning_rate(curvature: Curvature, algorithm: AscentDescent) -> float:
    """η* = 1/λ_max(ℒ^{-1/2} 𝒬 ℒ^{-1/2}): ρ(T) < 1 iff 0 < η < η*; 0.0 if no step size is stable.

    ℒ(N) = AN + NA, 𝒬(N) = ANA + Σ v_i H_iNH_i − s_r H_rNH_r − s_f H_fNH_f, and I − T = ηℒ − η²𝒬. In
    A's eigenbasis ℒ multiplies entry ab by λ_a + λ_b, so one symmetric Lanczos run gives η*.

    A direction that A leaves alone and no batch moves (forget-only curvature at mixing 0, say) is
    neutral at every rate; it is left out rather than called unstable, and ρ(T) = 1 up to η*.
    Infinite if every direction is neutral: nothing then ever moves.

    With momentum the same with ℒ_β and 𝒬_β of `momentum.critical_forms`. Under "reshuffled" batches
    the first rate at which `growth_factor` reaches 1, seen on 256 rates up to twice the mean's edge
    2/λ_max(A) and then refined; 0.0 if it exceeds 1 from the start.

    Raises:
        ValueError: for a batch larger than its set, or "reshuffled" batches as in `growth_factor`.
        RuntimeError: with the residual, if the Lanczos run does not converge.

    Source: book, thm-critical-learning-rate, thm-momentum, thm-loader; extends Mulayoff and
    Michaeli (COLT 2024).
    """
    require_setting(curvature, algorithm)
    if algorithm.sampling == RESHUFFLED:
        return critical_epoch_rate(curvature, algorithm)
    moment = SecondMoment.of(curvature, algorithm).contracting()
    if moment is None:
        return 0.0
    lam = moment.eigenvalues
    if not len(lam):
        return math.inf
    total, bend = momentum.critical_forms(lam, algorithm.momentum)
    inverse_root = total.rsqrt()

    def whitened(N: Tensor) -> Tensor:
        M = inverse_root * N
        return inverse_root * (bend * M + moment.noise(M))

    return 1 / largest_eigenpair(whitened, lam)[0]


def critical_mixing(curvature: Curvature, damping: float = 0.0) -> float:
    """α* = min(1, 1/λ_max(H_r + H_f ; H_r + λI)): A ≻ 0 on U iff α < α*.

    0.0 without damping where the forget set curves a direction that the retain set does not: then
    every α > 0 is unstable at every step size (book, thm-inertia: always so when the factors of
    all samples are linearly independent).

    Raises:
        ValueError: for a negative or not finite damping.

    Source: book, thm-critical-mixing.
    """
    require_kind("curvature", curvature, Curvature)
    damping = require_nonnegative("damping", damping)
    H_r, H_f = curvature.retain_hessian, curvature.forget_hessian
    descent = H_r + damping * torch.ones_like(H_r[0]).diag()
    values = torch.linalg.eigvalsh(descent)
    scale = torch.linalg.matrix_norm(H_r + H_f, ord=2) + damping
    if values[0] <= len(H_r) * torch.finfo(H_r.dtype).eps * scale:
        return 0.0
    pencil = eigvalsh((H_r + H_f).cpu().numpy(), descent.cpu().numpy())
    return min(1.0, 1 / float(pencil[-1]))


def noise_gain(curvature: Curvature, algorithm: AscentDescent, learning_rate: float) -> Tensor:
    """G_ij = η² v_j Σ_{k≥0} (h_iᵀ J^k h_j)²: noise that sample j injects, as sample i receives it.

    For rank-one H_i = h_ih_iᵀ, Bernoulli sampling and |1 − ηλ_a(A)| < 1 for all a: ρ(T) < 1 iff
    ρ(G) < 1. With x_a = 1 − ηλ_a the sum over k is the positive kernel 1/(1 − x_a x_b), numerically
    of low rank s (a dozen or two), so G costs s products of size n × q × n. With momentum the
    condition is 0 < ηλ_a < 2(1+β) and the kernel that of `momentum.kernel` at growth 1.

    Returns:
        (n, n) float64, dimensionless, generally not symmetric.

    Raises:
        ValueError: for factors of rank above one, another sampling scheme, or a learning rate at
            which the mean dynamics alone does not contract, where the sum diverges.

    Source: book, thm-noise-gain, thm-momentum.
    """
    require_setting(curvature, algorithm)
    if curvature.factors.shape[2] != 1:
        raise ValueError(f"curvature must have rank 1, got rank {curvature.factors.shape[2]}")
    if algorithm.sampling != "bernoulli":
        raise ValueError(f"algorithm.sampling must be 'bernoulli', got {algorithm.sampling!r}")
    moment = SecondMoment.of(curvature, algorithm)
    learning_rate = moment.require_rate(learning_rate)
    lam, beta = moment.eigenvalues, algorithm.momentum
    x = (1 - learning_rate * lam / (1 + beta)).abs().max()
    if float(x) >= 1:
        raise ValueError(
            "learning_rate must keep |1 − ηλ/(1+β)| < 1 for every eigenvalue λ of A, "
            f"got {learning_rate!r} with max |1 − ηλ/(1+β)| = {float(x):.6g}"
        )
    values, vectors = torch.linalg.eigh(momentum.kernel(lam, learning_rate, beta, 1.0))
    # The rest is eigh's rounding.
    keep = values > len(lam) * torch.finfo(values.dtype).eps * values[-1]
    phi = moment.factors[:, :, 0]
    gain = torch.zeros(len(phi), len(phi), dtype=phi.dtype, device=phi.device)
    for value, vector in zip(values[keep], vectors[:, keep].T, strict=True):
        gain += value * ((phi * vector) @ phi.T).square()
    return learning_rate**2 * gain * moment.per_sample[None, :]


def mean_square_path(
    curvature: Curvature,
    algorithm: AscentDescent,
    learning_rate: float,
    *,
    steps: int,
    start: Tensor | None = None,
) -> Tensor:
    """E‖δ_k‖² = tr T^k(start) for k = 0 … steps, exact; (steps+1,).

    Args:
        curvature, algorithm, learning_rate: as in `growth_factor`.
        steps: number of updates ≥ 0.
        start: (q, q) Eδ_0δ_0ᵀ; by default I/q, that of `simulate`'s start.

    Infinite once it passes the largest float64, about 1e308.

    Raises:
        ValueError: as `growth_factor`; with momentum or "reshuffled" batches.

    Source: book, chapter linearized_dynamics.
    """
    require_setting(curvature, algorithm)
    steps = require_count("steps", steps, 0)
    algorithm.require_plain("mean_square_path")
    moment = SecondMoment.of(curvature, algorithm)
    learning_rate = moment.require_rate(learning_rate)
    if start is not None:
        require_finite("start", start, *moment.basis.shape)
        start = start.to(moment.basis)
        start = moment.basis.T @ start @ moment.basis
    path = torch.stack(list(islice(_traces(moment, learning_rate, start), steps + 1)))
    return path.nan_to_num(nan=math.inf, posinf=math.inf)


def _traces(
    moment: SecondMoment, learning_rate: float, start: Tensor | None = None
) -> Iterator[Tensor]:
    """tr T^k(start), k = 0, 1, …, without end, in A's eigenbasis; the start is I/q by default."""
    q = len(moment.eigenvalues)
    N = moment.eigenvalues.new_ones(q).diag() / q if start is None else start
    while True:
        yield N.trace()
        N = moment.step(N, learning_rate)


def steps_to_amplify(
    curvature: Curvature, algorithm: AscentDescent, learning_rate: float, amplification: float
) -> int:
    """First k with E‖δ_k‖² = tr T^k(I/q) ≥ amplification: steps to escape from a unit start.

    Exact, transient included, at the cost of one application of T per step. There are at least
    log τ / log ρ(T) of them, as tr T^k(I/q) ≤ ρ^k; at most `MOST_APPLICATIONS` are made.

    Args:
        curvature, algorithm, learning_rate: as in `growth_factor`.
        amplification: τ > 1, of the mean squared distance.

    Raises:
        ValueError: for τ ≤ 1, where ρ(T) ≤ 1 and the mean square does not grow, or where it grows
            too slowly to reach τ in 100,000 steps.

    The asymptotic count, without the transient, is log τ / log ρ(T). Source: book, thm-window.
    """
    if not require_above("amplification", amplification, 0) > 1:
        raise ValueError(f"amplification must be > 1, got {amplification!r}")
    require_setting(curvature, algorithm)
    algorithm.require_plain("steps_to_amplify")
    moment = SecondMoment.of(curvature, algorithm)
    learning_rate = moment.require_rate(learning_rate)
    rho = perron_pair(moment, learning_rate)[0]
    if rho <= 1 + 1e-12:  # a neutral direction has ρ(T) = 1 up to rounding, and would loop for ever
        raise ValueError(f"learning_rate must make ρ(T) > 1, got {learning_rate!r}, ρ(T) = {rho}")
    least = math.log(amplification) / math.log(rho)
    path = islice(_traces(moment, learning_rate), MOST_APPLICATIONS + 1)
    if least <= MOST_APPLICATIONS:
        for k, square in enumerate(path):
            if float(square) >= amplification:
                return k
    raise ValueError(
        f"learning_rate must amplify within {MOST_APPLICATIONS} steps, got {learning_rate!r} with "
        f"ρ(T) = {rho:.12g}: at least {least:.6g} steps"
    )


def steps_to_grow(factor: float, log_growth: float) -> float:
    """log factor / γ, steps not rounded in which e^{γk} reaches `factor`; ∞ where γ ≤ 0.

    Args:
        factor: τ > 1, of the quantity that grows.
        log_growth: γ, its growth per step, as a logarithm.

    Raises:
        ValueError: for a factor not in (1, 1e100] or a growth that is no finite number.
    """
    factor = require_above("factor", factor, 1)
    if not is_finite(log_growth):
        raise ValueError(f"log_growth must be a finite number, got {log_growth!r}")
    return math.log(factor) / log_growth if log_growth > 0 else math.inf


def retain_edge(curvature: Curvature, mixing: float) -> float:
    """2/((1−α)λ_1(H_r)): the learning rate at which descent on the retain set alone diverges.

    Infinite at mixing α = 1, or without curvature on the retain set.

    Raises:
        ValueError: for a mixing outside [0, 1].
    """
    require_kind("curvature", curvature, Curvature)
    mixing = require_share("mixing", mixing)
    sharpness = float(torch.linalg.eigvalsh(curvature.retain_hessian)[-1])
    descent = (1 - mixing) * sharpness
    return 2 / descent if descent > 0 else math.inf
