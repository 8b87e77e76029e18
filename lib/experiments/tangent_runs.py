"""Real unlearning runs beside what the tangent model predicts of them, setting by setting."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.utils import vector_to_parameters

from lib.experiments.networks import ForgetSet, Problem, problem
from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.losses import loss_of
from lib.stability.second_moment import mean_operator
from lib.unlearning.calibration import Probe, calibrate
from lib.unlearning.certificates import retain_sharpness
from lib.unlearning.network_run import run_network
from lib.unlearning.paths import LossPath, draw_batches
from lib.unlearning.tangent import TangentModel, TangentPath, follow
from lib.unlearning.validity import RANGE, validate

STEPS = 60
RETAIN_FLOOR = 0.95
BAND = 0.02  # of retain accuracy, on either side of the floor
BATCHES = 64, 16
LARGE = ("resnet_groupnorm", "resnet_batchnorm", "transformer")
PROBES = 3  # real runs tried, one after another, until one fixes the clock
CHECKED = 12  # settings a problem whose validity is asked


def grid(name: str) -> tuple[tuple[float, ...], np.ndarray]:
    """Mixings, and learning rates in units of the retain edge 2/λ_max(H_r); 120 or 56 settings.

    For the large families the rates end at the edge: on a scratch seed, real retain accuracies
    collapsed between one and two edges where the tangent's did not.
    """
    if name in LARGE:
        return (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7), np.geomspace(0.005, 1, 8)
    return (0.1, 0.2, 0.3, 0.5, 0.7), np.geomspace(0.01, 2, 24)


@dataclass(frozen=True)
class Setting:
    """One learning rate and mixing on one problem."""

    algorithm: AscentDescent
    learning_rate: float


def settings(name: str, tangent: TangentModel, case: Problem) -> list[Setting]:
    """The grid on this problem's own scale of learning rates, which needs no run."""
    edge = 2 / retain_sharpness(tangent, case.targets, case.forget)
    mixings, rates = grid(name)
    return [
        Setting(AscentDescent(mixing, *BATCHES, sampling="without_replacement"), rate)
        for mixing, rate in product(mixings, edge * rates)
    ]


def tangent_of(case: Problem) -> TangentModel:
    """The tangent model of a problem's network."""
    family = case.family
    return TangentModel.from_model(
        case.model,
        case.inputs,
        trained=family.trained,
        parameters=family.chosen,
        sketch=family.sketch,
    )


def compare(name: str, forget_set: ForgetSet, seed: int) -> pd.DataFrame:
    """One row per setting: first step at the target and retain accuracy there, both ways.

    Real runs and predictions have the same batches. Columns: mixing, learning_rate; the target, the
    retrained losses' spread, the losses and accuracies at the start; for real, predicted and (for
    the large families) calibrated: *_time, passing of the target between steps (∞: not within
    STEPS); *_retain, *_watched, accuracies at the first step at or after it (at the last step where
    it is not reached); speed, the calibrated model's; probe, whether the row is the probe; trusted,
    growth, bend where validity was asked; seconds of everything.
    """
    case = problem(name, forget_set, seed)
    begin = time.perf_counter()
    tangent = tangent_of(case)
    built = time.perf_counter() - begin
    several = settings(name, tangent, case)
    begin = time.perf_counter()
    predicted = _follow(tangent, case, several, seed)
    followed = time.perf_counter() - begin
    begin = time.perf_counter()
    real = [_run(case, setting, seed, name in LARGE) for setting in several]
    ran = time.perf_counter() - begin
    table = pd.DataFrame(
        {
            "mixing": [s.algorithm.mixing for s in several],
            "learning_rate": [s.learning_rate for s in several],
        }
    )
    table["family"], table["forget_set"], table["seed"] = name, forget_set, seed
    table["target"], table["retrained_spread"] = case.target, float(case.retrained.std())
    start = run_network(
        case.model,
        case.inputs,
        case.targets,
        case.forget,
        several[0].algorithm,
        several[0].learning_rate,
        trained=case.family.trained,
        parameters=case.family.chosen,
        steps=0,
    )
    for field, value in asdict(start).items():
        if field != "weights":
            table[f"start_{field}"] = float(value[0, 0])
    floor = RETAIN_FLOOR * float(start.retain_accuracy[0, 0])
    table["floor"] = floor
    for column, values in _hits(predicted, case.target).items():
        table[f"predicted_{column}"] = values
    hits = [_hits(path, case.target, ended) for path, ended in real]
    for column in hits[0]:
        table[f"real_{column}"] = [float(hit[column][0]) for hit in hits]
    table["probe"], table["speed"] = False, 1.0
    if name in LARGE:
        _add_calibrated(table, tangent, case, several, [path for path, _ in real], seed)
    _add_validity(table, tangent, case, several, seed)
    table["built_seconds"], table["followed_seconds"], table["ran_seconds"] = built, followed, ran
    return table


