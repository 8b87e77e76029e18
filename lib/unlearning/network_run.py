"""The real run: ascent–descent on any torch network with its exact loss, and a stopping rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib.checks import (
    require_count,
    require_forget,
    require_kind,
    require_mask,
    require_members,
    require_nonnegative,
)
from lib.stability.algorithm import AscentDescent
from lib.stability.modules import Chosen, Forward, PerSample, count, part, per_sample, samples
from lib.unlearning.paths import (
    Batch,
    LossPath,
    Recorder,
    check_targets,
    losses,
    make_batches,
)

EVALUATED = 1024  # samples in one forward pass of the evaluation


@dataclass(frozen=True)
class NetworkPath(LossPath):
    """What the network did, fields as in `LossPath`; weights (p,) are those after the last step.

    They come in the order of the chosen among `model.parameters()`, and are not finite where the
    run overflowed.
    """

    weights: Tensor


def run_network(
    model: torch.nn.Module,
    inputs: Any,
    targets: Tensor | None,
    forget: Tensor | Sequence[int],
    algorithm: AscentDescent,
    learning_rate: float,
    *,
    trained: int | None = None,
    steps: int,
    loss: str = "cross_entropy",
    weight_decay: float = 0.0,
    batches: Sequence[tuple[Tensor, Tensor]] | None = None,
    seed: int = 0,
    forward: Forward | None = None,
    parameters: Chosen = None,
    device: torch.device | str | None = None,
    until: Callable[[float, float], bool] | None = None,
    monitored: Tensor | None = None,
) -> NetworkPath:
    """Ascent–descent on a network, from its weights w_0; what `follow` predicts. Changes no model.

    w ← w − ηv, v ← βv + Σ_i c_i ∇ℓ_i(w) + λ(w − w_0) + νw, with c_i = (1−α)·count/B_r on the retain
    set and −α·count/B_f on the forget set. `follow` with the same seed has the same batches.

    Args:
        model, inputs, forward, parameters, device: as in `TangentModel.from_model`.
        targets, forget, algorithm, learning_rate, steps, loss, weight_decay, batches, seed: as in
            `follow`; targets may be None where a Dataset brings them.
        trained: number n of leading samples that can be in batches; all by default.
        until: stops where until(forget loss, retain loss) is true, asked at the start and after
            every step.
        monitored: ascending indices of the samples that losses and accuracies are taken over, some
            of either trained set; all by default. Batches come from all trained samples.

    Returns:
        losses and accuracies after every step taken, (taken+1, 1) float64, and the last weights.

    Raises:
        ValueError: naming the argument, before any step.
    """
    learning_rate = require_nonnegative("learning_rate", learning_rate)
    weight_decay = require_nonnegative("weight_decay", weight_decay)
    require_kind("algorithm", algorithm, AscentDescent)
    if until is not None and not callable(until):
        raise TypeError(f"until must be a function of two losses, got {until!r}")
    x, y = samples(inputs, targets)
    total = count(x)
    n = total if trained is None else require_count("trained", trained, 1)
    if n > total:
        raise ValueError(f"trained must be in [1, {total}], the samples of inputs, got {n}")
    net = per_sample(model, x, forward=forward, parameters=parameters, device=device)
    x = net.moved(x)
    mask = require_mask(forget, n, "inputs, or of the trained").to(net.device)
    drawn = make_batches(batches, algorithm, mask, steps=steps, seed=seed)
    weights = {name: w.clone() for name, w in net.trained.items()}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    outputs = _evaluated(net, weights, x)
    if not bool(outputs.isfinite().all()):
        raise ValueError("inputs and model must give finite outputs, got NaN or infinite ones")
    checked = check_targets(y, outputs, loss)
    seen: slice | Tensor = slice(None)
    watched = mask
    if monitored is not None:
        places = require_members("monitored", monitored, total).nonzero()[:, 0]
        seen = places.to(net.device)
        watched = mask[seen[seen < len(mask)]]
        require_forget(watched)
    kept, outputs = part(x, seen), outputs[seen]
    recorder = Recorder(checked[seen], watched, loss)
    for batch in [None, *drawn]:
        if batch is not None:
            part_of = (part(x, batch.samples), checked[batch.samples], loss)
            slope = _gradient(net, weights, batch, algorithm.mixing, *part_of)
            for name, w in weights.items():
                pull = algorithm.damping * (w - net.trained[name]) + weight_decay * w
                velocity[name].mul_(algorithm.momentum).add_(slope[name]).add_(pull)
                w.sub_(learning_rate * velocity[name])
            outputs = _evaluated(net, weights, kept)
        row = recorder.add(outputs[:, :, None])
        if until is not None and until(float(row[0]), float(row[1])):
            break
    ended = torch.cat([w.flatten() for w in weights.values()])
    return NetworkPath(**recorder.fields(), weights=ended)


def _evaluated(net: PerSample, weights: dict[str, Tensor], x: Any) -> Tensor:
    with torch.no_grad():
        starts = range(0, count(x), EVALUATED)
        chunks = [net.at(weights, part(x, slice(i, i + EVALUATED))) for i in starts]
    return torch.cat(chunks).flatten(1)


def _gradient(
    net: PerSample,
    weights: dict[str, Tensor],
    batch: Batch,
    mixing: float,
    x: Any,
    targets: Tensor,
    loss: str,
) -> dict[str, Tensor]:
    """Σ c_i ∇ℓ_i over one batch; zeros for an empty one."""
    if not len(batch.samples):
        return {name: torch.zeros_like(w) for name, w in weights.items()}
    with torch.enable_grad():
        leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
        value = losses(net.at(leaves, x).flatten(1)[:, :, None], targets, loss)
        signed = batch.weights(torch.tensor([mixing], dtype=torch.float64, device=value.device))
        total = (signed.to(value) * value).sum()
        slope = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, slope, strict=True))
