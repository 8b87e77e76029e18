"""How the book draws maps of escapes: what was measured in colour, predicted frontiers as lines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.patheffects import withStroke

from lib import plotting
from lib.hessian_tests import EscapeMap
from lib.map_summary import Event, MapGrid, frontier

# Stops short of black, on which the black frontier would be lost.
SHARES = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#9a9a9a"])
FRONTIERS = (
    ("mean", "mean only", plotting.MEAN_ONLY),
    ("mean_square", "mean-square", plotting.MEAN_SQUARE),
    ("typical", "typical", plotting.TYPICAL),
)


def draw_escape_map(
    axes: Axes, result: EscapeMap, labels: tuple[str, str], places: dict[str, tuple[float, float]]
) -> ScalarMappable:
    """Share of runs that escaped, cell by cell, and the three frontiers with their names on them.

    A small cross marks a cell whose majority is not what the sign of γ predicts. A frontier that
    does not cross the map is not drawn.

    Args:
        axes: where to draw.
        result: from `lib.hessian_tests.escape_map`.
        labels: of the two axes.
        places: by name of a frontier, the point (x, y) near which its label is to stand.

    Returns:
        the coloured mesh, for a colour bar.
    """
    share = result.escaped / result.criterion.runs
    mesh = axes.pcolormesh(result.x, result.y, share, cmap=SHARES, vmin=0, vmax=1)
    for name, text, style in FRONTIERS:
        _draw_frontier(axes, result, name, text, style, places.get(name))
    rows, columns = np.nonzero(result.majority != (result.typical > 0))
    axes.plot(result.x[columns], result.y[rows], "x", color="black", markersize=4)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    return mesh


def _draw_frontier(
    axes: Axes,
    result: EscapeMap,
    name: str,
    text: str,
    style: dict[str, str],
    place: tuple[float, float] | None,
) -> None:
    # Only the sign change is drawn; −∞ and far values would bend the line between two cells.
    exponents = np.clip(getattr(result, name), -0.05, 0.05)
    if exponents.min() > 0 or exponents.max() <= 0:
        return
    lines = axes.contour(
        result.x,
        result.y,
        exponents,
        levels=[0.0],
        colors=style["color"],
        linestyles=style["linestyle"],
        linewidths=2,
    )
    names = axes.clabel(
        lines, fmt=text, fontsize=10, colors="black", manual=False if place is None else [place]
    )
    for name_on_line in names:
        name_on_line.set_path_effects([withStroke(linewidth=3, foreground="white")])


LABELS = {
    "snr": "signal-to-noise ratio ‖μ‖/√E‖ξ‖²",
    "mixing": "mixing α",
    "retain_batch": "retain batch $B_r$ (samples)",
    "forget_batch": "forget batch $B_f$ (samples)",
    "learning_rate_share": "learning rate (1 = retain edge)",
}
FORGET_FRONTIER = ("typical_forget", "linearised runs", plotting.TYPICAL)


def draw_step_map(
    axes: Axes, grid: MapGrid, *, horizon: int, event: Event = "escape"
) -> ScalarMappable:
    """Median steps to an event, cell by cell, with the frontiers that predict it, named on them.

    Hatched: not within the horizon in most of the cell's networks. A small cross marks a cell whose
    majority is not what the typical prediction says.

    Args:
        axes: where to draw.
        grid: from a `lib.heat_maps.heat_map` table.
        horizon: the criterion's steps, where the colours end.
        event: "escape" or "forget".

    Returns:
        the coloured mesh, for a colour bar of steps.
    """
    steps = grid.median(f"{event}_step")
    x, y = (axis.flatten() for axis in np.meshgrid(grid.x, grid.y))
    _logarithmic(axes, grid)
    finite = np.where(np.isfinite(steps), steps, np.nan).flatten()
    cells = pd.DataFrame({grid.x_name: x, grid.y_name: y, "steps": finite}).astype(float)
    mesh = plotting.draw_heat_map(axes, cells, grid.x_name, grid.y_name, "steps")
    mesh.set_norm(LogNorm(1, horizon))
    frontiers = FRONTIERS if event == "escape" else (FORGET_FRONTIER,)
    places = (0.5, 10), (0.15, -16), (0.9, 10)  # along the line, and points above it
    for (name, text, style), place in zip(frontiers, places, strict=False):
        draw_share_frontier(axes, grid, grid.predicted_share(name), text, style, place)
    rows, columns = np.nonzero(grid.happened(event) != grid.predicted(frontiers[-1][0]))
    axes.plot(grid.x[columns], grid.y[rows], "x", color="white", markersize=5, markeredgewidth=2.5)
    axes.plot(grid.x[columns], grid.y[rows], "x", color="black", markersize=4)
    axes.set(xlabel=LABELS[grid.x_name], ylabel=LABELS[grid.y_name])
    return mesh


def draw_share_frontier(
    axes: Axes,
    grid: MapGrid,
    share: np.ndarray,
    text: str,
    style: dict[str, str],
    place: tuple[float, float],
) -> None:
    """The line where a share of the seeds, (rows, columns), crosses ½, with its name on it.

    The name stands at `place`: a fraction of the way along the line, and points above it. Nothing
    is drawn where the share does not cross.
    """
    if not ((share > 0.5).any() and (share <= 0.5).any()):
        return
    halo = axes.contour(grid.x, grid.y, share, levels=[0.5], colors="white", linewidths=4)
    halo.set_alpha(0.7)
    axes.contour(
        grid.x,
        grid.y,
        share,
        levels=[0.5],
        colors=style["color"],
        linestyles=style["linestyle"],
        linewidths=2.2,
    )
    heights = frontier(grid, share)
    crossed = np.nonzero(~np.isnan(heights))[0]
    if len(crossed) == 0:
        return
    column = crossed[min(int(place[0] * len(crossed)), len(crossed) - 1)]
    name = axes.annotate(
        text,
        (grid.x[column], heights[column]),
        xytext=(0, place[1]),
        textcoords="offset points",
        ha="center",
        fontsize=10,
    )
    name.set_path_effects([withStroke(linewidth=3, foreground="white")])


def draw_value_map(
    axes: Axes, grid: MapGrid, column: str, limits: tuple[float, float]
) -> ScalarMappable:
    """Median of a column over those networks of a cell where it is a number; hatched: none is."""
    values = grid.table.groupby([grid.x_name, grid.y_name])[column].median().reset_index()
    _logarithmic(axes, grid)
    mesh = plotting.draw_heat_map(axes, values, grid.x_name, grid.y_name, column)
    mesh.set_clim(*limits)
    axes.set(xlabel=LABELS[grid.x_name], ylabel=LABELS[grid.y_name])
    return mesh


def draw_measured_frontier(
    axes: Axes,
    grid: MapGrid,
    label: str | None,
    style: dict[str, Any],
    *,
    prediction: str | None = None,
) -> None:
    """Where half of a cell's networks escape, or of a prediction's, as y over x."""
    share = grid.share("escape") if prediction is None else grid.predicted_share(prediction)
    axes.plot(grid.x, frontier(grid, share), label=label, **style)
    _logarithmic(axes, grid)
    axes.set(xlabel=LABELS[grid.x_name], ylabel=LABELS[grid.y_name])


def _logarithmic(axes: Axes, grid: MapGrid) -> None:
    """Logarithmic axes where the values span more than a decade and are no counts."""
    for scale, values in ((axes.set_xscale, grid.x), (axes.set_yscale, grid.y)):
        if values[-1] > 20 * values[0] and not float(values[0]).is_integer():
            scale("log")
