"""The figures of the chapters that measure maps: Hessian tests, heat maps of the CNN, sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.book.figures import (
    FORGET,
    HALO,
    RETAIN,
    SAMPLE,
    SPARE,
    THEORY,
    TYPICAL,
    draw_escape_map,
    draw_heat_map,
    draw_measured_frontier,
    draw_step_map,
    draw_value_map,
)

if TYPE_CHECKING:
    from lib.experiments.hessian_tests import EscapeMap
    from lib.experiments.summary import MapGrid

AXES = {
    "batch": "batch size $B$",
    "retain_group": "retain coherence $\\sigma_r$",
    "forget_group": "forget coherence $\\sigma_f$",
    "mixing": "mixing $\\alpha$",
    "cross": "alignment $\\chi$",
    "learning_rate": "learning rate $\\eta$",
}
# Points near which the frontiers' names are read best, by what varies along x and y.
PLACES: Mapping[tuple[str, str], dict[str, tuple[float, float]]] = {
    ("batch", "retain_group"): {"mean_square": (13, 20), "typical": (8, 12)},
    ("batch", "forget_group"): {"mean_square": (8, 20), "typical": (14, 5)},
    ("mixing", "cross"): {
        "mean": (0.16, 0.75),
        "mean_square": (0.09, 0.25),
        "typical": (0.35, 0.92),
    },
    ("learning_rate", "mixing"): {
        "mean": (1.3, 0.1),
        "mean_square": (0.8, 0.2),
        "typical": (1.6, 0.5),
    },
}

# --- Hessian tests --------------------------------------------------------------------------------


def sister_maps(maps: Mapping[float, EscapeMap]) -> Figure:
    """Shares of runs of plain descent that escape, a panel a learning rate, with the frontiers."""
    figure, panels = plt.subplots(1, len(maps), figsize=(7, 4.2), sharey=True)
    labels = "batch size $B$", "coherent samples $\\sigma$"
    for axes, (rate, result) in zip(panels, maps.items(), strict=True):
        places = {"mean_square": (30 * rate, 24 * rate**3), "typical": (5, 30 * rate - 2)}
        mesh = draw_escape_map(axes, result, labels, places)
        axes.set_title(f"$\\eta$ = {rate}")
        axes.label_outer()
    figure.colorbar(mesh, ax=panels, label="share of runs that escape")
    return figure


def escape_probability(
    coherent: np.ndarray,
    bound: Sequence[float],
    share: np.ndarray,
    error: np.ndarray,
    edges: tuple[int, int],
) -> Figure:
    """Shares of runs that escape, points where any did, under their bound, a line; log scale.

    Args:
        coherent: numbers of coherent samples.
        bound, share, error: at each, the bound, the measured share and its standard error.
        edges: first stable numbers, by the typical and by the mean-square frontier.
    """
    figure, axes = plt.subplots()
    axes.plot(coherent, bound, color=THEORY, label="bound (moment ladder)")
    seen = share > 0
    points = coherent[seen], share[seen], error[seen]
    axes.errorbar(*points, fmt="o", color=SAMPLE, label="measured")
    dashed: dict[str, Any] = {**TYPICAL}
    axes.axvline(edges[0], **dashed)
    axes.axvline(edges[1], color="0.5", linestyle="-.")
    axes.set(yscale="log", ylim=(1e-6, 2), xlabel="coherent samples $\\sigma$")
    axes.set_ylabel("probability of escape")
    axes.legend(loc="upper right")
    return figure


def escape_shares(result: EscapeMap) -> Figure:
    """Shares of runs that escape over two values of a setting, with the three frontiers."""
    figure, axes = plt.subplots()
    labels = AXES[result.x_name], AXES[result.y_name]
    mesh = draw_escape_map(axes, result, labels, PLACES.get((result.x_name, result.y_name), {}))
    figure.colorbar(mesh, label="share of runs that escape")
    return figure


def agreement_by_threshold(
    powers: Sequence[int], typical: Sequence[float], finite: Sequence[float]
) -> Figure:
    """Cells predicted, in per cent, by γ's sign and at the threshold, against its power of ten."""
    figure, axes = plt.subplots()
    dashed: dict[str, Any] = {**TYPICAL}
    axes.plot(powers, typical, marker="s", label="sign of $\\gamma$", **dashed)
    axes.plot(powers, finite, marker="o", color=THEORY, label="at the threshold")
    axes.set(xticks=powers, xlabel="threshold, $\\log_{10}\\tau$", ylabel="cells predicted (%)")
    axes.legend()
    return figure


