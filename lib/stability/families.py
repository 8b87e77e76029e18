"""Random data of chosen coherence: gradients that share a direction within and between the sets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lib.checks import (
    LARGEST,
    require_batch,
    require_count,
    require_kind,
    require_nonnegative,
    require_numbers,
    require_room,
    require_seed,
    require_share,
    shown,
)
from lib.stability.curvature import Curvature

LARGEST_FAMILY = 4096  # samples of a generated curvature


def angled_family(
    n_retain: int,
    n_forget: int,
    dim: int,
    *,
    strength: float,
    angle: float | Tensor,
    seed: int,
) -> Curvature:
    """H_i = h_ih_iᵀ with h_i = √s·v + √((1−s)/d)·ξ_i, ξ_i ~ N(0, I_d), so E‖h_i‖² = 1.

    The shared direction v is e_1 for retain samples and cos θ·e_1 + sin θ·e_2 for forget samples:
    `strength` s sets the coherence within either set, `angle` θ that between them. Retain samples
    come first.

    Args:
        n_retain, n_forget: n_r, n_f ≥ 1.
        dim: d ≥ 2, dimension of parameter space.
        strength: s ∈ [0, 1], share of a gradient's energy along the shared direction.
        angle: θ in radians, one for the forget set or (n_forget,).
        seed: of the ξ_i.

    Raises:
        ValueError: naming the argument, its value and the allowed range.
    """
    dim = require_count("dim", dim, 2)
    strength = require_share("strength", strength)
    noise, forget = _standard_normal(n_retain, n_forget, dim, seed)
    theta = require_numbers("angle", angle, n_forget)
    gradients = math.sqrt((1 - strength) / dim) * noise
    gradients[:n_retain, 0] += math.sqrt(strength)
    gradients[n_retain:, 0] += math.sqrt(strength) * theta.cos()
    gradients[n_retain:, 1] += math.sqrt(strength) * theta.sin()
    return Curvature.from_gram(gradients @ gradients.T, forget)


def _set_sizes(n_retain: int, n_forget: int) -> tuple[int, int]:
    """Sizes of two sets ≥ 1; ValueError beyond 4,096 samples, whose Gram matrix takes a minute."""
    sizes = [require_count("n_retain", n_retain, 1), require_count("n_forget", n_forget, 1)]
    if sum(sizes) > LARGEST_FAMILY:
        raise ValueError(
            f"n_retain and n_forget must add up to at most {LARGEST_FAMILY}, got {sizes}"
        )
    return sizes[0], sizes[1]


def _standard_normal(n_retain: int, n_forget: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Standard normal rows (n, dim), and which of them are forgotten, (n,) bool: the last ones."""
    n_retain, n_forget = _set_sizes(n_retain, n_forget)
    dim, n = require_count("dim", dim, 1), n_retain + n_forget
    require_room("dim", n, dim)
    # No `stream`: published examples name their seeds.
    generator = torch.Generator().manual_seed(require_seed(seed))
    noise = torch.randn(n, dim, generator=generator, dtype=torch.float64, device="cpu")
    return noise, torch.arange(n, device="cpu") >= n_retain


_PER_AXIS = ("retain_group", "forget_group", "retain_sharpness", "forget_sharpness")


_ALIKE = 1e-9  # to which directions and curvatures of an axis agree


