"""What a trained signal-plus-noise CNN has memorised: in outputs, coefficients, by retraining."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from lib.checks import (
    require_above,
    require_count,
    require_finite,
    require_items,
    require_kind,
)
from lib.cnn.data import LARGEST_SNR, SignalNoise
from lib.cnn.network import TwoLayerCNN
from lib.cnn.training import Fit, fit, fit_to_interpolation


def output_parts(trained: Fit) -> tuple[Tensor, Tensor]:
    """What the signal and the noise patch add to every training margin y·f, each (b, n)."""
    require_kind("trained", trained, Fit)
    at = trained.responses()
    per_patch = at.preactivations.relu().mean(2)
    noise = per_patch[:, 0, 2:] - per_patch[:, 1, 2:]
    labels = trained.span.labels
    return labels * (at.outputs - noise), labels * noise


def memorised_share(trained: Fit) -> Tensor:
    """Σ_i (noise patch's part of y_i f_i) / Σ_i y_i f_i, (b,): 0 all learned, 1 all memorised."""
    signal, noise = output_parts(trained)
    return noise.sum(1) / (signal + noise).sum(1)


def predicted_memorised_share(snr: Tensor, n_samples: int) -> Tensor:
    """1/(1 + n·SNR²): what the early descent of small weights gives, no labels being flipped.

    While all residuals are near one, every filter of the class a sample belongs to gains ‖μ‖²/(2m)
    per unit of time along the signal, to which half of the samples contribute, and the half that is
    active on its noise patch gains ‖ξ‖²/(nm) there: parts of the margin as n·SNR² to 1.
    """
    require_kind("snr", snr, Tensor)
    require_finite("snr", snr, *snr.shape)
    return 1 / (1 + require_count("n_samples", n_samples, 1) * snr**2)


def noise_mass(trained: Fit) -> Tensor:
    """(1/m) Σ_jr |ρ_jri| for every sample, (b, n): how far the filters moved along its noise."""
    require_kind("trained", trained, Fit)
    return trained.noise_coefficients.abs().mean(2).sum(1)


def active_noise_ratio(trained: Fit) -> Tensor:
    """a = filters active on a noise patch over filters active on a signal patch, means, (b,)."""
    require_kind("trained", trained, Fit)
    active = trained.responses().active.sum((1, 2))
    used = (trained.span.strength > 0).sum(2)
    on_signal = (active[:, :2] * used).sum(1) / used.sum(1)
    return active[:, 2:].mean(1) / on_signal


@dataclass(frozen=True)
class BlockModel:
    """The three coherences when same-class gradients have cosine c, all others being orthogonal."""

    retain: Tensor
    forget: Tensor
    cross: Tensor


def block_model(
    snr: Tensor, n_retain: int, n_forget: int, active_noise_ratio: float = 1.0
) -> BlockModel:
    """σ_c = 1 + (n̄_c − 1)c and χ, with c = SNR²/(SNR² + a); a the active-noise ratio.

    n̄_c = E max(N, n_c − N), N binomial(n_c, ½), is the expected size of the larger class. In units
    of S_ii², mean_{ij} S_ij² is c²/2 between the sets and (1 + (n_c/2 − 1)c²)/n_c within, for equal
    classes, which gives χ. Accidental overlaps of noise patches are left out.
    """
    require_kind("snr", snr, Tensor)
    require_finite("snr", snr, *snr.shape)
    if not bool(((snr >= 1 / LARGEST_SNR) & (snr <= LARGEST_SNR)).all()):
        raise ValueError(f"snr must be > 0, in [1e-20, 1e20], got {float(snr.min())!r} and up")
    n_retain = require_count("n_retain", n_retain, 1)
    n_forget = require_count("n_forget", n_forget, 1)
    active_noise_ratio = require_above("active_noise_ratio", active_noise_ratio, 0)
    c = snr**2 / (snr**2 + active_noise_ratio)
    retain, forget = (1 + (_larger_class(n) - 1) * c for n in (n_retain, n_forget))
    within = [(1 + (n / 2 - 1) * c**2) / n for n in (n_retain, n_forget)]
    return BlockModel(retain, forget, c**2 / 2 / (within[0] * within[1]).sqrt())


@dataclass(frozen=True)
class LeaveOneOut:
    """For each sample left out: margin (k,), mean y f(x) on it of the networks trained without it.

    score (k,): share of networks right about it when it is in the training set, less the share
    when it is not (Feldman and Zhang, NeurIPS 2020); 1 memorised, 0 learned from the others.
    """

    margin: Tensor
    score: Tensor


def leave_one_out(
    datasets: Sequence[SignalNoise],
    samples: Sequence[int],
    *,
    filters: int,
    init_scale: float,
    starts: int,
) -> LeaveOneOut:
    """Retrain on datasets[k] without samples[k], k = 0, 1, …, from `starts` initialisations each.

    To a mean loss of 1e-4, where outputs are within about 0.01 of those at interpolation.
    """
    datasets = require_items("datasets", datasets, SignalNoise)
    samples = require_items("samples", samples)
    if len(samples) != len(datasets):
        raise ValueError(f"samples must be one per data set ({len(datasets)}), got {len(samples)}")
    samples = [
        require_count("samples", sample, 0, data.n_samples - 1)
        for data, sample in zip(datasets, samples, strict=True)
    ]
    starts = require_count("starts", starts, 1, 10_000)
    pairs = [p for p in zip(datasets, samples, strict=True) for _ in range(starts)]
    reduced = [
        data.subset(torch.arange(data.n_samples, device=data.labels.device) != sample)
        for data, sample in pairs
    ]
    without = fit_to_interpolation(reduced, filters=filters, init_scale=init_scale, tolerance=1e-4)
    margins = torch.tensor(
        [_margin(without.weights_of(k), *pair) for k, pair in enumerate(pairs)],
        dtype=torch.float64,
        device="cpu",
    ).view(len(samples), starts)
    # A network trained to this loss is right about every sample in its training set.
    return LeaveOneOut(margins.mean(1), 1 - (margins > 0).double().mean(1))


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation: mean over independent seeds and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def rank_correlation(x: Tensor, y: Tensor) -> RankCorrelation:
    """Spearman's ρ of x and y (seeds, k) within each seed; t-interval of the mean over seeds."""
    for name, tensor in (("x", x), ("y", y)):
        require_kind(name, tensor, Tensor)
        require_finite(name, tensor, *tensor.shape)
    if x.shape != y.shape or x.ndim != 2 or x.shape[0] < 2 or x.shape[1] < 2:
        raise ValueError(
            f"x and y must be (seeds >= 2, k >= 2) alike, got {(*x.shape,)}, {(*y.shape,)}"
        )
    pairs = zip(x.tolist(), y.tolist(), strict=True)
    values = np.array([float(stats.spearmanr(a, b).statistic) for a, b in pairs])
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return RankCorrelation(mean, mean - half, mean + half)


def coefficient_path(
    data: SignalNoise,
    checkpoints: Sequence[int],
    *,
    filters: int,
    learning_rate: float,
    init_scale: float,
) -> tuple[Tensor, Tensor]:
    """Mean over filters of γ and of ρ_{y_i r i} (own class, mean over samples) at each checkpoint.

    In units of the output: a filter set with mean γ adds about γ to y·f, and with mean ρ about ρ.
    """
    require_kind("data", data, SignalNoise)
    learned, memorised = [], []
    for steps in require_items("checkpoints", checkpoints):
        require_count("checkpoints", steps, 0)
        run = fit(
            [data],
            filters=filters,
            learning_rate=learning_rate,
            steps=steps,
            init_scale=init_scale,
        )
        learned.append(run.signal_coefficients.mean())
        positive, negative = run.noise_coefficients[0].mean(1)
        memorised.append(torch.where(data.labels > 0, positive, negative).mean())
    return torch.stack(learned), torch.stack(memorised)


def _margin(weights: Tensor, data: SignalNoise, sample: int) -> float:
    output = TwoLayerCNN(weights)(data.patches[sample : sample + 1]).detach()
    return float(data.labels[sample] * output[0])


def _larger_class(n: int) -> float:
    sizes = np.arange(n + 1)
    return float(
        torch.from_numpy(stats.binom.pmf(sizes, n, 0.5) * np.maximum(sizes, n - sizes)).sum()
    )
