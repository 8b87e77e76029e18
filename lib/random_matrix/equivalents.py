"""The noise-driven threshold of Gaussian curvature in the proportional limit.

Setting: H_i = h_i h_iᵀ, h_i ~ N(0, I_p), p → ∞ with c_r = p/n_r, c_f = p/n_f and the batch
fractions b_c = B_c/n_c fixed. Sampling with replacement has variance weight 1/b where the other
schemes have 1/b − 1. The terms s_c H_c N H_c of the second-moment operator are of order 1/n and
drop out.

By thm-noise-gain, SGD is mean-square stable iff ρ(G) < 1. Each row sum of G over a set
concentrates, so in the limit ρ(G) is the spectral radius of the 2×2 matrix of mean row sums,

    g_cc' = η ω_c'² (1/b_c' − 1) c_c' ∬ K(s, t) dν_cc'(s, t),    K = 1/(s + t − η s t),

where ν_cc' is the limit of (1/p) Σ_ab (W_c)_ab (W_c')_ab δ_(λ_a, λ_b) in A's eigenbasis. Leaving
one sample out (Sherman–Morrison) gives its double Stieltjes transform,
(1/p) tr W_c R(z) W_c' R(z'), as

    F_cc'(z, z') = Γ / (d_c d_c'(z) · d_c d_c'(z')) + 1[c = c'] c_c u_c(z) u_c(z'),
    Γ = (g(z) − g(z'))/(z' − z),  d_r = 1 − (1−α)c_r g,  d_f = 1 + αc_f g,  u_c = g/d_c,

g the Stieltjes transform of A. The proof is in the chapter "Random matrices".
"""

import math
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from torch import Tensor

from lib.checks import (
    require_above,
    require_bool,
    require_kind,
    require_nonnegative,
    require_share,
)
from lib.random_matrix.free_difference import FreeDifference, spectrum_edges, support

SMALLEST_TOLERANCE = 1e-12  # of the quadrature, relative
SMALLEST_FRACTION = 1e-12  # of a set that a batch holds


@dataclass(frozen=True)
class ProportionalLimit:
    """Ascent–descent on Gaussian curvature as p → ∞: ratios c = p/n and batch fractions b = B/n.

    `damping` is λ in units of the noise variance. Raises ValueError for mixing outside [0, 1], a
    ratio not a finite number > 0, a batch fraction outside (0, 1] or damping not ≥ 0.
    """

    mixing: float
    retain_ratio: float
    forget_ratio: float
    retain_fraction: float
    forget_fraction: float
    damping: float = 0.0
    with_replacement: bool = False

    def __post_init__(self) -> None:
        law = FreeDifference(self.mixing, self.retain_ratio, self.forget_ratio)
        checked: dict[str, float] = {**vars(law)}
        checked["damping"] = require_nonnegative("damping", self.damping)
        for name in ("retain_fraction", "forget_fraction"):
            checked[name] = require_share(name, getattr(self, name), "(0, 1]")
            if checked[name] < SMALLEST_FRACTION:
                raise ValueError(
                    f"{name} must be at least {SMALLEST_FRACTION}, got {checked[name]}"
                )
        checked["with_replacement"] = require_bool("with_replacement", self.with_replacement)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def law(self) -> FreeDifference:
        """The limit spectrum of A − λI."""
        return FreeDifference(self.mixing, self.retain_ratio, self.forget_ratio)

    @property
    def edges(self) -> tuple[float, float]:
        """Lowest and highest eigenvalue of A = (1−α)W_r − αW_f + λI in the limit."""
        lower, upper = spectrum_edges(self.mixing, self.retain_ratio, self.forget_ratio)
        return lower + self.damping, upper + self.damping

    @property
    def noise_weights(self) -> tuple[float, float]:
        """lim v_c n_c p for the retain and the forget set: ω_c² (1/b_c − 1) c_c."""
        kept = 0.0 if self.with_replacement else 1.0
        a_r, a_f = self.law.weights
        return (
            a_r**2 * (1 / self.retain_fraction - kept) * self.retain_ratio,
            a_f**2 * (1 / self.forget_fraction - kept) * self.forget_ratio,
        )


