"""Per-sample Jacobians of any module, weighted by the root of the loss's curvature."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from lib.stability.losses import loss_of


def loss_jacobian(model: torch.nn.Module, inputs: Tensor, targets: Tensor, loss: str) -> Tensor:
    """Rows of Λ_i^{1/2}ᵀ J_i, so that the GGN of sample i is H_i = rows[i].T @ rows[i].

    Args:
        model, inputs, targets, loss: as in `Curvature.from_model`.

    Returns:
        (n, r, p) float64; r the number of outputs, p that of trainable parameters, flattened in the
        order of `model.parameters()`.
    """
    _require_per_sample(model)
    curvature_root = loss_of(loss).curvature_root
    trainable = {k: v.detach() for k, v in model.named_parameters() if v.requires_grad}
    frozen = {k: v.detach() for k, v in model.named_parameters() if not v.requires_grad}
    frozen |= dict(model.named_buffers())

    def output(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, parameters | frozen, (x[None],)).reshape(-1)

    jacobians = vmap(jacrev(output), in_dims=(None, 0))(trainable, inputs)
    jacobian = torch.cat([j.flatten(2) for j in jacobians.values()], dim=2).double()
    with torch.no_grad():
        outputs = vmap(output, in_dims=(None, 0))(trainable, inputs).double()
    root = curvature_root(outputs, targets)
    return jacobian if root is None else root.transpose(1, 2) @ jacobian


def loss_gram(
    model: torch.nn.Module, inputs: Tensor, targets: Tensor, loss: str, chunk: int
) -> tuple[Tensor, int]:
    """Inner products of the rows of `loss_jacobian`, (n·r, n·r), and r; two chunks held at a time.

    Args:
        model, inputs, targets, loss: as in `Curvature.from_model`.
        chunk: samples whose Jacobians are computed together.
    """
    n = len(inputs)
    gram, rank = torch.empty(0), 0

    def rows_from(start: int) -> Tensor:
        part = slice(start, start + chunk)
        return loss_jacobian(model, inputs[part], targets[part], loss).flatten(0, 1)

    for start in range(0, n, chunk):
        left = rows_from(start)
        if not rank:
            rank = len(left) // min(chunk, n)
            gram = left.new_zeros(n * rank, n * rank)
        for other in range(0, start + 1, chunk):
            right = left if other == start else rows_from(other)
            a = slice(start * rank, start * rank + len(left))
            b = slice(other * rank, other * rank + len(right))
            block = left @ right.T
            gram[a, b], gram[b, a] = block, block.T
    return gram, rank


def _require_per_sample(model: torch.nn.Module) -> None:
    coupled = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.dropout._DropoutNd)
    for name, module in model.named_modules():
        if module.training and isinstance(module, coupled):
            kind = type(module).__name__
            raise ValueError(
                f"model must be in eval mode, got {name or 'it'} ({kind}) in training mode"
            )
