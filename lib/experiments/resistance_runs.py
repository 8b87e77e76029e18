"""How long the trained signal-plus-noise CNN resists unlearning, and what forgetting leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lib.checks import (
    require_above,
    require_count,
    require_items,
    require_kind,
    require_nonnegative,
)
from lib.cnn.data import SignalNoise
from lib.cnn.memorisation import leave_one_out, memorised_share, noise_mass, output_parts
from lib.cnn.runs import Until
from lib.cnn.training import Fit, fit_to_interpolation
from lib.cnn.unlearning import Trajectory, ascent_descent
from lib.cnn.updates import forget_masks
from lib.experiments.settings import Cell, Criterion, Network, TrainedCell, Update
from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.data_coherence import coherence, forgettability
from lib.stability.dynamics import retain_edge, steps_to_grow
from lib.stability.second_moment import mean_operator

NETWORK = Network(n_retain=45, n_forget=15)  # of the CNN chapter, as is what follows
UPDATE = Update(mixing=0.3, learning_rate_share=0.5, retain_batch=None, forget_batch=None)
CRITERION = Criterion(steps=20_000, displacement=1e-3, forget_loss=0.5)
AMPLIFICATION = 1e3


@dataclass(frozen=True)
class Resistance:
    """Tensors (len(snrs), seeds); a mean over seeds is a column of the CNN chapter's table.

    retain_coherence σ_r, forget_coherence σ_f, cross_coherence χ; linear_steps:
    `steepest_mean_steps` to grow 10³-fold; network_steps: updates of the real network until its
    mean forget loss is the criterion's (∞: not within its steps); retrain_ratio: distance to the
    network retrained without the forget set, after unlearning over before; learning_rate η;
    memorised_share: the noise patches' part of the training margins.
    """

    retain_coherence: Tensor
    forget_coherence: Tensor
    cross_coherence: Tensor
    linear_steps: Tensor
    network_steps: Tensor
    retrain_ratio: Tensor
    learning_rate: Tensor
    memorised_share: Tensor


def resistance(
    snrs: Sequence[float],
    *,
    seeds: int = 3,
    network: Network = NETWORK,
    update: Update = UPDATE,
    criterion: Criterion = CRITERION,
) -> Resistance:
    """Train, measure coherence, unlearn and retrain at every SNR and seed: the CNN chapter.

    Of the criterion count steps, displacement and forget_loss.
    """
    seeds = require_count("seeds", seeds, 1, 10_000)
    require_parts(network, update, criterion)
    snrs = [require_above("snrs", snr, 0) for snr in require_items("snrs", snrs)]
    cells = [Cell(replace(network, snr=snr), update) for snr in snrs]
    rows = [_resistance_row(cell, criterion, range(seeds)) for cell in cells]
    return Resistance(**{name: torch.stack([row[name] for row in rows]) for name in rows[0]})


def require_parts(network: Network, update: Update, criterion: Criterion) -> None:
    """TypeError for an object of another kind."""
    require_kind("network", network, Network)
    require_kind("update", update, Update)
    require_kind("criterion", criterion, Criterion)


def curvatures(fit: Fit, forget: Any) -> list[Curvature]:
    """The per-sample curvature of every trained network; forget (n,) or (b, n)."""
    require_kind("fit", fit, Fit)
    masks = forget_masks(forget, fit.span.labels)
    return [Curvature.from_gram(*pair) for pair in zip(fit.curvature_gram(), masks, strict=True)]


def steepest_mean_steps(
    curvature: Curvature, algorithm: AscentDescent, learning_rate: float, factor: float
) -> float:
    """log factor / log(1 − ηλ_min(A)): when the mean's steepest direction has grown; ∞ if never.

    `lib.stability.steps_to_amplify` is that of the exact mean square.
    """
    factor = require_above("factor", factor, 1)
    learning_rate = require_nonnegative("learning_rate", learning_rate)
    values = torch.linalg.eigvalsh(mean_operator(curvature, algorithm))
    rounding = len(values) * torch.finfo(values.dtype).eps * float(values.abs().max())
    if float(values[0]) >= -rounding:
        return math.inf
    return steps_to_grow(factor, math.log1p(-learning_rate * float(values[0])))


@dataclass(frozen=True)
class PerSample:
    """One row per data set, one column per sample, (seeds, k); each sample is forgotten alone.

    forgettability α_j (small: forgettable); steps: updates until the network's loss on it reaches
    the criterion's forget_loss (∞: not within its steps); left_out_margin: mean y f(x) of networks
    trained without it; memorisation: its Feldman score; noise_mass: Σ|ρ| over its own noise patch;
    noise_part: its noise patch's share of its margin; flipped: whether its label was flipped.
    collateral: mean loss on the retain set at the step at which the network's loss on the sample
    has reached that of the networks trained without it (NaN: not within the steps).
    """

    forgettability: Tensor
    steps: Tensor
    left_out_margin: Tensor
    memorisation: Tensor
    noise_mass: Tensor
    noise_part: Tensor
    flipped: Tensor
    collateral: Tensor


def per_sample(
    datasets: Sequence[SignalNoise],
    samples: Sequence[int],
    *,
    network: Network = NETWORK,
    update: Update = UPDATE,
    criterion: Criterion = CRITERION,
    starts: int = 4,
) -> PerSample:
    """Forget each of `samples` alone, from a network of its own start, and score its memorisation.

    Of the network only filters and init_scale count, of the update mixing and learning rate, of the
    criterion steps, displacement and forget_loss; batches are full. Memorisation comes from
    `starts` retrainings without the sample.
    """
    require_parts(network, update, criterion)
    datasets = require_items("datasets", datasets, SignalNoise)
    samples = [
        require_count("samples", sample, 0, min(data.n_samples for data in datasets) - 1)
        for sample in require_items("samples", samples)
    ]
    each = [data for data in datasets for _ in samples]
    which = torch.tensor(list(samples), device="cpu").repeat(len(datasets))
    trained = fit_to_interpolation(each, **network.shape)
    forget = torch.eye(each[0].n_samples, dtype=torch.bool, device="cpu")[which]
    left_out = leave_one_out(each, which.tolist(), starts=starts, **network.shape)
    retrained_loss = 0.5 * (1 - left_out.margin).clamp(min=0).square()
    alone = Cell(network, update).varied(
        n_retain=each[0].n_samples - 1, n_forget=1, retain_batch=None, forget_batch=None
    )
    cells = [TrainedCell(alone, curve) for curve in curvatures(trained, forget)]
    rates = [_rate(at) for at in cells]
    both = retrained_loss.clamp(min=criterion.forget_loss)
    path = _unlearned(trained, forget, cells, rates, criterion, both)
    signal, noise = (part[forget] for part in output_parts(trained))
    columns = {
        "forgettability": torch.cat([forgettability(at.curvature) for at in cells]),
        "steps": _first_reach(path, torch.full_like(retrained_loss, criterion.forget_loss))[0],
        "left_out_margin": left_out.margin,
        "memorisation": left_out.score,
        "noise_mass": noise_mass(trained)[forget],
        "noise_part": noise / (signal + noise),
        "flipped": torch.stack([data.flipped for data in each])[forget],
        "collateral": _first_reach(path, retrained_loss)[1],
    }
    return PerSample(**{name: x.view(len(datasets), -1) for name, x in columns.items()})


def _rate(at: TrainedCell) -> float:
    """η as `TrainedCell.rate`, but for rounding: stored tables hold what this order gives."""
    update = at.cell.update
    return update.learning_rate_share * retain_edge(at.curvature, update.mixing)


def _unlearned(
    trained: Fit,
    forget: Tensor,
    cells: Sequence[TrainedCell],
    rates: Sequence[float],
    criterion: Criterion,
    forget_loss: float | Tensor,
) -> Trajectory:
    """Runs until the mean forget loss is `forget_loss`, one or one per network."""
    return ascent_descent(
        trained,
        forget,
        [at.algorithm for at in cells],
        rates,
        steps=criterion.steps,
        displacement=criterion.displacement,
        until=Until(forget_loss),
    )


def _first_reach(path: Trajectory, targets: Tensor) -> tuple[Tensor, Tensor]:
    """First step at which each forget loss is at least its target (b,), and the retain loss."""
    reached = path.forget_loss >= targets
    step = reached.int().argmax(0)
    there = reached.any(0)
    retain = path.retain_loss.gather(0, step[None])[0]
    return torch.where(there, step.double(), math.inf), torch.where(there, retain, math.nan)


def _resistance_row(cell: Cell, criterion: Criterion, seeds: range) -> dict[str, Tensor]:
    """The columns of `Resistance` at one SNR, (seeds,)."""
    network, forget = cell.network, cell.network.forget
    datasets = [network.draw(seed) for seed in seeds]
    trained = fit_to_interpolation(datasets, **network.shape)
    cells = [TrainedCell(cell, curve) for curve in curvatures(trained, forget)]
    axes = [coherence(at.curvature) for at in cells]
    rates = [_rate(at) for at in cells]
    linear = [
        steepest_mean_steps(at.curvature, at.algorithm, rate, AMPLIFICATION)
        for at, rate in zip(cells, rates, strict=True)
    ]
    path = _unlearned(trained, forget, cells, rates, criterion, criterion.forget_loss)
    escaped = path.forget_loss[-1] >= criterion.forget_loss
    remaining = [data.subset(~forget) for data in datasets]
    target = fit_to_interpolation(remaining, **network.shape).weights()
    after, before = (
        (weights - target).flatten(1).norm(dim=1) for weights in (path.weights(), trained.weights())
    )
    column = partial(torch.tensor, dtype=torch.float64, device="cpu")
    return {
        "retain_coherence": column([a.retain for a in axes]),
        "forget_coherence": column([a.forget for a in axes]),
        "cross_coherence": column([a.cross for a in axes]),
        "linear_steps": column(linear),
        "network_steps": torch.where(escaped, path.steps.double(), math.inf),
        "retrain_ratio": after / before,
        "learning_rate": column(rates),
        "memorised_share": memorised_share(trained),
    }
