"""The losses of a sample's outputs, with their first two derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.checks import describe, holds_numbers

# The class number of a token that has no loss, as in torch.nn.functional.cross_entropy.
IGNORED = -100


class Loss(NamedTuple):
    """ℓ(f, y), ∂ℓ/∂f, ∂²ℓ/∂f² and L with LLᵀ = ∂²ℓ/∂f².

    The first three are elementwise for a loss of one output; for "cross_entropy", with f (n, C) and
    class numbers y (n,), they are (n,), (n, C) and (n, C, C). L takes f (n, C) and y: it is
    (n, C, C), zero where y is `IGNORED`, or None where it is the identity.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    curvature: Callable[[Tensor, Tensor], Tensor]
    curvature_root: Callable[[Tensor, Tensor], Tensor | None]


def _logistic_curvature(f: Tensor, y: Tensor) -> Tensor:
    return torch.sigmoid(f) * torch.sigmoid(-f)


def _logistic_root(f: Tensor, y: Tensor) -> Tensor:
    return _logistic_curvature(f, y).sqrt()[:, :, None]


def _cross_entropy_curvature(f: Tensor, y: Tensor) -> Tensor:
    p = f.softmax(dim=1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def _cross_entropy_root(f: Tensor, y: Tensor) -> Tensor:
    # (diag √p − p√pᵀ)(diag √p − p√pᵀ)ᵀ = diag p − ppᵀ because Σp = 1.
    p = f.softmax(dim=1)
    root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
    return root * (y != IGNORED)[:, None, None]


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
    if not isinstance(name, str) or name not in among:
        raise ValueError(f"loss must be one of {sorted(among)}, got {name!r}")
    return among[name]


def require_targets(name: str, targets: Tensor, n: int, tokens: int, classes: int) -> Tensor:
    """Targets that fit n samples of outputs (tokens, classes), one a row: (n·tokens, …).

    Raises:
        ValueError: for an unknown loss, or targets whose shape, type or values do not fit it.
    """
    loss_of(name)
    if not isinstance(targets, Tensor):
        raise ValueError(f"targets must be a tensor, got {type(targets).__name__}")
    if not holds_numbers(targets):
        raise ValueError(f"targets must be a dense tensor of numbers, got {describe(targets)}")
    rows, wanted = (n,) if tokens == 1 else (n, tokens), ""
    if name == "cross_entropy":
        whole = not (targets.is_floating_point() or targets.is_complex())
        known = (
            (targets >= 0) & (targets < classes)
            if whole
            else torch.zeros_like(targets, dtype=torch.bool)
        )
        known |= (targets == IGNORED) if tokens > 1 else False
        if targets.shape != rows or targets.dtype == torch.bool or not bool(known.all()):
            masked = f", or {IGNORED} where a token has no loss" if tokens > 1 else ""
            wanted = f"class numbers in [0, {classes}) of shape {rows}{masked}"
    elif tokens > 1:
        raise ValueError(f"loss must be 'cross_entropy' for outputs (n, tokens, V), got {name!r}")
    elif name == "logistic":
        scalar = classes == 1 and targets.shape in ((n,), (n, 1))
        if not scalar or not bool(((targets == 1) | (targets == -1)).all()):
            wanted = "±1 and the model's output scalar"
    else:
        shapes = ((n,), (n, 1)) if classes == 1 else ((n, classes),)
        if targets.shape not in shapes or not targets.is_floating_point():
            wanted = f"real floating-point values of shape {shapes[-1]}"
        elif not bool(targets.isfinite().all()):
            raise ValueError("targets must be finite, got NaN or infinite entries")
    if wanted:
        raise ValueError(f"targets must be {wanted} for loss {name!r}, got {describe(targets)}")
    return targets.reshape(n * tokens) if name != "squared" else targets.reshape(n, classes)


def scalar_loss(name: str) -> Loss:
    """½(f−y)² for "squared", log(1+e^{−yf}) for "logistic"; ValueError for any other name."""
    return loss_of(name, _SCALAR)
