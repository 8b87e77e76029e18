"""Resistance beside need for deletion, and how near a path of unlearning comes to retraining."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.func import jvp, vmap

from lib.cnn.network import TwoLayerCNN
from lib.cnn.training import fit_to_interpolation
from lib.experiments.deletion_cases import JUDGED, Case, Data, Kind, case
from lib.experiments.resistance_runs import curvatures, steepest_mean_steps
from lib.experiments.settings import Network
from lib.stability.algorithm import AscentDescent
from lib.stability.dynamics import retain_edge
from lib.stability.second_moment import mean_operator
from lib.unlearning.population import Batch, Networks, Schedule, descend, losses_of

NETWORK = Network(n_retain=45, n_forget=15)  # of the CNN chapter
MIXING, SHARE, COMMON, GROWTH = 0.3, 0.5, 20.0, 1e3
STEPS, MIXINGS, RATES, MODELS, RETRAINED = 60, (0.1, 0.3, 0.5), (0.01, 0.03, 0.1, 0.3), 5, 20
EVERY = 4  # steps between the rows of a course


def plane(snrs: Sequence[float], seeds: int, network: Network = NETWORK) -> pd.DataFrame:
    """Resistance and need for deletion of the trained signal-plus-noise CNN: a row a SNR and seed.

    steps: that the mean's steepest direction takes to grow 10³-fold at half the retain edge
    (resistance), common_steps: at one learning rate for all; lowest: λ_min(A); gap: mean over the
    forget samples of |f − f_retrained|, outputs being ±1 after training, for a network trained anew
    without them from the same start (need for deletion); floor: the same on the retain samples;
    correct: share of the forget samples that the retrained network gets right.
    """
    rows = []
    for snr in snrs:
        at = Network(**{**vars(network), "snr": snr})
        forget = at.forget
        datasets = [at.draw(seed) for seed in range(seeds)]
        trained = fit_to_interpolation(datasets, **at.shape)
        kept = fit_to_interpolation([data.subset(~forget) for data in datasets], **at.shape)
        update = AscentDescent(MIXING, at.n_retain, at.n_forget, sampling="without_replacement")
        for seed, (data, curve) in enumerate(
            zip(datasets, curvatures(trained, forget), strict=True)
        ):
            nets = [TwoLayerCNN(fit.weights_of(seed)) for fit in (trained, kept)]
            with torch.no_grad():
                own, other = (net(data.patches.to(net.weights)) for net in nets)
            apart = (own - other).abs()
            rate = SHARE * retain_edge(curve, MIXING)
            rows.append(
                {
                    "snr": snr,
                    "seed": seed,
                    "steps": steepest_mean_steps(curve, update, rate, GROWTH),
                    "common_steps": steepest_mean_steps(curve, update, COMMON, GROWTH),
                    "lowest": float(torch.linalg.eigvalsh(mean_operator(curve, update))[0]),
                    "gap": float(apart[forget].mean()),
                    "floor": float(apart[~forget].mean()),
                    "correct": float((other * data.labels > 0)[forget].double().mean()),
                }
            )
    return pd.DataFrame(rows)


def tangents(
    at: Case, schedule: Schedule, mixing: float, seen: Tensor | None = None
) -> Iterator[Tensor]:
    """Outputs (models, samples, C) of the networks linearised at their weights, loss exact.

    Step by step as ascent–descent goes, on `descend`'s batches; `follow` gives the same from a
    kernel, for many settings of one network where this is for many networks. seen: a mask of the
    samples that are looked at, by default all; the others' outputs are NaN.
    """
    start = at.networks.at()
    delta = {name: torch.zeros_like(w) for name, w in start.weights.items()}

    def outputs(w: dict[str, Tensor], d: dict[str, Tensor], x: Tensor) -> Tensor:
        found = jvp(lambda w: start.net.at(w, x), (w,), (d,))
        return found[0] + found[1]

    def losses(d: dict[str, Tensor], chosen: Tensor) -> Tensor:
        out = vmap(outputs)(start.weights, d, at.networks.inputs[chosen]).flatten(2)
        return losses_of(out, at.networks.targets[chosen], "cross_entropy")

    def looked(d: dict[str, Tensor]) -> Tensor:
        found = vmap(outputs, in_dims=(0, 0, None))(start.weights, d, x)
        return _placed(found.flatten(2).detach(), seen)

    x = start.net.moved(at.inputs if seen is None else at.inputs[seen])
    for batch in schedule.batches(at.forget, len(at.networks.stacked)):
        yield looked(delta)
        leaves = {name: d.detach().requires_grad_() for name, d in delta.items()}
        value = (1 - mixing) * losses(leaves, batch.retain).mean(1)
        value = value - mixing * losses(leaves, batch.forget).mean(1)
        slope = torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True)
        rate = schedule.learning_rate
        delta = {k: d - rate * g for (k, d), g in zip(delta.items(), slope, strict=True)}
    yield looked(delta)


def _placed(outputs: Tensor, seen: Tensor | None) -> Tensor:
    if seen is None:
        return outputs
    found = outputs.new_full((len(outputs), len(seen), outputs.shape[2]), torch.nan)
    found[:, seen] = outputs
    return found


def networks(
    at: Case, schedule: Schedule, mixing: float, seen: Tensor | None = None
) -> Iterator[Tensor]:
    """The same of the networks themselves; NaN for all once one of them has overflowed."""

    def objective(now: Networks, batch: Batch) -> Tensor:
        kept, gone = now.losses(batch.retain), now.losses(batch.forget)
        return (1 - mixing) * kept.mean(1) - mixing * gone.mean(1)

    path = descend(at.networks, schedule, objective)
    inputs = at.inputs if seen is None else at.inputs[seen]
    outputs = torch.empty(0)
    for _ in range(schedule.steps + 1):
        try:
            now = next(path)
            with torch.no_grad():
                outputs = _placed(now.see(now.net.moved(inputs)), seen)
        except (RuntimeError, StopIteration):  # it overflowed, and has ended
            outputs = torch.full_like(outputs, torch.nan)
        yield outputs


@dataclass(frozen=True)
class Goal:
    """Networks about to forget, and what retrained ones say: probabilities and losses, means.

    wanted: (samples, C); losses: (samples,); floor: mean distance of other retrained networks.
    """

    at: Case
    wanted: Tensor
    losses: Tensor
    floor: float


def goal(data: Data, kind: Kind, *, seed: int, models: int, retrained: int) -> Goal:
    """Train `retrained` networks, retrain as many twice, and keep the first `models` to forget."""
    at = case(data, kind, seed=seed, models=retrained, label=JUDGED)
    outputs = at.networks.outputs(at.inputs, at.retrained)
    wanted = outputs.softmax(-1).mean(dim=0)
    losses = losses_of(outputs, at.targets.expand(len(outputs), -1), "cross_entropy").mean(dim=0)
    again = _distances(at, at.networks.outputs(at.inputs, at.again), wanted)
    return Goal(at.first(models), wanted, losses, float(again.mean()))


def approach(
    data: Data,
    kind: Kind,
    *,
    seed: int = 0,
    models: int = MODELS,
    retrained: int = RETRAINED,
    mixings: Sequence[float] = MIXINGS,
    rates: Sequence[float] = RATES,
) -> pd.DataFrame:
    """When ascent–descent comes closest to the retrained networks, predicted and for real.

    Distance to retraining: total variation between the network's probabilities and the mean ones of
    the retrained networks, averaged over the forget set and over the test set, half each; floor:
    the mean distance of as many other retrained networks. One row a network, mixing and rate:
    real_time and predicted_time, the step of the least distance; start, nearest and at_predicted,
    the real distance at step 0, at real_time and at predicted_time; stop_time and stopped, the
    first step with forget loss at the retrained networks' mean (60 where there is none) and the
    distance there; reached, whether it is reached; rank, Spearman's correlation over the forget
    samples of the initial loss with the loss's gap to that of retrained networks at stop_time;
    left, the share of them still below it there. Once one network of a setting has overflowed the
    distances are 1.
    """
    end = goal(data, kind, seed=seed, models=models, retrained=retrained)
    gone, _, test = end.at.sets()
    rows = []
    for mixing, rate in product(mixings, rates):
        schedule = Schedule(rate, STEPS, seed=seed)
        real = torch.stack(list(networks(end.at, schedule, mixing, gone | test)))
        told = torch.stack(list(tangents(end.at, schedule, mixing, gone | test)))
        found = _approaches(end.at, real, told, end.wanted, end.losses)
        rows.append(found.assign(mixing=mixing, learning_rate=rate))
    return pd.concat(rows, ignore_index=True).assign(floor=end.floor, data=data, kind=kind)


def courses(data: Data, kind: Kind, *, seed: int = 0) -> pd.DataFrame:
    """The whole way of `approach`'s runs, each setting's mean over its networks.

    One row every four steps of a mixing and rate: distance and predicted, to retraining, of the
    networks and of their tangent models; forget, retain and test, the networks' mean losses (NaN
    once one has overflowed), predicted_forget the tangent models'; floor, and target, the retrained
    networks' mean forget loss.
    """
    end = goal(data, kind, seed=seed, models=MODELS, retrained=RETRAINED)
    sets = dict(zip(("forget", "retain", "test"), end.at.sets(), strict=True))
    found = []
    for mixing, rate in product(MIXINGS, RATES):
        schedule = Schedule(rate, STEPS, seed=seed)
        paths = (walk(end.at, schedule, mixing) for walk in (networks, tangents))
        for step, (real, told) in enumerate(zip(*paths, strict=True)):
            if step % EVERY == 0:
                own, other = (_losses(end.at, outputs) for outputs in (real, told))
                found.append(
                    {
                        "mixing": mixing,
                        "learning_rate": rate,
                        "step": step,
                        "distance": float(_distances(end.at, real, end.wanted).mean()),
                        "predicted": float(_distances(end.at, told, end.wanted).mean()),
                        **{name: float(own[:, members].mean()) for name, members in sets.items()},
                        "predicted_forget": float(other[:, sets["forget"]].mean()),
                    }
                )
    target = float(end.losses[sets["forget"]].mean())
    return pd.DataFrame(found).assign(floor=end.floor, target=target, data=data, kind=kind)


def _losses(at: Case, outputs: Tensor) -> Tensor:
    """Cross-entropy of outputs (models, samples, C), (models, samples)."""
    return losses_of(outputs, at.targets.expand(len(outputs), -1), "cross_entropy")


def _distances(at: Case, outputs: Tensor, wanted: Tensor) -> Tensor:
    """Distance to retraining of outputs (…, samples, C), 1 where they overflowed; (…)."""
    gone, _, test = at.sets()
    apart = (outputs.double().softmax(-1) - wanted.double()).abs().sum(-1) / 2
    both = (apart[..., gone].mean(-1) + apart[..., test].mean(-1)) / 2
    return both.nan_to_num(nan=1.0)


def _approaches(
    at: Case, real: Tensor, told: Tensor, wanted: Tensor, losses: Tensor
) -> pd.DataFrame:
    """Rows of `approach` at one setting, from outputs (steps+1, models, samples, C)."""
    gone = at.sets()[0]
    distance, predicted = (_distances(at, outputs, wanted) for outputs in (real, told))
    steps = len(real)
    loss = _losses(at, real.flatten(0, 1)).view(real.shape[:3])[..., gone]
    reached = loss.mean(-1) >= losses[gone].mean()
    rows = []
    for model in range(real.shape[1]):
        when, then = int(distance[:, model].argmin()), int(predicted[:, model].argmin())
        there = bool(reached[:, model].any())
        stop = int(reached[:, model].int().argmax()) if there else steps - 1
        gap = (loss[stop, model] - losses[gone]).nan_to_num(nan=1e30, posinf=1e30)
        rows.append(
            {
                "model": model,
                "real_time": when,
                "predicted_time": then,
                "start": float(distance[0, model]),
                "nearest": float(distance[when, model]),
                "at_predicted": float(distance[then, model]),
                "stop_time": stop,
                "stopped": float(distance[stop, model]),
                "reached": float(there),
                "rank": float(spearmanr(loss[0, model], gap).statistic),
                "left": float((gap < 0).double().mean()),
            }
        )
    return pd.DataFrame(rows)


def timing(table: pd.DataFrame) -> dict[str, float]:
    """How well the closest approach is predicted, over the runs that pass it.

    A run passes it where the real time is neither 0 nor the last step. Of those: passing, their
    number; error, the median of |predicted − real|/real, low and high its 95 % `median_interval`;
    mean, its mean; cost, the median of at_predicted/nearest. Of all: agree, the share for which
    both say that it is passed, or both that it is at the start or the end.
    """

    def inside(time: pd.Series) -> pd.Series:
        return (time > 0) & (time < STEPS)

    passed = inside(table["real_time"])
    met = table[passed].copy()
    met["error"] = (met["predicted_time"] - met["real_time"]).abs() / met["real_time"]
    low, high = median_interval(met, "error")
    return {
        "runs": float(len(table)),
        "passing": float(passed.sum()),
        "error": float(met["error"].median()),
        "mean": float(met["error"].mean()),
        "low": low,
        "high": high,
        "cost": float((met["at_predicted"] / met["nearest"]).median()),
        "agree": float((passed == inside(table["predicted_time"])).mean()),
    }


def median_interval(
    table: pd.DataFrame, name: str, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of a column's median over runs.

    What is drawn anew is a network with its forget set (data, kind and model), with all its runs:
    those at different settings are not independent.
    """
    parts = [part.to_numpy() for _, part in table.groupby(["data", "kind", "model"])[name]]
    draws = np.random.default_rng(seed).integers(len(parts), size=(resamples, len(parts)))
    medians = [np.median(np.concatenate([parts[i] for i in draw])) for draw in draws]
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)
