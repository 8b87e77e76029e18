"""One call that plans an unlearning run of a user's own model, and knows when to stop."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lib.checks import (
    is_finite,
    require_above,
    require_batch,
    require_count,
    require_items,
    require_seed,
    require_share,
)
from lib.stability.algorithm import AscentDescent
from lib.stability.modules import Chosen, Forward
from lib.stability.sampling import Sampling
from lib.unlearning.choice import OVERSHOOT, least_bad, limit, step_range
from lib.unlearning.network_run import NetworkPath
from lib.unlearning.paths import LARGEST_STEPS, LossPath
from lib.unlearning.search import SHARES, Search
from lib.unlearning.task import Data, Task
from lib.unlearning.validity import RANGE, Validity, validate

# Allowed retain loss over the largest that is predicted on the way: the guard is for collapse.
GUARD = 5.0
LARGEST_WORK = 10_000  # of steps·seeds·verify: some ten seconds for the smallest model
LARGEST_COUNTS = {"steps": 2000, "seeds": 200, "verify": 10}
LARGEST_SETTINGS = 1000
CLOCK = RANGE, 1.25  # factor by which the number of steps may be off: raw, calibrated
HALVINGS = 12  # of a last step
TRIES = 5  # of a run, on other batches, until one keeps the floor
NOTHING = "nothing to do"


@dataclass(frozen=True)
class Recommendation:
    """The setting to run: rate η, mixing α, batch sizes, sampling; steps (low, expected, high)."""

    learning_rate: float
    mixing: float
    retain_batch: int
    forget_batch: int
    sampling: Sampling
    steps: tuple[int, int, int]

    @property
    def algorithm(self) -> AscentDescent:
        """The update, but for its rate."""
        return AscentDescent(
            self.mixing, self.retain_batch, self.forget_batch, sampling=self.sampling
        )


@dataclass(frozen=True)
class RetainEdge:
    """η_high = 2/((1−α)·λ_max(H_r)): above it descent on the retain loss alone is unstable.

    sharpness: λ_max(H_r) of the retain set's mean loss at the weights, Gauss–Newton; mixing: the
    recommended α, or the first of the grid; learning_rate: η_high; used: the recommended rate over
    it, NaN without one. Holds to a factor of about two for trained networks (chapter
    tangent_model).
    """

    sharpness: float
    mixing: float
    learning_rate: float
    used: float


@dataclass(frozen=True)
class Outcome:
    """How a real run ended.

    steps taken; reached: whether at the target (else the retain guard or the budget ended it);
    losses and accuracies over the whole sets at the end; last_step: the share of the last step that
    was taken, below 1 where all of it would have overshot; tries: runs it took, all but this one
    dropped for ending below the retain floor.
    """

    steps: int
    reached: bool
    forget_loss: float
    retain_loss: float
    retain_accuracy: float
    holdout_accuracy: float
    last_step: float = 1.0
    tries: int = 1


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """What `plan` found; `print` shows ten lines.

    Attributes:
        target: forget loss to come to.
        recommended: the setting to run, or None.
        verdict: "recommended", "recommended, but may overshoot" (where no setting that keeps the
            floor ends within 10 % of the target), "nothing to do", or what limits every setting.
        floor: least retain accuracy, `retain_floor` times the model's own.
        start: the model's losses and accuracies before, over all samples (one row).
        steps: budget of a run.
        notes: what else the reader should know.
        data: how many samples there are, and a hash to know them by.
        task, monitored: all samples (None in a plan that was loaded without them), and the indices
            of those that the plan worked on.
        guard: retain loss beyond which `stop_when` gives up: five times the largest predicted or
            measured on the way, or, if larger, the largest of any setting that is predicted to keep
            the floor; ∞ without a recommendation.
        table: every setting, columns as in `choice.summarise`.
        samples: index into the dataset, initial_loss, predicted_loss at the end of the recommended
            run, self_influence g_jᵀK_jj g_j (g_j = ∂ℓ_j/∂f_j), a proxy of memorisation; one row per
            forget sample that the plan worked on. No score of difficulty: the initial loss itself
            predicts best which samples end high.
        curves: predicted losses and accuracies along the recommended run, seed by seed.
        retain_edge, validity: at the recommendation, or at the setting that comes nearest to one.
        verified: the last real run of that setting on a copy, None if there was none.
        real_runs: number of real runs of any setting.
        speed: of the calibrated tangent model, 1.0 uncalibrated.

    Tables are empty, and the edge and validity None, where there is nothing to do.
    """

    target: float
    recommended: Recommendation | None
    verdict: str
    floor: float
    start: LossPath
    steps: int
    notes: tuple[str, ...]
    data: Data
    task: Task | None
    monitored: Tensor
    guard: float = math.inf
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    samples: pd.DataFrame = field(default_factory=pd.DataFrame)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)
    retain_edge: RetainEdge | None = None
    validity: Validity | None = None
    verified: LossPath | None = None
    real_runs: int = 0
    speed: float = 1.0

    def stop_when(self, forget_loss: float, retain_loss: float) -> bool:
        """Whether to stop: forget loss ≥ target, or retain loss above the guard (or not finite)."""
        return bool(forget_loss >= self.target or not retain_loss <= self.guard)

    def run(self, model: nn.Module, seed: int = 0) -> Outcome:
        """Unlearn `model` in place by the recommendation, until `stop_when`; warns if off target.

        Losses are monitored on the samples that the plan worked on, batches come from all. The
        weights are written once, at the end; at most twice the stated range of steps is run. A last
        step that would end more than 10 % above the target, or below the floor, is shortened to end
        at the target. Batches decide about a sample or two: a run at the target below the floor is
        dropped, and up to four more follow, each from the model as it was, on batches of the seeds
        after; if all are, the one with the highest retain accuracy counts, with a warning.

        Args:
            model: the planned one or a copy.
            seed: of the batches.

        Raises:
            RuntimeError: there is no recommendation, or there are no samples.
        """
        task = self._task()
        if self.verdict == NOTHING:
            return _outcome(task.state(model), 0, True)
        if self.recommended is None:
            raise RuntimeError(f"the plan recommends no run: {self.verdict}")
        tried: list[tuple[Outcome, Tensor]] = []
        for again in range(TRIES):
            tried.append(self._attempt(model, seed + again))
            outcome = tried[-1][0]
            if not outcome.reached or outcome.retain_accuracy >= self.floor:
                break
        else:
            tried.sort(key=lambda one: one[0].retain_accuracy)
        outcome, weights = tried[-1]
        task.write(model, weights)
        if not outcome.reached or outcome.retain_accuracy < self.floor:
            warnings.warn(
                f"stopped after {outcome.steps} steps at forget loss {outcome.forget_loss:.3g}, "
                f"target {self.target:.3g}, retain loss {outcome.retain_loss:.3g}, guard "
                f"{self.guard:.3g}, retain accuracy {outcome.retain_accuracy:.3f}, floor "
                f"{self.floor:.3f}",
                stacklevel=2,
            )
        return replace(outcome, tries=len(tried))

    def _attempt(self, model: nn.Module, seed: int) -> tuple[Outcome, Tensor]:
        """One run by the rule, and its weights."""
        assert self.recommended is not None
        task, trial, share = self._task(), copy.deepcopy(model), 1.0
        most = max(self.steps, 2 * self.recommended.steps[2])
        path = self._follow_rule(model, seed, min(most, LARGEST_STEPS))
        weights, taken, end = (
            path.weights,
            len(path.forget_loss) - 1,
            float(path.forget_loss[-1, 0]),
        )
        reached = not end < self.target
        low = not float(path.retain_accuracy[-1, 0]) >= self.floor
        if taken and reached and (low or not end <= OVERSHOOT * self.target):
            share, weights = self._shortened(model, seed, taken, weights)
        task.write(trial, weights)
        return _outcome(task.state(trial), taken, reached, share), weights

    def _follow_rule(self, model: nn.Module, seed: int, steps: int) -> NetworkPath:
        """The recommended run until the rule stops it or `steps` are over."""
        assert self.recommended is not None
        return self._task().run(
            model,
            self.recommended.algorithm,
            self.recommended.learning_rate,
            steps=steps,
            seed=seed,
            until=self.stop_when,
            monitored=self.monitored,
        )

    def _shortened(
        self, model: nn.Module, seed: int, taken: int, after: Tensor
    ) -> tuple[float, Tensor]:
        """The share of the last step that ends at the target, by bisection, and the weights."""
        before = self._follow_rule(model, seed, taken - 1).weights
        trial, low, high, task = copy.deepcopy(model), 0.0, 1.0, self._task()
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            task.write(trial, before + middle * (after - before))
            loss = float(task.state(trial, self.monitored).forget_loss[0, 0])
            low, high = (middle, high) if loss < self.target else (low, middle)
        return high, before + high * (after - before)

    def _task(self) -> Task:
        if self.task is None:
            raise RuntimeError("the plan was loaded without samples: hand them to load_plan")
        return self.task

    def save(self, path: str | Path) -> Path:
        """Write all but the samples as JSON, for `load_plan`; its path."""
        from lib.unlearning.saved import write  # which makes plans

        return write(self, path)

    def to_html(self, path: str | Path) -> Path:
        """Write a report as one file that needs no network; its path."""
        from lib.unlearning.report import html  # figures are slow to import

        Path(path).write_text(html(self), encoding="utf-8")
        return Path(path)

    def __str__(self) -> str:
        from lib.unlearning.report import lines

        return "\n".join(lines(self))

    __repr__ = __str__


def plan(
    model: nn.Module,
    dataset: Any,
    forget: Tensor | Sequence[int] | np.ndarray,
    *,
    holdout: Any,
    loss: str = "cross_entropy",
    target: float | str | nn.Module = "holdout",
    retain_floor: float = 0.99,
    mixing: float | Sequence[float] = (0.05, 0.1, 0.2, 0.3),
    learning_rates: float | Sequence[float] | None = None,
    batch: tuple[int, int] | None = None,
    sampling: Sampling = "reshuffled",
    steps: int = 200,
    seeds: int = 5,
    forward: Forward | None = None,
    parameters: Chosen = None,
    max_samples: int = 2000,
    sketch: int | None = None,
    verify: int = 1,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> Plan:
    """Plan ascent–descent unlearning of any torch model: rate, mixing, steps, and a stopping rule.

    The tangent model (theory: chapter tangent_model) runs all settings on several draws of batches
    at once; real runs on a copy then fix its clock and check the recommendation. The model is not
    changed. Plain mini-batch SGD, w ← w − η[(1−α)∇ℓ_retain − α∇ℓ_forget]; an optimiser that
    rescales gradients (Adam) needs a plan of its own, which this is not.

    A setting is feasible if, with every seed's batches, the forget loss reaches the target within
    `steps` at retain accuracy ≥ retain_floor times the model's own, and ends at most 10 % above.

    Args:
        model: in eval mode, with outputs (n,), (n, 1) or (n, C).
        dataset, holdout: (inputs, targets), or a Dataset or unshuffled DataLoader of such pairs (or
            of dicts with "labels"); held in memory. The holdout is never trained on.
        forget: mask or indices into the dataset, torch, NumPy or a list.
        loss: "cross_entropy", "logistic" or "squared".
        target: a forget loss; a model retrained without the forget set, whose forget loss is
            taken; or "holdout", the model's own held-out loss, for forget sets drawn at random.
        retain_floor: in (0, 1].
        mixing: weights α of ascent to try, each in (0, 1).
        learning_rates: to try; by default 12 from .01 to 1 of each mixing's retain edge, and
            smaller ones where those are too fast.
        batch: (retain, forget); (min(64, n_r), min(16, n_f)) by default.
        sampling: as in `AscentDescent`.
        steps: budget of a run, at most 2,000; steps·seeds·verify at most 10,000.
        seeds: draws of batches each setting is tried on, one where that rules it out; at most 200.
        forward, parameters, sketch, device: as in `TangentModel.from_model`.
        max_samples: above which a random part of the dataset is planned on, the forget set first.
        verify: real runs on a copy, at most 10; up to three more where one contradicts the
            prediction.
        seed: of all draws; batches use seed … seed + seeds − 1.

    Raises:
        ValueError: naming the argument, its value and the allowed range; also for outputs per
            token, kernels above 6 GiB, over 1,000 settings and a target "holdout" where that
            misleads.
        TypeError: naming an argument that is no sequence where one is wanted.
    """
    retain_floor = require_share("retain_floor", retain_floor, "(0, 1]")
    steps, seeds, verify = (
        require_count(name, value, least, LARGEST_COUNTS[name])
        for name, value, least in (("steps", steps, 1), ("seeds", seeds, 1), ("verify", verify, 0))
    )
    work = steps * seeds * max(verify, 1)
    if work > LARGEST_WORK:
        raise ValueError(
            f"steps, seeds and verify must have a product of at most {LARGEST_WORK}, got {work}"
        )
    seed = require_seed(seed)
    mixings = _several("mixing", mixing)
    for weight in mixings:
        if not weight < 1:
            raise ValueError(f"mixing must be in (0, 1), got {weight!r}")
    rates = None if learning_rates is None else _several("learning_rates", learning_rates)
    if len(mixings) * len(rates or SHARES) > LARGEST_SETTINGS:
        raise ValueError(
            f"mixing and learning_rates must make at most {LARGEST_SETTINGS} settings, "
            f"got {len(mixings)} × {len(rates or SHARES)}"
        )
    options: dict[str, Any] = {"forward": forward, "parameters": parameters, "device": device}
    whole = Task.of(model, dataset, forget, holdout, loss, **options)
    start = whole.state(model)
    for part in (start.forget_loss, start.retain_loss, start.watched_loss):
        if not bool(part.isfinite().all()):
            raise ValueError("model must give finite losses on dataset and holdout, got NaN or ∞")
    if bool(start.retain_accuracy.isnan().any()):
        raise ValueError("targets must be classes, else retain_floor has no accuracy to hold")
    wanted = whole.target(target, start)
    small, monitored = whole.sampled(max_samples, seed)
    notes = []
    if len(small.forget) < len(whole.forget):
        notes.append(
            f"planned on {len(small.forget)} of {len(whole.forget)} samples, "
            f"{int(small.forget.sum())} of {int(whole.forget.sum())} to forget"
        )
    floor = retain_floor * float(start.retain_accuracy[0, 0])
    found = Plan(
        wanted, None, NOTHING, floor, start, steps, tuple(notes), whole.data(), whole, monitored
    )
    if float(start.forget_loss[0, 0]) >= wanted:
        return found
    n_forget = int(small.forget.sum())
    n_retain = len(small.forget) - n_forget
    sizes = (
        [min(64, n_retain), min(16, n_forget)] if batch is None else require_items("batch", batch)
    )
    if len(sizes) != 2:
        raise ValueError(f"batch must be a pair (retain, forget), got {len(sizes)} sizes")
    for name, size, n in zip(("batch[0]", "batch[1]"), sizes, (n_retain, n_forget), strict=True):
        require_batch(name, size, n)
    updates = [AscentDescent(weight, sizes[0], sizes[1], sampling=sampling) for weight in mixings]
    search = Search(
        model,
        small,
        small.tangent(model, sketch=sketch, seed=seed),
        target=wanted,
        floor=floor,
        steps=steps,
        seeds=range(seed, seed + seeds),
        progress=_progress,
    )
    search.predict(updates, rates)
    return _planned(found, search, search.verify(verify))


def _planned(found: Plan, search: Search, row: int | None) -> Plan:
    """The plan with everything that the search found; row: the recommended one."""
    shown = least_bad(search.table, found.floor, ()) if row is None else row
    assert shown is not None  # the table has rows
    setting, numbers = search.settings[shown], search.table.loc[shown]
    expected = int(min(float(numbers["steps_expected"]), found.steps))
    update, real = setting.algorithm, search.confirmed(shown)
    task = search.task
    validity = validate(
        search.model,
        task.inputs,
        task.targets,
        task.forget,
        search.tangent,
        update,
        setting.learning_rate,
        steps=max(1, expected),
        loss=task.loss,
        seed=search.seeds[0],
        forward=task.forward,
        parameters=task.names,
        device=task.device,
    )
    edge = 2 / search.sharpness / (1 - update.mixing)
    used = setting.learning_rate / edge if row is not None else math.nan
    common: dict[str, Any] = {
        "table": search.table,
        "retain_edge": RetainEdge(search.sharpness, update.mixing, edge, used),
        "validity": validity,
        "verified": real,
        "speed": search.tangent.speed,
        "samples": search.samples(row, expected, found.monitored),
        "real_runs": len(search.runs),
    }
    if row is None:
        why = limit(search.table, found.target, found.floor, found.steps)
        return replace(found, verdict=why, **common)
    kept = search.table.loc[search.table["retain_least"] >= found.floor, "retain_loss"]
    span = step_range(numbers, CLOCK[search.calibrated])
    worst = max(
        float(numbers["retain_worst"]), 0.0 if real is None else float(real.retain_loss.max())
    )
    return replace(
        found,
        recommended=Recommendation(
            setting.learning_rate,
            update.mixing,
            update.retain_batch,
            update.forget_batch,
            update.sampling,
            span,
        ),
        verdict="recommended" if numbers["feasible"] else "recommended, but may overshoot",
        guard=max(GUARD * worst, float(kept.max())),
        curves=search.curves(shown, span[2]),
        **common,
    )


def _progress(seeds: Sequence[int], what: str) -> Iterable[int]:
    """The seeds, behind a progress bar where tqdm is installed and a terminal is there."""
    try:
        from tqdm import tqdm
    except ImportError:
        return seeds
    return tqdm(seeds, desc=what, unit="seed", disable=None, leave=False)


def _outcome(state: LossPath, steps: int, reached: bool, share: float = 1.0) -> Outcome:
    return Outcome(
        steps,
        reached,
        float(state.forget_loss[0, 0]),
        float(state.retain_loss[0, 0]),
        float(state.retain_accuracy[0, 0]),
        float(state.watched_accuracy[0, 0]),
        share,
    )


def _several(name: str, value: float | Sequence[float]) -> tuple[float, ...]:
    """One number or several > 0, as a tuple."""
    each: Any = [value] if is_finite(value) else value
    return tuple(require_above(name, number, 0) for number in require_items(name, each))
