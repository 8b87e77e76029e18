"""Ascent–descent unlearning of signal-plus-noise CNNs, run exactly on their coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from lib.checks import (
    describe,
    require_above,
    require_bool,
    require_count,
    require_kind,
    require_room,
    require_seed,
)
from lib.cnn.coefficients import distinct_patches
from lib.cnn.descent import chunks
from lib.cnn.network import gaussian_weights
from lib.cnn.runs import (
    Displaced,
    LinearMotion,
    Motion,
    NetworkMotion,
    Until,
    follow,
)
from lib.cnn.training import Fit
from lib.cnn.updates import UpdateColumns
from lib.randomness import seed_sequence, stream
from lib.stability.algorithm import AscentDescent
from lib.stability.losses import scalar_loss

UNTIL_THE_LAST_STEP = Until()
LARGEST_STEPS = 20_000  # of a run: some ten seconds for a handful of small networks


@dataclass(frozen=True)
class Paths:
    """Unlearning runs, one batch entry each; row k of (steps+1, b) is after k updates.

    distance: ‖w_k − w*‖ over ‖w_0 − w*‖, over all weights; forget_loss, retain_loss: mean training
    loss on each set. All three read ∞ once a run has overflowed. steps (b,): updates taken; where a
    run was stopped early its rows repeat from there.
    """

    distance: Tensor
    forget_loss: Tensor
    retain_loss: Tensor
    steps: Tensor


@dataclass(frozen=True)
class Trajectory(Paths):
    """`Paths` of networks, with moves: the patches' coefficients of what the updates added."""

    moves: Tensor
    displacement_left: Tensor
    start: Start

    def weights(self) -> Tensor:
        """The weights after the last update, (b, 2, m, d); ValueError unless all d agree."""
        return self.start.fit.stack(self.weights_of)

    def weights_of(self, entry: int) -> Tensor:
        """The weights of one entry after the last update, (2, m, d)."""
        start, move = self.start, self.moves[entry]
        displaced = self.displacement_left[entry] * start.displacement_of(entry)
        patches = distinct_patches(start.fit.datasets[entry]).to(move)
        return start.fit.weights_of(entry) + displaced + move @ patches


@dataclass(frozen=True)
class Start:
    """w_0 = w* + δ_0, δ_0 uniform on the sphere of radius displacement·‖w*‖ in all of weight space.

    δ_0 leaves the span of the patches; the run needs only ‖δ_0‖ and its inner products with them.
    """

    fit: Fit
    displacement: float
    seed: int

    def __post_init__(self) -> None:
        require_kind("fit", self.fit, Fit)
        for name, value in (
            ("displacement", require_above("displacement", self.displacement, 0)),
            ("seed", require_seed(self.seed)),
        ):
            object.__setattr__(self, name, value)

    def displacement_of(self, entry: int) -> Tensor:
        """δ_0 of one entry, (2, m, d), drawn again from the seed."""
        fit = self.fit
        shape = 2, fit.coefficients.shape[2], fit.datasets[entry].dim
        generator = np.random.default_rng(seed_sequence("displacement", self.seed, entry))
        direction = torch.from_numpy(generator.standard_normal(shape))
        return (self._lengths[entry] / direction.norm() * direction).to(fit.coefficients)

    def overlaps(self) -> tuple[Tensor, Tensor]:
        """⟨δ_0, patches⟩ (b, 2, m, n + 2) and ‖δ_0‖² (b,)."""
        products = []
        for entry, data in enumerate(self.fit.datasets):
            displacement = self.displacement_of(entry)
            products.append(displacement @ distinct_patches(data).to(displacement).T)
        return torch.stack(products), (self._lengths**2).to(products[0])

    @cached_property
    def _lengths(self) -> Tensor:
        """‖δ_0‖ of all entries, (b,), from ‖w*‖ in inner products."""
        fit, C = self.fit, self.fit.coefficients
        drawn = [
            _square_of_start(C.shape[2], data.dim, fit.init_scale, seed)
            for data, seed in zip(fit.datasets, fit.starts, strict=True)
        ]
        along = 2 * fit.span.start + (C.flatten(1, 2) @ fit.span.gram).view_as(C)
        # In float32, of which the stored tables keep the rounding (3e-8 of a length that is free).
        squares = torch.tensor(drawn, dtype=torch.float32, device="cpu").to(C) + (C * along).sum(
            (1, 2, 3)
        )
        return self.displacement * squares.sqrt()


