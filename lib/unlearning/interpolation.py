"""Training any module to interpolation, where the linear theory starts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lib.checks import require_count, require_nonnegative
from lib.stability.jacobian import loss_jacobian
from lib.stability.losses import require_targets
from lib.stability.modules import per_sample
from lib.stability.rows import RowSource

LARGEST_TRIES = 10**4  # some ten seconds for a handful of samples


def interpolate(
    model: torch.nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    tolerance: float = 1e-20,
    max_steps: int = 500,
) -> float:
    """Train a module in place until its mean squared loss (1/n) Σ ½‖f_i − y_i‖² ≤ tolerance.

    Levenberg–Marquardt in sample space: w ← w − Jᵀ(JJᵀ + μI)⁻¹(f − y), one (n·C)² solve a step,
    with μ a tenth of itself after a step that lowers the loss and ten times itself after one that
    does not (and is undone). Needs at least as many parameters as outputs, n·C.

    Args:
        model: any module in eval mode, f: (n, …) → (n,), (n, 1) or (n, C); float64 to reach 1e-20.
        inputs, targets: (n, …) and (n,) or (n, C).
        tolerance: mean loss to reach, ≥ 0.
        max_steps: tries, failed ones counted, before giving up; at most 10,000.

    Returns:
        The mean loss reached.

    Raises:
        ValueError: naming the argument, as `Curvature.from_model`.
        RuntimeError: with the loss reached, if `max_steps` tries do not reach the tolerance.

    Source: Marquardt (1963); the damping schedule is the textbook's.
    """
    tolerance = require_nonnegative("tolerance", tolerance)
    max_steps = require_count("max_steps", max_steps, 1, LARGEST_TRIES)
    tokens, classes = RowSource.of(per_sample(model, inputs), inputs).shape
    if tokens > 1:
        raise ValueError(f"model must give one row of outputs a sample of inputs, got {tokens}")
    require_targets("squared", targets, len(inputs), tokens, classes)
    trainable = [p for p in model.parameters() if p.requires_grad]
    weights = parameters_to_vector(trainable).detach()
    residual = _residual(model, inputs, targets)
    loss = _half_square(residual, len(inputs))
    mu = 1e-2
    for _ in range(max_steps):
        if loss <= tolerance:
            return loss
        jacobian = loss_jacobian(model, inputs, targets, "squared").flatten(0, 1).to(weights)
        gram = jacobian @ jacobian.T
        gram.diagonal().add_(mu * gram.diagonal().mean())
        # A singular matrix gives numbers of no use: as any that do not lower the loss.
        step = jacobian.T @ torch.linalg.solve_ex(gram, residual).result
        vector_to_parameters(weights - step, trainable)
        trial = _residual(model, inputs, targets)
        if _half_square(trial, len(inputs)) < loss:
            weights, residual, mu = weights - step, trial, mu / 10
            loss = _half_square(residual, len(inputs))
        else:
            vector_to_parameters(weights, trainable)
            mu *= 10
    raise RuntimeError(f"mean loss {loss:.3g} after {max_steps} steps, above {tolerance:.3g}")


def _residual(model: torch.nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        return (model(inputs).reshape(len(inputs), -1) - targets.reshape(len(inputs), -1)).flatten()


def _half_square(residual: Tensor, n: int) -> float:
    return float(residual.square().sum()) / (2 * n)
