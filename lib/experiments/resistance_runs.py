"""How long the trained signal-plus-noise CNN resists unlearning, and what forgetting leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lib.cnn.data import SignalNoise, signal_noise
from lib.cnn.memorisation import leave_one_out, memorised_share, noise_mass, output_parts
from lib.cnn.runs import Until
from lib.cnn.training import Fit, fit_to_interpolation
from lib.cnn.unlearning import Trajectory, ascent_descent
from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.data_coherence import coherence, forgettability
from lib.stability.dynamics import retain_edge
from lib.stability.second_moment import mean_operator


@dataclass(frozen=True)
class Experiment:
    """One unlearning experiment on the CNN; its defaults are the CNN chapter's.

    The last n_forget samples are forgotten, with full batches. learning_rate_share: η as a share of
    the retain set's own stability edge 2/((1−α)λ_1(H_r)). displacement: ‖δ_0‖/‖w*‖. A run has
    escaped when its mean forget loss ½(f−y)² reaches `escape_loss`.
    """

    n_retain: int = 45
    n_forget: int = 15
    dim: int = 400
    filters: int = 10
    init_scale: float = 0.01
    flip: float = 0.0
    mixing: float = 0.3
    learning_rate_share: float = 0.5
    displacement: float = 1e-3
    escape_loss: float = 0.5
    max_steps: int = 20_000

    @property
    def forget(self) -> Tensor:
        """(n,) bool, True for the samples to forget."""
        return torch.arange(self.n_retain + self.n_forget) >= self.n_retain

    @property
    def algorithm(self) -> AscentDescent:
        """Full-batch ascent–descent at this mixing."""
        return AscentDescent(self.mixing, self.n_retain, self.n_forget)

    def draw(self, snr: float, seeds: Sequence[int]) -> list[SignalNoise]:
        """One data set per seed."""
        n = self.n_retain + self.n_forget
        return [signal_noise(n, self.dim, snr, flip=self.flip, seed=seed) for seed in seeds]


@dataclass(frozen=True)
class Resistance:
    """Tensors (len(snrs), seeds); a mean over seeds is a column of the CNN chapter's table.

    retain_coherence σ_r, forget_coherence σ_f, cross_coherence χ; linear_steps: updates the
    linearised mean dynamics need to amplify its steepest direction by 10³; network_steps: updates
    of the real network until it escapes (∞: not within max_steps); retrain_ratio: distance to the
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
    snrs: Sequence[float], *, seeds: int = 3, experiment: Experiment | None = None
) -> Resistance:
    """Train, measure coherence, unlearn and retrain at every SNR and seed: the CNN chapter."""
    experiment = experiment or Experiment()
    rows = [_resistance_row(snr, range(seeds), experiment) for snr in snrs]
    return Resistance(*(torch.stack(column) for column in zip(*rows, strict=True)))


def curvatures(fit: Fit, forget: Tensor) -> list[Curvature]:
    """The per-sample curvature of every trained network."""
    return [Curvature.from_gram(gram, forget) for gram in fit.curvature_gram()]


def steps_to_amplify(
    curvature: Curvature, algorithm: AscentDescent, learning_rate: float, factor: float
) -> float:
    """log factor / log(1 − ηλ_min(A)), for the steepest escape of the mean dynamics; ∞ if none."""
    values = torch.linalg.eigvalsh(mean_operator(curvature, algorithm))
    rounding = len(values) * torch.finfo(values.dtype).eps * float(values.abs().max())
    if float(values[0]) >= -rounding:
        return math.inf
    return math.log(factor) / math.log1p(-learning_rate * float(values[0]))


