"""Full-batch and mini-batch descent of a whole batch of coefficient states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.checks import require_numbers, shown
from lib.cnn.coefficients import PatchSpan
from lib.randomness import stream
from lib.stability.losses import scalar_loss
from lib.stability.sampling import draw_counts

# Entries trained together on a CPU, so that their working set stays in the cache; measured at
# n = 60, m = 10: 64 to 128 beat 32 by a third, 256 by half and 512 by more. A GPU takes all.
CPU_CHUNK = 96


@dataclass(frozen=True)
class Descent:
    """Descent on the mean loss of a span, up to `steps` steps or to `tolerance`."""

    loss: str
    steps: int
    tolerance: float
    batch_size: int
    seed: int

    def run(self, span: PatchSpan, rates: Tensor, part: int) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients, final mean losses and steps taken, for one chunk of entries."""
        value, slope, *_ = scalar_loss(self.loss)
        generator = stream("mini-batches", self.seed, part)
        coefficients, labels = torch.zeros_like(span.start), span.labels
        at = span.respond(coefficients)
        running = torch.ones_like(labels[:, 0], dtype=torch.bool)
        taken = torch.zeros_like(running, dtype=torch.long)
        for _ in range(self.steps):
            if self.tolerance > 0:
                running = ~(value(at.outputs, labels).mean(1) <= self.tolerance)
                if not bool(running.any()):
                    break
            weights = (rates * running)[:, None] * self._sample_weights(labels, generator)
            at.descend(coefficients, weights * slope(at.outputs, labels))
            at.renew(coefficients)
            taken += running
        return coefficients, value(at.outputs, labels).mean(1), taken

    def _sample_weights(self, labels: Tensor, generator: torch.Generator) -> Tensor | float:
        if self.batch_size == labels.shape[1]:
            return 1.0 / self.batch_size
        everyone = torch.ones_like(labels, dtype=torch.bool)
        sizes = torch.full((len(labels),), self.batch_size, device=labels.device)
        counts = draw_counts(everyone, sizes, "without_replacement", generator)
        return counts.to(labels) / self.batch_size


def chunks(span: PatchSpan) -> Iterator[slice]:
    """Slices of the batch that fit the processor's cache; the whole batch on a GPU."""
    size = CPU_CHUNK if span.labels.device.type == "cpu" else len(span)
    return (slice(start, start + size) for start in range(0, len(span), size))


def per_entry(name: str, values: float | Sequence[float] | Tensor, like: Tensor) -> Tensor:
    """One finite number > 0 for each of the b entries of `like` (b, n), from one or b of them."""
    numbers = require_numbers(name, values, len(like), like.dtype, like.device)
    if not bool((numbers > 0).all()):
        raise ValueError(f"{name} must be finite and > 0, got {shown(values)}")
    return numbers.expand(len(like))


# Descent settles the ReLU patterns before Gauss–Newton solves for the rest; more steps change the
# weights by less than 1 % of the distance travelled. The rate matters more, as in any descent: from
# a half to a twentieth of n/‖K‖_∞ the end moves by 5–25 % of that distance (SNR 0.1 to 5, n = 16).
DESCENT_STEPS = 400
RATE_FRACTION = 0.5
NEWTON_STEPS = 200


def interpolate(span: PatchSpan, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients, mean losses ½(f−y)² and steps taken, (b, …), at loss ≤ tolerance or stalled."""
    coefficients, taken = _settle(span, tolerance)
    coefficients, losses, newton_steps = _newton(span, coefficients, tolerance)
    return coefficients, losses, taken + newton_steps


def _settle(span: PatchSpan, tolerance: float) -> tuple[Tensor, Tensor]:
    """Full-batch descent at a fraction of the rate n/‖K‖_∞ ≤ n/λ_max(K), K = ⟨∇f_i, ∇f_j⟩."""
    coefficients = torch.zeros_like(span.start)
    at = span.respond(coefficients)
    taken = torch.zeros_like(span.labels[:, 0], dtype=torch.long)
    for step in range(DESCENT_STEPS):
        residual = at.outputs - span.labels
        running = ~(_mean_loss(residual) <= tolerance)
        if not bool(running.any()):
            break
        if step % 4 == 0:
            rates = RATE_FRACTION / at.gradient_gram().abs().sum(2).amax(1)
        at.descend(coefficients, residual * (rates * running)[:, None])
        at.renew(coefficients)
        taken += running
    return coefficients, taken


def _newton(
    span: PatchSpan, coefficients: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Levenberg–Marquardt: step −∇fᵀ(K + κI)⁻¹(f − y), κ falling with success, rising without."""
    at = span.respond(coefficients)
    losses = _mean_loss(at.outputs - span.labels)
    taken = torch.zeros_like(losses, dtype=torch.long)
    damping = torch.full_like(losses, 1e-3)
    floor = torch.finfo(losses.dtype).eps
    for _ in range(NEWTON_STEPS):
        running = ~(losses <= tolerance)
        if not bool(running.any()):
            break
        solution = _solve_damped(at.gradient_gram(), at.outputs - span.labels, damping)
        trial = coefficients.clone()
        at.descend(trial, solution * running[:, None])
        better = _mean_loss(span.respond(trial).outputs - span.labels) < losses
        kept = better | ~running
        coefficients = torch.where(kept[:, None, None, None], trial, coefficients)
        damping = torch.where(better, (damping * 0.1).clamp(min=floor), damping * 10)
        taken += running & better
        losses = _mean_loss(at.renew(coefficients).outputs - span.labels)
    return coefficients, losses, taken


def _solve_damped(gram: Tensor, residual: Tensor, damping: Tensor) -> Tensor:
    """(K + κ·mean diag(K)·I)⁻¹ residual, (b, n)."""
    scale = gram.diagonal(dim1=1, dim2=2).mean(1) * damping
    damped = gram + torch.diag_embed(scale[:, None].expand(residual.shape))
    return torch.linalg.solve(damped, residual[..., None])[..., 0]


def _mean_loss(residual: Tensor) -> Tensor:
    return 0.5 * residual.square().mean(1)
