"""The unlearning update: mixing, batches, damping, and how its mini-batches are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lib.checks import require_batch, require_count, require_nonnegative, require_share
from lib.stability.sampling import Sampling, draw_counts, scheme_of


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
        require_share("mixing", self.mixing)
        for name in ("retain_batch", "forget_batch"):
            require_count(name, getattr(self, name), 1)
            object.__setattr__(self, name, int(getattr(self, name)))
        require_nonnegative("damping", self.damping)
        # A float32 scalar would do its arithmetic, 1 − α say, in single precision.
        for name in ("mixing", "damping"):
            object.__setattr__(self, name, float(getattr(self, name)))
        scheme_of(self.sampling)

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
        require_batch(name, batch, n)
        return SetWeights(
            members, n, batch, weight, *scheme_of(self.sampling).noise(weight**2, n, batch)
        )


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


def sample_weights(
    algorithm: AscentDescent, sets: tuple[SetWeights, SetWeights], runs: int, generator: Generator
) -> Tensor:
    """Signed weight of every sample's gradient in one step of each of `runs` independent runs.

    (1−α)/B_r times its count for a retain sample, −α/B_f times its count for a forget sample.

    Returns:
        (n, runs) float64 on the sets' device, drawn on the CPU; the mean over draws is (1−α)/n_r
        or −α/n_f.
    """
    members = sets[0].members
    weights = torch.empty(len(members), runs, dtype=torch.float64, device=members.device)
    for part, sign in zip(sets, (1, -1), strict=True):
        everyone = members.new_ones(1, 1).expand(runs, part.size)
        batches = torch.full((runs,), part.batch, device=members.device)
        counts = draw_counts(everyone, batches, algorithm.sampling, generator)
        weights[part.members] = sign * part.weight / part.batch * counts.T.double()
    return weights
