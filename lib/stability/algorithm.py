"""The unlearning update: mixing, batches, damping, and how its mini-batches are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from lib.checks import (
    require_batch,
    require_choice,
    require_count,
    require_nonnegative,
    require_share,
)
from lib.stability.sampling import (
    RESHUFFLED,
    SAMPLINGS,
    Sampling,
    draw_counts,
    epoch_counts,
    scheme_of,
)


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
            "without_replacement" within a batch, or "with_replacement", with independent batches;
            or "reshuffled", a data loader's: each set is shuffled once per epoch and dealt out.
        momentum: heavy ball β ∈ [0, 1): δ_{k+1} = (1+β)δ_k − βδ_{k−1} − η·gradient.

    Raises:
        ValueError: naming the attribute, its value and the allowed range.
    """

    mixing: float
    retain_batch: int
    forget_batch: int
    damping: float = 0.0
    sampling: Sampling = "bernoulli"
    momentum: float = 0.0

    def __post_init__(self) -> None:
        checked = {
            "mixing": require_share("mixing", self.mixing),
            "retain_batch": require_count("retain_batch", self.retain_batch, 1),
            "forget_batch": require_count("forget_batch", self.forget_batch, 1),
            "damping": require_nonnegative("damping", self.damping),
            "momentum": require_share("momentum", self.momentum, "[0, 1)"),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        require_choice("sampling", self.sampling, (*SAMPLINGS, RESHUFFLED))

    def require_plain(self, what: str) -> None:
        """ValueError if there is momentum: `what` has no exact form with it."""
        if self.momentum:
            raise ValueError(
                f"algorithm.momentum must be 0 for {what}, which has no exact form with it, "
                f"got {self.momentum!r}"
            )

    def require_independent(self, what: str) -> None:
        """ValueError if batches depend on each other: `what` has no exact form then."""
        if self.sampling == RESHUFFLED:
            raise ValueError(
                f"algorithm.sampling must be one of {SAMPLINGS} for {what}, which has no exact "
                f"form for dependent batches, got {self.sampling!r}"
            )

    def sets(self, forget: Tensor) -> tuple[SetWeights, SetWeights]:
        """Weights of the retain and the forget set, forget (n,) bool.

        Raises:
            ValueError: if a batch exceeds its set, or batches are not independent.
        """
        self.require_independent("the noise of independent batches")
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


def batch_weights(
    algorithm: AscentDescent, forget: Tensor, runs: int, generator: Generator
) -> Callable[[], Tensor]:
    """Each call: the signed weight of every sample's gradient in the next step of `runs` runs.

    (1−α)/B_r times its count for a retain sample, −α/B_f times its count for a forget sample; runs
    are independent, steps are but for a loader's epochs.

    Returns:
        a call that gives (n, runs) float64 on the mask's device, drawn on the CPU; over draws the
        mean is (1−α)/n_r or −α/n_f.

    Raises:
        ValueError: if a batch exceeds its set.
    """
    parts = []
    for name, members, weight in (
        ("retain_batch", ~forget, 1 - algorithm.mixing),
        ("forget_batch", forget, -algorithm.mixing),
    ):
        n, batch = int(members.sum()), getattr(algorithm, name)
        require_batch(name, batch, n)
        everyone = members.new_ones(1, 1).expand(runs, n)
        sizes = torch.full((runs,), batch, device=members.device)
        if algorithm.sampling == RESHUFFLED:
            draw = epoch_counts(everyone, sizes, generator)
        else:
            draw = partial(draw_counts, everyone, sizes, algorithm.sampling, generator)
        parts.append((members, weight / batch, draw))

    def following() -> Tensor:
        weights = torch.empty(len(forget), runs, dtype=torch.float64, device=forget.device)
        for members, weight, draw in parts:
            weights[members] = weight * draw().T.double()
        return weights

    return following
