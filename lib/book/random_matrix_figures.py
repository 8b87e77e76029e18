"""The random-matrix chapter's figures: limits as black lines, samples as green points on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from lib.book.figures import FORGET, RETAIN, SAMPLE, SPARE, THEORY

LOOKS = (("-", "o"), ("--", "s"), (":", "^"))  # of the first, second and third line


def spectra(
    spectra: Sequence[Tensor],
    densities: Sequence[tuple[Tensor, Tensor]],
    edges: Sequence[Sequence[float]],
    titles: Sequence[str],
) -> Figure:
    """Four spectra as histograms, their limit densities (points, values) and its edges."""
    figure, panels = plt.subplots(2, 2, figsize=(7, 5.6))
    rows = zip(panels.flat, spectra, densities, edges, titles, strict=True)
    for axes, values, density, ends, title in rows:
        bulk = values[values.abs() > 1e-8]  # an atom at zero has no density
        weight = torch.full_like(bulk, 60 / len(values)) / (bulk.max() - bulk.min())
        axes.hist(bulk, bins=60, weights=weight, color=SAMPLE, alpha=0.45)
        axes.plot(*density, color=THEORY)
        for edge in ends:
            axes.axvline(edge, color=THEORY, linestyle=":", linewidth=1)
        axes.set_title(title, fontsize="medium")
        axes.set(xlabel="eigenvalue", ylabel="density")
    return figure


def edge_distances(
    sizes: np.ndarray, predicted: np.ndarray, measured: np.ndarray, draws: int
) -> Figure:
    """Distance of extreme eigenvalues to the limit's edges against dimension, log axes.

    Args:
        sizes: dimensions p.
        predicted, measured: root mean squares, (sizes, 2) for the lower and the upper edge.
        draws: samples behind each, for the bars.
    """
    figure, axes = plt.subplots()
    for k, (marker, style, name) in enumerate(
        [("o", "--", "lower edge"), ("s", "-", "upper edge")]
    ):
        axes.loglog(sizes, predicted[:, k], style, color=THEORY, label=f"theory, {name}")
        error = measured[:, k] * np.sqrt(2 / draws)
        options: dict[str, Any] = {"fmt": marker, "color": SAMPLE, "label": f"sample, {name}"}
        axes.errorbar(sizes, measured[:, k], error, **options)
    _dimensions(axes, sizes)
    axes.set(ylabel="rms distance to the edge (curvature)")
    axes.legend()
    return figure


def critical_mixing_map(
    x: np.ndarray, y: np.ndarray, surface: np.ndarray, pairs: np.ndarray, found: np.ndarray
) -> Figure:
    """Critical mixing over the two ratios, (y, x), with sampled circles on the same colours."""
    levels = np.max(surface) * np.linspace(0, 1, 17) ** 2
    norm = PowerNorm(0.5, 0, levels[-1])
    figure, axes = plt.subplots()
    filled = axes.contourf(x, y, surface, levels=levels, cmap="viridis", norm=norm)
    circles: dict[str, Any] = {"cmap": "viridis", "edgecolor": "white"}
    axes.scatter(pairs[:, 0], pairs[:, 1], s=90, c=found, norm=norm, **circles)
    axes.axvline(1, color="white", linestyle="--")
    axes.annotate("every\nα > 0\nescapes", (1.03, 1.0), color="white", fontsize="small")
    axes.set(xlabel="retain ratio $c_r=p/n_r$", ylabel="forget ratio $c_f=p/n_f$")
    figure.colorbar(filled, ax=axes, label="critical mixing $α^*$", format="%.2f")
    return figure


def lines_with_samples(
    x: np.ndarray,
    lines: np.ndarray,
    at: np.ndarray,
    samples: Tensor,
    labels: Sequence[str],
    names: tuple[str, str],
    *,
    top: float | None = None,
    threshold: float | None = None,
) -> Figure:
    """Up to three predicted lines, and on each the mean of samples with two standard errors.

    Args:
        x: where the lines are known.
        lines: (lines, x).
        at: where there are samples.
        samples: (lines, at, draws).
        labels: of the lines, in the legend.
        names: of the two axes.
        top: where the vertical axis ends; it begins at 0.
        threshold: a dotted vertical line.
    """
    figure, axes = plt.subplots()
    for line, sample, label, look in zip(lines, samples, labels, LOOKS, strict=False):
        axes.plot(x, line, look[0], color=THEORY)
        _points(axes, at, sample, look[1], label)
    if threshold is not None:
        axes.axvline(threshold, color=THEORY, linestyle=":")
    axes.set(xlabel=names[0], ylabel=names[1], ylim=(0, top))
    axes.legend(title="lines: limit, points: samples", loc="best")
    return figure


def panels_with_samples(
    x: np.ndarray,
    lines: Sequence[Sequence[float]],
    at: np.ndarray,
    samples: Sequence[Tensor],
    names: Sequence[str],
    strength: str,
    *,
    threshold: float | None = None,
) -> Figure:
    """A panel for each line over a signal's strength (log axis), and the means of its samples.

    Args:
        x, lines: the lines, each as long as x.
        at, samples: of each line the samples, (at, draws).
        names: of the vertical axes.
        strength: the name of the horizontal one.
        threshold: a dotted vertical line.
    """
    figure, panels = plt.subplots(1, len(lines), figsize=(7, 3.3))
    for axes, line, sample, name in zip(panels, lines, samples, names, strict=True):
        axes.semilogx(x, line, color=THEORY, base=2)
        _points(axes, at, sample, "o")
        if threshold is not None:
            axes.axvline(threshold, color=THEORY, linestyle=":")
        axes.set(xlabel=strength, ylabel=name)
    return figure


def coherences(
    x: np.ndarray, lines: np.ndarray, at: np.ndarray, samples: Tensor, floor: float
) -> Figure:
    """Coherence between samples and sets, and within the sets, against the SNR, log axes.

    Args:
        x, lines: pair, retain, forget and cross coherence, (4, x).
        at, samples: (at, draws, 4) in the same order.
        floor: mean pair coherence of pure noise.
    """
    figure, (between, within) = plt.subplots(1, 2, figsize=(7, 3.6))
    rows = (
        (between, SAMPLE, "-", "o", "mean $S_{ij}$"),
        (within, RETAIN, "-", "o", "retain $σ_r$"),
        (within, FORGET, "--", "s", "forget $σ_f$"),
        (between, SAMPLE, "--", "s", "$χ$"),
    )
    for k, (axes, colour, style, marker, label) in enumerate(rows):
        axes.loglog(x, lines[k], style, color=THEORY)
        _points(axes, at, samples[:, :, k], marker, label, colour)
    between.axhline(floor, color=THEORY, linestyle=":")
    within.set_yticks([2, 5, 10, 20, 40], ["2", "5", "10", "20", "40"])
    within.minorticks_off()
    between.set(xlabel="SNR", ylabel="coherence between samples, sets")
    within.set(xlabel="SNR", ylabel="coherence within a set")
    between.legend()
    within.legend()
    return figure


def overlap_and_error(
    x: np.ndarray,
    overlaps: np.ndarray,
    errors: np.ndarray,
    starts: np.ndarray,
    at: np.ndarray,
    seen: np.ndarray,
    wrong: np.ndarray,
    labels: Sequence[str],
) -> Figure:
    """Overlap and test error against τ: a line a shape, with its threshold, and one for the error.

    Args:
        x, overlaps, errors: limits, (shapes, x) and (x,).
        starts: thresholds of the overlap, (shapes,).
        at, seen, wrong: sampled means of both, (shapes, at).
        labels: of the shapes.
    """
    figure, axes = plt.subplots()
    rows = zip(overlaps, starts, seen, wrong, labels, LOOKS, strict=True)
    for line, start, overlap, error, label, (style, marker) in rows:
        axes.plot(x, line, style, color=THEORY)
        axes.plot(at, overlap, marker, color=RETAIN, label=f"overlap, {label}")
        axes.plot(at, error, marker, color=FORGET, markerfacecolor="white")
        axes.axvline(start, ymax=0.06, color=THEORY, linestyle=style)
    options: dict[str, Any] = {
        "color": FORGET,
        "markerfacecolor": "white",
        "label": "test error, all three",
    }
    axes.plot([], [], "o", **options)
    axes.semilogx(x, errors, color=THEORY)
    axes.set(xlabel=r"$τ = \mathrm{SNR}^4\,n\,d$", ylabel="squared overlap, test error")
    axes.set(ylim=(-0.03, 1.35))
    axes.legend(loc="upper left", ncols=2, fontsize="small")
    return figure


def error_rates(
    sizes: np.ndarray, misses: np.ndarray, lines: np.ndarray, names: Sequence[str]
) -> Figure:
    """Errors of predictions against dimension, log axes, each along the line of its rate.

    Args:
        sizes: dimensions p.
        misses, lines: measured, and the claimed power of p up to a factor, (predictions, sizes).
        names: of the predictions.
    """
    figure, axes = plt.subplots()
    colours = (RETAIN, FORGET, SAMPLE, SPARE, THEORY)
    for name, miss, line, marker, colour in zip(
        names, misses, lines, "os^Dv", colours, strict=True
    ):
        axes.loglog(sizes, miss, marker, color=colour, label=name)
        axes.loglog(sizes, line * np.exp(np.log(miss / line).mean()), color=colour, linewidth=1)
    _dimensions(axes, sizes)
    axes.set(ylabel="rms relative error of one sample")
    axes.legend(fontsize="small", loc="lower left", borderaxespad=0)
    return figure


def _points(
    axes: Axes,
    at: np.ndarray,
    sample: Tensor,
    marker: str,
    label: str | None = None,
    colour: str = SAMPLE,
) -> None:
    """Means of samples (at, draws) with two standard errors."""
    values = np.asarray(sample)
    error = 2 * values.std(axis=1, ddof=1) / values.shape[1] ** 0.5
    axes.errorbar(at, values.mean(axis=1), error, fmt=marker, color=colour, label=label)


def _dimensions(axes: Axes, sizes: np.ndarray) -> None:
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="dimension p")