def ascent_descent(
    fit: Fit,
    forget: Tensor,
    algorithm: AscentDescent | Sequence[AscentDescent],
    learning_rate: float | Sequence[float] | Tensor,
    *,
    steps: int,
    displacement: float = 1e-6,
    seed: int = 0,
    until: Until = UNTIL_THE_LAST_STEP,
    reshuffle: bool = False,
) -> Trajectory:
    """w ← w − η[(1−α)/B_r Σ_R ∇ℓ_i − α/B_f Σ_F ∇ℓ_j + λ(w − w*)] from w* + δ_0, one batch of runs.

    The nonlinear run on the network itself (no linearisation), with the loss it was trained with.
    forget (n,) or (b, n) bool; algorithm and learning_rate η one for all or one per entry. δ_0 is
    isotropic over all weights, of length displacement·‖w*‖ (`Start`). Batches are independent
    between entries, and between steps unless `reshuffle` asks for those of data loaders, which go
    through each set in a fresh random order per epoch and drop an incomplete last batch.
    Raises ValueError for a batch larger than its set, `reshuffle` with another sampling scheme, or
    over 20,000 steps.
    Source: the paper's update.
    """
    start, updates = _begin(fit, forget, algorithm, learning_rate, displacement, seed, reshuffle)
    paths, moves, left = _follow(NetworkMotion.of, start, updates, steps, until)
    return Trajectory(**vars(paths), moves=moves, displacement_left=left, start=start)


def linearised(
    fit: Fit,
    forget: Tensor,
    algorithm: AscentDescent | Sequence[AscentDescent],
    learning_rate: float | Sequence[float] | Tensor,
    *,
    steps: int,
    displacement: float = 1e-6,
    seed: int = 0,
    until: Until = UNTIL_THE_LAST_STEP,
    reshuffle: bool = False,
    drift: bool = True,
) -> Paths:
    """`ascent_descent` with every network replaced by its linearisation at w*.

    The same δ_0 and mini-batches for the same arguments, so that a difference between the two is
    the network's nonlinearity and nothing else. Only the gradients' Gram matrix enters; where the
    gradients vanish at w* this is δ ← (I − ηÂ)δ of `lib.stability`, else the affine recursion.
    Without `drift` what gradients are left at w* is dropped, and it is always the former.
    Raises as `ascent_descent`.
    """
    start, updates = _begin(fit, forget, algorithm, learning_rate, displacement, seed, reshuffle)
    kind = partial(LinearMotion.of, drift=require_bool("drift", drift))
    return _follow(kind, start, updates, steps, until)[0]


def _begin(
    fit: Fit,
    forget: Tensor,
    algorithm: AscentDescent | Sequence[AscentDescent],
    learning_rate: float | Sequence[float] | Tensor,
    displacement: float,
    seed: int,
    reshuffle: bool,
) -> tuple[Start, UpdateColumns]:
    """Where the runs begin and how they are updated, of either kind."""
    start = Start(fit, displacement, seed)
    labels = fit.span.labels
    return start, UpdateColumns.of(algorithm, learning_rate, forget, labels, reshuffle=reshuffle)


def _follow(
    kind: Callable[[Displaced], Motion],
    start: Start,
    updates: UpdateColumns,
    steps: int,
    until: Until,
) -> tuple[Paths, Tensor, Tensor]:
    """Paths, moves and what is left of δ_0, chunk by chunk."""
    steps = require_count("steps", steps, 0, LARGEST_STEPS)
    require_kind("until", until, Until)
    require_room("steps", steps + 1, 3, len(start.fit.datasets))
    fit, (overlaps, squares) = start.fit, start.overlaps()
    limits = torch.as_tensor(until.forget_loss, dtype=squares.dtype, device=squares.device)
    if limits.shape not in ((), squares.shape):
        raise ValueError(
            f"until.forget_loss must be one number or {len(squares)}, got {describe(limits)}"
        )
    limits = limits.expand(len(squares))
    runs = []
    for part in chunks(fit.span):
        at = Displaced(
            fit.span[part],
            fit.coefficients[part],
            overlaps[part],
            squares[part],
            scalar_loss(fit.loss),
        )
        generator = stream("unlearning batches", start.seed, part.start)
        batches = updates[part].batches(generator)
        own = replace(until, forget_loss=limits[part])
        runs.append(follow(at, kind(at), updates[part], batches, steps, own))
    paths, taken, moves, left = zip(*runs, strict=True)
    distance, forget_loss, retain_loss = torch.cat(paths, dim=2).unbind(1)
    found = Paths(distance, forget_loss, retain_loss, torch.cat(taken))
    return found, torch.cat(moves), torch.cat(left)


@lru_cache(maxsize=4096)
def _square_of_start(filters: int, dim: int, init_scale: float, seed: int) -> float:
    """‖w(0)‖²; kept, because many runs start from one network."""
    return float(gaussian_weights(filters, dim, init_scale, seed).square().sum())
