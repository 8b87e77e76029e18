"""The null model: the spectrum of (1−α)W_r − αW_f when curvature is pure noise.

W_c = (1/n_c) Σ_i h_i h_iᵀ with h_i ~ N(0, I_p), and ratio c = p/n. As p → ∞ at fixed ratios the two
Wishart matrices are asymptotically free, so the spectrum of A = (1−α)W_r − αW_f converges to the
free difference of two Marchenko–Pastur laws. With G the Stieltjes transform, G(z) = ∫ dμ(t)/(z−t),
everything here is read off one rational function of w = 1/G:

    z(w) = w + a_r w/(w − x) − a_f w/(w + y),   a_r = 1−α, a_f = α, x = a_r c_r, y = a_f c_f.

Source: Marchenko and Pastur (1967); Voiculescu's R-transform (R(g) = a/(1 − a c g) for a Wishart
matrix times a); Silverstein and Choi (1995) for reading edges off the inverse function. Formulas
are derived in the chapter "Random matrices".
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from lib.checks import (
    is_finite,
    require_above,
    require_finite,
    require_kind,
    require_nonnegative,
    shown,
)

_RELATIVE = 4 * float(np.finfo(float).eps)
_TINY = 1e-300


LARGEST_RATIO = 1e12  # of p/n and of its inverse: beyond, the spectrum's parts differ by rounding


def require_ratio(name: str, value: float) -> float:
    """The ratio p/n; ValueError unless it is a finite number > 0, in [1e-12, 1e12]."""
    return require_above(name, value, 0, LARGEST_RATIO)


@dataclass(frozen=True)
class FreeDifference:
    """The limit law of (1−α)W_r − αW_f, through z(w) and its derivative (w = 1/G(z)).

    Raises ValueError for mixing outside [0, 1] or a ratio that is not a finite number > 0.
    """

    mixing: float
    retain_ratio: float
    forget_ratio: float

    def __post_init__(self) -> None:
        if not (is_finite(self.mixing) and 0 <= self.mixing <= 1):
            raise ValueError(f"mixing must lie in [0, 1], got {shown(self.mixing)}")
        object.__setattr__(self, "mixing", float(self.mixing))
        for name in ("retain_ratio", "forget_ratio"):
            object.__setattr__(self, name, require_ratio(name, getattr(self, name)))

    @property
    def weights(self) -> tuple[float, float]:
        """(a_r, a_f) = (1−α, α)."""
        return 1.0 - self.mixing, self.mixing

    @property
    def poles(self) -> tuple[float, float]:
        """(x, y) = ((1−α)c_r, αc_f): z(w) has poles at w = x and w = −y."""
        return (1.0 - self.mixing) * self.retain_ratio, self.mixing * self.forget_ratio

    @property
    def atom(self) -> float:
        """Mass at zero, max(0, 1 − rank/p): the ranks of both sets add, unless its weight is 0."""
        rank = (self.mixing < 1) / self.retain_ratio + (self.mixing > 0) / self.forget_ratio
        return max(0.0, 1.0 - rank)

    def slope(self, w: Tensor) -> Tensor:
        """dz/dw = 1 − a_r x/(w−x)² − a_f y/(w+y)²; off the support, w = 1/G(z) is where it is >
        0.
        """
        (a_r, a_f), (x, y) = self.weights, self.poles
        total = torch.ones_like(w)
        if x > 0:
            total = total - a_r * x / (w - x) ** 2
        return total - a_f * y / (w + y) ** 2 if y > 0 else total

    @property
    def reaches(self) -> tuple[float, float]:
        """(√(a_r x), √(a_f y)): how far from its pole each term alone would put an edge."""
        (a_r, a_f), (x, y) = self.weights, self.poles
        return math.sqrt(a_r * x), math.sqrt(a_f * y)

    def outer_points(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The lower and the upper edge, each as (w − x, w + y), which keeps small distances
        exact.
        """
        (x, y), (r, f) = self.poles, self.reaches
        # Beyond a pole: at t = r the first term alone is 1, at t = r + f the sum is at most 1.
        low = _offset(f, r, f, r + f, x + y, 1) if f > 0 else r - x
        up = _offset(r, f, r, r + f, x + y, 1) if r > 0 else f - y
        return (-low - x - y, -low), (up, up + x + y)

    def point(self, from_x: float, from_y: float) -> float:
        """z(w) for w given by its distances (w − x, w + y) from the poles."""
        (a_r, a_f), (x, y) = self.weights, self.poles
        w = x + from_x if abs(from_x) < abs(from_y) else from_y - y
        return w + (a_r * w / from_x if x > 0 else a_r) - (a_f * w / from_y if y > 0 else a_f)

    def reciprocal_transform(self, points: Tensor) -> Tensor:
        """w(t) = 1/G(t + i0) at real t, complex128: Im w > 0 inside the support, real outside.

        The roots of z(w) = t are those of a real monic cubic (a quadratic when the mixing is 0 or
        1). No branch has to be followed: inside the support the root is the one with Im w > 0, and
        outside it is the only real root where dz/dw > 0.
        """
        roots = torch.linalg.eigvals(self._companion(points.to(torch.float64)))
        score = torch.where(roots.imag == 0, self.slope(roots.real), roots.imag)
        inside = (roots.imag != 0).any(dim=-1, keepdim=True)
        score = torch.where(inside & (roots.imag <= 0), -torch.inf, score)
        score = torch.nan_to_num(score, nan=-torch.inf, neginf=-torch.inf)
        return roots.gather(-1, score.argmax(dim=-1, keepdim=True)).squeeze(-1)

    def _companion(self, t: Tensor) -> Tensor:
        """Companion matrices, (..., k, k), of the polynomial of degree k in w with roots z(w) =
        t.
        """
        (a_r, a_f), (x, y) = self.weights, self.poles
        square = y - x + a_r - a_f - t
        if x == 0 or y == 0:
            coefficients = [square, t * (x - y)]
        else:
            linear = a_r * y + a_f * x - x * y - t * (y - x)
            coefficients = [square, linear, t * x * y]
        size = len(coefficients)
        matrix = torch.zeros(*t.shape, size, size, dtype=t.dtype, device=t.device)
        matrix[..., 0, :] = -torch.stack(coefficients, dim=-1)
        matrix[..., range(1, size), range(size - 1)] = 1.0
        return matrix


