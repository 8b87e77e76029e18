"""Plans of unlearning runs held against real ones: a grid of them, and what people do today."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from lib.experiments.networks import ELSEWHERE, ForgetSet, Problem, _data, problem
from lib.randomness import seed_sequence
from lib.stability.algorithm import AscentDescent
from lib.unlearning.planning import plan
from lib.unlearning.task import Task

SETS: tuple[ForgetSet, ...] = ("random", "class")
# Chosen before any was run: families, forget sets, seeds; 32.
CASES = [
    (name, which, s) for name in ("mlp", "conv", "lora", "head") for which in SETS for s in range(3)
]
CASES += [
    (name, which, s)
    for name in ("resnet_groupnorm", "transformer")
    for which in SETS
    for s in range(2)
]
FLOOR, STEPS, OTHER = 0.99, 200, 100  # of retain accuracy; budget; added to the seed of real runs
BATCHES = 64, 16
MIXINGS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
SHARES = np.geomspace(0.01, 1, 7)  # of each mixing's retain edge: 49 real runs
# Default `--unlearn_lr` of OPTML-Group/Unlearn-Sparse (Jia et al., NeurIPS 2023).
DEFAULT_RATE, USUAL_MIXING = 0.1, 0.1
RANGE = 1e-5, 1e-1  # of rates that the same repository advises to search


@dataclass(frozen=True)
class Case:
    """A problem with the samples that its runs are judged on, (inputs, targets)."""

    problem: Problem
    task: Task
    tested: tuple[torch.Tensor, torch.Tensor]
    seed: int

    @classmethod
    def of(cls, name: str, forget_set: ForgetSet, seed: int) -> Case:
        """The case; tested: all that no network was trained or watched on."""
        made = problem(name, forget_set, seed)
        family, n = made.family, made.family.trained
        inputs, targets = _data(family.data, seed)
        span = slice(n + family.watched, len(targets) - (ELSEWHERE if family.parameters else 0))
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
        return cls(made, task, (inputs[span], targets[span]), seed)

    def judged(self, model: torch.nn.Module, steps: int) -> dict[str, float]:
        """Where a model ended; reached: at the target."""
        state = self.task.state(model)
        with torch.no_grad():
            right = model(self.tested[0]).argmax(dim=1) == self.tested[1]
        forgotten = float(state.forget_loss[0, 0])
        return {
            "steps": steps,
            "forget_loss": forgotten,
            "reached": forgotten >= self.problem.target,
            "retain_accuracy": float(state.retain_accuracy[0, 0]),
            "holdout_accuracy": float(state.watched_accuracy[0, 0]),
            "test_accuracy": float(right.double().mean()),
        }

    def run(self, mixing: float, learning_rate: float) -> dict[str, float]:
        """A real run on a copy until the target, and where it ended."""
        model = copy.deepcopy(self.problem.model)
        path = self.task.run(
            model,
            AscentDescent(mixing, *BATCHES, sampling="reshuffled"),
            learning_rate,
            steps=STEPS,
            seed=self.seed + OTHER,
            until=lambda gone, kept: gone >= self.problem.target or not math.isfinite(kept),
        )
        self.task.write(model, path.weights)
        found = self.judged(model, len(path.forget_loss) - 1)
        return found | {"mixing": mixing, "learning_rate": learning_rate}


def compare(name: str, forget_set: ForgetSet, seed: int) -> pd.DataFrame:
    """One row a method: how its run ended, and the seconds it took to find and run it.

    Methods: plan; grid, the best of 49 real runs; default, a published rate; random, one rate drawn
    log-uniformly; log_grid, the best of ten real runs. The best has the highest held-out accuracy
    of those that reached the target above the floor, else the highest retain accuracy of those that
    reached it, else the highest forget loss. All real runs have the same batches, not the plan's.

    Columns: family, forget_set, seed; method; mixing, learning_rate (NaN if none); steps,
    forget_loss, reached, retain_accuracy, holdout_accuracy, test_accuracy; runs, of the network;
    found, of these at the target above the floor; seconds; target, floor, tested (samples);
    steps_low, steps_high, trusted, edge_used: the plan's, NaN elsewhere.
    """
    case = Case.of(name, forget_set, seed)
    floor = FLOOR * float(case.task.state(case.problem.model).retain_accuracy[0, 0])
    begin = time.perf_counter()
    planned, sharpness = _planned(case)
    rows = [planned | {"seconds": time.perf_counter() - begin}]
    edges = {mixing: 2 / sharpness / (1 - mixing) for mixing in MIXINGS}
    draw = np.random.default_rng(seed_sequence("usual rate", seed)).uniform(*np.log(RANGE))
    ways: dict[str, list[tuple[float, float]]] = {
        "grid": [(mixing, edge * share) for mixing, edge in edges.items() for share in SHARES],
        "default": [(USUAL_MIXING, DEFAULT_RATE)],
        "random": [(USUAL_MIXING, float(np.exp(draw)))],
        "log_grid": [(USUAL_MIXING, float(rate)) for rate in np.geomspace(*RANGE, 10)],
    }
    for method, settings in ways.items():
        begin = time.perf_counter()
        row = _best(case, settings, floor)
        rows.append({"method": method, **row, "seconds": time.perf_counter() - begin})
    table = pd.DataFrame(rows)
    table["family"], table["forget_set"], table["seed"] = name, forget_set, seed
    table["target"], table["floor"] = case.problem.target, floor
    return table.assign(tested=len(case.tested[1]))


def _planned(case: Case) -> tuple[dict[str, Any], float]:
    """The plan's own run, and λ_max(H_r)."""
    made, n = case.problem, case.problem.family.trained
    found = plan(
        made.model,
        (made.inputs[:n], made.targets[:n]),
        made.forget,
        holdout=(made.inputs[n:], made.targets[n:]),
        target=made.target,
        retain_floor=FLOOR,
        steps=STEPS,
        parameters=made.family.chosen,
        sketch=made.family.sketch,
        seed=case.seed,
    )
    assert found.retain_edge is not None  # a retrained network's loss is above the trained one's
    model, steps, chosen = copy.deepcopy(made.model), 0, found.recommended
    row: dict[str, Any] = {"method": "plan", "runs": found.real_runs, "learning_rate": math.nan}
    if chosen is not None:
        steps = found.run(model, seed=case.seed + OTHER).steps
        row |= {"mixing": chosen.mixing, "learning_rate": chosen.learning_rate}
        row |= {"steps_low": chosen.steps[0], "steps_high": chosen.steps[2]}
        row["edge_used"] = found.retain_edge.used
    assert found.validity is not None
    row |= case.judged(model, steps)
    return row | {"trusted": float(found.validity.trusted)}, found.retain_edge.sharpness


def _best(case: Case, settings: Iterable[tuple[float, float]], floor: float) -> dict[str, Any]:
    """The best of real runs at (mixing, rate), and how many there were to choose from."""
    table = pd.DataFrame([case.run(*setting) for setting in settings])
    reached = table["reached"] & np.isfinite(table["forget_loss"])
    kept = reached & (table["retain_accuracy"] >= floor)
    for rows, column in ((kept, "holdout_accuracy"), (reached, "retain_accuracy")):
        if rows.any():
            best = table[column].where(rows, -np.inf).idxmax()
            break
    else:
        best = table["forget_loss"].fillna(-np.inf).idxmax()
    return {**table.loc[best].to_dict(), "runs": len(table), "found": int(kept.sum())}
