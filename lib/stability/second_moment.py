"""The second-moment operator T in the eigenbasis of A, and the one Lanczos run its solvers need."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from lib.checks import require_batches, require_kind, require_nonnegative
from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature, stack

LARGEST_STEP = 1e60  # η·tr(descent + ascent): fourth powers of a step stay inside float64's range


def require_setting(curvature: Curvature, algorithm: AscentDescent) -> None:
    """TypeError for arguments of other kinds, ValueError for a batch larger than its set."""
    require_kind("curvature", curvature, Curvature)
    require_kind("algorithm", algorithm, AscentDescent)
    require_batches(curvature, algorithm)


def mean_operator(curvature: Curvature, algorithm: AscentDescent) -> Tensor:
    """A = (1−α)H_r − αH_f + λI on U, the mean of the stochastic operator; (q, q).

    Raises:
        ValueError: for a batch larger than its set.
    """
    require_setting(curvature, algorithm)
    H_r, H_f = curvature.retain_hessian, curvature.forget_hessian
    eye = torch.eye(len(H_r), dtype=H_r.dtype, device=H_r.device)
    return (1 - algorithm.mixing) * H_r - algorithm.mixing * H_f + algorithm.damping * eye


@dataclass(frozen=True)
class SecondMoment:
    """T and its parts in the eigenbasis of A, where J N J is an entrywise product.

    eigenvalues (q,) of A ascending; basis (q, q), its eigenvectors as columns; factors (n, q, r)
    rotated into it; per_sample (n,) the v_i; per_set the triples (s_c, H_c, R_c) with s_c ≠ 0 and
    H_c = R_cR_cᵀ, R_c (q, k) where k < q columns do, else None; rounding the size below which an
    eigenvalue of A is zero.
    """

    eigenvalues: Tensor
    basis: Tensor
    factors: Tensor
    per_sample: Tensor
    per_set: tuple[tuple[float, Tensor, Tensor | None], ...]
    rounding: float

    @classmethod
    def of(cls, curvature: Curvature, algorithm: AscentDescent) -> SecondMoment:
        """Diagonalise A; errors as `require_setting`."""
        require_setting(curvature, algorithm)
        sets = algorithm.sets(curvature.forget)
        A = mean_operator(curvature, algorithm)
        eigenvalues, basis = torch.linalg.eigh(A)
        factors = (basis.T @ curvature.factors).contiguous()
        per_sample = torch.zeros_like(factors[:, 0, 0])
        scale, per_set = algorithm.damping, []
        for part in sets:
            per_sample[part.members] = part.per_sample
            root = stack(factors[part.members]) / math.sqrt(part.size)
            scale += part.weight * float(root.square().sum())
            if part.per_set:
                thin = root if root.shape[1] < root.shape[0] else None
                per_set.append((part.per_set, root @ root.T, thin))
        rounding = len(A) * torch.finfo(A.dtype).eps * scale
        return cls(eigenvalues, basis, factors, per_sample, tuple(per_set), rounding)

    def require_rate(self, learning_rate: float) -> float:
        """The rate η; ValueError unless ≥ 0 and one step of it stays inside float64's range."""
        rate = require_nonnegative("learning_rate", learning_rate)
        scale = self.rounding / (len(self.basis) * torch.finfo(self.basis.dtype).eps)
        if rate * scale > LARGEST_STEP:
            raise ValueError(
                f"learning_rate must keep one step inside float64's range, at most "
                f"{LARGEST_STEP / scale:.3g} for this curvature, got {rate!r}"
            )
        return rate

    @cached_property
    def stacked(self) -> Tensor:
        """Φ in the eigenbasis, (q, n·r), sample-major."""
        return stack(self.factors)

    def step(self, N: Tensor, learning_rate: float) -> Tensor:
        """T(N), (q, q), in the eigenbasis."""
        x = 1 - learning_rate * self.eigenvalues
        return x[:, None] * N * x[None, :] + learning_rate**2 * self.noise(N)

    def noise(self, N: Tensor) -> Tensor:
        """Σ_i v_i H_iNH_i − Σ_c s_c H_cNH_c, (q, q): a few products of size q × q × max(q, n·r)."""
        n, q, r = self.factors.shape
        image = N @ self.stacked
        if r == 1:  # H_iNH_i = (h_iᵀNh_i) h_ih_iᵀ
            weighted = self.stacked * (self.per_sample * (self.stacked * image).sum(dim=0))
        else:
            inner = torch.einsum("nar,ans->nrs", self.factors, image.view(q, n, r))
            inner *= self.per_sample[:, None, None]
            weighted = torch.einsum("nar,nrs->ans", self.factors, inner).reshape(q, n * r)
        out = weighted @ self.stacked.T
        for weight, hessian, root in self.per_set:
            inside = hessian @ N @ hessian if root is None else root @ (root.T @ N @ root) @ root.T
            out -= weight * inside
        return out

    def axis_noise(self) -> Tensor:
        """⟨E, 𝒩(E)⟩ for E = e_k e_kᵀ, the noise each eigenvector of A feeds itself; (q,)."""
        curved = self.factors.square().sum(dim=2)
        own = (self.per_sample[:, None] * curved.square()).sum(dim=0)
        for weight, hessian, _ in self.per_set:
            own = own - weight * hessian.diagonal().square()
        return own

    def contracting(self) -> SecondMoment | None:
        """T without its neutral directions; None if no step size is stable.

        A direction that A leaves alone and no batch moves (forget-only curvature at mixing 0, say)
        is neutral at every rate.
        """
        lam = self.eigenvalues
        kept = lam.abs() > self.rounding
        if bool((lam < -self.rounding).any()) or self.moves(~kept):
            return None
        if bool(kept.all()):
            return self
        return replace(
            self,
            eigenvalues=lam[kept],
            basis=self.basis[:, kept],
            factors=self.factors[:, kept],
            per_set=tuple(
                (s, H[kept][:, kept], None if R is None else R[kept]) for s, H, R in self.per_set
            ),
        )

    def moves(self, directions: Tensor) -> bool:
        """Whether the batches' noise moves any of these eigenvectors of A, (q,) bool."""
        if not bool(directions.any()):
            return False
        moved = self.per_sample[:, None, None] * self.factors.square() * directions[None, :, None]
        if float(moved.sum()) <= self.rounding * float(self.per_sample.max()):
            return False
        # Duplicates drawn with a fixed batch size make no noise: then only rounding is left of it.
        into = self.noise(directions.to(self.factors).diag()).diagonal().sum()
        gross = (moved.sum(dim=(1, 2)) * self.factors.square().sum(dim=(1, 2))).sum()
        return float(into) > 16 * len(directions) * torch.finfo(gross.dtype).eps * float(gross)


