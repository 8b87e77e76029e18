"""ρ(T) at many learning rates from one growing subspace: what a solve finds, the next starts with.

T_η = I − ηℒ + η²𝒬, ℒ(N) = AN + NA, 𝒬(N) = ANA + 𝒩(N), so a subspace and the noise 𝒩 of its members
give T's projection at every η, at no further product.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.optimize import brentq
from torch import Tensor

from lib.stability.second_moment import SecondMoment

_MOST = 24  # members held; then the _KEPT best of them and the newest go on
_KEPT = 6
_PASSES = 200


class GrowingSubspace:
    """Orthonormal matrices (q, q) in A's eigenbasis, with the noise of each (generalised Davidson).

    A pass adds the residual of the top pair, divided by ρ − D, D the noiseless part of T, diagonal
    in this basis. The identity, which overlaps every PSD matrix, comes first.
    """

    def __init__(self, moment: SecondMoment) -> None:
        self.moment, lam = moment, moment.eigenvalues
        self.sums, self.products = lam[:, None] + lam, lam[:, None] * lam
        self._held = lam.new_zeros(2, _MOST, *self.sums.shape)
        self.L = self.Q = lam.new_zeros(0, 0)  # of the members: ⟨·, ℒ·⟩ and ⟨·, 𝒬·⟩
        self._add(torch.ones_like(lam).diag())

    @property
    def members(self) -> Tensor:
        """(m, q, q), orthonormal."""
        return self._held[0, : len(self.L)]

    @property
    def noises(self) -> Tensor:
        """(m, q, q), 𝒩 of the members."""
        return self._held[1, : len(self.L)]

    def reaching(self, target: float, beyond: float) -> float:
        """The η in (0, beyond) with ρ(T_η) = target > 1; RuntimeError if no pass settles it."""
        self._add_axis(beyond)
        return self._solve(target, beyond)[0]

    def growth(self, rate: float) -> float:
        """ρ(T) at this rate; RuntimeError, with the residual, if no pass settles it."""
        self._add_axis(rate)
        return self._solve(None, rate)[1]

    def critical(self) -> float:
        """η* = 1/λ_max(𝒬X = λℒX), A positive definite; RuntimeError if no pass settles it."""
        for _ in range(_PASSES):
            L, Q = self.L, self.Q
            root = torch.linalg.cholesky(L)
            half = torch.linalg.solve_triangular(root, Q, upper=False)
            whitened = torch.linalg.solve_triangular(root, half.T, upper=False)
            values, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
            y = torch.linalg.solve_triangular(root.T, vectors[:, -1:], upper=True)[:, 0]
            value = float(values[-1])
            X, noise = torch.tensordot(y, self.members, 1), torch.tensordot(y, self.noises, 1)
            rest = (self.products - value * self.sums) * X + noise
            away = (value * self.sums - self.products).abs().clamp(min=1e-9 * value * self.sums)
            missing = float((rest.square() / away).sum())
            # X is scaled to ⟨X, ℒX⟩ = 1, and the residual is measured in the norm of ℒ⁻¹.
            size = float((rest.square() / self.sums).sum().sqrt())
            if missing <= 1e-14 * value and size <= 1e-6 * value:
                return 1 / value
            if not self._add(rest / away):
                return 1 / value
            if len(self.members) >= _MOST:
                self._shrink(1 / value)
        raise RuntimeError(f"η* = {1 / value:.12g} has residual {size:.3g} after {_PASSES} passes")

    def _solve(self, target: float | None, rate: float) -> tuple[float, float]:
        """(η, ρ(T_η)): at `rate`, or where ρ is the target on the way up to `rate`."""
        for _ in range(_PASSES):
            L, Q = self.L, self.Q

            def top(eta: float, L: Tensor = L, Q: Tensor = Q) -> tuple[Tensor, Tensor]:
                values, vectors = torch.linalg.eigh(
                    torch.ones_like(L[0]).diag() - eta * L + eta**2 * Q
                )
                return values[-1], vectors[:, -1]

            eta = rate
            if target is not None:

                def excess(eta: float, level: float = target, top: Callable = top) -> float:
                    return float(top(eta)[0]) - level

                eta = brentq(excess, 0.0, rate * (1 + 1e-6), rtol=1e-14, xtol=1e-300)
            rho, y = top(eta)
            X, noise = torch.tensordot(y, self.members, 1), torch.tensordot(y, self.noises, 1)
            D = 1 - eta * self.sums + eta**2 * self.products
            rest = (D - rho) * X + eta**2 * noise
            away = (rho - D).abs().clamp(min=1e-9 * float(rho))
            # What second-order perturbation says that is still missing from ρ.
            missing = float((rest.square() / away).sum())
            if missing <= 1e-14 * max(1.0, float(rho)) and float(rest.norm()) <= 1e-6 * float(rho):
                return float(eta), float(rho)
            if not self._add(rest / away):
                return float(eta), float(rho)
            if len(self.members) >= _MOST:
                self._shrink(eta)
        raise RuntimeError(
            f"ρ(T) = {float(rho):.12g} has residual {float(rest.norm()):.3g} after {_PASSES} passes"
        )

    def _add(self, matrix: Tensor) -> bool:
        """Adds the part of a matrix outside the subspace; False if nothing but rounding is left."""
        size = float(matrix.norm())
        if not size:
            return False
        for _ in range(2):
            matrix = matrix / matrix.norm()
            inside = torch.tensordot(self.members, matrix, 2)
            matrix = matrix - torch.tensordot(inside, self.members, 1)
            if float(matrix.norm()) <= 1e-12:
                return False
        matrix = matrix / matrix.norm()
        m, noise = len(self.L), self.moment.noise(matrix)
        self._held[0, m], self._held[1, m] = matrix, noise
        held = self._held[0, : m + 1]
        self.L = _bordered(self.L, torch.tensordot(held, self.sums * matrix, 2))
        self.Q = _bordered(self.Q, torch.tensordot(held, self.products * matrix + noise, 2))
        return True

    def _add_axis(self, rate: float) -> None:
        """The axis that grows most alone: exact where axes do not mix."""
        alone = (1 - rate * self.moment.eigenvalues).square()
        k = int((alone + rate**2 * self.moment.axis_noise()).argmax())
        axis = torch.zeros_like(self.sums)
        axis[k, k] = 1
        self._add(axis)

    def _shrink(self, eta: float) -> None:
        """The best Ritz matrices at this rate, and the newest member."""
        vectors = torch.linalg.eigh(eta**2 * self.Q - eta * self.L)[1]
        newest = torch.zeros_like(vectors[:1])
        newest[0, -1] = 1
        keep = torch.linalg.qr(torch.cat([newest, vectors[:, -_KEPT:].T]).T)[0].T
        self._held[:, : len(keep)] = torch.einsum(
            "km,smab->skab", keep, self._held[:, : len(self.L)]
        )
        self.L, self.Q = keep @ self.L @ keep.T, keep @ self.Q @ keep.T


def _bordered(matrix: Tensor, row: Tensor) -> Tensor:
    """A symmetric (m, m) matrix with one more row and column (m + 1,)."""
    out = row.new_zeros(len(row), len(row))
    out[:-1, :-1] = matrix
    out[-1], out[:, -1] = row, row
    return out
