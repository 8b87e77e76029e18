"""The losses of one output on labels in ±1, with their first two derivatives."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Loss(NamedTuple):
    """ℓ(f, y), ∂ℓ/∂f and ∂²ℓ/∂f², elementwise."""

    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    curvature: Callable[[Tensor, Tensor], Tensor]


_LOSSES = {
    "squared": Loss(
        value=lambda f, y: 0.5 * (f - y).square(),
        slope=lambda f, y: f - y,
        curvature=lambda f, y: torch.ones_like(f),
    ),
    "logistic": Loss(
        value=lambda f, y: F.softplus(-y * f),
        slope=lambda f, y: -y * torch.sigmoid(-y * f),
        curvature=lambda f, y: torch.sigmoid(f) * torch.sigmoid(-f),
    ),
}


def scalar_loss(name: str) -> Loss:
    """½(f−y)² for "squared", log(1+e^{−yf}) for "logistic"; ValueError for any other name."""
    if name not in _LOSSES:
        raise ValueError(f"loss must be one of {sorted(_LOSSES)}, got {name!r}")
    return _LOSSES[name]


LOSSES = ("squared", "logistic", "cross_entropy")


def _loss_hessian_root(outputs: Tensor, targets: Tensor, loss: str) -> Tensor | None:
    """L_i with L_i L_iᵀ = Λ_i = ∂²ℓ_i/∂f², (n, C, C); None where Λ is the identity."""
    if loss == "squared":
        return None
    if loss == "logistic":
        if outputs.shape[1] != 1 or not bool((targets.abs() == 1).all()):
            raise ValueError("targets must be ±1 and the model's output scalar for loss 'logistic'")
        p = torch.sigmoid(outputs)
        return (p * (1 - p)).sqrt()[:, :, None]
    if loss == "cross_entropy":
        c = outputs.shape[1]
        if targets.is_floating_point() or bool(((targets < 0) | (targets >= c)).any()):
            raise ValueError(f"targets must be class numbers in [0, {c}) for loss 'cross_entropy'")
        # (diag √p − p√pᵀ)(diag √p − p√pᵀ)ᵀ = diag p − ppᵀ because Σp = 1.
        p = outputs.softmax(dim=1)
        return torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
    raise ValueError(f"loss must be one of {LOSSES}, got {loss!r}")