@dataclass(frozen=True)
class PerSample:
    """One row per data set, one column per sample, (seeds, k); each sample is forgotten alone.

    forgettability α_j (small: forgettable); steps: updates until the network's loss on it reaches
    the experiment's escape loss (∞: not within max_steps); left_out_margin: mean y f(x) of networks
    trained without it; memorisation: its Feldman score; noise_mass: Σ|ρ| over its own noise patch;
    noise_part: its noise patch's share of its margin; flipped: whether its label was flipped.
    collateral: mean loss on the retain set at the step at which the network's loss on the sample
    has reached that of the networks trained without it (NaN: not within max_steps).
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
    experiment: Experiment,
    starts: int = 4,
) -> PerSample:
    """Forget each of `samples` alone, from a network of its own start, and score its memorisation.

    The experiment's mixing, rate, displacement, network and limits apply; memorisation comes from
    `starts` retrainings without the sample.
    """
    network: dict[str, Any] = {"filters": experiment.filters, "init_scale": experiment.init_scale}
    each = [data for data in datasets for _ in samples]
    which = torch.tensor(list(samples)).repeat(len(datasets))
    trained = fit_to_interpolation(each, **network)
    forget = torch.eye(each[0].n_samples, dtype=torch.bool)[which]
    left_out = leave_one_out(each, which.tolist(), starts=starts, **network)
    retrained_loss = 0.5 * (1 - left_out.margin).clamp(min=0).square()
    path, alphas = _forget_singly(trained, forget, retrained_loss, experiment)
    signal, noise = (part[forget] for part in output_parts(trained))
    columns = (
        alphas,
        _first_reach(path, torch.full((len(each),), experiment.escape_loss))[0],
        left_out.margin,
        left_out.score,
        noise_mass(trained)[forget],
        noise / (signal + noise),
        torch.stack([data.flipped for data in each])[forget],
        _first_reach(path, retrained_loss)[1],
    )
    return PerSample(*(column.view(len(datasets), -1) for column in columns))


def _forget_singly(
    trained: Fit, forget: Tensor, retrained_loss: Tensor, experiment: Experiment
) -> tuple[Trajectory, Tensor]:
    """Run ascent–descent on one-sample forget sets (b, n) past both losses; paths and α_j (b,)."""
    grams = zip(trained.curvature_gram(), forget, strict=True)
    curves = [Curvature.from_gram(gram, mask) for gram, mask in grams]
    path = ascent_descent(
        trained,
        forget,
        AscentDescent(experiment.mixing, forget.shape[1] - 1, 1),
        [experiment.learning_rate_share * retain_edge(c, experiment.mixing) for c in curves],
        steps=experiment.max_steps,
        displacement=experiment.displacement,
        until=Until(retrained_loss.clamp(min=experiment.escape_loss)),
    )
    return path, torch.cat([forgettability(curve) for curve in curves])


def _first_reach(path: Trajectory, targets: Tensor) -> tuple[Tensor, Tensor]:
    """First step at which each forget loss is at least its target (b,), and the retain loss."""
    reached = path.forget_loss >= targets
    step = reached.int().argmax(0)
    there = reached.any(0)
    retain = path.retain_loss.gather(0, step[None])[0]
    return torch.where(there, step.double(), math.inf), torch.where(there, retain, math.nan)


def _resistance_row(snr: float, seeds: range, experiment: Experiment) -> tuple[Tensor, ...]:
    datasets, forget = experiment.draw(snr, seeds), experiment.forget
    train = partial(
        fit_to_interpolation, filters=experiment.filters, init_scale=experiment.init_scale
    )
    trained = train(datasets)
    curves = curvatures(trained, forget)
    axes = [coherence(curve) for curve in curves]
    share, algorithm = experiment.learning_rate_share, experiment.algorithm
    rates = [share * retain_edge(curve, experiment.mixing) for curve in curves]
    linear = [
        steps_to_amplify(curve, algorithm, rate, 1e3)
        for curve, rate in zip(curves, rates, strict=True)
    ]
    path = ascent_descent(
        trained,
        forget,
        algorithm,
        rates,
        steps=experiment.max_steps,
        displacement=experiment.displacement,
        until=Until(experiment.escape_loss),
    )
    escaped = path.forget_loss[-1] >= experiment.escape_loss
    retrained = train([data.subset(~forget) for data in datasets])
    target = retrained.weights()
    after, before = (
        (weights - target).flatten(1).norm(dim=1) for weights in (path.weights(), trained.weights())
    )
    columns = ([a.retain for a in axes], [a.forget for a in axes], [a.cross for a in axes], linear)
    return (
        *(torch.tensor(column, dtype=torch.float64) for column in columns),
        torch.where(escaped, path.steps.double(), math.inf),
        after / before,
        torch.tensor(rates, dtype=torch.float64),
        memorised_share(trained),
    )
