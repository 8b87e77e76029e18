"""Full-batch and mini-batch descent of a whole batch of coefficient states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.batches import draw_counts
from lib.coefficients import CoefficientState, PatchSpan
from lib.losses import scalar_loss
from lib.randomness import stream

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
        value, slope, _ = scalar_loss(self.loss)
        generator = stream("mini-batches", self.seed, part)
        state, labels = CoefficientState(span), span.labels
        running = torch.ones_like(labels[:, 0], dtype=torch.bool)
        taken = torch.zeros_like(running, dtype=torch.long)
        for _ in range(self.steps):
            outputs = state.outputs()
            if self.tolerance > 0:
                running = ~(value(outputs, labels).mean(1) <= self.tolerance)
                if not bool(running.any()):
                    break
            weights = (rates * running)[:, None] * self._sample_weights(labels, generator)
            state.descend(weights * slope(outputs, labels))
            taken += running
        return state.coefficients, value(state.outputs(), labels).mean(1), taken

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
    numbers = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    if numbers.ndim > 1 or (numbers.ndim == 1 and len(numbers) != len(like)):
        raise ValueError(
            f"{name} must be one number or one for each of the {len(like)} entries, "
            f"got shape {(*numbers.shape,)}"
        )
    if not bool((torch.isfinite(numbers) & (numbers > 0)).all()):
        raise ValueError(f"{name} must be finite and > 0, got {values}")
    return numbers.expand(len(like))
