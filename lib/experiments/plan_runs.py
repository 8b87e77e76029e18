"""Plans of unlearning runs held against real ones: a grid of them, and what people do today."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.experiments.networks import ForgetSet, Problem, _data, _trained, problem
from lib.randomness import seed_sequence
from lib.stability.algorithm import AscentDescent
from lib.unlearning.choice import OVERSHOOT
from lib.unlearning.planning import plan
from lib.unlearning.task import Task

SETS: tuple[ForgetSet, ...] = ("random", "class")
# Chosen before any was run, and cut down once, before any was run, to an hour of one processor: of
# the large families fewer seeds, a budget of 100 steps rather than 200, 3 draws of batches, not 5.
SEEDS = {"mlp": 3, "conv": 3, "lora": 3, "head": 3, "transformer": 2, "resnet_groupnorm": 1}
CASES = [(name, which, s) for name in SEEDS for which in SETS for s in range(SEEDS[name])]
FLOOR, STEPS, DRAWS = 0.99, 100, 3  # of retain accuracy; budget of a run; of batches
OTHER = 100  # added to the seed of real runs
BATCHES = 64, 16
MIXINGS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
SHARES = np.geomspace(0.01, 1, 7)  # of each mixing's retain edge: 49 real runs
# Default `--unlearn_lr` of OPTML-Group/Unlearn-Sparse (Jia et al., NeurIPS 2023).
DEFAULT_RATE, USUAL_MIXING = 0.1, 0.1
RANGE = 1e-5, 1e-1  # of rates that the same repository advises to search
RETRAINED = 5  # networks
TESTED = 1000  # samples, where the corpus has so many left
GUARDED = 16  # retain samples that a real run is watched on, for overflow only
ROUNDING = 1e-5  # of a loss evaluated in other batches, or stored
WORSE, NORMAL = 0.005, 1.96  # accuracy that counts as lost; quantile of the normal law, 97.5 %


@dataclass(frozen=True)
class Ended:
    """Where a run ended, and which retain and which test samples were right there (bool)."""

    row: dict[str, float]
    retain: Tensor
    tested: Tensor


@dataclass(frozen=True)
class Case:
    """A problem, the samples that its runs are judged on, and its retrained networks' losses.

    tested: inputs and targets of up to 1,000 samples on which no network was trained or watched;
    those of the "lora" problems include the 700 that the network under the adapters was trained on.
    retrained: forget losses of networks trained without the forget set, from starts of their own.
    """

    problem: Problem
    task: Task
    tested: tuple[Tensor, Tensor]
    retrained: Tensor
    seed: int

    @classmethod
    def of(cls, name: str, forget_set: ForgetSet, seed: int) -> Case:
        """The case; the problem's own retrained networks set its target, more are trained here."""
        made = problem(name, forget_set, seed)
        family, n = made.family, made.family.trained
        inputs, targets = _data(family.data, seed)
        kept, losses = ~made.forget, made.retrained.tolist()
        span = slice(n + family.watched, n + family.watched + TESTED)
        with torch.no_grad():
            for again in range(len(losses) + 1, RETRAINED + 1):
                with torch.enable_grad():
                    other = _trained(family, inputs[:n][kept], targets[:n][kept], seed, again)
                gone = other(inputs[:n][made.forget])
                losses.append(float(F.cross_entropy(gone, targets[:n][made.forget])))
            # A frozen encoder is the same in all of them.
            seen = other.get_submodule("0")(inputs[span]) if family.encoded else inputs[span]
        task = Task.of(
            made.model,
            (made.inputs[:n], made.targets[:n]),
            made.forget,
            (made.inputs[n:], made.targets[n:]),
            "cross_entropy",
            forward=None,
            parameters=family.chosen,
            device=None,
        )
        return cls(made, task, (seen, targets[span]), torch.tensor(losses).double(), seed)

    @property
    def monitored(self) -> Tensor:
        """All of the forget set, and a few retain samples that show an overflow."""
        forget = self.problem.forget
        few = (~forget).nonzero()[:GUARDED, 0]
        return torch.cat([forget.nonzero()[:, 0], few]).sort().values

    def judged(self, model: torch.nn.Module, steps: int) -> Ended:
        """Where a model is; reached: at the target."""
        made, n = self.problem, len(self.problem.forget)
        with torch.no_grad():
            outputs = model(made.inputs).double()
            right = outputs.argmax(dim=1) == made.targets
            tested = model(self.tested[0]).argmax(dim=1) == self.tested[1]
            lost = F.cross_entropy(outputs[:n][made.forget], made.targets[:n][made.forget])
        kept = right[:n][~made.forget]
        row = {
            "steps": steps,
            "forget_loss": float(lost),
            "reached": made.target * (1 - ROUNDING) <= float(lost) < math.inf,
            "retain_accuracy": float(kept.double().mean()),
            "holdout_accuracy": float(right[n:].double().mean()),
            "test_accuracy": float(tested.double().mean()),
        }
        return Ended(row, kept, tested)

    def run(self, mixing: float, learning_rate: float) -> Ended:
        """A real run on a copy until the target, and where it ended; seconds: of the processor."""
        begin = time.process_time()
        model = copy.deepcopy(self.problem.model)
        path = self.task.run(
            model,
            AscentDescent(mixing, *BATCHES, sampling="reshuffled"),
            learning_rate,
            steps=STEPS,
            seed=self.seed + OTHER,
            until=lambda gone, kept: gone >= self.problem.target or not math.isfinite(kept),
            monitored=self.monitored,
        )
        self.task.write(model, path.weights)
        ended = self.judged(model, len(path.forget_loss) - 1)
        found = {"mixing": mixing, "learning_rate": learning_rate}
        found["seconds"] = time.process_time() - begin
        return Ended(ended.row | found, ended.retain, ended.tested)


