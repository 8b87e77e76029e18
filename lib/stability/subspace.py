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
        self.members = self.noises = torch.empty(0, *self.sums.shape).to(lam)
        self._add(torch.ones_like(lam).diag())

    def reaching(self, target: float, beyond: float) -> float:
        """The η in (0, beyond) with ρ(T_η) = target > 1; RuntimeError if no pass settles it."""
        self._add_axis(beyond)
        return self._solve(target, beyond)[0]

    def growth(self, rate: float) -> float:
        """ρ(T) at this rate; RuntimeError, with the residual, if no pass settles it."""
        self._add_axis(rate)
        return self._solve(None, rate)[1]

    def _solve(self, target: float | None, rate: float) -> tuple[float, float]:
        """(η, ρ(T_η)): at `rate`, or where ρ is the target on the way up to `rate`."""
        for _ in range(_PASSES):
            L, Q = self._projected(self.sums), self._projected(self.products, self.noises)

            def top(eta: float, L: Tensor = L, Q: Tensor = Q) -> tuple[Tensor, Tensor]:
                values, vectors = torch.linalg.eigh(torch.eye(len(L)).to(L) - eta * L + eta**2 * Q)
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
                self._shrink(eta, L, Q)
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
        self.members = torch.cat([self.members, matrix[None]])
        self.noises = torch.cat([self.noises, self.moment.noise(matrix)[None]])
        return True

    def _add_axis(self, rate: float) -> None:
        """The axis that grows most alone: exact where axes do not mix."""
        alone = (1 - rate * self.moment.eigenvalues).square()
        k = int((alone + rate**2 * self.moment.axis_noise()).argmax())
        axis = torch.zeros_like(self.sums)
        axis[k, k] = 1
        self._add(axis)

    def _projected(self, factor: Tensor, more: Tensor | None = None) -> Tensor:
        flat = self.members.flatten(1)
        image = self.members * factor if more is None else self.members * factor + more
        out = flat @ image.flatten(1).T
        return (out + out.T) / 2

    def _shrink(self, eta: float, L: Tensor, Q: Tensor) -> None:
        """The best Ritz matrices at this rate, and the newest member."""
        vectors = torch.linalg.eigh(eta**2 * Q - eta * L)[1]
        best = torch.nn.functional.pad(vectors[:, -_KEPT:].T, (0, 1))
        last = torch.zeros_like(best[:1])
        last[0, -1] = 1
        keep = torch.cat([best, last])
        self.members = torch.tensordot(keep, self.members, 1)
        self.noises = torch.tensordot(keep, self.noises, 1)
