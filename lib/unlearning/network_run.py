"""The real run: ascent–descent on any torch network, in place, with a stopping rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib.checks import require_forget, require_nonnegative
from lib.stability.algorithm import AscentDescent
from lib.unlearning.paths import (
    LossPath,
    Recorder,
    check_targets,
    draw_batches,
    given_batches,
    losses,
)

Forward = Callable[[torch.nn.Module, Tensor], Tensor]
EVALUATED = 1024  # samples in one forward pass of the evaluation


def run_network(
    model: torch.nn.Module,
    inputs: Tensor,
    targets: Tensor,
    forget: Tensor,
    algorithm: AscentDescent,
    learning_rate: float,
    *,
    steps: int,
    loss: str = "cross_entropy",
    weight_decay: float = 0.0,
    batches: Sequence[tuple[Tensor, Tensor]] | None = None,
    seed: int = 0,
    forward: Forward | None = None,
    until: Callable[[float, float], bool] | None = None,
) -> LossPath:
    """Unlearn `model` in place by ascent–descent with the exact loss; what `follow` predicts.

    w ← w − ηv, v ← βv + Σ_i c_i ∇ℓ_i(w) + λ(w − w_0) + νw, with c_i = (1−α)·count/B_r on the retain
    set and −α·count/B_f on the forget set. The same seed gives `follow` and this run the same
    batches.

    Args:
        model: in eval mode; the parameters that require a gradient are trained.
        inputs, targets: of all N samples; the first len(forget) are trained on, the rest watched.
        forget: (n,) bool.
        algorithm, learning_rate, steps, loss, weight_decay, batches, seed: as in `follow`.
        forward: (model, inputs) → (n, C) or (n,) outputs; `model(inputs)` if None.
        until: stops after a step where until(forget loss, retain loss) is true; checked at the
            start too.

    Returns:
        losses and accuracies after every step taken, (taken+1, 1) float64.

    Raises:
        ValueError: naming the argument, before the model is touched.
    """
    require_nonnegative("learning_rate", learning_rate)
    require_nonnegative("weight_decay", weight_decay)
    call = forward or (lambda network, x: network(x))
    require_forget(forget)
    trained = [p for p in model.parameters() if p.requires_grad]
    anchor = [p.detach().clone() for p in trained]
    velocity = [torch.zeros_like(p) for p in trained]

    def outputs_of(x: Tensor) -> Tensor:
        return call(model, x).reshape(len(x), -1)

    def evaluated() -> Tensor:
        with torch.no_grad():
            return torch.cat([outputs_of(x) for x in inputs.split(EVALUATED)])

    outputs = evaluated()
    checked = check_targets(targets, outputs, loss)
    drawn = (
        draw_batches(algorithm, forget, steps=steps, seed=seed)
        if batches is None
        else given_batches(batches, forget, steps=steps)
    )
    recorder = Recorder(checked, forget, loss)
    mixing = torch.tensor([algorithm.mixing], dtype=torch.float64, device=forget.device)
    for batch in [None, *drawn]:
        if batch is not None:
            chosen = batch.samples
            value = losses(outputs_of(inputs[chosen])[:, :, None], checked[chosen], loss)
            weights = batch.weights(mixing).to(value)
            gradient = torch.autograd.grad((weights * value).sum(), trained)
            with torch.no_grad():
                for p, g, v, w in zip(trained, gradient, velocity, anchor, strict=True):
                    v.mul_(algorithm.momentum).add_(g)
                    v.add_(algorithm.damping * (p - w) + weight_decay * p)
                    p.sub_(learning_rate * v)
            outputs = evaluated()
        row = recorder.add(outputs[:, :, None])
        if until is not None and until(float(row[0]), float(row[1])):
            break
    return LossPath(*recorder.rows())
