"""Data coherence: how the per-sample curvatures align, within and between the two sets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.checks import require_finite, require_kind, require_members
from lib.stability.curvature import Curvature


@dataclass(frozen=True)
class Coherence:
    """The three axes of coherence; see `coherence`."""

    retain: float
    forget: float
    cross: float


def coherence_matrix(curvature: Curvature) -> Tensor:
    """S_ij = ‖H_i^{1/2} H_j^{1/2}‖_F = √tr(H_i H_j) = ‖Φ_iᵀ Φ_j‖_F.

    Nonnegative and symmetric, in units of curvature. S itself need not be PSD; S∘S, the Gram matrix
    of the vectorised H_i, is. Only inner products of factors enter: no Hessian is formed.

    Returns:
        (n, n) float64, in the samples' own order.

    Source: book, chapter coherence, after Dexter et al. (ICLR 2024).
    """
    require_kind("curvature", curvature, Curvature)
    n, _, r = curvature.factors.shape
    return curvature.gram.reshape(n, r, n, r).square().sum(dim=(1, 3)).sqrt()


def coherence(curvature: Curvature) -> Coherence:
    """The three axes: within the retain set, within the forget set, between them.

    retain, forget: σ_c = λ_1(S_cc) / max_{i∈c} λ_1(H_i), dimensionless; 1 for mutually orthogonal
    rank-one samples of equal curvature, n_c for n_c copies of one.
    cross: χ = ⟨H_r, H_f⟩_F / (‖H_r‖_F ‖H_f‖_F) ∈ [0, 1].

    Raises:
        ValueError: if every sample of one set has zero curvature, where its σ and χ are undefined.

    Source: book, chapter coherence; σ after Dexter et al. (ICLR 2024, arXiv 2401.12332).
    """
    S = coherence_matrix(curvature)
    squares = S.square()
    f, r = curvature.forget, ~curvature.forget
    between = squares[r][:, f].mean()
    # Two roots, not one of the product: that would over- or underflow at extreme scales.
    within = squares[r][:, r].mean().sqrt() * squares[f][:, f].mean().sqrt()
    return Coherence(
        retain=within_coherence(curvature, r, "retain"),
        forget=within_coherence(curvature, f, "forget"),
        cross=float(between / within),
    )


def within_coherence(curvature: Curvature, members: Tensor, name: str = "given") -> float:
    """σ_c = λ_1(S_cc) / max_{i∈c} λ_1(H_i) of the samples c that `members`, (n,) bool, selects.

    In [1, n_c] for rank-one H_i (up to n_c√rank otherwise) and never below n_c λ_1(H_c) / max_i
    λ_1(H_i), since n_c λ_1(H_c) ≤ λ_1(S_cc).

    Raises:
        ValueError: with the set's name, if all of these samples have zero curvature, where σ_c is
            undefined.

    Source: book, chapter coherence, after Dexter et al. (ICLR 2024, arXiv 2401.12332).
    """
    require_kind("curvature", curvature, Curvature)
    members = require_members("members", members, len(curvature.factors), "curvature")
    chosen = curvature.factors[members]
    sharpest = torch.linalg.matrix_norm(chosen, ord=2).square().max()
    if sharpest == 0:
        raise ValueError(f"curvature must not vanish on the {name} set: its σ is undefined")
    S = coherence_matrix(curvature)[members][:, members]
    return float(torch.linalg.eigvalsh(S)[-1] / sharpest)


def directional_coherence(curvature: Curvature, directions: Tensor) -> tuple[Tensor, Tensor]:
    """σ_c(u) = (Σ_{i∈c} uᵀH_iu)² / Σ_{i∈c} (uᵀH_iu)² of the retain and of the forget set.

    The participation ratio of the samples' curvatures along u: how many samples of the set
    effectively curve that way, in [1, n_c], whatever the length of u; 0 where none does.

    Args:
        curvature: per-sample curvature at the optimum.
        directions: (q,) or (q, k), one u a column, in the coordinates of `curvature.factors`.

    Returns:
        (retain, forget), each () or (k,) float64.

    Raises:
        ValueError: for directions of another shape, not finite, or zero.

    Source: book, thm-two-sided.
    """
    require_kind("curvature", curvature, Curvature)
    require_kind("directions", directions, Tensor)
    q = curvature.factors.shape[1]
    if directions.ndim not in (1, 2) or len(directions) != q:
        raise ValueError(f"directions must be ({q},) or ({q}, k), got {tuple(directions.shape)}")
    require_finite("directions", directions, *directions.shape)
    directions = directions.to(curvature.factors)
    lengths = torch.linalg.vector_norm(directions, dim=0)
    if not bool((lengths.isfinite() & (lengths > 0)).all()):
        raise ValueError("directions must be finite and not zero")
    units = directions / lengths
    curvatures = sample_curvatures(curvature.factors, units)
    retain, forget = curvatures[~curvature.forget], curvatures[curvature.forget]
    return _participation(retain), _participation(forget)


def sample_curvatures(factors: Tensor, directions: Tensor) -> Tensor:
    """uᵀH_iu = ‖Φ_iᵀu‖², (n,) or (n, k), from factors (n, q, r) and directions (q,) or (q, k)."""
    return torch.tensordot(factors, directions, dims=([1], [0])).square().sum(dim=1)


def _participation(values: Tensor) -> Tensor:
    """(Σx)²/Σx² over the first dimension; 0 where all are zero."""
    largest = values.amax(dim=0)
    shares = values / torch.where(largest > 0, largest, 1.0)  # else the squares underflow
    squares = shares.square().sum(dim=0)
    return shares.sum(dim=0).square() / torch.where(squares > 0, squares, 1.0)


def forgettability(curvature: Curvature) -> Tensor:
    """Mixing α_j = χ_j / (1 + χ_j) above which forget sample j alone forces divergence at every η.

    χ_j = mean_{i∈R} S_ij² / mean_{l∈F} S_lj². Sufficient only: α* ≤ min_j α_j. No damping.
    A sample without curvature forces nothing: its α_j is 1.

    Returns:
        (n_forget,) float64 in [0, 1], forget samples in their order of appearance.

    Source: book, thm-forgettability.
    """
    squares = coherence_matrix(curvature).square()
    f = curvature.forget
    from_retain, from_forget = squares[~f][:, f].mean(dim=0), squares[f][:, f].mean(dim=0)
    # χ/(1 + χ) without the division that fails at from_forget = 0.
    total = from_retain + from_forget
    return torch.where(total > 0, from_retain / total.where(total > 0, 1.0), 1.0)