def _follow(tangent: TangentModel, case: Problem, several: list[Setting], seed: int) -> TangentPath:
    return follow(
        tangent,
        case.targets,
        case.forget,
        [s.algorithm for s in several],
        [s.learning_rate for s in several],
        steps=STEPS,
        seed=seed,
    )


def _run(case: Problem, setting: Setting, seed: int, fast: bool) -> tuple[LossPath, LossPath]:
    """One real run until the target is reached or the steps are over, and all samples at its end.

    fast: on the way the loss is taken over the forget samples and one other only, which makes the
    run of a network with many operations a weight several times cheaper.
    """
    target, n = case.target, case.family.trained
    options: dict[str, Any] = {"trained": n, "parameters": case.family.chosen, "seed": seed}
    several = (case.inputs, case.targets, case.forget, setting.algorithm, setting.learning_rate)
    seen = case.forget.index_fill(0, (~case.forget).nonzero()[0], True).nonzero()[:, 0]
    path = run_network(
        case.model,
        *several,
        **options,
        steps=STEPS,
        until=lambda forgotten, kept: forgotten >= target,
        monitored=seen if fast else None,
    )
    if not fast:
        return path, path
    ended = copy.deepcopy(case.model)
    chosen = case.family.chosen or (lambda name: True)
    moved = [w for name, w in ended.named_parameters() if w.requires_grad and chosen(name)]
    vector_to_parameters(path.weights, moved)
    return path, run_network(ended, *several, **options, steps=0)


def _hits(path: LossPath, target: float, ended: LossPath | None = None) -> dict[str, np.ndarray]:
    """Passing time, and accuracies at the first step at the target or else at the last one.

    ended: the path whose last row has the accuracies, where that of the losses has them not.
    """
    time = path.crossing(target).numpy()
    path = path if ended is None else ended
    last = len(path.forget_loss) - 1
    step = path.steps_to(target).clamp_max(last).long()[None]
    return {
        "time": time,
        "retain": path.retain_accuracy.gather(0, step)[0].numpy(),
        "watched": path.watched_accuracy.gather(0, step)[0].numpy(),
    }


def _add_calibrated(
    table: pd.DataFrame,
    tangent: TangentModel,
    case: Problem,
    several: list[Setting],
    real: list[LossPath],
    seed: int,
) -> None:
    """Columns calibrated_*, speed and probe: the clock fixed by one run, chosen before it is run.

    The probe is the setting that is predicted to reach the target nearest to a third of the steps,
    among those predicted to keep the retain floor; where its run does not fix a speed, the next
    nearest, of at most `PROBES`. Without one the prediction stays as it was and speed is NaN.
    """
    kept = table["predicted_retain"] >= table["floor"]
    distance = (table["predicted_time"] - STEPS / 3).abs().where(kept, np.inf)
    fixed, speed, tried = tangent, np.nan, distance.sort_values(kind="stable").index[:PROBES]
    for probe in tried:
        setting = several[probe]
        run = Probe(
            real[probe],
            case.target,
            case.targets,
            case.forget,
            setting.algorithm,
            setting.learning_rate,
            seed=seed,
        )
        try:
            fixed = calibrate(tangent, run)
        except RuntimeError:
            continue
        table.loc[probe, "probe"] = True
        speed = fixed.speed
        break
    for column, values in _hits(_follow(fixed, case, several, seed), case.target).items():
        table[f"calibrated_{column}"] = values
    table["speed"] = speed


