"""The losses of a sample's outputs, with their first two derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Loss(NamedTuple):
    """ℓ(f, y), ∂ℓ/∂f, ∂²ℓ/∂f² and L with LLᵀ = ∂²ℓ/∂f².

    The first three are elementwise for a loss of one output; for "cross_entropy", with f (n, C) and
    class numbers y (n,), they are (n,), (n, C) and (n, C, C). L takes f (n, C) and checks y: it is
    (n, C, C), or None where it is the identity.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    curvature: Callable[[Tensor, Tensor], Tensor]
    curvature_root: Callable[[Tensor, Tensor], Tensor | None]


def _logistic_curvature(f: Tensor, y: Tensor) -> Tensor:
    return torch.sigmoid(f) * torch.sigmoid(-f)


def _logistic_root(f: Tensor, y: Tensor) -> Tensor:
    if f.shape[1] != 1 or not bool((y.abs() == 1).all()):
        raise ValueError("targets must be ±1 and the model's output scalar for loss 'logistic'")
    return _logistic_curvature(f, y).sqrt()[:, :, None]


def _cross_entropy_curvature(f: Tensor, y: Tensor) -> Tensor:
    p = f.softmax(dim=1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def _cross_entropy_root(f: Tensor, y: Tensor) -> Tensor:
    c = f.shape[1]
    if y.is_floating_point() or bool(((y < 0) | (y >= c)).any()):
        raise ValueError(f"targets must be class numbers in [0, {c}) for loss 'cross_entropy'")
    # (diag √p − p√pᵀ)(diag √p − p√pᵀ)ᵀ = diag p − ppᵀ because Σp = 1.
    p = f.softmax(dim=1)
    return torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]


LOSSES = {
    "squared": Loss(
        value=lambda f, y: 0.5 * (f - y).square(),
        slope=lambda f, y: f - y,
        curvature=lambda f, y: torch.ones_like(f),
        curvature_root=lambda f, y: None,
    ),
    "logistic": Loss(
        value=lambda f, y: F.softplus(-y * f),
        slope=lambda f, y: -y * torch.sigmoid(-y * f),
        curvature=_logistic_curvature,
        curvature_root=_logistic_root,
    ),
    "cross_entropy": Loss(
        value=lambda f, y: F.cross_entropy(f, y, reduction="none"),
        slope=lambda f, y: f.softmax(dim=1) - F.one_hot(y, f.shape[1]),
        curvature=_cross_entropy_curvature,
        curvature_root=_cross_entropy_root,
    ),
}
_SCALAR = {name: LOSSES[name] for name in ("logistic", "squared")}


def loss_of(name: str, among: dict[str, Loss] = LOSSES) -> Loss:
    """The loss of that name; ValueError for any other name."""
    if name not in among:
        raise ValueError(f"loss must be one of {sorted(among)}, got {name!r}")
    return among[name]


def scalar_loss(name: str) -> Loss:
    """½(f−y)² for "squared", log(1+e^{−yf}) for "logistic"; ValueError for any other name."""
    return loss_of(name, _SCALAR)
