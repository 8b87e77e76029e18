"""The search for a setting: the tangent model on every one, real runs on those that matter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse.linalg
import torch
from torch import nn

from lib.stability.algorithm import AscentDescent
from lib.unlearning.calibration import Probe, calibrate
from lib.unlearning.certificates import retain_sharpness
from lib.unlearning.choice import CLOSE, OVERSHOOT, Setting, best, least_bad, summarise
from lib.unlearning.network_run import NetworkPath
from lib.unlearning.paths import LossPath, losses, slopes
from lib.unlearning.tangent import TangentModel, follow, follow_weights
from lib.unlearning.task import Task

SHARES = np.geomspace(0.01, 1, 12)  # of the retain edge, learning rates that are tried
LOWER, EXTENSIONS = 1e-2, 3  # shares shrink by this where even the smallest is
SOON = 10  # steps from the target
RESCUES = 3  # real runs beyond `verify` where they contradict the prediction
SAME_CLOCK = 1.1  # speeds this near need no new table: batches and stated range move it more


@dataclass(frozen=True)
class RealRun:
    """A real run of one setting (row of the table) on a copy.

    kept: whether it reached the target above the floor; held: and ended at most 10 % above.
    """

    row: int
    path: NetworkPath
    kept: bool
    held: bool


class Search:
    """One model's settings, predicted; the clock of the prediction follows its real runs.

    Args:
        model, task: the network and the samples it is planned on.
        target, floor: forget loss to reach, least retain accuracy.
        steps: budget of a run.
        seeds: of the batches every setting is tried on; real runs use them in turn.
        progress: wraps what is followed seed by seed.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        tangent: TangentModel,
        *,
        target: float,
        floor: float,
        steps: int,
        seeds: Sequence[int],
        progress: Callable[[Sequence[int], str], Iterable[int]],
    ) -> None:
        self.model, self.task, self.tangent = model, task, tangent
        self.target, self.floor, self.steps, self.seeds = target, floor, steps, seeds
        self._progress = progress
        self.sharpness = _sharpness(tangent, task)
        self.settings: list[Setting] = []
        self.table = pd.DataFrame()
        self.runs: list[RealRun] = []
        self._speeds: list[float] = []
        self._near: list[int] = []
        self._paths: list[LossPath] = []  # of the settings that are near, seed by seed

    def predict(self, updates: Sequence[AscentDescent], rates: Sequence[float] | None) -> None:
        """Follow every update at every rate; None: shares of its retain edge.

        Where none of those is feasible, smaller ones if all were too fast, else those between.
        """
        shares = SHARES
        for _ in range(EXTENSIONS):
            self.settings += [
                Setting(update, float(rate))
                for update in updates
                for rate in rates or shares * 2 / self.sharpness / (1 - update.mixing)
            ]
            self._fill()
            if rates or self.table["feasible"].any() or len(shares) < len(SHARES):
                break
            slowest = np.isclose(self.table["share_of_edge"], shares[0])
            soon = self.table.loc[slowest, "steps_expected"].max() < SOON
            shares = shares * LOWER if soon else (shares[1:] * shares[:-1]) ** 0.5

    def _fill(self) -> None:
        """The table of all settings at the tangent's present clock; real runs overrule it.

        On the first draw of batches all; on the others those that it does not rule out, or that a
        real run holds for: feasible is what every draw says.
        """
        first = self._follow(self.settings, self.seeds[0], self.steps)
        table = self._summary(self.settings, [first])
        near = (
            table["feasible"]
            | table["coarse"]
            | table.index.isin([run.row for run in self.runs if run.held])
        )
        rows = np.flatnonzero(near).tolist()
        self._near, self._paths = rows, [first.of(rows)]
        if len(rows) and len(self.seeds) > 1:
            few = [self.settings[row] for row in rows]
            reached = table["steps_high"][rows].replace(np.inf, self.steps)
            longest = min(float(self.steps), 2 * float(reached.max()) + 1)
            label = f"{len(few)} of {len(table)} settings"
            self._paths += [
                self._follow(few, seed, int(longest))
                for seed in self._progress(self.seeds[1:], label)
            ]
            again = self._summary(few, self._paths).set_axis(rows, axis="index")
            table = pd.concat([table.drop(index=rows), again]).sort_index()
        self.table = table
        self._overrule()

    def _summary(self, settings: Sequence[Setting], paths: Sequence[LossPath]) -> pd.DataFrame:
        return summarise(settings, paths, self.target, self.floor, self.sharpness)

    def _follow(self, settings: Sequence[Setting], seed: int, steps: int) -> LossPath:
        return follow(
            self.tangent,
            self.task.targets,
            self.task.forget,
            [s.algorithm for s in settings],
            [s.learning_rate for s in settings],
            steps=steps,
            loss=self.task.loss,
            seed=seed,
        )

    def _overrule(self) -> None:
        """A setting whose real runs all held is feasible, one that a run contradicts is not."""
        for row in self.tried:
            runs = [run for run in self.runs if run.row == row]
            held = all(run.held for run in runs)
            self.table.loc[row, "feasible"] = held
            self.table.loc[row, "coarse"] = not held and all(run.kept for run in runs)
            held = held or bool(self.table["coarse"][row])
            if held and not math.isfinite(self.table["steps_high"][row]):
                taken = float(len(self._last(row).path.forget_loss) - 1)
                self.table.loc[row, ["steps_low", "steps_expected", "steps_high"]] = taken

    @property
    def tried(self) -> list[int]:
        """Rows with a real run."""
        return sorted({run.row for run in self.runs})

    def _last(self, row: int) -> RealRun:
        return [run for run in self.runs if run.row == row][-1]

    def choose(self) -> int | None:
        """The recommended row; one that a real run confirmed, if it is no worse than .3 points."""
        row = best(self.table, self.floor)
        if row is None:
            return None
        score = (self.table["retain_accuracy"] + self.table["holdout_accuracy"]) / 2
        confirmed = [r for r in self.tried if self.table["feasible"][r]]
        near = [r for r in confirmed if score[r] >= score[row] - CLOSE]
        return row if row in near else max(near, key=lambda r: score[r], default=row)

    def verify(self, times: int) -> int | None:
        """Run the recommendation for real, `times` times, others where that fails; the best row.

        Where nothing is predicted to be feasible, the settings that come nearest are run before
        that is believed.
        """
        for _ in range(times + RESCUES if times else 0):
            row = self.choose()
            if row is None:
                row = least_bad(self.table, self.floor, self.tried)
            done = sum(run.row == row for run in self.runs)
            if row is None or done >= times:
                break
            self._run(row, self.seeds[0] + done)
        return self.choose()

    def _run(self, row: int, seed: int) -> None:
        """One real run of a row, and the clock set by it."""
        setting = self.settings[row]
        path = self.task.run(
            self.model,
            setting.algorithm,
            setting.learning_rate,
            steps=self.steps,
            seed=seed,
            until=lambda gone, kept: gone >= self.target or not math.isfinite(kept),
        )
        end = float(path.forget_loss[-1, 0])
        kept = self.target <= end < math.inf
        kept = kept and float(path.retain_accuracy[-1, 0]) >= self.floor
        held = kept and end <= OVERSHOOT * self.target
        self.runs.append(RealRun(row, path, kept, held))
        before = self.tangent.speed
        self._set_clock(setting, path, seed)
        moved = max(self.tangent.speed, before) > SAME_CLOCK * min(self.tangent.speed, before)
        if moved or (held and self.table["draws"][row] < len(self.seeds)):
            self._fill()
        else:
            self._overrule()

    def _set_clock(self, setting: Setting, path: NetworkPath, seed: int) -> None:
        """The geometric mean of the speeds that explain the real runs; unchanged if none does."""
        probe = Probe(
            path,
            self.target,
            self.task.targets,
            self.task.forget,
            setting.algorithm,
            setting.learning_rate,
            loss=self.task.loss,
            seed=seed,
        )
        try:
            self._speeds.append(calibrate(self.tangent.at_speed(1.0), probe).speed)
        except RuntimeError:  # not reached, or not by any clock: the run's own row says so
            return
        speed = float(np.exp(np.mean(np.log(self._speeds))))
        self.tangent = self.tangent.at_speed(speed)

    @property
    def calibrated(self) -> bool:
        """Whether a real run set the clock."""
        return bool(self._speeds)

    def confirmed(self, row: int) -> LossPath | None:
        """The last real run of a row, if there was one."""
        return self._last(row).path if row in self.tried else None

    def curves(self, row: int, steps: int) -> pd.DataFrame:
        """Losses and accuracies along the predicted run of a row, one row per seed and step.

        Up to `steps`, or to the budget where that is less.
        """
        if row in self._near:
            place = self._near.index(row)
            paths = [path.of([place]) for path in self._paths]
        else:
            paths = [self._follow([self.settings[row]], seed, steps) for seed in self.seeds]
        parts = []
        for seed, path in zip(self.seeds, paths, strict=True):
            columns = {
                "forget_loss": path.forget_loss,
                "retain_loss": path.retain_loss,
                "retain_accuracy": path.retain_accuracy,
                "holdout_accuracy": path.watched_accuracy,
            }
            table = {name: v[: steps + 1, 0].cpu().numpy() for name, v in columns.items()}
            part = pd.DataFrame(table)
            part.insert(0, "step", np.arange(len(part)))
            part.insert(0, "seed", seed)
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    def samples(self, row: int | None, steps: int, monitored: torch.Tensor) -> pd.DataFrame:
        """The forget samples, columns as in `Plan.samples`; predicted_loss NaN without a row."""
        n, c = len(self.task.forget), self.tangent.outputs.shape[1]
        device = self.tangent.outputs.device
        gone = self.task.forget.nonzero()[:, 0].to(device)
        targets = self.task.targets.to(device)[gone]
        if self.task.loss != "cross_entropy":
            targets = targets.reshape(-1, c).to(self.tangent.outputs)
        start = self.tangent.outputs[gone]
        slope = slopes(start[:, :, None].clone(), targets, self.task.loss)[:, :, 0]
        blocks = self.tangent.kernel[: n * c].view(n, c, n, c)[gone, :, gone]
        influence = torch.einsum("ja,jab,jb->j", slope.double(), blocks.double(), slope.double())
        ended = torch.full_like(gone, torch.nan, dtype=torch.float64)
        if row is not None:
            setting = self.settings[row]
            push, _ = follow_weights(
                self.tangent,
                self.task.targets,
                self.task.forget,
                setting.algorithm,
                setting.learning_rate * self.tangent.speed,
                steps=steps,
                loss=self.task.loss,
                seed=self.seeds[0],
            )
            moved = start - (self.tangent.kernel @ push.flatten()).view(-1, c)[gone]
            ended = losses(moved[:, :, None], targets, self.task.loss)[:, 0]
        columns = {
            "index": monitored.to(device)[gone],
            "initial_loss": losses(start[:, :, None], targets, self.task.loss)[:, 0].double(),
            "predicted_loss": ended.double(),
            "self_influence": influence,
        }
        return pd.DataFrame({name: v.cpu().numpy() for name, v in columns.items()})


def _sharpness(tangent: TangentModel, task: Task) -> float:
    """λ_max(H_r) > 0."""
    try:
        top = retain_sharpness(tangent, task.targets, task.forget, loss=task.loss)
    except scipy.sparse.linalg.ArpackError as error:
        raise ValueError(f"model must have curvature on the retain set, got {error}") from error
    if not top > 0:
        raise ValueError(f"model must have curvature on the retain set, got λ_max(H_r) = {top!r}")
    return top