def _add_validity(
    table: pd.DataFrame, tangent: TangentModel, case: Problem, several: list[Setting], seed: int
) -> None:
    """Columns trusted, growth and bend, on settings spread over those predicted to succeed."""
    fine = (table["predicted_retain"] >= table["floor"]) & np.isfinite(table["predicted_time"])
    rows = np.flatnonzero(fine)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(CHECKED, len(rows))).astype(int))]
    for column in ("trusted", "growth", "bend"):
        table[column] = np.nan
    for row in rows:
        setting = several[row]
        found = validate(
            case.model,
            case.inputs,
            case.targets,
            case.forget,
            tangent,
            setting.algorithm,
            setting.learning_rate,
            steps=int(np.ceil(table["predicted_time"][row])),
            seed=seed,
            parameters=case.family.chosen,
        )
        table.loc[row, ["trusted", "growth", "bend"]] = (
            float(found.trusted),
            found.growth,
            found.bend,
        )


FROZEN = {"mixing": 0.3, "share": 0.05, "steps": 40, "every": 4}  # of the run that shows why


def curvature_path(name: str, forget_set: ForgetSet, seed: int) -> pd.DataFrame:
    """Why frozen curvature fails: one real run, its tangent, and the loss's quadratic at w_0.

    Every fourth step: the forget loss of the network, of its tangent model, and of the tangent
    model with the loss's second-order expansion at w_0 in place of the loss (frozen); lowest,
    λ_min(A(w)) of the network's GGN where it is.
    """
    case = problem(name, forget_set, seed)
    tangent = tangent_of(case)
    rate = FROZEN["share"] * 2 / retain_sharpness(tangent, case.targets, case.forget)
    update = AscentDescent(FROZEN["mixing"], *BATCHES, sampling="without_replacement")
    steps = int(FROZEN["steps"])
    predicted = follow(tangent, case.targets, case.forget, update, rate, steps=steps, seed=seed)
    frozen = _frozen_losses(tangent, case, update, rate, seed)
    rows = []
    for step in range(0, steps + 1, int(FROZEN["every"])):
        real = run_network(
            case.model,
            case.inputs,
            case.targets,
            case.forget,
            update,
            rate,
            trained=case.family.trained,
            parameters=case.family.chosen,
            steps=step,
            seed=seed,
        )
        rows.append(
            {
                "step": step,
                "network": float(real.forget_loss[-1, 0]),
                "tangent": float(predicted.forget_loss[step, 0]),
                "frozen": frozen[step],
                "lowest": _lowest(case, update, real.weights),
            }
        )
    return pd.DataFrame(rows).assign(target=case.target, learning_rate=rate)


def _frozen_losses(
    tangent: TangentModel, case: Problem, update: AscentDescent, rate: float, seed: int
) -> list[float]:
    """Forget loss ℓ_0 + g·z + ½zᵀΛz along the run whose slopes are g + Λz, z = Jδ."""
    n, c = len(case.forget), tangent.outputs.shape[1]
    targets = case.targets[:n]
    outputs, kernel = tangent.outputs[:n].double(), tangent.kernel[: n * c].double()
    loss = loss_of("cross_entropy")
    start, slope = loss.value(outputs, targets), loss.slope(outputs, targets)
    curvature = loss.curvature(outputs, targets)
    moved = torch.zeros(n, c, dtype=torch.float64)
    values = []
    for batch in [*draw_batches(update, case.forget, steps=int(FROZEN["steps"]), seed=seed), None]:
        bent = (curvature @ moved[:, :, None])[:, :, 0]
        quadratic = start + ((slope + bent / 2) * moved).sum(dim=1)
        values.append(float(quadratic[case.forget].mean()))
        if batch is not None:
            push = torch.zeros(n, c, dtype=torch.float64)
            weights = batch.weights(torch.tensor([update.mixing], dtype=torch.float64))
            push[batch.samples] = weights * (slope + bent)[batch.samples]
            moved -= rate * (kernel @ push.flatten()).view(n, c)
    return values


