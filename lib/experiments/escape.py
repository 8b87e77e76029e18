"""Escape of sampled runs on commuting families, exact in law and free of batches.

A run needs only how many samples of each axis its mini-batches hold. Those counts are drawn jointly
from their law; axes that no batch can expand are drawn only for the few runs they might decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from lib.checks import (
    require_above,
    require_batches,
    require_count,
    require_items,
    require_kind,
    require_nonnegative,
    require_room,
    require_seed,
    require_share,
)
from lib.stability.algorithm import AscentDescent
from lib.stability.exponents import axis_laws, axis_multipliers, critical_moment, joint_counts
from lib.stability.families import AxisFamily
from lib.stability.sampling import draw_group_counts

LARGEST_THRESHOLD = 1e300
FIRST_BLOCK = 32  # steps drawn at once; doubled each time, so that runs which escape cost little


@dataclass(frozen=True)
class Escape:
    """A run escapes if ‖δ_k‖² ≥ threshold · ‖δ_0‖² at some k ≤ steps; a cell, if most runs do.

    Raises:
        ValueError: for steps or runs below 1 or a threshold that is not a finite number > 1.
    """

    steps: int = 1000
    runs: int = 10
    threshold: float = 1000.0

    def __post_init__(self) -> None:
        checked = {
            "steps": require_count("steps", self.steps, 1),
            "runs": require_count("runs", self.runs, 1),
            "threshold": require_above("threshold", self.threshold, 1, LARGEST_THRESHOLD),
        }
        require_room("steps and runs", self.steps, self.runs)
        for name, value in checked.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class HessianTest:
    """One cell of a map: a family, the update, its learning rate.

    Raises:
        ValueError: for a batch larger than its set or a negative or not finite learning rate.
    """

    family: AxisFamily
    algorithm: AscentDescent
    learning_rate: float

    def __post_init__(self) -> None:
        require_kind("family", self.family, AxisFamily)
        require_kind("algorithm", self.algorithm, AscentDescent)
        require_batches(self.family, self.algorithm)
        self.algorithm.require_plain("a Hessian test")
        self.algorithm.require_independent("a Hessian test")
        rate = require_nonnegative("learning_rate", self.learning_rate)
        object.__setattr__(self, "learning_rate", rate)


def count_escapes(tests: Sequence[HessianTest], criterion: Escape, *, seed: int) -> np.ndarray:
    """Number of escaping runs of every test, (len(tests),); every run and every test independent.

    A run starts with δ_0 equally long along every axis. The result depends on `seed` and on a
    test's place in the sequence.
    """
    tests = require_items("tests", tests, HessianTest)
    require_kind("criterion", criterion, Escape)
    for test in tests:
        axes = len(test.family.retain_group)
        require_room("tests and criterion", criterion.steps, criterion.runs, axes)
    seeds = np.random.SeedSequence(require_seed(seed)).spawn(len(tests))
    pairs = zip(tests, seeds, strict=True)
    return np.array([_escapes(test, criterion, seed) for test, seed in pairs])


def escapes_allowed(runs: int, threshold: float, *, level: float = 1e-3) -> int:
    """Most escapes that so many independent mean-square-stable runs show, but with chance `level`.

    On a commuting family with ρ(T) ≤ 1 every δ_a² is a nonnegative supermartingale, so ‖δ‖² is one,
    and P(sup_k ‖δ_k‖² ≥ threshold · ‖δ_0‖²) ≤ 1/threshold by Ville's inequality. Escapes are then
    stochastically below Binomial(runs, 1/threshold), whose upper quantile this is.
    """
    require_count("runs", runs, 0, 2**53)
    threshold = require_above("threshold", threshold, 1, LARGEST_THRESHOLD)
    level = require_share("level", level, "(0, 1]")
    return int(stats.binom.isf(level, runs, 1 / threshold))


def escape_bound(test: HessianTest, threshold: float) -> float:
    """Upper bound on P(sup_k ‖δ_k‖² ≥ τ‖δ_0‖²), δ_0 equally long along all q axes, over all k.

    With p the critical moment (at most 2): q^{1−p/2} τ^{−p/2}. If only one axis can expand at all,
    it must grow by s = (τ−1)q + 1 on its own, and the bound is s^{−p/2} with the whole of p. One
    where γ ≥ 0.

    Source: this book's Hessian tests chapter, theorem on the moment ladder.
    """
    require_kind("test", test, HessianTest)
    threshold = require_above("threshold", threshold, 1, LARGEST_THRESHOLD)
    p = critical_moment(axis_laws(test.family, test.algorithm, test.learning_rate))
    active = _can_expand(test)
    if active.sum() <= 1:
        return ((threshold - 1) * len(active) + 1) ** (-p / 2) if active.any() else 0.0
    p = min(p, 2.0)
    return min(1.0, len(active) ** (1 - p / 2) * threshold ** (-p / 2))


def _escapes(test: HessianTest, criterion: Escape, seed: np.random.SeedSequence) -> int:
    """Escaping runs of one test, exact in law.

    Axes that no batch can expand contribute at most their start. They are drawn only for the few
    runs that this leaves open, from their law given the counts already drawn.
    """
    generator = np.random.default_rng(seed)
    active = _can_expand(test)
    if not active.any():
        return 0
    level = criterion.threshold * len(active)  # every axis starts at length 1
    sampler = _sampler(replace(test, family=test.family.on_axes(active)))
    lengths = np.ones((criterion.runs, int(active.sum())))
    totals, states, done = [], [], 0
    while done < criterion.steps:
        steps = min(max(done, FIRST_BLOCK), criterion.steps - done)
        squares, state = sampler.draw((steps, criterion.runs), generator)
        done += steps
        squares[0] *= lengths
        # A run that has escaped may go on to overflow; its escape stands recorded before that.
        with np.errstate(over="ignore", invalid="ignore"):
            path = np.cumprod(squares, axis=0, out=squares)
            totals.append(path.sum(axis=2))
        states.append(state)
        lengths = path[-1]
        if (np.concatenate(totals) >= level).any(axis=0).all():
            return criterion.runs
    total = np.concatenate(totals)
    escaped = np.asarray((total >= level).any(axis=0))
    idle = int((~active).sum())
    for run in np.flatnonzero(~escaped & (total.max(axis=0) + idle >= level)):
        inside = np.concatenate([sampler.inside(state) for state in states], axis=1)[:, :, run]
        escaped[run] = _passive_tips(test, active, level - total[:, run], inside, generator)
    return int(escaped.sum())


@dataclass(frozen=True)
class _OneAxis:
    """Multipliers of a single axis, drawn by inverting the joint law of its two counts."""

    squares: np.ndarray
    counts: np.ndarray
    cumulative: np.ndarray

    def draw(
        self, shape: tuple[int, ...], generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """X² (*shape, 1), and which entry of the law was drawn, (*shape)."""
        state = np.searchsorted(self.cumulative, generator.random(shape), side="right")
        return self.squares[state], state

    def inside(self, state: np.ndarray) -> np.ndarray:
        """(2, *shape): the counts, retain and forget, that were drawn."""
        return self.counts[:, state]


@dataclass(frozen=True)
class _ManyAxes:
    """Multipliers of several axes, from joint draws of all their counts."""

    test: HessianTest

    def draw(
        self, shape: tuple[int, ...], generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """X² (*shape, q), and the batch's counts on all axes together, (2, *shape)."""
        test = self.test
        counts = [_draw_set(test, part, shape, generator) for part in ("retain", "forget")]
        X = axis_multipliers(test.family, test.algorithm, test.learning_rate, *counts)
        inside = [np.broadcast_to(c.sum(axis=-1), shape) for c in counts]
        return np.square(X, out=X), np.stack(inside)

    def inside(self, state: np.ndarray) -> np.ndarray:
        """(2, *shape): how many samples of these axes each batch, retain and forget, holds."""
        return state


