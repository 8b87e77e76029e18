"""Per-sample curvature at the trained optimum, held in sample space.

Every statement of the book needs the per-sample Hessians H_i = Φ_i Φ_iᵀ only through the Gram
matrix K = ΦᵀΦ of their factors, of size (n·rank)². Nothing of size p × p is ever formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib.checks import (
    WIDE,
    describe,
    require_count,
    require_finite,
    require_forget,
    require_kind,
    require_mask,
    require_members,
)
from lib.stability.gram import RowStream
from lib.stability.jacobian import weighted_rows
from lib.stability.modules import Chosen, Forward, count, samples

LARGEST_SCALE = 1e120  # of curvature: its square and that of its inverse are inside float64's range


@dataclass(frozen=True)
class Curvature:
    """Per-sample Hessians H_i = factors[i] @ factors[i].T on U, the span of all their ranges.

    Attributes:
        factors: (n, q, r), coordinates in an orthonormal basis of U; q = dim U ≤ n·r. float32 or
            float64 is taken and held as float64, detached from autograd.
        forget: (n,) bool, True for samples of the forget set; both sets are non-empty. The indices
            of these samples are taken as well, and held as the mask.

    Raises:
        ValueError: shapes or dtypes that do not fit, a number that is not finite, an empty set, a
            largest curvature outside [1e-120, 1e120] (all statements are equivariant: rescale), or
            factors that do not span their q coordinates (a flat direction would pin ρ(T) at 1).
    """

    factors: Tensor
    forget: Tensor

    def __post_init__(self) -> None:
        factors = self.factors
        require_finite("factors", factors, "n", "q", "r")
        forget = require_mask(self.forget, factors.shape[0])
        if factors.numel():
            _require_scale("factors", float(factors.detach().abs().max()), LARGEST_SCALE**0.5)
        object.__setattr__(self, "forget", forget.to(factors.device))
        epsilon = torch.finfo(factors.dtype).eps
        object.__setattr__(self, "factors", factors.detach().double())
        rank = _rank(self.stacked, epsilon) if factors.numel() else 0
        if rank < factors.shape[1] or rank == 0:
            raise ValueError(
                f"factors must span their q coordinates, got rank {rank}, q = {factors.shape[1]}; "
                "build them with from_gram or from_hessians"
            )

    def __repr__(self) -> str:
        _, q, r = self.factors.shape
        sets = f"{self.n_retain} retain + {self.n_forget} forget"
        return f"Curvature({sets} samples of rank ≤ {r}, q = {q}, {self.factors.device})"

    @classmethod
    def _spanning(cls, factors: Tensor, forget: Tensor) -> Curvature:
        """From float64 factors that span their coordinates by construction: no second rank check.

        That check is an eigendecomposition, half the cost of `from_gram` at n = 600.
        """
        curvature = object.__new__(cls)
        object.__setattr__(curvature, "factors", factors)
        object.__setattr__(curvature, "forget", forget.to(factors.device))
        return curvature

    @classmethod
    def from_gram(cls, gram: Tensor, forget: Any, rank: int = 1) -> Curvature:
        """From the Gram matrix K = ΦᵀΦ of the factors, K[ir+a, jr+b] = ⟨Φ_i e_a, Φ_j e_b⟩.

        With K = V diag(s) Vᵀ the factors are Φ = diag(√s) Vᵀ over the eigenvalues above rounding,
        s > 4·n·rank·eps·max(s), eps that of the matrix's dtype; q is how many there are.

        Args:
            gram: (n·rank, n·rank), sample-major, symmetric positive semi-definite to rounding;
                float32 or float64.
            forget: (n,) bool, or the indices of the samples to forget.
            rank: number r of factor columns per sample.

        Raises:
            ValueError: naming the argument, for a matrix that is not square, finite, symmetric,
                positive semi-definite, non-zero and of entries up to [1e-120, 1e120], or that does
                not fit `forget` and `rank`.
        """
        rank = require_count("rank", rank, 1)
        require_kind("gram", gram, Tensor)
        n = len(gram) // rank if gram.ndim else 0
        if isinstance(forget, Tensor) and forget.dtype == torch.bool:
            n = require_forget(forget)
        if not n or gram.shape != (n * rank, n * rank) or gram.dtype not in WIDE:
            raise ValueError(
                "gram must be a real (n·rank, n·rank) matrix in float32 or float64, "
                f"n that of forget and rank {rank}, "
                f"got {describe(gram)}"
            )
        require_finite("gram", gram, n * rank, n * rank)
        forget = require_mask(forget, n)
        tolerance = 4 * n * rank * torch.finfo(gram.dtype).eps
        values, vectors = _positive_eigh("gram", gram, tolerance)
        keep = values > tolerance * values[-1]
        columns = values[keep].sqrt()[:, None] * vectors[:, keep].T
        return cls._spanning(columns.reshape(-1, n, rank).transpose(0, 1).contiguous(), forget)

    @classmethod
    def from_hessians(cls, hessians: Tensor, forget: Any) -> Curvature:
        """Curvature from explicit Hessians; for small p, tests and worked examples.

        Args:
            hessians: (n, p, p), each symmetric positive semi-definite; float32 or float64.
            forget: (n,) bool, or the indices of the samples to forget.

        Raises:
            ValueError: naming the argument, if a matrix is not finite, symmetric or positive
                semi-definite, or if all are zero.
        """
        require_finite("hessians", hessians, "n", "p", "p")
        hessians, (n, p) = hessians.detach(), hessians.shape[:2]
        if hessians.shape != (n, p, p) or not p:
            raise ValueError(f"hessians must have shape (n, p, p), got {describe(hessians)}")
        forget = require_mask(forget, n, of="hessians")
        tolerance = 4 * p * torch.finfo(hessians.dtype).eps
        roots = []
        for i, hessian in enumerate(hessians):
            values, vectors = _positive_eigh(f"hessians[{i}]", hessian, tolerance, zero_ok=True)
            values = torch.where(values > tolerance * values[-1], values, 0.0)
            roots.append((vectors * values.sqrt()).flip(-1))
        stacked = torch.stack(roots)
        rank = max(1, int((stacked != 0).any(dim=1).sum(dim=1).max()))
        stacked = stacked[:, :, :rank]
        left, singular, _ = torch.linalg.svd(
            stacked.transpose(0, 1).reshape(p, -1), full_matrices=False
        )
        if singular[0] == 0:
            raise ValueError("hessians must not all be zero")
        _require_scale("hessians", float(hessians.abs().max()))
        basis = left[:, singular.square() > n * tolerance * singular[0] ** 2]
        return cls._spanning(basis.T @ stacked, forget)

    @classmethod
    def from_model(
        cls,
        model: torch.nn.Module,
        inputs: Any,
        targets: Tensor | None,
        forget: Any,
        loss: str = "squared",
        chunk_size: int | None = None,
        *,
        forward: Forward | None = None,
        parameters: Chosen = None,
    ) -> Curvature:
        """Generalised Gauss–Newton (GGN) curvature H_i = J_iᵀ Λ_i J_i of any module.

        J_i = ∂f(x_i)/∂w over the chosen parameters, Λ_i = ∂²ℓ_i/∂f². The GGN is the Hessian where
        the module is piecewise linear in w or, for the squared loss, where sample i is
        interpolated; elsewhere it leaves out the residual times the output's own Hessian. H_i
        belongs to sample i's own loss: no mean over samples is taken here. A sequence of tokens is
        one sample, its loss the sum over its tokens that are not masked.

        Args:
            model: module in eval mode, f: (n, …) → (n,), (n, 1), (n, C) or (n, tokens, V).
                Differentiated in its own precision, or in float32 where that is narrower.
            inputs: (n, …); or a dict or tuple of such tensors, a Dataset, an unshuffled DataLoader.
            targets: (n,) or (n, C) values for "squared", labels in ±1 for "logistic", class numbers
                (n,) or (n, tokens) for "cross_entropy", −100 for masked tokens; None where the
                inputs bring them.
            forget: (n,) bool, or the indices of the samples to forget.
            loss: "squared" for ½‖f − y‖², "logistic" for log(1 + e^{−yf}), "cross_entropy".
            chunk_size: samples whose Jacobians are held at a time; by default what fits into 1 GiB.
                Smaller chunks trade memory for passes, about n/(2·chunk) of them.
            forward: (model, inputs) → outputs, where calling the model does not give one tensor.
            parameters: what is trained: names or prefixes of names, Parameters, or a function of
                the name; by default all that require a gradient.

        Raises:
            ValueError: naming the argument; also for a module whose per-sample curvature does not
                exist (randomness, batch statistics in training mode) or that is TorchScript.
        """
        x, y = samples(inputs, targets)
        n = count(x)
        mask = isinstance(forget, Tensor) and forget.dtype == torch.bool and forget.ndim == 1
        wanted = len(forget) if mask else n
        labels = len(y) if isinstance(y, Tensor) and y.ndim else n
        if n != wanted or labels != wanted:
            raise ValueError(
                f"inputs and targets must hold {wanted} samples each as forget does, "
                f"got {n} and {labels}"
            )
        forget = require_mask(forget, n)
        source, x, seeds = weighted_rows(model, x, y, loss, forward, parameters)
        rows = RowStream(source, x, seeds, chunk_size)
        if sum(v.numel() for v in source.net.trained.values()) < n * source.rank:
            return cls._from_rows(rows.together().double().view(n, source.rank, -1), forget)
        _, gram = rows.outputs_and_gram(n, torch.float64)
        return cls.from_gram(gram, forget.to(gram.device), source.rank)

    @classmethod
    def _from_rows(cls, rows: Tensor, forget: Tensor) -> Curvature:
        """From H_i = rows[i].T @ rows[i], (n, r, p) with p < n·r: p × p, not (n·r) × (n·r)."""
        n, r = rows.shape[:2]
        flat = rows.flatten(0, 1)
        tolerance = 4 * n * r * torch.finfo(rows.dtype).eps
        values, vectors = _positive_eigh("curvature of the model", flat.T @ flat, tolerance)
        basis = vectors[:, values > tolerance * values[-1]]
        factors = (flat @ basis).view(n, r, -1).transpose(1, 2).contiguous()
        return cls._spanning(factors, forget)

    @property
    def stacked(self) -> Tensor:
        """Φ, all factors side by side, (q, n·r), sample-major."""
        return stack(self.factors)

    @property
    def gram(self) -> Tensor:
        """K = ΦᵀΦ, (n·r, n·r), sample-major."""
        return self.stacked.T @ self.stacked

    @property
    def n_retain(self) -> int:
        """Number of retain samples n_r."""
        return int((~self.forget).sum())

    @property
    def n_forget(self) -> int:
        """Number of forget samples n_f."""
        return int(self.forget.sum())

    def mean_hessian(self, members: Tensor) -> Tensor:
        """(1/|c|) Σ_{i∈c} H_i over the samples c that `members`, (n,) bool, selects; (q, q)."""
        chosen = self.factors[require_members("members", members, len(self.factors))]
        return torch.einsum("nar,nbr->ab", chosen, chosen) / chosen.shape[0]

    @property
    def retain_hessian(self) -> Tensor:
        """H_r, (q, q)."""
        return self.mean_hessian(~self.forget)

    @property
    def forget_hessian(self) -> Tensor:
        """H_f, (q, q)."""
        return self.mean_hessian(self.forget)


def stack(factors: Tensor) -> Tensor:
    """(n, q, r) factors side by side, (q, n·r), sample-major."""
    return factors.permute(1, 0, 2).reshape(factors.shape[1], -1)


def _rank(stacked: Tensor, epsilon: float) -> int:
    """Numerical rank of Φ by the eigenvalues of ΦΦᵀ, four times as lenient as `from_gram`'s cut."""
    values = torch.linalg.eigvalsh(stacked @ stacked.T)
    return int((values > stacked.shape[1] * epsilon * values[-1]).sum())


