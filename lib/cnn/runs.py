"""One chunk of ascent–descent runs on signal-plus-noise CNNs: the update, the run, its linear twin.

`lib.cnn.unlearning` is the entrance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from lib.cnn.coefficients import CoefficientState, PatchSpan
from lib.cnn.descent import per_entry
from lib.stability.algorithm import AscentDescent, Sampling
from lib.stability.losses import scalar_loss
from lib.stability.sampling import draw_counts, epoch_counts


@dataclass(frozen=True)
class Update:
    """The update of each of b entries: tensors (b,), forget (b, n)."""

    forget: Tensor
    mixing: Tensor
    retain_batch: Tensor
    forget_batch: Tensor
    damping: Tensor
    rate: Tensor
    sampling: tuple[Sampling, ...]

    @classmethod
    def of(
        cls,
        algorithm: AscentDescent | Sequence[AscentDescent],
        learning_rate: float | Sequence[float] | Tensor,
        forget: Tensor,
        labels: Tensor,
    ) -> Update:
        """Columns from one algorithm and rate or one per entry; ValueError for a bad batch size."""
        entries = len(labels)
        rules = [algorithm] * entries if isinstance(algorithm, AscentDescent) else list(algorithm)
        if len(rules) != entries:
            raise ValueError(
                f"algorithm must be one or one per entry ({entries}), got {len(rules)}"
            )
        names = ("mixing", "retain_batch", "forget_batch", "damping")
        columns = {name: labels.new_tensor([getattr(r, name) for r in rules]) for name in names}
        for name, members in (("retain_batch", ~forget), ("forget_batch", forget)):
            if bool((columns[name] > members.sum(1)).any()):
                raise ValueError(
                    f"{name} must be in [1, {int(members.sum(1).min())}], the size of its set, "
                    f"got {int(columns[name].max())}"
                )
        rates = per_entry("learning_rate", learning_rate, labels)
        return cls(forget, **columns, rate=rates, sampling=tuple(r.sampling for r in rules))

    def __getitem__(self, part: slice) -> Update:
        return Update(*(getattr(self, name)[part] for name in self.__dataclass_fields__))

    def batches(self, generator: Generator, *, reshuffle: bool) -> Callable[[], Tensor]:
        """Each call gives the signed weights of the next step, times η: (b, n).

        Batches are independent between steps, or with `reshuffle` those of two data loaders.
        """
        if self._deterministic:
            weights = self.sample_weights(generator)
            return lambda: weights
        if not reshuffle:
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
        counts = torch.zeros(members.shape).to(size)
        for scheme in schemes:
            rows = torch.tensor([s == scheme for s in self.sampling], device=size.device)
            counts[rows] = draw_counts(members[rows], size[rows], scheme, generator).to(size)
        return counts


class Run:
    """One chunk of entries at w = w* + left·δ_0 + Σ_a C_a z_a, C the state's coefficients.

    overlaps (b, 2, m, n + 2) and squares (b,): ⟨δ_0, z_a⟩ and ‖δ_0‖².
    """

    def __init__(
        self, span: PatchSpan, optimum: Tensor, overlaps: Tensor, squares: Tensor, loss: str
    ):
        self.state, self.labels, self.loss = CoefficientState(span), span.labels, scalar_loss(loss)
        self.at_optimum = span.start + (optimum.flatten(1, 2) @ span.gram).view_as(optimum)
        self.overlaps, self.squares, self.left = overlaps, squares, torch.ones_like(squares)
        self.state.start = self.at_optimum + overlaps

    @property
    def moves(self) -> Tensor:
        """Coefficients of what the updates have added."""
        return self.state.coefficients

    def follow(
        self,
        update: Update,
        batches: Callable[[], Tensor],
        steps: int,
        stop_forget_loss: Tensor,
        stop_distance: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Distance and losses (steps+1, 3, b), steps taken, coefficients, what is left of δ_0."""
        path = self.labels.new_empty(steps + 1, 3, len(self.labels))
        moves, left = self.moves.clone(), self.left.clone()
        taken = torch.zeros_like(left, dtype=torch.long)
        alive = torch.arange(len(left), device=left.device)
        for step in range(steps + 1):
            outputs = self._outputs()
            path[step][:, alive] = seen = self._observe(outputs, update.forget[alive])
            running = (seen[1] < stop_forget_loss[alive]) & (seen[0] > stop_distance)
            if step == steps or not bool(running.any()):
                break
            # Drawn for all, so that an entry's batches do not depend on when others have stopped.
            weights = batches()[alive] * running[:, None]
            shrink = update.rate[alive] * update.damping[alive] * running
            if bool((shrink > 0).any()):
                self._shrink(1 - shrink)
            self._descend(weights * self._slopes(outputs))
            taken[alive] += running
            if int(running.sum()) < len(alive) / 2:
                moves[alive], left[alive] = self.moves, self.left
                self._select(running)
                alive = alive[running]
        moves[alive], left[alive] = self.moves, self.left
        last = torch.arange(steps + 1, device=taken.device)[:, None].minimum(taken)
        return path.gather(0, last[:, None].expand(path.shape)), taken, moves, left

    def _select(self, keep: Tensor) -> None:
        """Go on with some of the entries only."""
        self.state.select(keep)
        for name in ("labels", "at_optimum", "overlaps", "squares", "left"):
            setattr(self, name, getattr(self, name)[keep])

    def _shrink(self, factor: Tensor) -> None:
        """The pull of the damping towards w*."""
        self.left *= factor
        self.state.coefficients *= factor[:, None, None, None]
        self.state.start = self.at_optimum + self.left[:, None, None, None] * self.overlaps

    def _outputs(self) -> Tensor:
        return self.state.outputs()

    def _slopes(self, outputs: Tensor) -> Tensor:
        return self.loss.slope(outputs, self.labels)

    def _descend(self, steps: Tensor) -> None:
        self.state.descend(steps)

    def _observe(self, outputs: Tensor, forget: Tensor) -> Tensor:
        """‖δ‖/‖δ_0‖ and the mean losses on both sets, (3, b)."""
        # A square of rounding size may come out negative; its root is then zero to rounding.
        distance = (self._square() / self.squares).clamp(min=0).sqrt()
        values = self.loss.value(outputs, self.labels)
        means = [(values * part).sum(1) / part.sum(1) for part in (forget, ~forget)]
        return torch.stack([distance, *means]).nan_to_num(nan=float("inf"), posinf=float("inf"))

    def _square(self) -> Tensor:
        """‖left·δ_0 + Σ_a C_a z_a‖² = left²‖δ_0‖² + ⟨C, CG + 2 left·⟨δ_0, z⟩⟩."""
        along = self.state.preactivations - self.state.start
        along += 2 * self.left[:, None, None, None] * self.overlaps
        moved = self.state.coefficients.flatten(1)[:, None] @ along.flatten(1)[:, :, None]
        return self.left**2 * self.squares + moved[:, 0, 0]