def compare(name: str, forget_set: ForgetSet, seed: int) -> pd.DataFrame:
    """One row a method: how its run ended, and the processor seconds it took to find and run it.

    Methods: plan; grid, the best of 49 real runs; default, a published rate; random, one rate drawn
    log-uniformly; log_grid, the best of ten real runs. The best has the highest held-out accuracy
    of those that reached the target above the floor, else the highest retain accuracy of those that
    reached it, else the highest forget loss. All real runs have the same batches, not the plan's;
    a setting of two methods is run once and counts for both.

    Columns: family, forget_set, seed; method; mixing, learning_rate (NaN if none); steps,
    forget_loss, reached, retain_accuracy, holdout_accuracy, test_accuracy; runs, of the network;
    found, of these at the target above the floor; seconds, whole; retain_gap and test_gap, the
    plan's accuracy minus the method's, paired, with their standard errors *_error; verdict, printed
    (ten lines), steps_low, steps_high, tries, trusted, edge_used, speed: the plan's, empty or NaN
    elsewhere; target, floor, tested (samples); start_accuracy, of the retain set; held_loss, of the
    network on held-out samples; retrained, and retrained_error: mean forget loss of networks
    trained without the forget set, and its standard error, of retrainings networks.
    """
    case = Case.of(name, forget_set, seed)
    before = case.judged(case.problem.model, 0).row
    floor = FLOOR * before["retain_accuracy"]
    planned, sharpness, held_loss = _planned(case)
    edges = {mixing: 2 / sharpness / (1 - mixing) for mixing in MIXINGS}
    draw = np.random.default_rng(seed_sequence("usual rate", seed)).uniform(*np.log(RANGE))
    ways: dict[str, list[tuple[float, float]]] = {
        "grid": [(mixing, edge * share) for mixing, edge in edges.items() for share in SHARES],
        "default": [(USUAL_MIXING, DEFAULT_RATE)],
        "random": [(USUAL_MIXING, float(np.exp(draw)))],
        "log_grid": [(USUAL_MIXING, float(rate)) for rate in np.geomspace(*RANGE, 10)],
    }
    done: dict[tuple[float, float], Ended] = {}
    rows = [{"method": "plan", **planned.row}]
    for method, settings in ways.items():
        for setting in settings:
            if setting not in done:
                done[setting] = case.run(*setting)
        best, counted = _best([done[setting] for setting in settings], floor)
        rows.append({"method": method, **best.row, **counted, **_gaps(planned, best)})
    table = pd.DataFrame(rows).fillna({"verdict": "", "printed": ""})
    table["family"], table["forget_set"], table["seed"] = name, forget_set, seed
    table["target"], table["floor"], table["held_loss"] = case.problem.target, floor, held_loss
    table["start_accuracy"], table["tested"] = before["retain_accuracy"], len(case.tested[1])
    table["retrained"], table["retrainings"] = float(case.retrained.mean()), len(case.retrained)
    table["retrained_error"] = float(case.retrained.std()) / len(case.retrained) ** 0.5
    return table


