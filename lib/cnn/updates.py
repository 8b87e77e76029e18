"""The updates of a batch of runs in columns, and the mini-batches that they draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from lib.checks import require_batch, require_bool, require_items, require_mask
from lib.cnn.descent import per_entry
from lib.stability.algorithm import AscentDescent, Sampling
from lib.stability.sampling import RESHUFFLED, draw_counts, epoch_counts

INDEPENDENT: Sampling = "without_replacement"


@dataclass(frozen=True)
class UpdateColumns:
    """The update of each of b entries: tensors (b,), forget (b, n)."""

    forget: Tensor
    mixing: Tensor
    retain_batch: Tensor
    forget_batch: Tensor
    damping: Tensor
    rate: Tensor
    sampling: tuple[Sampling, ...]
    reshuffle: bool

    @classmethod
    def of(
        cls,
        algorithm: AscentDescent | Sequence[AscentDescent],
        learning_rate: float | Sequence[float] | Tensor,
        forget: Tensor,
        labels: Tensor,
        *,
        reshuffle: bool = False,
    ) -> UpdateColumns:
        """From one algorithm and rate or one per entry; ValueError for what does not fit."""
        entries, forget = len(labels), forget_masks(forget, labels)
        if isinstance(algorithm, AscentDescent):
            algorithm = [algorithm] * entries
        rules = require_items("algorithm", algorithm, AscentDescent)
        if len(rules) != entries:
            raise ValueError(
                f"algorithm must be one or one per entry ({entries}), got {len(rules)}"
            )
        names = ("mixing", "retain_batch", "forget_batch", "damping")
        columns = {name: labels.new_tensor([getattr(r, name) for r in rules]) for name in names}
        for name, members in (("retain_batch", ~forget), ("forget_batch", forget)):
            for rule, size in zip(rules, members.sum(1).tolist(), strict=True):
                require_batch(name, getattr(rule, name), size)
        reshuffle = require_bool("reshuffle", reshuffle)
        rates = per_entry("learning_rate", learning_rate, labels)
        for rule in rules:
            rule.require_plain("networks trained on coefficients")
        sampling = tuple(rule.sampling for rule in rules)
        if set(sampling) == {RESHUFFLED}:  # one shuffled epoch deals batches without replacement
            reshuffle, sampling = True, (INDEPENDENT,) * entries
        if reshuffle and set(sampling) != {"without_replacement"}:
            raise ValueError(
                "algorithm.sampling must be 'without_replacement' where reshuffle is True, "
                f"got {sorted(set(sampling))}"
            )
        return cls(forget, **columns, rate=rates, sampling=sampling, reshuffle=reshuffle)

    def __getitem__(self, part: slice) -> UpdateColumns:
        names = [f.name for f in fields(self) if f.name != "reshuffle"]
        return replace(self, **{name: getattr(self, name)[part] for name in names})

    def batches(self, generator: Generator) -> Callable[[], Tensor]:
        """Each call gives the signed weights of the next step, times η: (b, n).

        Batches are independent between steps, or where `reshuffle` those of two data loaders.
        """
        if self._deterministic:
            weights = self.sample_weights(generator)
            return lambda: weights
        if not self.reshuffle:
            return partial(self.sample_weights, generator)
        retain = epoch_counts(~self.forget, self.retain_batch, generator)
        forget = epoch_counts(self.forget, self.forget_batch, generator)
        return lambda: self._weigh(retain(), forget())

    def sample_weights(self, generator: Generator) -> Tensor:
        """Signed weight of every sample's gradient in one step, times η: (b, n)."""
        return self._weigh(
            self._counts(~self.forget, self.retain_batch, generator),
            self._counts(self.forget, self.forget_batch, generator),
        )

    @property
    def _deterministic(self) -> bool:
        """Whether every batch is the whole of its set."""
        full = (self.retain_batch == (~self.forget).sum(1)).all()
        full &= (self.forget_batch == self.forget.sum(1)).all()
        return bool(full) and "with_replacement" not in self.sampling

    def _weigh(self, retain_counts: Tensor, forget_counts: Tensor) -> Tensor:
        retain = (self.rate * (1 - self.mixing) / self.retain_batch)[:, None]
        forget = (self.rate * self.mixing / self.forget_batch)[:, None]
        return retain * retain_counts - forget * forget_counts

    def _counts(self, members: Tensor, size: Tensor, generator: Generator) -> Tensor:
        schemes = sorted(set(self.sampling))
        if len(schemes) == 1:
            return draw_counts(members, size, schemes[0], generator).to(size)
        counts = torch.zeros_like(members, dtype=size.dtype)
        for scheme in schemes:
            rows = torch.tensor([s == scheme for s in self.sampling], device=size.device)
            counts[rows] = draw_counts(members[rows], size[rows], scheme, generator).to(size)
        return counts


def forget_masks(forget: Any, labels: Tensor) -> Tensor:
    """(b, n) bool, from one mask or set of indices for all entries or from a mask each."""
    entries, n = labels.shape
    each = isinstance(forget, Tensor) and forget.ndim == 2 and len(forget) == entries
    masks = [require_mask(row, n) for row in forget] if each else [require_mask(forget, n)]
    return torch.stack(masks).to(labels.device).expand(labels.shape)
