"""Per-sample Jacobians of any module, weighted by the root of the loss's curvature."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from lib.stability.losses import _loss_hessian_root


def loss_jacobian(model: torch.nn.Module, inputs: Tensor, targets: Tensor, loss: str) -> Tensor:
    """Rows of Λ_i^{1/2}ᵀ J_i, so that the GGN of sample i is H_i = rows[i].T @ rows[i].

    Args:
        model, inputs, targets, loss: as in `Curvature.from_model`.

    Returns:
        (n, r, p) float64; r the number of outputs, p that of trainable parameters, flattened in the
        order of `model.parameters()`.
    """
    _require_per_sample(model)
    trainable = {k: v.detach() for k, v in model.named_parameters() if v.requires_grad}
    frozen = {k: v.detach() for k, v in model.named_parameters() if not v.requires_grad}
    frozen |= dict(model.named_buffers())

    def output(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, parameters | frozen, (x[None],)).reshape(-1)

    jacobians = vmap(jacrev(output), in_dims=(None, 0))(trainable, inputs)
    jacobian = torch.cat([j.flatten(2) for j in jacobians.values()], dim=2).double()
    with torch.no_grad():
        outputs = vmap(output, in_dims=(None, 0))(trainable, inputs).double()
    root = _loss_hessian_root(outputs, targets, loss)
    return jacobian if root is None else root.transpose(1, 2) @ jacobian


def _require_per_sample(model: torch.nn.Module) -> None:
    coupled = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.dropout._DropoutNd)
    for name, module in _modules(model):
        if module.training and isinstance(module, coupled):
            raise ValueError(f"model must be in eval mode, got {name} in training mode")


def _modules(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    return ((f"{name or 'it'} ({type(m).__name__})", m) for name, m in model.named_modules())