def released_shares(result: EscapeMap, drifted: Sequence[np.ndarray]) -> Figure:
    """Shares of runs that leave in the released test, on log axes, with the frontiers.

    Args:
        result: the test's map.
        drifted: exponents γ at other learning rates, (rows, columns) each; their frontiers are
            dotted.
    """
    figure, axes = plt.subplots()
    labels = "batch size $b$", "coherent samples $\\sigma$"
    places = {"mean_square": (14.0, 13.0), "typical": (4.0, 14.0)}
    mesh = draw_escape_map(axes, result, labels, places)
    for exponents in drifted:
        near = np.clip(exponents, -0.05, 0.05)  # far values would bend the line between two cells
        look: dict[str, Any] = {"colors": [SPARE], "linestyles": ":", "linewidths": 2}
        lines = axes.contour(result.x, result.y, near, levels=[0.0], **look)
        lines.set(path_effects=HALO)
    ticks = [1, 2, 5, 10, 20, 50]
    axes.set(xscale="log", yscale="log", xticks=ticks, yticks=ticks)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    figure.colorbar(mesh, label="share of runs that leave")
    return figure


# --- heat maps ------------------------------------------------------------------------------------


def forgetting(grid: MapGrid, horizon: int) -> Figure:
    """Steps to forget, above, and the accuracies on retain and test set at that moment, below."""
    figure, panels = plt.subplots(3, 1, figsize=(7, 11.5), sharex=True)
    mesh = draw_step_map(panels[0], grid, horizon=horizon, event="forget")
    figure.colorbar(mesh, ax=panels[0], label="steps to forget loss ½")
    panels[0].label_outer()
    for axes, what in zip(panels[1:], ("retain", "test"), strict=True):
        mesh = draw_value_map(axes, grid, f"{what}_accuracy", (0.5, 1.0))
        figure.colorbar(mesh, ax=axes, label=f"{what} accuracy when forgotten")
        axes.label_outer()
    return figure


def loader_frontier(independent: MapGrid, loader: MapGrid) -> Figure:
    """Measured frontiers of independent batches, a solid line, and of a data loader's, dashed."""
    figure, axes = plt.subplots()
    draw_measured_frontier(axes, independent, "independent batches", {"color": THEORY})
    draw_measured_frontier(axes, loader, "data loader", {"color": SPARE, "linestyle": "--"})
    axes.legend()
    return figure


def resistance(middle: pd.DataFrame, low: pd.Series, high: pd.Series) -> Figure:
    """Steps to forget against SNR, log axes: networks, points with bars, and linear theory, lines.

    Args:
        middle: medians by SNR, columns network_steps, linear_steps (both at each network's own
            learning rate) and common_steps (linear theory at one for all).
        low, high: ends of the bars, by SNR.
    """
    figure, axes = plt.subplots()
    snr, steps = middle.index, middle["network_steps"]
    points: dict[str, Any] = {"fmt": "o", "color": SAMPLE, "capsize": 3}
    axes.errorbar(snr, steps, [steps - low, high - steps], **points, label="networks, own rate")
    axes.plot(snr, middle["linear_steps"], color=THEORY, label="linear theory, own rate")
    axes.plot(snr, middle["common_steps"], color=SPARE, ls="--", label="linear theory, common rate")
    axes.set(xscale="log", yscale="log", xlabel="signal-to-noise ratio", ylabel="steps")
    axes.legend()
    return figure


def frontiers_of_networks(panels: Sequence[Mapping[str, MapGrid]]) -> Figure:
    """Frontiers of three networks a panel: typical prediction, lines, and measured, points.

    Args:
        panels: from top to bottom, maps by the label of their networks.
    """
    figure, rows = plt.subplots(len(panels), 1, figsize=(7, 11), sharex=True)
    for axes, grids in zip(rows, panels, strict=True):
        for (label, grid), colour in zip(grids.items(), (RETAIN, FORGET, SAMPLE), strict=True):
            points = {"color": colour, "marker": "o", "linestyle": ""}
            draw_measured_frontier(axes, grid, label, points)
            draw_measured_frontier(axes, grid, None, {"color": colour}, prediction="typical")
        axes.legend()
        axes.label_outer()
    return figure


# --- sweeps ---------------------------------------------------------------------------------------


def critical_rates(table: pd.DataFrame) -> Figure:
    """Critical learning rate, as colour, over retain coherence (x) and batch size (y), log axes.

    Args:
        table: columns coherence, retain_batch and critical_rate.
    """
    figure, axes = plt.subplots()
    axes.set(xscale="log", yscale="log")
    mesh = draw_heat_map(axes, table, "coherence", "retain_batch", "critical_rate")
    figure.colorbar(mesh, label="critical learning rate η*")
    axes.set(xlabel="coherence of the retain set", ylabel="retain batch size")
    return figure