def _require_scale(name: str, largest: float, most: float = LARGEST_SCALE) -> None:
    """ValueError unless the largest entry leaves room for squares and inverses in float64."""
    if not 1 / most <= largest <= most:
        raise ValueError(
            f"{name} must have a largest entry in [{1 / most:g}, {most:g}], got {largest:g}"
        )


def _positive_eigh(
    name: str, matrix: Tensor, tolerance: float, zero_ok: bool = False
) -> tuple[Tensor, Tensor]:
    """Eigenvalues (ascending) and vectors, float64, of a matrix checked to be symmetric and PSD."""
    matrix = matrix.detach().double()
    scale = float(matrix.abs().max())
    if scale == 0 and not zero_ok:
        raise ValueError(f"{name} must not be zero")
    _require_scale(name, max(scale, 1 / LARGEST_SCALE if zero_ok else scale))
    gap = float((matrix - matrix.T).abs().max())
    if gap > tolerance * scale:
        raise ValueError(f"{name} must be symmetric, got |{name} − its transpose| up to {gap:.3g}")
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    lowest, highest = float(values[0]), float(values[-1])
    if lowest < -10 * tolerance * max(highest, -lowest):
        raise ValueError(
            f"{name} must be positive semi-definite, got smallest eigenvalue {lowest:.3g} "
            f"beside largest {highest:.3g}"
        )
    return values, vectors
