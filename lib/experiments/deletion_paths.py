"""Resistance beside need for deletion, and how near a path of unlearning comes to retraining."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def tangents(at: Case, schedule: Schedule, mixing: float) -> Iterator[Tensor]:
    """Outputs (models, samples, C) of the networks linearised at their weights, loss exact.

    Step by step as ascent–descent goes, on `descend`'s batches; `follow` gives the same from a
    kernel, for many settings of one network where this is for many networks.
    """
    start = at.networks.at()
    delta = {name: torch.zeros_like(w) for name, w in start.weights.items()}

    def outputs(w: dict[str, Tensor], d: dict[str, Tensor], x: Tensor) -> Tensor:
        found = jvp(lambda w: start.net.at(w, x), (w,), (d,))
        return found[0] + found[1]

    def losses(d: dict[str, Tensor], chosen: Tensor) -> Tensor:
        out = vmap(outputs)(start.weights, d, at.networks.inputs[chosen]).flatten(2)
        return losses_of(out, at.networks.targets[chosen], "cross_entropy")

    x = start.net.moved(at.inputs)
    for batch in schedule.batches(at.forget, len(at.networks.stacked)):
        yield vmap(outputs, in_dims=(0, 0, None))(start.weights, delta, x).flatten(2).detach()
        leaves = {name: d.detach().requires_grad_() for name, d in delta.items()}
        value = (1 - mixing) * losses(leaves, batch.retain).mean(1)
        value = value - mixing * losses(leaves, batch.forget).mean(1)
        slope = torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True)
        rate = schedule.learning_rate
        delta = {k: d - rate * g for (k, d), g in zip(delta.items(), slope, strict=True)}
    yield vmap(outputs, in_dims=(0, 0, None))(start.weights, delta, x).flatten(2).detach()


def networks(at: Case, schedule: Schedule, mixing: float) -> Iterator[Tensor]:
    """The same of the networks themselves; NaN for all once one of them has overflowed."""

    def objective(now: Networks, batch: Batch) -> Tensor:
        kept, gone = now.losses(batch.retain), now.losses(batch.forget)
        return (1 - mixing) * kept.mean(1) - mixing * gone.mean(1)

    path = descend(at.networks, schedule, objective)
    outputs = torch.empty(0)
    for _ in range(schedule.steps + 1):
        try:
            now = next(path)
            with torch.no_grad():
                outputs = now.see(now.net.moved(at.inputs))
        except (RuntimeError, StopIteration):  # it overflowed, and has ended
            outputs = torch.full_like(outputs, torch.nan)
        yield outputs


def approach(data: Data, kind: Kind, *, seed: int = 0) -> pd.DataFrame:
    """When ascent–descent comes closest to the retrained networks, predicted and for real.

    Distance to retraining: total variation between the network's probabilities and the mean ones of
    20 retrained networks, averaged over the forget set and over the test set, half each; floor: the
    mean distance of 20 other retrained networks. One row a network, mixing and rate: real_time and
    predicted_time, the step of the least distance; start, nearest and at_predicted, the real
    distance at step 0, at real_time and at predicted_time; stop_time and stopped, the first step
    with forget loss at the retrained networks' mean (60 where there is none) and the distance
    there; reached, whether it is reached; rank, Spearman's correlation over the forget samples of
    the initial loss with the loss's gap to that of retrained networks at stop_time; left, the share
    of them still below it there. Once one network of a setting has overflowed the distances are 1.
    """
    at = case(data, kind, seed=seed, models=RETRAINED, label=JUDGED)
    goal = at.networks.outputs(at.inputs, at.retrained)
    wanted = goal.softmax(-1).mean(dim=0)
    losses = losses_of(goal, at.targets.expand(len(goal), -1), "cross_entropy").mean(dim=0)
    again = _distances(at, at.networks.outputs(at.inputs, at.again), wanted)
    few = at.first(MODELS)
    rows = []
    for mixing, rate in product(MIXINGS, RATES):
        schedule = Schedule(rate, STEPS, seed=seed)
        real = torch.stack(list(networks(few, schedule, mixing)))
        told = torch.stack(list(tangents(few, schedule, mixing)))
        found = _approaches(few, real, told, wanted, losses)
        rows.append(found.assign(mixing=mixing, learning_rate=rate))
    return pd.concat(rows, ignore_index=True).assign(
        floor=float(again.mean()), data=data, kind=kind
    )


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
    labels = at.targets.expand(steps * real.shape[1], -1)
    loss = losses_of(real.flatten(0, 1), labels, "cross_entropy").view(real.shape[:3])[..., gone]
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


def timing(table: pd.DataFrame, *, resamples: int = 2000, seed: int = 0) -> dict[str, float]:
    """How well the closest approach is predicted, over the runs that pass it.

    A run passes it where the real time is neither 0 nor the last step. Of those: passing, their
    number; error, the median of |predicted − real|/real, low and high its 95 % bootstrap interval
    over runs; mean, its mean; cost, the median of at_predicted/nearest. Of all: agree, the share
    for which both say that it is passed, or both that it is at the start or the end.
    """

    def inside(time: pd.Series) -> pd.Series:
        return (time > 0) & (time < STEPS)

    passed = inside(table["real_time"])
    error = ((table["predicted_time"] - table["real_time"]).abs() / table["real_time"])[passed]
    draws = np.random.default_rng(seed).integers(len(error), size=(resamples, len(error)))
    low, high = np.quantile(np.median(error.to_numpy()[draws], axis=1), [0.025, 0.975])
    return {
        "runs": float(len(table)),
        "passing": float(passed.sum()),
        "error": float(error.median()),
        "mean": float(error.mean()),
        "low": float(low),
        "high": float(high),
        "cost": float((table["at_predicted"] / table["nearest"])[passed].median()),
        "agree": float((passed == inside(table["predicted_time"])).mean()),
    }