def perron_pair(moment: SecondMoment, learning_rate: float) -> tuple[float, Tensor]:
    """ρ(T) and its eigenmatrix in A's eigenbasis, by a secular equation instead of a run on T.

    T = D∘ + η²𝒩 with D_ab = x_a x_b, x = 1 − ηλ, and 𝒩 the batches' noise. Real curvature spectra
    crowd the top of T, where Lanczos on T itself takes thousands of products. But ρ > max D is T's
    largest eigenvalue iff the operator (ρ − D)^{-1/2} η²𝒩 (ρ − D)^{-1/2} has largest eigenvalue 1,
    and that one is well separated: a dozen products. Its eigenmatrix's Rayleigh quotient under T is
    a lower bound of ρ(T) at every pass and converges quadratically.

    Where the noise nearly cancels (one sample drawn with replacement, near-duplicates), 1/(ρ − D)
    blows its rounding up until no run converges: then a run on T itself decides, or raises.
    """
    x = 1 - learning_rate * moment.eigenvalues
    if len(x) > DENSE:
        try:
            return _secular_pair(moment, learning_rate, x)
        except RuntimeError:  # ARPACK's own errors are RuntimeErrors too
            pass
    return largest_eigenpair(lambda N: moment.step(N, learning_rate), x)


def _secular_pair(moment: SecondMoment, learning_rate: float, x: Tensor) -> tuple[float, Tensor]:
    """`perron_pair` by the secular equation, x = 1 − ηλ; RuntimeError if it does not settle."""
    D, square = x[:, None] * x[None, :], learning_rate**2
    # Two first lower bounds: each axis alone, X = e_k e_kᵀ, exact where axes do not mix; and the
    # Rayleigh quotient of a coarse run on T itself.
    alone = D.diagonal() + square * moment.axis_noise()
    k = int(alone.argmax())
    X = torch.zeros_like(D)
    X[k, k] = 1
    epsilon = torch.finfo(D.dtype).eps
    if square * float(moment.per_sample.max()) == 0:
        return float(D.max()), X
    rho = max(float(alone[k]), float(D.max()) * (1 + 2 * epsilon) + torch.finfo(D.dtype).tiny)
    eye = torch.ones_like(x).diag() / len(x) ** 0.5
    value, Y = largest_eigenpair(lambda N: moment.step(N, learning_rate), x, tolerance=1e-2)
    if value > rho:
        rho, X = value, Y
    margin = 0.0
    for _ in range(100):
        root = (rho * (1 + margin) - D).rsqrt()

        def whitened(N: Tensor, root: Tensor = root) -> Tensor:
            return square * root * moment.noise(root * N)

        # The identity stays in the start, so that no invariant subspace hides the top eigenmatrix.
        value, Y = largest_eigenpair(whitened, x, Y + 0.1 * eye, basis=8)
        if value <= 1:  # then ρ(T) is at most the lower bound ρ, which max D alone may have set
            return rho, root * Y if value > 1 - 1e-9 else X
        X = root * Y
        growth = (value - 1) * float(Y.square().sum() / X.square().sum())
        stalled = growth <= 4 * epsilon * rho
        if stalled and margin:
            return rho, X
        # The largest whitened value may be a flat axis's own, inflated by ρ − D ≈ 0, and hide the
        # eigenmatrix that still grows: before ρ is believed, a pass just above it must find none.
        rho = rho * (1 + margin) + growth
        margin = 64 * epsilon if stalled else 0.0
    raise RuntimeError(f"ρ(T) still grows by {growth:.3g} a pass after 100 passes, at {rho:.12g}")


