"""One chunk of ascent–descent runs on signal-plus-noise CNNs, and of their linear twins.

`lib.cnn.unlearning` is the entrance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lib.checks import WIDE, describe, holds_numbers, require_nonnegative
from lib.cnn.coefficients import PatchSpan, Responses
from lib.cnn.updates import UpdateColumns
from lib.stability.losses import Loss


@dataclass(frozen=True)
class Until:
    """When a run ends before its last step: forget_loss, one number or one per entry, and distance.

    Once the mean forget loss is at least the former or ‖w − w*‖ at most distance·‖δ_0‖.
    """

    forget_loss: float | Tensor = float("inf")
    distance: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "distance", require_nonnegative("distance", self.distance))
        if isinstance(self.forget_loss, Tensor):
            losses = self.forget_loss
            held = losses.dtype in WIDE and holds_numbers(losses)
            if not held or bool(losses.isnan().any()):
                raise ValueError(f"forget_loss must be numbers, got {describe(losses)}")
        elif self.forget_loss != math.inf:
            value = require_nonnegative("forget_loss", self.forget_loss)
            object.__setattr__(self, "forget_loss", value)


@dataclass(frozen=True)
class Displaced:
    """Networks at the start of a chunk of runs, w = w* + δ_0; optimum: the coefficients of w*.

    overlaps (b, 2, m, n + 2) and squares (b,): ⟨δ_0, z_a⟩ and ‖δ_0‖².
    """

    span: PatchSpan
    optimum: Tensor
    overlaps: Tensor
    squares: Tensor
    loss: Loss


class Seen(NamedTuple):
    """What a step needs to know of the runs: outputs f and slopes ∂ℓ/∂f (b, n), and

    added: ‖δ‖² − left²‖δ_0‖² (b,);  descend: moves, in place, by given steps of the samples.
    """

    outputs: Tensor
    slopes: Tensor
    added: Tensor
    descend: Callable[[Tensor, Tensor], object]


@dataclass
class NetworkMotion:
    """The networks themselves, at w = w* + left·δ_0 + Σ_a C_a z_a; moves C (b, 2, m, n + 2).

    start: ⟨w* + left·δ_0, z_a⟩.
    """

    loss: Loss
    span: PatchSpan
    overlaps: Tensor
    at_optimum: Tensor
    start: Tensor
    moves: Tensor
    at: Responses = field(init=False)

    def __post_init__(self) -> None:
        self.at = Responses(self.span, self.moves, self.start)

    @classmethod
    def of(cls, at: Displaced) -> NetworkMotion:
        """At their start."""
        optimum = at.optimum
        products = at.span.start + (optimum.flatten(1, 2) @ at.span.gram).view_as(optimum)
        start, moves = products + at.overlaps, torch.zeros_like(at.span.start)
        return cls(at.loss, at.span, at.overlaps, products, start, moves)

    def look(self, left: Tensor) -> Seen:
        """‖left·δ_0 + Σ_a C_a z_a‖² = left²‖δ_0‖² + ⟨C, CG + 2 left·⟨δ_0, z⟩⟩."""
        at = self.at.renew(self.moves, self.start)
        along = at.preactivations - self.start
        along += 2 * left[:, None, None, None] * self.overlaps
        added = self.moves.flatten(1)[:, None] @ along.flatten(1)[:, :, None]
        slopes = self.loss.slope(at.outputs, self.span.labels)
        return Seen(at.outputs, slopes, added[:, 0, 0], at.descend)

    def shrink(self, factor: Tensor, left: Tensor) -> None:
        """The pull of the damping towards w*: δ times factor (b,), which gave `left`."""
        self.moves *= factor[:, None, None, None]
        self.start = self.at_optimum + left[:, None, None, None] * self.overlaps


@dataclass
class LinearMotion:
    """Their linearisations at w*: w = w* + left·δ_0 + Σ_i c_i ∇f_i(w*), moves c (b, n).

    Outputs are f_i(w*) + ⟨∇f_i, δ⟩ and slopes ℓ'_i + ℓ''_i ⟨∇f_i, δ⟩: exactly the recursion of
    `lib.stability` where all ℓ'_i(w*) = 0, the affine one where training stopped earlier; without
    `drift` the ℓ'_i(w*) are dropped. displaced: ⟨∇f_i, δ_0⟩.
    """

    gram: Tensor
    outputs: Tensor
    slope: Tensor
    curvature: Tensor
    displaced: Tensor
    moves: Tensor

    @classmethod
    def of(cls, at: Displaced, *, drift: bool = True) -> LinearMotion:
        """At their start."""
        responses, labels = at.span.respond(at.optimum), at.span.labels
        return cls(
            responses.gradient_gram(),
            responses.outputs,
            slope=at.loss.slope(responses.outputs, labels) * drift,
            curvature=at.loss.curvature(responses.outputs, labels),
            displaced=responses.gradient_products(at.overlaps),
            moves=torch.zeros_like(labels),
        )

    def look(self, left: Tensor) -> Seen:
        """‖left·δ_0 + Σ_i c_i ∇f_i‖² = left²‖δ_0‖² + ⟨c, Kc + 2 left·⟨∇f, δ_0⟩⟩."""
        moved = (self.gram @ self.moves[..., None])[..., 0]
        change = left[:, None] * self.displaced + moved
        along = moved + 2 * left[:, None] * self.displaced
        added = (self.moves * along).sum(1)
        slopes = self.slope + self.curvature * change
        return Seen(self.outputs + change, slopes, added, Tensor.sub_)

    def shrink(self, factor: Tensor, left: Tensor) -> None:
        """As `NetworkMotion.shrink`."""
        self.moves *= factor[:, None]


Motion = NetworkMotion | LinearMotion


def follow(
    at: Displaced,
    motion: Motion,
    update: UpdateColumns,
    batches: Callable[[], Tensor],
    steps: int,
    until: Until,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distance and both losses (steps+1, 3, b), steps taken, moves, and what is left of δ_0."""
    labels = at.span.labels
    path = labels.new_empty(steps + 1, 3, len(labels))
    loss_limit = torch.as_tensor(until.forget_loss, dtype=labels.dtype, device=labels.device)
    loss_limit = loss_limit.expand(len(labels))
    moves, left = motion.moves.clone(), torch.ones_like(at.squares)
    taken = torch.zeros_like(left, dtype=torch.long)
    alive = torch.arange(len(left), device=left.device)
    for step in range(steps + 1):
        seen = motion.look(left[alive])
        values = at.loss.value(seen.outputs, labels[alive])
        squares = left[alive] ** 2 * at.squares[alive] + seen.added
        rows = _observed(squares / at.squares[alive], values, update.forget[alive])
        path[step][:, alive] = rows
        running = (rows[1] < loss_limit[alive]) & (rows[0] > until.distance)
        if step == steps or not bool(running.any()):
            break
        # Drawn for all, so that an entry's batches do not depend on when others have stopped.
        weights = batches()[alive] * running[:, None]
        shrink = update.rate[alive] * update.damping[alive] * running
        if bool((shrink > 0).any()):
            left[alive] *= 1 - shrink
            motion.shrink(1 - shrink, left[alive])
        seen.descend(motion.moves, weights * seen.slopes)
        taken[alive] += running
        if int(running.sum()) < len(alive) / 2:
            moves[alive] = motion.moves
            motion, alive = _entries(motion, running), alive[running]
    moves[alive] = motion.moves
    last = torch.arange(steps + 1, device=taken.device)[:, None].minimum(taken)
    return path.gather(0, last[:, None].expand(path.shape)), taken, moves, left


def _observed(squares: Tensor, values: Tensor, forget: Tensor) -> Tensor:
    """‖δ‖/‖δ_0‖ and the mean losses on the forget and the retain set, (3, b); ∞ on overflow."""
    # A square of rounding size may come out negative; its root is then zero to rounding.
    means = [(values * part).sum(1) / part.sum(1) for part in (forget, ~forget)]
    rows = torch.stack([squares.clamp(min=0).sqrt(), *means])
    return rows.nan_to_num(nan=float("inf"), posinf=float("inf"))


def _entries(motion: Motion, keep: Tensor) -> Motion:
    """The same motion of some of the entries only."""
    names = [f.name for f in fields(motion) if f.init and f.name != "loss"]
    return replace(motion, **{name: getattr(motion, name)[keep] for name in names})