def _sampler(test: HessianTest) -> _OneAxis | _ManyAxes:
    if len(test.family.retain_group) > 1:
        return _ManyAxes(test)
    counts, weights = joint_counts(test.family, test.algorithm)
    X = axis_multipliers(test.family, test.algorithm, test.learning_rate, *counts)
    cumulative = np.cumsum(weights)
    return _OneAxis(X**2, np.stack(counts)[:, :, 0], cumulative / cumulative[-1])


def _passive_tips(
    test: HessianTest,
    active: np.ndarray,
    gap: np.ndarray,
    used: np.ndarray,
    generator: np.random.Generator,
) -> bool:
    """Whether the passive axes' squared length reaches the gap, (K,), that a run leaves open.

    used: (2, K), how many samples of active axes each batch, retain and forget, holds.
    """
    passive = replace(test, family=test.family.on_axes(~active))
    taken = test.family.retain_group[active].sum(), test.family.forget_group[active].sum()
    lengths = np.ones(int((~active).sum()))
    for k, inside in enumerate(used.T):
        counts = [
            _draw_set(passive, part, (), generator, int(taken[c]), int(inside[c]))
            for c, part in enumerate(("retain", "forget"))
        ]
        lengths *= axis_multipliers(passive.family, test.algorithm, test.learning_rate, *counts)
        if lengths @ lengths >= gap[k]:
            return True
    return False


def _draw_set(
    test: HessianTest,
    part: str,
    shape: tuple[int, ...],
    generator: np.random.Generator,
    taken: int = 0,
    inside: int = 0,
) -> np.ndarray:
    """Counts of one set's groups, (*shape, q), or zeros (q,) where the set does not matter.

    Given that of `taken` samples of other axes `inside` are in the batch.
    """
    group, n = getattr(test.family, f"{part}_group"), getattr(test.family, f"n_{part}")
    batch, sampling = getattr(test.algorithm, f"{part}_batch"), test.algorithm.sampling
    mixing = test.algorithm.mixing
    if not group.any() or (mixing if part == "forget" else 1 - mixing) == 0:
        return np.zeros(len(group), dtype=np.int64)
    if sampling != "bernoulli":  # under Bernoulli sampling the others tell nothing
        n, batch = n - taken, batch - inside
    return draw_group_counts(group, n, batch, sampling, shape, generator)


def _can_expand(test: HessianTest) -> np.ndarray:
    """Axes on which some batch might give |X_a| > 1, (q,) bool; X is extremal at extreme counts."""
    ceilings = []
    for group, batch in (
        (test.family.retain_group, test.algorithm.retain_batch),
        (test.family.forget_group, test.algorithm.forget_batch),
    ):
        if test.algorithm.sampling == "bernoulli":
            ceilings.append(group)
        elif test.algorithm.sampling == "without_replacement":
            ceilings.append(np.minimum(group, batch))
        else:
            ceilings.append(np.where(group > 0, batch, 0))
    corners = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])[:, :, None] * np.stack(ceilings)
    X = axis_multipliers(
        test.family, test.algorithm, test.learning_rate, corners[:, 0], corners[:, 1]
    )
    return np.asarray((np.abs(X) > 1).any(axis=0))