def _planned(case: Case) -> tuple[Ended, float, float]:
    """The plan's own run, λ_max(H_r), and the network's held-out loss."""
    begin = time.process_time()
    made, n = case.problem, case.problem.family.trained
    found = plan(
        made.model,
        (made.inputs[:n], made.targets[:n]),
        made.forget,
        holdout=(made.inputs[n:], made.targets[n:]),
        target=made.target,
        retain_floor=FLOOR,
        steps=STEPS,
        seeds=DRAWS,
        parameters=made.family.chosen,
        sketch=made.family.sketch,
        seed=case.seed,
    )
    # A retrained network's loss is above the trained one's: there is something to do.
    assert found.retain_edge is not None
    assert found.validity is not None
    model, steps, chosen = copy.deepcopy(made.model), 0, found.recommended
    row: dict[str, Any] = {"runs": found.real_runs, "mixing": math.nan, "learning_rate": math.nan}
    if chosen is not None:
        done = found.run(model, seed=case.seed + OTHER)
        steps = done.steps
        row |= {"mixing": chosen.mixing, "learning_rate": chosen.learning_rate}
        row |= {"steps_low": chosen.steps[0], "steps_high": chosen.steps[2]}
        row |= {"runs": found.real_runs + done.tries, "tries": done.tries}
        row |= {"edge_used": found.retain_edge.used}
    row |= {"seconds": time.process_time() - begin, "verdict": found.verdict.partition(":")[0]}
    row |= {"trusted": float(found.validity.trusted), "speed": found.speed, "printed": str(found)}
    ended = case.judged(model, steps)
    held_loss = float(found.start.watched_loss[0, 0])
    row["found"] = int(ended.row["reached"])
    return (
        Ended(ended.row | row, ended.retain, ended.tested),
        found.retain_edge.sharpness,
        held_loss,
    )


def _best(runs: Sequence[Ended], floor: float) -> tuple[Ended, dict[str, float]]:
    """The best of some runs, and how many they were, how many were good, and their seconds."""
    table = pd.DataFrame([run.row for run in runs])
    reached = table["reached"].astype(bool)
    kept = reached & (table["retain_accuracy"] >= floor)
    for rows, column in ((kept, "holdout_accuracy"), (reached, "retain_accuracy")):
        if rows.any():
            best = table[column].where(rows, -np.inf).idxmax()
            break
    else:
        best = table["forget_loss"].fillna(-np.inf).idxmax()
    counted = {"runs": len(table), "found": int(kept.sum()), "seconds": table["seconds"].sum()}
    return runs[int(best)], counted


def _gaps(ours: Ended, other: Ended) -> dict[str, float]:
    """Differences of paired accuracies, ours minus the other's, with their standard errors."""
    gaps = {}
    for name in ("retain", "tested"):
        pairs = getattr(ours, name).double() - getattr(other, name).double()
        column = "test" if name == "tested" else name
        gaps[f"{column}_gap"] = float(pairs.mean())
        gaps[f"{column}_error"] = float(pairs.std()) / len(pairs) ** 0.5
    return gaps


@dataclass(frozen=True)
class Scores:
    """How the plans of `compare`'s cases did, as shares of those they are about.

    cases; recommended, those with a recommendation; good, the share of these whose run ended
    between the target and 10 % above with retain accuracy at the floor or above; missed, cases
    without recommendation where the grid has a run at the target above the floor; compared, those
    where plan and grid both came to the target; retain and test, the share of these whose accuracy
    is at most half a point below that of the grid's best, or not at 95 %; trusted, share of the
    cases; inside, the share of the trusted recommendations whose run took the stated steps.
    """

    cases: int
    recommended: int
    good: float
    missed: int
    compared: int
    retain: float
    test: float
    trusted: float
    inside: float


def scores(table: pd.DataFrame) -> Scores:
    """Score rows of `compare`, one case or more."""
    case = ["family", "forget_set", "seed"]
    ours = table[table["method"] == "plan"].set_index(case)
    grid = table[table["method"] == "grid"].set_index(case).loc[ours.index]
    told = ours["learning_rate"].notna()
    reached = ours["reached"].astype(bool)
    end = reached & (ours["forget_loss"] <= (OVERSHOOT + ROUNDING) * ours["target"])
    good = end & (ours["retain_accuracy"] >= ours["floor"] - ROUNDING)
    both = told & reached & grid["reached"].astype(bool)
    level = {
        name: (grid[f"{name}_gap"] >= -WORSE)
        | (grid[f"{name}_gap"].abs() <= NORMAL * grid[f"{name}_error"])
        for name in ("retain", "test")
    }
    inside = (ours["steps"] >= ours["steps_low"]) & (ours["steps"] <= ours["steps_high"])
    trusted = ours["trusted"] == 1
    return Scores(
        cases=len(ours),
        recommended=int(told.sum()),
        good=float(good[told].mean()),
        missed=int((~told & (grid["found"] > 0)).sum()),
        compared=int(both.sum()),
        retain=float(level["retain"][both].mean()),
        test=float(level["test"][both].mean()),
        trusted=float(trusted.mean()),
        inside=float(inside[trusted & told].mean()),
    )
