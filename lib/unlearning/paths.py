"""Losses along an unlearning run, and the batches that a network and its tangent share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lib.checks import require_count, require_items, require_kind, shown
from lib.randomness import stream
from lib.stability.algorithm import AscentDescent, batch_weights
from lib.stability.losses import require_targets, scalar_loss

LARGEST_STEPS = 5000  # of a run: some five seconds for the smallest model
BLOCK = 256  # settings scored together: what they need then stays in the processor's cache


@dataclass(frozen=True)
class LossPath:
    """Mean loss and accuracy after every step, (steps+1, settings) float64; row 0 is the start.

    forget and retain: means over all trained samples of either set; watched: over the samples that
    are in no batch, NaN if there are none. Accuracy: share of samples whose largest output is that
    of their class (whose output has its label's sign, where there is one output); NaN for a squared
    loss whose targets are no classes.
    """

    forget_loss: Tensor
    retain_loss: Tensor
    forget_accuracy: Tensor
    retain_accuracy: Tensor
    watched_loss: Tensor
    watched_accuracy: Tensor

    def of(self, settings: Sequence[int]) -> LossPath:
        """The paths of some settings, by their places."""
        chosen = list(settings)
        return LossPath(*(getattr(self, field.name)[:, chosen] for field in fields(LossPath)))

    def steps_to(self, target: float) -> Tensor:
        """First step with a forget loss ≥ `target`, (settings,) float64; ∞ if there is none."""
        reached = self.forget_loss >= target
        first = reached.to(torch.float64).argmax(dim=0).double()
        return torch.where(reached.any(dim=0), first, torch.inf)

    def crossing(self, target: float) -> Tensor:
        """When the forget loss passes `target`, between steps by linear interpolation; (settings,).

        In (k − 1, k] where `steps_to` is k; 0 where the target holds at the start, ∞ if never.
        """
        step = self.steps_to(target)
        after = step.nan_to_num(posinf=0).long()[None]
        before = (after - 1).clamp_min(0)
        low, high = (self.forget_loss.gather(0, row)[0] for row in (before, after))
        part = torch.where(high > low, (target - low) / (high - low), 1.0)
        return torch.where(step > 0, step - 1 + part.nan_to_num(nan=1.0), step)


class Batch(NamedTuple):
    """One step's samples (m,), each one's count over its set's batch size (m,), and who ascends."""

    samples: Tensor
    share: Tensor
    ascends: Tensor

    def weights(self, mixing: Tensor) -> Tensor:
        """Weight of every sample's gradient, (m, settings): (1−α)·share, or −α·share on ascent."""
        signed = torch.where(self.ascends[:, None], -mixing, 1 - mixing)
        return self.share[:, None] * signed


def make_batches(
    batches: Sequence[tuple[Tensor, Tensor]] | None,
    algorithm: AscentDescent,
    forget: Tensor,
    *,
    steps: int,
    seed: int,
) -> list[Batch]:
    """`given_batches`, or `draw_batches` where none are given; over at most 5,000 steps."""
    require_kind("algorithm", algorithm, AscentDescent)
    steps = require_count("steps", steps, 0, LARGEST_STEPS)
    if batches is None:
        return draw_batches(algorithm, forget, steps=steps, seed=seed)
    return given_batches(batches, forget, steps=steps)


def draw_batches(algorithm: AscentDescent, forget: Tensor, *, steps: int, seed: int) -> list[Batch]:
    """The batches of `steps` steps by the algorithm's sampling, each divided by B."""
    # At mixing ½ both sets carry the weight ½, a power of two: shares come out exact.
    following = batch_weights(
        replace(algorithm, mixing=0.5), forget, 1, stream("unlearning batches", seed)
    )
    batches = []
    for _ in range(steps):
        weights = 2 * following()[:, 0].abs()
        samples = weights.nonzero()[:, 0]
        batches.append(Batch(samples, weights[samples], forget[samples]))
    return batches


def given_batches(
    batches: Sequence[tuple[Tensor, Tensor]], forget: Tensor, *, steps: int
) -> list[Batch]:
    """Batches from pairs (retain, forget) of index tensors, each divided by its own length.

    Raises:
        ValueError: if there are not `steps` pairs, or one names a sample of the other set, or none.
    """
    pairs = require_items("batches", batches, least=0)
    if len(pairs) != steps:
        raise ValueError(f"batches must hold one pair a step, {steps}, got {len(pairs)}")
    made = []
    for step, pair in enumerate(pairs):
        parts = []
        both = require_items(f"batches[{step}]", pair, least=2)[:2]
        for name, indices, ascends in zip(("retain", "forget"), both, (False, True), strict=True):
            try:
                chosen = torch.as_tensor(indices, device=forget.device)
            except (TypeError, ValueError, RuntimeError, OverflowError):
                raise ValueError(
                    f"batches[{step}] must be index tensors, got {shown(indices)}"
                ) from None
            inside = chosen.ndim == 1 and (len(chosen) == 0 or not chosen.is_floating_point())
            if inside and len(chosen):
                inside = bool(((chosen >= 0) & (chosen < len(forget))).all())
            if not inside or bool((forget[chosen.long()] != ascends).any()):
                raise ValueError(
                    f"batches[{step}] must name {name} samples in [0, {len(forget)}), got {chosen}"
                )
            size = max(1, len(chosen))
            parts.append((chosen.long(), torch.full((len(chosen),), 1 / size).double(), ascends))
        samples = torch.cat([part[0] for part in parts])
        share = torch.cat([part[1] for part in parts]).to(samples.device)
        made.append(Batch(samples, share, forget[samples]))
    return made


def check_targets(targets: Tensor | None, outputs: Tensor, loss: str) -> Tensor:
    """Targets that fit outputs (N, C): (N,) class numbers, or (N, C) values in the outputs' dtype.

    Raises:
        ValueError: naming targets, for another shape, dtype or range; or naming an unknown loss.
    """
    n, c = outputs.shape
    if targets is None:
        raise ValueError("targets must be given where inputs do not bring their own, got None")
    fitting = require_targets(loss, targets, n, 1, c)
    if loss == "cross_entropy":
        return fitting.long().to(outputs.device)
    return fitting.reshape(n, c).to(outputs)


def slopes(outputs: Tensor, targets: Tensor, loss: str) -> Tensor:
    """∂ℓ/∂f of outputs (N, C, settings), targets as `check_targets` gives them; same shape."""
    if loss != "cross_entropy":
        return scalar_loss(loss).slope(outputs, targets[:, :, None])
    slope = outputs.softmax(dim=1)
    rows = torch.arange(len(targets), device=targets.device)
    slope[rows, targets] -= 1
    return slope


def losses(outputs: Tensor, targets: Tensor, loss: str) -> Tensor:
    """ℓ of outputs (N, C, settings), (N, settings)."""
    return scores(outputs, targets, loss)[0]


def scores(outputs: Tensor, targets: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """ℓ, and 1 where right and 0 where not (NaN if undefined), of (N, C, settings) outputs."""
    if loss == "cross_entropy":
        largest, own = outputs.amax(dim=1), _chosen(outputs, targets)
        total = (outputs - largest[:, None]).exp().sum(dim=1)
        return total.log() + (largest - own), (own >= largest).to(own)
    value = scalar_loss(loss).value(outputs, targets[:, :, None]).sum(dim=1)
    if outputs.shape[1] == 1 and bool((targets.abs() == 1).all()):
        return value, (outputs[:, 0] * targets > 0).to(value)
    best = targets.amax(dim=1, keepdim=True)
    if targets.shape[1] > 1 and bool(((targets == best).sum(dim=1) == 1).all()):
        own = _chosen(outputs, targets.argmax(dim=1))
        return value, (own >= outputs.amax(dim=1)).to(value)
    return value, torch.full_like(value, torch.nan)


def _chosen(outputs: Tensor, classes: Tensor) -> Tensor:
    return outputs[torch.arange(len(classes), device=classes.device), classes]


class Recorder:
    """Collects a `LossPath` from the outputs after every step.

    Args:
        targets: (N, …) as `check_targets` gives them.
        forget: (n,) bool over the trained samples, the first n of N.
        loss: name of the loss.
    """

    def __init__(self, targets: Tensor, forget: Tensor, loss: str) -> None:
        self._targets, self._loss = targets, loss
        watched = forget.new_zeros(len(targets), dtype=torch.bool)
        watched[len(forget) :] = True
        whole = forget.new_zeros(len(targets), dtype=torch.bool)
        whole[: len(forget)] = forget
        self._sets = (whole, ~whole & ~watched, watched)
        self._rows: list[Tensor] = []

    def add(self, outputs: Tensor) -> Tensor:
        """Record outputs (N, C, settings); a loss that overflowed is ∞. The row, (6, settings)."""
        row = torch.cat([self._means(block) for block in outputs.split(BLOCK, dim=2)], dim=1)
        self._rows.append(row)
        return row

    def _means(self, outputs: Tensor) -> Tensor:
        value, right = (part.double() for part in scores(outputs, self._targets, self._loss))
        value = torch.where(value.isnan(), torch.inf, value)
        forget, retain, watched = self._sets
        pairs = [(value, forget), (value, retain), (right, forget), (right, retain)]
        pairs += [(value, watched), (right, watched)]
        return torch.stack([part[members].mean(dim=0) for part, members in pairs])

    def rows(self) -> Tensor:
        """(6, steps+1, settings), in the order of `LossPath`."""
        return torch.stack(self._rows, dim=1)

    def fields(self) -> dict[str, Tensor]:
        """The same by name."""
        names = (field.name for field in fields(LossPath))
        return dict(zip(names, self.rows(), strict=True))
