"""Whether the tangent model can be trusted at a setting, from one look at the real Jacobian."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from lib.stability.algorithm import AscentDescent
from lib.stability.jacobian import pushed
from lib.stability.modules import Chosen, Forward, PerSample, count, part, per_sample, samples
from lib.unlearning.paths import slopes
from lib.unlearning.tangent import TangentModel, fitting, follow_weights

CHUNK = 256  # samples in one Jacobian-vector product

# What "trusted" allows, chosen on the digits MLP before any other family was run; the bend (.35
# then) once more on a scratch seed of the GroupNorm ResNet, before the runs that judge it.
GROWTH = (0.75, 1.5)  # of the Jacobian along the path
BEND = 0.5  # ‖f(w_0+δ) − f_0 − Jδ‖ / ‖Jδ‖
SATURATED = 0.5  # share of forget samples whose slope rounding swallows
RANGE = 1.5  # stated range: predicted time / RANGE to predicted time · RANGE


@dataclass(frozen=True)
class Validity:
    """How far the network's own functions leave the tangent model along one predicted path.

    growth, bend and moved are ∞ where the predicted path overflows.

    Attributes:
        trusted: whether there is no reason against it.
        reasons: why not, each with its number and the allowed range.
        growth: ‖J(w_0+δ)δ‖/‖J(w_0)δ‖ over the forget samples, 1 if the Jacobian does not move.
        bend: ‖f(w_0+δ) − f_0 − Jδ‖/‖Jδ‖ over the forget samples, 0 if linear.
        moved: ‖Jδ‖/‖f_0 − mean f_0‖ over the forget samples, distance in function space.
        retain_gradient, forget_gradient: ‖∇‖ of the mean losses at w_0, in 1/(units of weights).
        saturated: share of forget samples with |∂ℓ/∂f| < 1e-6 at w_0, where float32 sees no slope.
        normalisation: kinds of normalisation layers found; BatchNorm runs on its stored statistics.
    """

    trusted: bool
    reasons: tuple[str, ...]
    growth: float
    bend: float
    moved: float
    retain_gradient: float
    forget_gradient: float
    saturated: float
    normalisation: tuple[str, ...]


def validate(
    model: torch.nn.Module,
    inputs: Any,
    targets: Tensor | None,
    forget: Tensor | Sequence[int],
    tangent: TangentModel,
    algorithm: AscentDescent,
    learning_rate: float,
    *,
    steps: int,
    loss: str = "cross_entropy",
    weight_decay: float = 0.0,
    batches: Sequence[tuple[Tensor, Tensor]] | None = None,
    seed: int = 0,
    forward: Forward | None = None,
    parameters: Chosen = None,
    device: torch.device | str | None = None,
) -> Validity:
    """Compare the network with its tangent at the displacement δ that `follow` predicts.

    One pass back for δ = −Jᵀc, one forward for f(w_0+δ), and two Jacobian-vector products. A
    measurement at one point of one path, not a bound: it says "trusted" if growth, bend and
    saturation are in the ranges of this module, fixed before the runs that judge it.

    Args:
        tangent: of this model; its speed is left out of account.
        steps: after how many steps to look; where the target is predicted to be reached.
        model, inputs, targets, forget, algorithm, learning_rate: as in `run_network`.
        loss, weight_decay, batches, seed, forward, parameters, device: as in `run_network`.

    Raises:
        ValueError: naming the argument.
    """
    x, y = samples(inputs, targets)
    total = count(x)
    net = per_sample(model, x, forward=forward, parameters=parameters, device=device)
    mask, checked = fitting(tangent, y, forget, loss)
    mask = mask.to(net.device)
    if len(tangent.outputs) != total:
        raise ValueError(
            f"tangent and inputs must hold equally many samples, got {len(tangent.outputs)} "
            f"and {total}"
        )
    push, pulled = follow_weights(
        tangent,
        checked,
        mask,
        algorithm,
        learning_rate,
        steps=steps,
        loss=loss,
        weight_decay=weight_decay,
        batches=batches,
        seed=seed,
    )
    delta = _displacement(net, x, push, pulled)
    there = {name: w + delta[name] for name, w in net.trained.items()}
    chosen = mask.nonzero()[:, 0]
    near, far, real = (
        torch.cat(rows) for rows in zip(*_looks(net, x, chosen, delta, there), strict=True)
    )
    if real.shape[1] != tangent.outputs.shape[1]:
        raise ValueError(
            f"tangent and model must have equally many outputs, got {tangent.outputs.shape[1]} "
            f"and {real.shape[1]}"
        )
    start = tangent.outputs[chosen].to(real)
    size = float(near.norm())
    growth = float(far.norm()) / size if size else 1.0
    bend = float((real - start - near).norm()) / size if size else 0.0
    spread = float((start - start.mean(dim=0)).norm())
    moved = size / spread if spread else math.inf
    growth, bend, moved = (math.inf if math.isnan(v) else v for v in (growth, bend, moved))
    slope = slopes(tangent.outputs[: len(mask), :, None], checked[: len(mask)], loss)[:, :, 0]
    saturated = float((slope[mask].norm(dim=1) < 1e-6).double().mean())
    reasons = []
    if not GROWTH[0] <= growth <= GROWTH[1]:
        reasons.append(f"the Jacobian grows by {growth:.2f} along the path, trusted in {GROWTH}")
    if bend > BEND:
        reasons.append(f"the outputs bend away by {bend:.2f} of their move, trusted up to {BEND}")
    if saturated > SATURATED:
        reasons.append(f"{saturated:.0%} of the forget samples have no slope left in float32")
    return Validity(
        trusted=not reasons,
        reasons=tuple(reasons),
        growth=growth,
        bend=bend,
        moved=moved,
        retain_gradient=_gradient_norm(tangent, slope, ~mask),
        forget_gradient=_gradient_norm(tangent, slope, mask),
        saturated=saturated,
        normalisation=_normalisation(model),
    )


def _displacement(net: PerSample, x: Any, push: Tensor, pulled: float) -> dict[str, Tensor]:
    """δ = −(Jᵀc + a·w_0), one pass back over the trained samples."""
    total = {name: -pulled * w for name, w in net.trained.items()}
    for i in range(0, len(push), CHUNK):
        rows = part(x, slice(i, min(i + CHUNK, len(push))))
        inputs = net.moved(rows)
        pull = vjp(lambda w, inputs=inputs: net.at(w, inputs).flatten(1), net.trained)[1]
        (slope,) = pull(push[i : i + CHUNK].to(net.dtype))
        total = {name: total[name] - slope[name] for name in total}
    return total


def _looks(
    net: PerSample, x: Any, chosen: Tensor, delta: dict[str, Tensor], there: dict[str, Tensor]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Jδ at w_0, Jδ at w_0+δ, and f(w_0+δ), a chunk of samples at a time."""
    rows = []
    for some in chosen.split(CHUNK):
        inputs = net.moved(part(x, some))
        near = pushed(net, net.trained, inputs, delta)[1]
        real, far = pushed(net, there, inputs, delta)
        rows.append((near, far, real))
    return rows


def _gradient_norm(tangent: TangentModel, slope: Tensor, members: Tensor) -> float:
    """‖∇ mean ℓ‖ over one set, from the kernel."""
    push = torch.where(members[:, None], slope / members.sum(), 0.0).double().flatten()
    gram = tangent.kernel[: len(push)].double()
    return float((push @ gram @ push).clamp_min(0).sqrt())


def _normalisation(model: torch.nn.Module) -> tuple[str, ...]:
    kinds = {type(module).__name__ for module in model.modules()}
    return tuple(sorted(kind for kind in kinds if "Norm" in kind))