@dataclass(frozen=True, eq=False)
class AxisFamily:
    """Two sets of samples, each sample curving along one axis or not at all.

    H_c = diag(sharpness of set c): on axis a `group[a]` samples of the set carry the mean sharpness
    λ_c,a together, with curvature n_c λ_c,a / group[a] each; the set's other samples are flat. With
    every sample in a group of equal size this is the grouped family of book, thm-two-sided.

    Attributes:
        n_retain, n_forget: sizes of the sets ≥ 1, flat samples included.
        retain_group, forget_group: (q,) integers ≥ 0, samples on each axis.
        retain_sharpness, forget_sharpness: (q,) λ_c,a ≥ 0; zero where the group is empty.

    Raises:
        ValueError: naming the attribute, its value and the allowed range.
    """

    n_retain: int
    n_forget: int
    retain_group: np.ndarray
    forget_group: np.ndarray
    retain_sharpness: np.ndarray
    forget_sharpness: np.ndarray

    def __post_init__(self) -> None:
        for name in ("retain", "forget"):
            n = require_count(f"n_{name}", getattr(self, f"n_{name}"), 1)
            group = np.asarray(getattr(self, f"{name}_group"))
            sharpness = _sharpness(name, getattr(self, f"{name}_sharpness"))
            object.__setattr__(self, f"{name}_group", group)
            object.__setattr__(self, f"{name}_sharpness", sharpness)
            _require_groups(name, group, sharpness, n)
        if self.retain_group.shape != self.forget_group.shape:
            raise ValueError(
                "forget_group must have as many axes as retain_group, "
                f"got {self.forget_group.shape} and {self.retain_group.shape}"
            )

    def curvatures(self) -> tuple[np.ndarray, np.ndarray]:
        """Curvature of one sample on each axis, retain and forget, (q,) each; 0 where none is."""
        return (
            self.n_retain * self.retain_sharpness / np.maximum(self.retain_group, 1),
            self.n_forget * self.forget_sharpness / np.maximum(self.forget_group, 1),
        )

    def on_axes(self, axes: np.ndarray) -> AxisFamily:
        """The same samples, their curvature along the other axes left out; index or mask `axes`."""
        return replace(self, **{name: getattr(self, name)[axes] for name in _PER_AXIS})


def distinct_axes(family: AxisFamily) -> list[AxisFamily]:
    """One family with a single axis for every kind of axis there is."""
    columns = [getattr(family, name) for name in _PER_AXIS]
    _, first = np.unique(np.stack(columns), axis=1, return_index=True)
    return [family.on_axes(first[k : k + 1]) for k in range(len(first))]


def _sharpness(name: str, values: object) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name}_sharpness must be numbers, got {shown(values)}") from None


def _require_groups(name: str, group: np.ndarray, sharpness: np.ndarray, n: int) -> None:
    if group.ndim != 1 or not len(group) or not np.issubdtype(group.dtype, np.integer):
        raise ValueError(f"{name}_group must be integers of shape (q,), got {group!r}")
    if np.any(group < 0) or group.sum() > n:
        raise ValueError(
            f"{name}_group must be ≥ 0 with a sum of at most n_{name} = {n}, got {group!r}"
        )
    if sharpness.shape != group.shape or not np.all((sharpness >= 0) & (sharpness <= LARGEST)):
        raise ValueError(
            f"{name}_sharpness must be finite numbers in [0, {LARGEST:g}], one per axis, "
            f"got {sharpness!r}"
        )
    if np.any((sharpness > 0) & (group == 0)):
        raise ValueError(f"{name}_sharpness must be 0 on axes without {name} samples")


def gaussian_curvature(
    n_retain: int, n_forget: int, dim: int, *, alignment: float = 0.0, seed: int = 0
) -> Curvature:
    """H_i = h_ih_iᵀ with h_i = √a u + √(1−a) ξ_i, ξ_i ~ N(0, I/dim) and u one unit vector.

    The mean-square length of h_i is 1 at every alignment; samples go from nearly orthogonal at
    a = 0 (in high dimension) to parallel at a → 1, within the sets and between them alike. Forget
    samples stand last.

    Args:
        n_retain, n_forget: sizes of the two sets, each ≥ 1.
        dim: number of parameters p ≥ 1.
        alignment: a ∈ [0, 1), share of a sample's curvature along the shared direction.
        seed: of the draw; the same ξ_i at every alignment.

    Raises:
        ValueError: naming the argument that is out of range.
    """
    alignment = require_share("alignment", alignment, "[0, 1)")
    noise, forget = _standard_normal(n_retain, n_forget, dim, seed)
    h = (1 - alignment) ** 0.5 * (noise / dim**0.5)
    h[:, 0] += alignment**0.5
    return Curvature.from_gram(h @ h.T, forget)