def gain_matrix(limit: ProportionalLimit, learning_rate: float, tolerance: float = 1e-8) -> Tensor:
    """g_cc', the limit of Σ_{j∈c'} G_ij for a sample i of set c: rows and columns (retain, forget).

    Dimensionless, per step; shape (2, 2), float64. One integral is done in closed form (K is a
    Cauchy kernel in s, so it evaluates F at ζ = −t/(1−ηt), outside the support), the other by
    Gauss–Chebyshev quadrature over the support, doubled until two levels agree to `tolerance`.
    Raises ValueError unless A ≻ 0 in the limit and 0 < learning_rate < 2/λ_max(A);
    ArithmeticError, with the residual, when the quadrature does not settle.
    """
    require_kind("limit", limit, ProportionalLimit)
    learning_rate = require_nonnegative("learning_rate", learning_rate)
    if require_above("tolerance", tolerance, 0) < SMALLEST_TOLERANCE:
        raise ValueError(f"tolerance must be at least {SMALLEST_TOLERANCE}, got {tolerance!r}")
    lower, upper = limit.edges
    if lower <= 0:
        raise ValueError(
            f"mixing must keep A's lower edge > 0, got {limit.mixing} with lower edge {lower}"
        )
    if not 0 < learning_rate < 2 / upper:
        raise ValueError(
            f"learning_rate must lie in (0, {2 / upper}) = (0, 2/lambda_max), got {learning_rate}"
        )
    previous, residual = _gain(limit, learning_rate, 32), math.inf
    for level in range(6, 18):
        current = _gain(limit, learning_rate, 2**level)
        residual = float((current - previous).abs().max() / current.abs().max().clamp(min=1e-300))
        if residual <= tolerance:
            return current
        previous = current
    raise ArithmeticError(f"gain_matrix: quadrature residual {residual} above {tolerance}")


def _gain(limit: ProportionalLimit, eta: float, nodes: int) -> Tensor:
    """The 2×2 gain with `nodes` Gauss–Chebyshev nodes on each interval of the support."""
    angle = (torch.arange(nodes, dtype=torch.float64, device="cpu") + 0.5) * math.pi / nodes
    total = torch.zeros_like(angle[:4]).view(2, 2)
    for low, high in support(limit.mixing, limit.retain_ratio, limit.forget_ratio):
        half = (high - low) / 2
        t = low + limit.damping + half * (1 + torch.cos(angle))
        weight = half * torch.sin(angle) / nodes  # dt/π
        total += (_double_transform(limit, eta, t).imag * weight).sum(dim=-1)
    return eta * total * total.new_tensor(limit.noise_weights)


def _double_transform(limit: ProportionalLimit, eta: float, t: Tensor) -> Tensor:
    """F_cc'(ζ, t + i0)/(1 − ηt), ζ = −t/(1 − ηt), at points t of A's spectrum; (2, 2, len(t))."""
    x, y = limit.law.poles
    # At ηt = 1 the point ζ is infinite and the value finite: a step of 1e-12 aside does no harm.
    near_one = torch.where((1 - eta * t).abs() < 1e-12, 1e-12, 1 - eta * t)
    g = [1 / limit.law.reciprocal_transform(z - limit.damping) for z in (-t / near_one, t)]
    d = torch.stack([torch.stack([1 - x * value, 1 + y * value]) for value in g])  # (point, set, t)
    product = d.prod(dim=0)
    # Γ/(1−ηt), with z' − z = t − ζ = t(2 − ηt)/(1 − ηt)
    difference = (g[0] - g[1]) / (t * (2 - eta * t))
    transform = difference / (product[:, None] * product[None, :])
    ratios = t.new_tensor([limit.retain_ratio, limit.forget_ratio])
    own = ratios[:, None] * g[0] * g[1] / product / near_one
    return transform + torch.diag_embed(own.T).permute(1, 2, 0)


def limiting_learning_rate(limit: ProportionalLimit) -> float:
    """lim η*: the critical learning rate of SGD on Gaussian curvature as p → ∞.

    The root of ρ(g(η)) = 1 (equivalently (1−g_rr)(1−g_ff) = g_rf g_fr), g of `gain_matrix`, or
    2/λ_max(A) where noise alone does not reach it; 0.0 if A has negative spectrum in the limit.
    Units: inverse curvature, one step. Every entry of g rises in η, so the root is unique.
    The finite-p gap is O(1/p), measured in the book; it is not a bound at finite p.
    """
    require_kind("limit", limit, ProportionalLimit)
    lower, upper = limit.edges
    if lower <= 0:
        return 0.0
    edge = 2 / upper

    def margin(eta: float) -> float:
        return float(torch.linalg.eigvals(gain_matrix(limit, eta)).abs().max()) - 1.0

    if max(limit.noise_weights) == 0:
        return edge
    last = edge * (1 - 1e-2)
    if margin(last) <= 0 and margin(last := edge * (1 - 1e-6)) <= 0:
        return edge
    first = edge
    while margin(first := first / 8) > 0:
        last = first
    return float(brentq(margin, first, min(last, first * 8 * (1 - 1e-6)), rtol=1e-9))
