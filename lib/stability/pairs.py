"""Coherence of pairs: one number for both sets, as the sister paper's released code computes it.

Every pair of a retain sample i and a forget sample j has the curvature A_ij = (1−α)H_i − αH_j of a
step that descends on the one and ascends on the other. Inference from released code, not from
either paper's text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from lib.checks import require_share
from lib.stability.curvature import Curvature
from lib.stability.data_coherence import coherence_matrix
from lib.stability.second_moment import seeded_restarts

_BLOCK = 2**22  # entries of the pairs' matrix that are held at a time


def pair_coherence(curvature: Curvature, mixing: float) -> float:
    """λ_1(S) / max λ_1(A_ij) over all n_r n_f pairs, S_(ij)(kl) = √max(0, tr A_ij A_kl).

    tr A_ij A_kl = (1−α)²S_ik² − α(1−α)(S_il² + S_jk²) + α²S_jl² needs only the coherence matrix; a
    negative trace, where S is not defined, counts as 0 (`clipped_pairs` says how many). S has
    (n_r n_f)² entries, 10⁸ at 100 + 100 samples: they are made block by block for one Lanczos run.

    Args:
        curvature: per-sample curvature at the optimum.
        mixing: α ∈ [0, 1), α = 1 being 0/0: no pair then has a positive eigenvalue.

    Returns:
        The coherence, dimensionless, ≥ 0.

    Raises:
        ValueError: for a mixing outside [0, 1), or where no A_ij has a positive eigenvalue.
        RuntimeError: if the Lanczos run does not converge.

    Source: the released `coherence_local.py`; book, chapter hessian_tests.
    """
    blocks = _Pairs.of(curvature, mixing)
    sharpest = _sharpest_pair(curvature, mixing)
    if sharpest <= 0:
        raise ValueError(f"curvature must give some pair a positive curvature, got {sharpest:.3g}")
    return blocks.largest_eigenvalue() / sharpest


def clipped_pairs(curvature: Curvature, mixing: float) -> float:
    """Share of the entries of the pairs' matrix S whose trace is negative, so counted as 0."""
    blocks = _Pairs.of(curvature, mixing)
    negative = sum(int((block < 0).sum()) for _, block in blocks.traces())
    return negative / blocks.size**2


class _Pairs:
    """tr A_ij A_kl of all pairs, in blocks of rows (fixed i, all j) against all pairs."""

    def __init__(self, own: Tensor, cross: Tensor, other: Tensor, mixing: float):
        scale = max(float(own.max()), float(other.max()), float(cross.max())) or 1.0
        self.own = (1 - mixing) ** 2 * own / scale  # (n_r, n_r)
        self.cross = mixing * (1 - mixing) * cross / scale  # (n_r, n_f)
        self.other = mixing**2 * other / scale  # (n_f, n_f)
        self.scale, self.size = scale, cross.numel()

    @classmethod
    def of(cls, curvature: Curvature, mixing: float) -> _Pairs:
        mixing = require_share("mixing", mixing, "[0, 1)")
        squares, forget = coherence_matrix(curvature).square(), curvature.forget
        retain = ~forget
        return cls(
            squares[retain][:, retain], squares[retain][:, forget], squares[forget][:, forget],
            mixing,
        )  # fmt: skip

    def traces(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows of pairs, their traces with all pairs (rows, n_r n_f)), a few i at a time."""
        n_r, n_f = self.cross.shape
        step = max(1, _BLOCK // (n_f * self.size))
        for first in range(0, n_r, step):
            i = slice(first, min(first + step, n_r))
            trace = self.own[i, None, :, None] + self.other[None, :, None, :]
            trace = trace - self.cross[i, None, None, :] - self.cross.T[None, :, :, None]
            yield slice(i.start * n_f, i.stop * n_f), trace.reshape(-1, self.size)

    def largest_eigenvalue(self) -> float:
        """λ_1 of S, a nonnegative symmetric matrix."""

        def product(x: np.ndarray) -> np.ndarray:
            vector, out = torch.from_numpy(x.reshape(-1)).to(self.own), np.empty(self.size)
            for rows, trace in self.traces():
                out[rows] = (trace.clamp_(min=0).sqrt_() @ vector).cpu().numpy()
            return out

        if self.size <= 3:
            matrix = np.column_stack([product(unit) for unit in np.eye(self.size)])
            return math.sqrt(self.scale) * float(np.linalg.eigvalsh(matrix)[-1])
        operator = LinearOperator((self.size,) * 2, matvec=product, dtype=np.float64)
        values = eigsh(
            operator,
            k=1,
            which="LA",
            v0=np.ones(self.size),
            tol=1e-10,
            return_eigenvectors=False,
            **seeded_restarts(),
        )
        return math.sqrt(self.scale) * float(values[0])


def _sharpest_pair(curvature: Curvature, mixing: float) -> float:
    """max_ij λ_1(A_ij): of D^{1/2}-weighted 2r × 2r Gram matrices, in closed form at rank one."""
    factors, forget = curvature.factors, curvature.forget
    down, up = (1 - mixing) ** 0.5 * factors[~forget], mixing**0.5 * factors[forget]
    largest = -math.inf
    for own in down:  # eigenvalues of XXᵀ − YYᵀ are those of [X Y]ᵀ[X Y] diag(I, −I), when not 0
        both = torch.cat([own.expand_as(up), up], dim=2)
        gram = both.mT @ both
        signs = gram.new_ones(gram.shape[-1])
        signs[own.shape[1] :] = -1
        values = torch.linalg.eigvals(gram * signs).real
        largest = max(largest, float(values.max()))
    return largest