class LinearRun(Run):
    """The same runs linearised at w*: w = w* + left·δ_0 + Σ_i c_i ∇f_i(w*), c (b, n).

    Outputs are f_i(w*) + ⟨∇f_i, δ⟩ and slopes ℓ'_i + ℓ''_i ⟨∇f_i, δ⟩: exactly the recursion of
    `lib.stability` where all ℓ'_i(w*) = 0, the affine one where training stopped earlier; without
    `drift` the ℓ'_i(w*) are dropped.
    """

    def __init__(
        self,
        span: PatchSpan,
        optimum: Tensor,
        overlaps: Tensor,
        squares: Tensor,
        loss: str,
        *,
        drift: bool = True,
    ):
        super().__init__(span, optimum, overlaps, squares, loss)
        self.state = CoefficientState(span, optimum)
        self.at = self.state.outputs()
        self.gram = self.state.gradient_gram()
        self.slope = self.loss.slope(self.at, self.labels) * drift
        self.curvature = self.loss.curvature(self.at, self.labels)
        self.displaced = self.state.gradient_products(overlaps)
        self.coefficients = torch.zeros_like(self.at)

    @property
    def moves(self) -> Tensor:
        """The coefficients c."""
        return self.coefficients

    def _select(self, keep: Tensor) -> None:
        super()._select(keep)
        for name in ("at", "gram", "slope", "curvature", "displaced", "coefficients"):
            setattr(self, name, getattr(self, name)[keep])

    def _shrink(self, factor: Tensor) -> None:
        self.left *= factor
        self.coefficients *= factor[:, None]

    def _outputs(self) -> Tensor:
        self.moved = (self.gram @ self.coefficients[..., None])[..., 0]
        self.change = self.left[:, None] * self.displaced + self.moved
        return self.at + self.change

    def _slopes(self, outputs: Tensor) -> Tensor:
        return self.slope + self.curvature * self.change

    def _descend(self, steps: Tensor) -> None:
        self.coefficients -= steps

    def _square(self) -> Tensor:
        along = self.moved + 2 * self.left[:, None] * self.displaced
        return self.left**2 * self.squares + (self.coefficients * along).sum(1)