def _offset(near: float, far: float, start: float, stop: float, gap: float, sign: int) -> float:
    """The distance t ∈ [start, stop] from a pole with near²/t² + far²/(gap + sign·t)² = 1."""

    def residual(t: float) -> float:
        return (near / t) ** 2 + (far / (gap + sign * t)) ** 2 - 1.0

    return float(brentq(residual, start, stop, xtol=_TINY, rtol=_RELATIVE))


def support(
    mixing: float, retain_ratio: float, forget_ratio: float
) -> tuple[tuple[float, float], ...]:
    """Intervals of the continuous part of the limit spectrum of (1−α)W_r − αW_f, ascending: one or
    two.

    Edges are the critical values of z(w): a_r x/(w−x)² + a_f y/(w+y)² = 1. One solution lies beyond
    each pole; two more lie between the poles, and cut a gap into the support, iff
    ((a_r x)^{1/3} + (a_f y)^{1/3})³ < (x + y)². An atom at zero (`FreeDifference.atom`) is not
    listed.
    Raises ValueError for mixing outside [0, 1] or a ratio that is not a finite number > 0.
    """
    law = FreeDifference(mixing, retain_ratio, forget_ratio)
    if law.mixing in (0, 1):
        return (_wishart_support(mixing, retain_ratio, forget_ratio),)
    (x, y), (r, f) = law.poles, law.reaches
    span, (lower, upper) = x + y, law.outer_points()
    edges = law.point(*lower), law.point(*upper)
    cube_r, cube_f = r ** (2 / 3), f ** (2 / 3)
    if (cube_r + cube_f) ** 3 >= span**2:
        return (edges,)
    # Between the poles the sum is convex, least where the distances are as the cube roots.
    t_r = _offset(r, f, r, span * cube_r / (cube_r + cube_f), span, -1)
    t_f = _offset(f, r, f, span * cube_f / (cube_r + cube_f), span, -1)
    left, right = law.point(t_f - span, t_f), law.point(-t_r, span - t_r)
    return (edges[0], left), (right, edges[1])


