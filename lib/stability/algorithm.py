"""The unlearning update: mixing, batches, damping, and how its mini-batches are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from lib.checks import is_finite, require_count, require_nonnegative

Sampling = Literal["bernoulli", "without_replacement", "with_replacement"]
SAMPLINGS: tuple[Sampling, ...] = ("bernoulli", "without_replacement", "with_replacement")


@dataclass(frozen=True)
class AscentDescent:
    """The unlearning update, but for its learning rate.

    Attributes:
        mixing: α ∈ [0, 1], weight of ascent on the forget set; descent on the retain set has 1−α.
            (NegGrad+ in the SCRUB code and others put α on the *retain* loss.)
        retain_batch, forget_batch: mini-batch sizes B_r ≤ n_r, B_f ≤ n_f; expected sizes under
            Bernoulli sampling.
        damping: λ ≥ 0, proximal pull that adds λ(w − w*) to the gradient.
        sampling: "bernoulli" (each sample enters with probability B/n, sums divided by B),
            "without_replacement" within a batch, or "with_replacement"; batches are independent.

    Raises:
        ValueError: naming the attribute, its value and the allowed range.
    """

    mixing: float
    retain_batch: int
    forget_batch: int
    damping: float = 0.0
    sampling: Sampling = "bernoulli"

    def __post_init__(self) -> None:
        if not (is_finite(self.mixing) and 0 <= self.mixing <= 1):
            raise ValueError(f"mixing must be in [0, 1], got {self.mixing!r}")
        for name in ("retain_batch", "forget_batch"):
            require_count(name, getattr(self, name), 1)
            object.__setattr__(self, name, int(getattr(self, name)))
        require_nonnegative("damping", self.damping)
        # A float32 scalar would do its arithmetic, 1 − α say, in single precision.
        for name in ("mixing", "damping"):
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling must be one of {SAMPLINGS}, got {self.sampling!r}")

    def sets(self, forget: Tensor) -> tuple[SetWeights, SetWeights]:
        """Weights of the retain and the forget set, forget (n,) bool.

        Raises:
            ValueError: if a batch exceeds its set.
        """
        return (
            self._weights("retain_batch", ~forget, 1 - self.mixing, self.retain_batch),
            self._weights("forget_batch", forget, self.mixing, self.forget_batch),
        )

    def _weights(self, name: str, members: Tensor, weight: float, batch: int) -> SetWeights:
        n = int(members.sum())
        if batch > n:
            raise ValueError(f"{name} must be in [1, {n}], the size of its set, got {batch}")
        square = weight**2
        if self.sampling == "bernoulli":
            return SetWeights(members, n, batch, weight, square / n * (1 / batch - 1 / n), 0.0)
        if self.sampling == "with_replacement":
            return SetWeights(members, n, batch, weight, square / (batch * n), square / batch)
        scale = square * (n - batch) / (batch * (n - 1)) if n > 1 else 0.0
        return SetWeights(members, n, batch, weight, scale / n, scale)


@dataclass(frozen=True)
class SetWeights:
    """How one set enters the second moment (book, lem-sampling).

    members (n,) bool; size n_c; batch B_c; weight ω_c (1−α or α); per_sample v_i; per_set s_c.
    """

    members: Tensor
    size: int
    batch: int
    weight: float
    per_sample: float
    per_set: float

    def draw(self, sampling: Sampling, runs: int, generator: Generator) -> Tensor:
        """How often each of the set's samples is in the batch of each run; (n_c, runs) float64."""
        n, B = self.size, self.batch
        device = generator.device
        if sampling == "bernoulli":
            uniform = torch.rand(n, runs, generator=generator, device=device, dtype=torch.float64)
            return (uniform < B / n).double()
        counts = torch.zeros(n, runs, device=device, dtype=torch.float64)
        if sampling == "with_replacement":
            chosen = torch.randint(n, (B, runs), generator=generator, device=device)
        else:
            order = torch.rand(n, runs, generator=generator, device=device).argsort(dim=0)
            chosen = order[:B]
        return counts.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float64))


def sample_weights(
    algorithm: AscentDescent, sets: tuple[SetWeights, SetWeights], runs: int, generator: Generator
) -> Tensor:
    """Signed weight of every sample's gradient in one step of each of `runs` independent runs.

    (1−α)/B_r times its count for a retain sample, −α/B_f times its count for a forget sample.

    Returns:
        (n, runs) float64 on the generator's device; the mean over draws is (1−α)/n_r or −α/n_f.
    """
    weights = torch.empty(len(sets[0].members), runs, device=generator.device, dtype=torch.float64)
    for part, sign in zip(sets, (1, -1), strict=True):
        counts = part.draw(algorithm.sampling, runs, generator)
        weights[part.members] = sign * part.weight / part.batch * counts
    return weights
