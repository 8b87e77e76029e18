"""From predicted runs of many settings to the one that is recommended, or why none is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from lib.stability.algorithm import AscentDescent
from lib.unlearning.paths import LossPath

OVERSHOOT = 1.1  # forget loss over target that a run may end with
FINE = 1.05  # growth in the last step below which no batch order overshoots by much
CLOSE = 0.003  # difference of accuracies that is none
WIDEST = 2.5  # stated range of steps, high over low


@dataclass(frozen=True)
class Setting:
    """One learning rate with its update."""

    algorithm: AscentDescent
    learning_rate: float


def summarise(
    settings: Sequence[Setting],
    paths: Sequence[LossPath],
    target: float,
    floor: float,
    sharpness: float,
) -> pd.DataFrame:
    """One row a setting, from one path a seed of batches.

    Columns: mixing, learning_rate, share_of_edge; steps_low, _expected, _high to the target (least,
    median, most over seeds; ∞ where not reached); forget_loss, retain_loss, holdout_loss and
    retain_accuracy, holdout_accuracy there, or at the last step, means over seeds; retain_least,
    the lowest retain accuracy of a seed; retain_worst, the largest retain loss on the way;
    overshoot, the largest forget loss over target; last_step, the largest growth of the forget loss
    in the step that reached it; rising, whether it still grew when the steps were over; feasible;
    coarse, feasible but for an overshoot of more than 10 %; draws, the number of paths.

    Args:
        settings, paths: S of the former, paths of (steps+1, S).
        target: forget loss.
        floor: least retain accuracy.
        sharpness: λ_max(H_r).
    """
    each = [_hits(path, target) for path in paths]
    hit = {name: torch.stack([one[name] for one in each]).numpy() for name in each[0]}
    last_quarter = np.stack(
        [
            (p.forget_loss[-1] > p.forget_loss[3 * (len(p.forget_loss) - 1) // 4]).numpy()
            for p in paths
        ]
    )
    table = pd.DataFrame(
        {
            "mixing": [s.algorithm.mixing for s in settings],
            "learning_rate": [s.learning_rate for s in settings],
        }
    )
    table["share_of_edge"] = table["learning_rate"] * (1 - table["mixing"]) * sharpness / 2
    steps = hit["steps"]
    table["steps_low"], table["steps_high"] = steps.min(axis=0), steps.max(axis=0)
    table["steps_expected"] = np.sort(steps, axis=0)[len(steps) // 2]
    for name in ("forget_loss", "retain_loss", "holdout_loss"):
        table[name] = hit[name].mean(axis=0)
    for name in ("retain_accuracy", "holdout_accuracy"):
        table[name] = hit[name].mean(axis=0)
    table["retain_least"] = hit["retain_accuracy"].min(axis=0)
    table["retain_worst"] = hit["worst"].max(axis=0)
    table["overshoot"] = hit["forget_loss"].max(axis=0) / target
    table["last_step"] = hit["growth"].max(axis=0)
    table["rising"] = last_quarter.any(axis=0)
    kept = np.isfinite(table["steps_high"]) & (table["retain_least"] >= floor)
    table["draws"] = len(paths)
    table["feasible"] = kept & (table["overshoot"] <= OVERSHOOT)
    table["coarse"] = kept & np.isfinite(table["overshoot"]) & ~table["feasible"]
    return table


def _hits(path: LossPath, target: float) -> dict[str, torch.Tensor]:
    """Everything at the first step at or after the target, else at the last one; (settings,)."""
    steps = path.steps_to(target)
    row = steps.clamp_max(len(path.forget_loss) - 1).long()[None]
    before = path.forget_loss.gather(0, (row - 1).clamp_min(0))[0]
    found = {
        "steps": steps,
        "forget_loss": path.forget_loss,
        "retain_loss": path.retain_loss,
        "holdout_loss": path.watched_loss,
        "retain_accuracy": path.retain_accuracy,
        "holdout_accuracy": path.watched_accuracy,
        "worst": path.retain_loss.cummax(dim=0).values,
    }
    at = {name: v.gather(0, row)[0] if v.ndim == 2 else v for name, v in found.items()}
    at["growth"] = (at["forget_loss"] / before).nan_to_num(nan=torch.inf)
    return at


def best(table: pd.DataFrame, floor: float) -> int | None:
    """Row of the recommendation, None if no setting reaches the target above the floor.

    Among the feasible the highest mean of retain and held-out accuracy, else among those that only
    overshoot the highest retain accuracy in their worst draw; within .3 points a fine last step and
    a retain accuracy clear of the floor are preferred, then few steps, then distance from the edge.
    """
    fit = table[table["feasible"]]
    score = (fit["retain_accuracy"] + fit["holdout_accuracy"]) / 2
    if fit.empty:
        fit = table[table["coarse"]]
        score = fit["retain_least"]
    if fit.empty:
        return None
    close = fit[score >= score.max() - CLOSE]
    rough = (close["last_step"] > FINE).astype(int) + (close["last_step"] > OVERSHOOT)
    order = close.assign(rough=rough, tight=close["retain_least"] < floor + CLOSE).sort_values(
        ["rough", "tight", "steps_expected", "share_of_edge"], kind="stable"
    )
    return int(order.index[0])


def least_bad(table: pd.DataFrame, floor: float, tried: Sequence[int]) -> int | None:
    """Row that comes nearest to being feasible, of those not tried; None if all were."""
    rest = table.drop(index=list(tried))
    if rest.empty:
        return None
    order = rest.assign(
        missed=~np.isfinite(rest["steps_high"]),
        beyond=rest["overshoot"] > OVERSHOOT,
        kept=-rest["retain_least"].clip(upper=floor),
        gained=-rest["forget_loss"].where(np.isfinite(rest["forget_loss"]), -np.inf),
    ).sort_values(["missed", "beyond", "kept", "gained"], kind="stable")
    return int(order.index[0])


def limit(table: pd.DataFrame, target: float, floor: float, steps: int) -> str:
    """Why no setting is feasible, with the numbers that show it."""
    reached = np.isfinite(table["steps_high"])
    kept = table["retain_least"] >= floor
    if not reached.any():
        most = table.loc[np.isfinite(table["forget_loss"]), "forget_loss"].max()
        if table["rising"].any():
            return (
                f"budget: in {steps} steps the forget loss comes to {most:.3g} of {target:.3g} and "
                f"still rises; give more steps"
            )
        return (
            f"balance: descent holds the forget loss at {most:.3g} or less, target {target:.3g}; "
            f"give a larger mixing"
        )
    if (reached & kept).any():
        return (
            f"the network itself: settings predicted to keep retain accuracy {floor:.3f} did not "
            f"in real runs on a copy; a lower retain_floor or more mixings may help"
        )
    row = table[reached].sort_values("retain_least").iloc[-1]
    if row["share_of_edge"] > 0.5:
        return (
            f"retain edge: only rates near it ({row['share_of_edge']:.0%}) reach {target:.3g} in "
            f"{steps} steps, with retain accuracy {row['retain_least']:.3f} < {floor:.3f}; give "
            f"more steps"
        )
    return (
        f"overlap of the sets: when the forget loss reaches {target:.3g}, retain accuracy is "
        f"{row['retain_least']:.3f} at best (mixing {row['mixing']:g}), floor {floor:.3f}"
    )


def step_range(row: pd.Series, clock: float) -> tuple[int, int, int]:
    """(low, expected, high): the seeds' range, widened by a factor for the clock, ≤ 2.5 wide."""
    low, high = row["steps_low"] / clock, row["steps_high"] * clock
    middle, half = (low * high) ** 0.5, WIDEST**0.5
    low, high = max(low, middle / half), min(high, middle * half)
    first = max(1, int(np.ceil(low)))
    last = max(first, int(np.floor(high)))
    return first, int(np.clip(row["steps_expected"], first, last)), last