def _wishart_support(
    mixing: float, retain_ratio: float, forget_ratio: float
) -> tuple[float, float]:
    """Marchenko–Pastur edges (1 ± √c)² of W_r (mixing 0), or of −W_f (mixing 1)."""
    root = math.sqrt(forget_ratio if mixing else retain_ratio)
    inner, outer = (1.0 - root) ** 2, (1.0 + root) ** 2
    return (-outer, 0.0 - inner) if mixing else (inner, outer)


def spectrum_edges(mixing: float, retain_ratio: float, forget_ratio: float) -> tuple[float, float]:
    """Lowest and highest point of the limit spectrum of (1−α)W_r − αW_f, an atom at zero included.

    Ratios are c = p/n. The support may have a gap in between: see `support`.
    Raises ValueError for mixing outside [0, 1] or a ratio that is not a finite number > 0.
    """
    intervals = support(mixing, retain_ratio, forget_ratio)
    lower, upper = intervals[0][0], intervals[-1][1]
    if FreeDifference(mixing, retain_ratio, forget_ratio).atom > 0:
        return min(lower, 0.0), max(upper, 0.0)
    return lower, upper


def edge_scales(mixing: float, retain_ratio: float, forget_ratio: float) -> tuple[float, float]:
    """γ at the lower and the upper edge: the extreme eigenvalue is edge ± γ p^{-2/3} TW as p → ∞.

    TW is the Tracy–Widom law for real matrices, β = 1: mean −1.2065, standard deviation 1.268.
    γ = (|d²z/dg²|/2)^{1/3} at the critical g, which is (w⁴|d²z/dw²|/2)^{1/3}. Source: El Karoui
    (2007) and Hachem, Hardy and Najim (2016) for such edges.
    Raises ValueError as `spectrum_edges`, and where the lowest or highest edge is an atom at zero
    or the density's pole there (a set of weight 1 with c ≥ 1), which has no such fluctuations.
    """
    law = FreeDifference(mixing, retain_ratio, forget_ratio)
    if mixing in (0, 1) and (forget_ratio if mixing else retain_ratio) >= 1:
        raise ValueError(
            f"mixing must be inside (0, 1) when the only set has ratio >= 1, got {mixing}"
        )
    (r, f), (x, _) = law.reaches, law.poles

    def scale(from_x: float, from_y: float) -> float:
        curvature = (r**2 / from_x**3 if r else 0.0) + (f**2 / from_y**3 if f else 0.0)
        return float(((x + from_x) ** 4 * abs(curvature)) ** (1 / 3))

    lower, upper = law.outer_points()
    return scale(*lower), scale(*upper)


def spectral_density(
    points: Tensor, mixing: float, retain_ratio: float, forget_ratio: float
) -> Tensor:
    """ρ(t) = −Im G(t + i0)/π of (1−α)W_r − αW_f at `points` (any shape); same shape, dtype and
    device.

    The continuous part only: it integrates to 1 minus the atom at zero (`FreeDifference.atom`),
    which exists when the ranks do not fill the space, 1/c_r + 1/c_f < 1. Exactly 0 outside the
    support; inf where the density has a pole (at zero, when the ranks fill the space exactly).
    Raises ValueError for non-finite points, mixing outside [0, 1] or a ratio not a finite number >
    0.
    """
    law = FreeDifference(mixing, retain_ratio, forget_ratio)
    _check_points(points)
    w = law.reciprocal_transform(points)
    density = torch.where(w.imag > 0, w.imag / (math.pi * w.abs() ** 2), 0.0)
    ranks = (mixing < 1) / retain_ratio + (mixing > 0) / forget_ratio
    if ranks == 1:
        density = torch.where(points == 0, torch.inf, density)
    return density.to(points.dtype)


