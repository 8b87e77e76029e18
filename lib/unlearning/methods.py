"""The field's unlearning methods: each takes a population and gives its weights afterwards.

All first-order ones descend by the same plain SGD (`Schedule`) on an objective of their own, so
that what differs between them is the objective. α is our mixing, the weight of the forget set.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from lib.checks import (
    require_above,
    require_count,
    require_kind,
    require_nonnegative,
    require_share,
    shown,
)
from lib.randomness import stream
from lib.unlearning.population import Batch, Networks, Population, Schedule, descend, train


def fine_tuning(population: Population, schedule: Schedule) -> Tensor:
    """Descent on the retain set alone: `neg_grad_plus` at α = 0; weights (models, p)."""
    return _last(descend(population, schedule, lambda now, at: now.losses(at.retain).mean(1)))


def gradient_ascent(population: Population, schedule: Schedule) -> Tensor:
    """Ascent on the forget set alone: `neg_grad_plus` at α = 1; weights (models, p).

    Source: Golatkar et al. (CVPR 2020), Thudi et al. (EuroS&P 2022).
    """
    return _last(descend(population, schedule, lambda now, at: -now.losses(at.forget).mean(1)))


def neg_grad_plus(
    population: Population, schedule: Schedule, *, mixing: float, target: float = math.inf
) -> Tensor:
    """Ascent–descent: w ← w − η[(1−α)∇ℓ_retain − α∇ℓ_forget], up to a forget loss.

    Args:
        population, schedule: what forgets, and how.
        mixing: α in [0, 1]. Kurmanji et al. and Zhao et al. write 1 − α for it.
        target: each network stops at the first step, or the start, with a mean loss over the whole
            forget set of at least this; ∞: at no step.

    Returns:
        weights (models, p).

    Source: Kurmanji et al. (NeurIPS 2023), NegGrad+; stopped by a loss: `plan`.
    """
    mixing = require_share("mixing", mixing)
    if target != math.inf:
        target = require_nonnegative("target", target)

    def objective(now: Networks, at: Batch) -> Tensor:
        kept, gone = now.losses(at.retain), now.losses(at.forget)
        return (1 - mixing) * kept.mean(1) - mixing * gone.mean(1)

    def done(now: Networks) -> Tensor:
        return now.mean_loss(now.samples.forget) >= target

    return _last(
        descend(population, schedule, objective, done=None if target == math.inf else done)
    )


def npo(population: Population, schedule: Schedule, *, beta: float, mixing: float) -> Tensor:
    """Negative preference optimisation: (1−α)ℓ_retain + α(2/β) log(1 + (π/π_0)^β).

    The second term is of the forget set, π is the probability of the true class, π_0 that before.
    A sample's gradient is that of ascent times 2π^β/(π^β + π_0^β): 1 at the start and for β → 0,
    falling to 0 as the sample leaves.

    Args:
        population, schedule: what forgets, and how; cross-entropy only.
        beta: β > 0.
        mixing: α in [0, 1].

    Returns:
        weights (models, p).

    Source: Zhang et al. (COLM 2024), their retain-regularised form.
    """
    beta, mixing = require_above("beta", beta, 0), require_share("mixing", mixing)
    start = _start(population)

    def objective(now: Networks, at: Batch) -> Tensor:
        with torch.no_grad():
            before = start.losses(at.forget)
        left = torch.nn.functional.softplus(beta * (before - now.losses(at.forget)))
        return (1 - mixing) * now.losses(at.retain).mean(1) + mixing * (2 / beta) * left.mean(1)

    return _last(descend(population, schedule, objective))


def scrub(
    population: Population, schedule: Schedule, *, ascents: int, anchor: float = 0.5
) -> Tensor:
    """SCRUB: steps away from the teacher on the forget set in turn with steps near it on the rest.

    Even steps ascend KL(p_0 ‖ p) on the forget set, `ascents` times; all other steps descend
    anchor·KL(p_0 ‖ p) + (1 − anchor)·ℓ on the retain set. The teacher p_0 is the network before.
    At the start its KL and that one's gradient are zero: what moves first is the retain loss.

    Args:
        population, schedule: what forgets, and how; cross-entropy only.
        ascents: number of steps on the forget set ≥ 0.
        anchor: in [0, 1].

    Returns:
        weights (models, p).

    Source: Kurmanji et al. (NeurIPS 2023); temperature 1, and batches in turn for their epochs.
    """
    ascents, anchor = require_count("ascents", ascents, 0), require_share("anchor", anchor)
    start = _start(population)

    def objective(now: Networks, at: Batch) -> Tensor:
        if at.step % 2 == 0 and at.step < 2 * ascents:
            return -divergence(start, now, at.forget).mean(1)
        near = anchor * divergence(start, now, at.retain)
        return (near + (1 - anchor) * now.losses(at.retain)).mean(1)

    return _last(descend(population, schedule, objective))


def distillation(population: Population, schedule: Schedule, *, mixing: float) -> Tensor:
    """Ascent anchored by distillation: (1−α) KL(p_0 ‖ p) on the retain set − αℓ on the forget set.

    The anchor's gradient is zero at the start whether or not the network interpolates, and its
    curvature there is the Gauss–Newton term exactly.

    Args:
        population, schedule: what forgets, and how; cross-entropy only.
        mixing: α in [0, 1].

    Returns:
        weights (models, p).
    """
    mixing, start = require_share("mixing", mixing), _start(population)

    def objective(now: Networks, at: Batch) -> Tensor:
        near = divergence(start, now, at.retain).mean(1)
        return (1 - mixing) * near - mixing * now.losses(at.forget).mean(1)

    return _last(descend(population, schedule, objective))


def salun(population: Population, schedule: Schedule, *, share: float) -> Tensor:
    """SalUn: only the weights that the forget loss is steepest in move, towards random labels.

    The objective is the mean loss over the joined batch, forget samples with labels drawn uniformly
    from all classes, once for each network.

    Args:
        population, schedule: what forgets, and how; cross-entropy only.
        share: of the weights, those with the largest |∇ℓ_forget|, that move; in (0, 1].

    Returns:
        weights (models, p).

    Source: Fan et al. (ICLR 2024).
    """
    share, start = require_share("share", share, "(0, 1]"), _start(population)
    require_kind("schedule", schedule, Schedule)
    with torch.enable_grad():
        leaves = {name: w.detach().requires_grad_() for name, w in start.weights.items()}
        forgotten = start._replace(weights=leaves).mean_loss(population.forget).sum()
        slope = torch.autograd.grad(forgotten, list(leaves.values()), materialize_grads=True)
    steep = torch.cat([g.flatten(1) for g in slope], dim=1).abs()
    moved = torch.zeros_like(steep)
    moved.scatter_(1, steep.topk(max(1, round(share * steep.shape[1])), dim=1).indices, 1.0)
    classes = start.see(population.inputs[:1]).shape[2]
    drawn = torch.randint(
        classes,
        (len(steep), len(population.inputs)),
        generator=stream("random labels", schedule.seed),
        device="cpu",
    ).to(steep.device)

    def objective(now: Networks, at: Batch) -> Tensor:
        gone = now.losses(at.forget, drawn.gather(1, at.forget))
        return torch.cat([now.losses(at.retain), gone], dim=1).mean(1)

    mask = Networks.of(start.net, moved, population).weights
    return _last(descend(population, schedule, objective, mask=mask))


def newton_step(
    population: Population,
    *,
    damping: float,
    weight_decay: float = 0.0,
    tolerance: float = 1e-4,
    most: int = 500,
) -> Tensor:
    """One Newton step on the retain set: w − (G_r + (λ+ν)I)⁻¹(∇ℓ_r + νw).

    G is the Gauss–Newton matrix. Where w is an optimum of the whole set's loss this is the
    influence function's removal of the forget set, and for a quadratic loss with λ = 0 the
    retrained optimum itself. By conjugate gradients.

    Args:
        population: what forgets.
        damping: λ ≥ 0.
        weight_decay: ν ≥ 0 of the training objective ℓ + (ν/2)‖w‖².
        tolerance: of the residual's norm over the gradient's.
        most: iterations.

    Returns:
        weights (models, p). Warns, with the largest residual, where it is above the tolerance.

    Source: Koh and Liang (ICML 2017), Guo et al. (ICML 2020).
    """
    require_kind("population", population, Population)
    damping = require_nonnegative("damping", damping)
    weight_decay = require_nonnegative("weight_decay", weight_decay)
    tolerance, most = require_above("tolerance", tolerance, 0), require_count("most", most, 1)
    now, kept = population.at(), ~population.forget
    x = population.inputs[kept]
    with torch.enable_grad():
        leaves = {name: w.detach().requires_grad_() for name, w in now.weights.items()}
        value = now._replace(weights=leaves).mean_loss(kept).sum()
        slope = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    gradient = torch.cat([g.flatten(1) for g in slope], dim=1)
    gradient = gradient + weight_decay * population.stacked

    def curved(w: dict[str, Tensor], v: dict[str, Tensor]) -> dict[str, Tensor]:
        def outputs(w: dict[str, Tensor]) -> Tensor:
            return now.net.at(w, x).flatten(1)

        found = jvp(outputs, (w,), (v,))
        pushed = _curvature(found[0], found[1], population.loss) / len(x)
        return vjp(outputs, w)[1](pushed)[0]

    def product(v: Tensor) -> Tensor:
        moved = vmap(curved)(now.weights, Networks.of(now.net, v, population).weights)
        return now._replace(weights=moved).stacked + (damping + weight_decay) * v

    with torch.no_grad():
        step, residual = _conjugate_gradients(product, gradient, tolerance, most)
    if not residual <= tolerance:
        warnings.warn(
            f"newton_step stopped after {most} iterations at a relative residual of "
            f"{residual:.2g}, tolerance {tolerance:g}",
            RuntimeWarning,
            stacklevel=2,
        )
    return population.stacked - step


def retrain(
    population: Population, *, epochs: int, batch: int = 50, learning_rate: float = 0.003, seed: int
) -> Tensor:
    """As many networks trained anew without the forget set, by `train`; weights (models, p)."""
    require_kind("population", population, Population)
    kept = ~population.forget
    return train(
        population.model,
        population.inputs[kept],
        population.targets[kept],
        models=len(population.stacked),
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
    )


def divergence(teacher: Networks, now: Networks, samples: Tensor) -> Tensor:
    """KL(p_0 ‖ p) of each network's samples, (models, b), p_0 the teacher's probabilities."""
    with torch.no_grad():
        fixed = teacher.outputs(samples).log_softmax(-1)
    moving = now.outputs(samples).log_softmax(-1)
    return (fixed.exp() * (fixed - moving)).sum(-1)


def _start(population: Population) -> Networks:
    """The networks before, as classifiers."""
    require_kind("population", population, Population)
    if population.loss != "cross_entropy":
        raise ValueError(f"population must have loss cross_entropy, got {shown(population.loss)}")
    return population.at()


def _last(path: Iterator[Networks]) -> Tensor:
    return deque(path, maxlen=1)[0].stacked


def _curvature(outputs: Tensor, push: Tensor, loss: str) -> Tensor:
    """∂²ℓ/∂f² times a direction, (b, C)."""
    if loss == "squared":
        return push
    if loss == "logistic":
        return push * torch.sigmoid(outputs) * torch.sigmoid(-outputs)
    p = outputs.softmax(-1)
    return p * push - p * (p * push).sum(-1, keepdim=True)


def _conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, tolerance: float, most: int
) -> tuple[Tensor, float]:
    """x with product(x) = right, row by row, and the largest relative residual."""
    x, residual = torch.zeros_like(right), right.clone()
    direction, square = residual.clone(), residual.square().sum(1, keepdim=True)
    scale = square.clamp_min(torch.finfo(right.dtype).tiny)
    for _ in range(most):
        if bool((square <= tolerance**2 * scale).all()):
            break
        image = product(direction)
        along = (direction * image).sum(1, keepdim=True)
        # A row that is solved to rounding has no direction left.
        size = torch.where(along > 0, square / along, 0.0)
        x, residual = x + size * direction, residual - size * image
        before, square = square, residual.square().sum(1, keepdim=True)
        ratio = torch.where(before > 0, square / before, 0.0)
        direction = residual + ratio * direction
    return x, float((square / scale).max().sqrt())