DENSE = 4  # ARPACK needs more room than q = 4; there q² applications are the whole operator


def largest_eigenpair(
    apply: Callable[[Tensor], Tensor],
    like: Tensor,
    start: Tensor | None = None,
    *,
    tolerance: float = 1e-11,
    basis: int = 16,
) -> tuple[float, Tensor]:
    """Largest eigenvalue and eigenvector (q, q) of a self-adjoint map on matrices, q = len(like).

    One ARPACK Lanczos run from `start`, by default the identity: it overlaps every PSD matrix. It
    stops at a residual of `tolerance` relative to the eigenvalue; the eigenvalue, a Rayleigh
    quotient, is a lower bound whatever the tolerance. `basis` is the number of Lanczos vectors. The
    maps here take PSD matrices to PSD matrices, so one that takes the identity to zero is zero.

    Raises:
        RuntimeError: with the residual, if the run does not converge.
    """
    q = len(like)
    eye = torch.eye(q, dtype=like.dtype, device=like.device)
    if q <= DENSE:
        units = torch.eye(q * q, dtype=like.dtype, device=like.device).reshape(-1, q, q)
        values, vectors = torch.linalg.eigh(torch.stack([apply(u).flatten() for u in units]))
        # Of a multiple top eigenvalue take the identity's projection, which is PSD.
        top = vectors[:, values >= values[-1] - 1e-12 * values[-1].abs()]
        return float(values[-1]), (top @ (top.T @ eye.flatten())).reshape(q, q)

    if not bool(apply(eye).any()):  # ARPACK refuses a start that the map takes to zero
        return 0.0, eye / math.sqrt(q)

    def matvec(x: np.ndarray) -> np.ndarray:
        N = torch.as_tensor(np.ascontiguousarray(x), device=like.device).reshape(q, q)
        return apply(N).flatten().cpu().numpy()

    operator = LinearOperator((q * q, q * q), matvec=matvec, dtype=np.float64)
    v0 = (eye if start is None else start).flatten().cpu().numpy()
    try:
        values, vectors = eigsh(
            operator, k=1, which="LA", v0=v0, ncv=basis, tol=tolerance, **seeded_restarts()
        )
    except ArpackNoConvergence as error:
        raise RuntimeError("the Lanczos run for the largest eigenvalue did not converge") from error
    X = torch.as_tensor(vectors[:, 0].reshape(q, q), device=like.device)
    residual = float(torch.linalg.norm(apply(X) - values[0] * X))
    allowed = 1e3 * tolerance * max(1.0, abs(float(values[0])))
    if residual > allowed:
        raise RuntimeError(f"largest eigenpair: residual {residual:.3g} above {allowed:.3g}")
    return float(values[0]), X


def seeded_restarts() -> dict[str, np.random.Generator]:
    """A seed for ARPACK's restarts out of an invariant subspace, where SciPy (≥ 1.17) takes one.

    Left alone it draws them from the system's entropy, and no two calls agree to the last bit.
    """
    known = "rng" in inspect.signature(eigsh).parameters
    return {"rng": np.random.default_rng(0)} if known else {}