def spectral_distribution(
    points: Tensor, mixing: float, retain_ratio: float, forget_ratio: float
) -> Tensor:
    """F(t) = limit fraction of eigenvalues of (1−α)W_r − αW_f that are ≤ t, the atom at zero
    included.

    In closed form, no quadrature: ∫G dz is elementary in w, and with w = 1/G(t + i0)

        π(1 − F) = t Im(1/w) + (1 − 1/c_r − 1/c_f) arg w + arg(w − x)/c_r + arg(w + y)/c_f.

    Shape, dtype, device and errors as `spectral_density`.
    """
    law = FreeDifference(mixing, retain_ratio, forget_ratio)
    _check_points(points)
    w = law.reciprocal_transform(points)
    x, y = law.poles
    t = points.to(torch.float64)
    angle = torch.where(w.imag > 0, -t * w.imag / w.abs() ** 2, 0.0)
    coefficient = 1.0
    if x > 0:
        angle = angle + torch.angle(w - x) / retain_ratio
        coefficient -= 1 / retain_ratio
    if y > 0:
        angle = angle + torch.angle(w + y) / forget_ratio
        coefficient -= 1 / forget_ratio
    return (1.0 - (angle + coefficient * torch.angle(w)) / math.pi).to(points.dtype)


def _check_points(points: Tensor) -> None:
    # The answer comes in the points' dtype: integers would cut it.
    require_kind("points", points, Tensor)
    require_finite("points", points, *points.shape)


def forget_condition(retain_ratio: float, forget_ratio: float) -> float:
    """κ = lim λ_max(W_f ; W_r) = ((1 + √(c_r + c_f − c_r c_f))/(1 − c_r))², inf when c_r ≥ 1.

    Largest eigenvalue of an F-matrix W_r^{-1}W_f (Wachter 1980; Bai, Yin and Krishnaiah 1988).
    Raises ValueError for a ratio that is not a finite number > 0.
    """
    retain_ratio = require_ratio("retain_ratio", retain_ratio)
    forget_ratio = require_ratio("forget_ratio", forget_ratio)
    if retain_ratio >= 1:
        return math.inf
    root = math.sqrt(retain_ratio + forget_ratio * (1.0 - retain_ratio))
    return ((1.0 + root) / (1.0 - retain_ratio)) ** 2


def critical_mixing(retain_ratio: float, forget_ratio: float, damping: float = 0.0) -> float:
    """α*: the largest mixing below which A = (1−α)W_r − αW_f + λI is positive definite, as p → ∞.

    λ = 0: α* = 1/(1+κ), κ of `forget_condition`; 0 when c_r ≥ 1 (W_r is then singular and W_f is
    not blind to its kernel). λ > 0 (`damping`, in units of the noise variance): the mixing at
    which the lower edge of the spectrum of (1−α)W_r − αW_f is −λ, or 1 when λ ≥ (1+√c_f)².
    Source: book, thm-limiting-critical-mixing; thm-critical-mixing in the proportional limit.
    Raises ValueError for a ratio that is not a finite number > 0 or damping that is not ≥ 0.
    """
    damping = require_nonnegative("damping", damping)
    condition = forget_condition(retain_ratio, forget_ratio)
    if damping == 0:
        return 1.0 / (1.0 + condition)

    def margin(mixing: float) -> float:
        return spectrum_edges(mixing, retain_ratio, forget_ratio)[0] + damping

    if margin(1.0) >= 0:
        return 1.0
    return float(brentq(margin, 0.0, 1.0, xtol=_TINY, rtol=_RELATIVE))