def grouped_family(
    n_retain: int,
    n_forget: int,
    retain_group: int,
    forget_group: int,
    retain_sharpness: float,
    forget_sharpness: float,
) -> Curvature:
    """H_i = (n_c λ_c/σ_c) e_g e_gᵀ for the σ_c samples of group g: the family on which bounds meet.

    Samples of a set fill its groups in order, retain samples first; group g of either set curves
    along the axis e_g. So H_c has the sharpness λ_c on every axis that a full group of set c
    curves, and the coherence of set c is σ_c exactly. Where σ_c does not divide n_c the last group
    has fewer samples of the same curvature, hence a sharpness below λ_c on its axis.

    Args:
        n_retain, n_forget: n_r, n_f ≥ 1.
        retain_group, forget_group: group sizes σ_r ∈ [1, n_r], σ_f ∈ [1, n_f].
        retain_sharpness, forget_sharpness: λ_r, λ_f ≥ 0, not both zero; per axis, of the set's mean
            loss.

    Raises:
        ValueError: naming the argument, its value and the allowed range.

    Source: book, thm-two-sided; with one set, Dexter et al. (ICLR 2024).
    """
    n_retain, n_forget = _set_sizes(n_retain, n_forget)
    retain = _grouped_factors("retain", n_retain, retain_group, retain_sharpness)
    forget = _grouped_factors("forget", n_forget, forget_group, forget_sharpness)
    if retain_sharpness == forget_sharpness == 0:
        raise ValueError("retain_sharpness and forget_sharpness must not both be 0")
    q = max(retain.shape[1], forget.shape[1])
    factors = torch.zeros(n_retain + n_forget, q, 1, dtype=torch.float64, device="cpu")
    factors[:n_retain, : retain.shape[1], 0] = retain
    factors[n_retain:, : forget.shape[1], 0] = forget
    return Curvature(factors, torch.arange(len(factors), device="cpu") >= n_retain)


def _grouped_factors(name: str, n: int, group: int, sharpness: float) -> Tensor:
    """√(nλ/σ) e_g for each of one set's samples, (n, number of axes the set curves)."""
    require_count(f"{name}_group", group, 1)
    group = require_batch(f"{name}_group", group, n)
    sharpness = require_nonnegative(f"{name}_sharpness", sharpness)
    axes = torch.arange(n, device="cpu") // group
    height = (n * sharpness / group) ** 0.5
    count = int(axes[-1]) + 1 if sharpness else 0
    return height * (axes[:, None] == torch.arange(count, device="cpu")).double()


def axis_family(curvature: Curvature) -> AxisFamily:
    """The `AxisFamily` behind a curvature whose samples curve parallel or orthogonal directions.

    The axes need not be those of the coordinates; they come in the order of their first samples.

    Raises:
        ValueError: if a sample curves along two directions, two samples along directions neither
            parallel nor orthogonal, or two of one set along one axis by different amounts, all to
            one part in 10⁹.
    """
    require_kind("curvature", curvature, Curvature)
    left, values, _ = torch.linalg.svd(curvature.factors, full_matrices=False)
    curved = values[:, 0] > _ALIKE * values.max()
    cosines = (left[curved, :, 0] @ left[curved, :, 0].T).abs()
    mixed = (cosines > _ALIKE) & (cosines < 1 - _ALIKE)
    if bool((values[:, 1:] > _ALIKE * values[:, :1]).any()) or bool(mixed.any()):
        raise ValueError("curvature must have each sample on one axis, got one on more")
    _, axis = torch.unique((cosines > 0.5).int().argmax(dim=1), return_inverse=True)
    on_axis = torch.nn.functional.one_hot(axis).bool().cpu().numpy()  # (curved samples, axes)
    sharpness, forget = values[curved, 0].square().cpu().numpy(), curvature.forget.cpu().numpy()
    columns: dict[str, np.ndarray] = {}
    for name, members in (("retain", ~forget), ("forget", forget)):
        chosen = members[curved.cpu().numpy()]
        there, height = on_axis[chosen], sharpness[chosen, None]
        top = (there * height).max(axis=0, initial=0.0)
        if not np.allclose(np.where(there, height, top), top, rtol=_ALIKE, atol=0):
            raise ValueError("curvature must be equal within a set's group, got several values")
        columns[f"{name}_group"] = there.sum(axis=0)
        columns[f"{name}_sharpness"] = top * there.sum(axis=0) / members.sum()
    return AxisFamily(curvature.n_retain, curvature.n_forget, **columns)