def _lowest(case: Problem, update: AscentDescent, weights: torch.Tensor) -> float:
    """λ_min(A) of the GGN at these weights."""
    model = copy.deepcopy(case.model)
    vector_to_parameters(weights, model.parameters())
    n = len(case.forget)
    curvature = Curvature.from_model(
        model, case.inputs[:n], case.targets[:n], case.forget, "cross_entropy"
    )
    return float(torch.linalg.eigvalsh(mean_operator(curvature, update))[0])


@dataclass(frozen=True)
class Agreement:
    """How often a prediction was right, over all runs of a table.

    runs; counted, those that really reach the target with retain accuracy at the floor or above;
    within, the share of these whose first step is right to max(2, 10 %); verdict, the share of all
    runs for which "reaches the target with the floor kept" is right; clear, the same share of the
    runs whose retain accuracy ends more than `BAND` from the floor; ratio, median of real over
    predicted time among the counted; checked, settings whose validity was asked; trusted, their
    share called trusted; inside, the share of the trusted whose real time is in the stated range.
    """

    runs: int
    counted: int
    within: float
    verdict: float
    clear: float
    ratio: float
    checked: int
    trusted: float
    inside: float


def agreement(table: pd.DataFrame, prediction: str = "predicted") -> Agreement:
    """Score the columns predicted_* (or calibrated_*) of `compare`'s rows against real_*.

    Rows of the probes, which fixed the clock, are left out of the score of calibrated_*.
    """
    if prediction == "calibrated":
        table = table[~table["probe"].astype(bool)]
    real, found = table["real_time"], table[f"{prediction}_time"]
    success = np.isfinite(real) & (table["real_retain"] >= table["floor"])
    promised = np.isfinite(found) & (table[f"{prediction}_retain"] >= table["floor"])
    steps, told = np.ceil(real[success]), np.ceil(found[success])
    right = (told - steps).abs() <= np.maximum(2, 0.1 * steps)
    ratio = (real / found)[success & np.isfinite(found) & (found > 0)]
    asked = table["trusted"].notna()
    trusted = asked & (table["trusted"] == 1)
    inside = (found / RANGE <= real) & (real <= found * RANGE)
    return Agreement(
        runs=len(table),
        counted=int(success.sum()),
        within=float(right.mean()),
        verdict=float((success == promised).mean()),
        clear=float(
            (success == promised)[(table["real_retain"] - table["floor"]).abs() > BAND].mean()
        ),
        ratio=float(ratio.median()),
        checked=int(asked.sum()),
        trusted=float(trusted.sum() / max(1, asked.sum())),
        inside=float(inside[trusted].mean()),
    )


def clocks(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per table: `agreement` of the raw and of the calibrated prediction; shares in %.

    Columns: runs, succeed; step right, raw and clock; verdict clear, raw and clock; real / raw,
    median ratio of times; speed, medians of the probes'; growth, bend, medians; trusted; in range.
    """
    rows = {}
    for name, table in tables.items():
        raw, clock = agreement(table), agreement(table, "calibrated")
        rows[name] = {
            "runs": raw.runs,
            "succeed": raw.counted,
            "step right, raw": 100 * raw.within,
            "step right, clock": 100 * clock.within,
            "verdict clear, raw": 100 * raw.clear,
            "verdict clear, clock": 100 * clock.clear,
            "real / raw": raw.ratio,
            "speed": table.groupby("seed")["speed"].first().median(),
            "growth": table["growth"].median(),
            "bend": table["bend"].median(),
            "trusted": 100 * raw.trusted,
            "in range": 100 * raw.inside,
        }
    return pd.DataFrame(rows).T
