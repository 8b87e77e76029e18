"""How the book draws: one style and one colour per role, so that figures read alike.

Colours are from the Okabe–Ito palette, told apart under the common forms of colour blindness; every
role also has a line style or marker of its own, so no figure depends on colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.ticker import NullLocator

if TYPE_CHECKING:  # the door to `lib.book` opens at every build: torch and SciPy would double it
    from lib.experiments.hessian_tests import EscapeMap
    from lib.experiments.summary import Event, MapGrid

RETAIN = "#0072B2"
FORGET = "#D55E00"
THEORY = "#000000"
SAMPLE = "#009E73"
SPARE = "#CC79A7"
MEAN_ONLY = {"color": "#56B4E9", "linestyle": ":"}
MEAN_SQUARE = {"color": "#000000", "linestyle": "-"}
TYPICAL = {"color": "#D55E00", "linestyle": "--"}
HALO: list[AbstractPathEffect] = [withStroke(linewidth=3, foreground="white")]
FEW = 8  # cells along an axis that each have their tick


def use_book_style() -> None:
    """Set matplotlib's defaults for the book's figures (call once at the top of a page).

    White figure background, so that the theme's dark mode shows them as light cards; a figure of
    one panel is small enough for its letters to stay legible when it is scaled to a phone's width.
    """
    import seaborn as sns  # as late, for the same reason

    sns.set_theme(style="ticks", context="notebook")
    mpl.rcParams.update(
        {
            "figure.figsize": (5.6, 3.7),
            "figure.constrained_layout.use": True,
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
    )


def draw_heat_map(axes: Axes, table: pd.DataFrame, x: str, y: str, value: str) -> QuadMesh:
    """Draw one column of a tidy table over two others, such as `store.load` gives them.

    A cell is centred on its x and y, on the axes' own scales: set a logarithmic one beforehand.
    Rows with the same x and y, of several seeds say, are averaged; one NaN among them makes the
    cell NaN. A cell that is NaN or has no row is left hatched.

    Returns:
        the coloured mesh, for a colour bar.

    Raises:
        ValueError: a column that is missing or not numeric, or no rows.
    """
    for name in (x, y, value):
        if name not in table or not pd.api.types.is_numeric_dtype(table[name]):
            raise ValueError(f"table must have a numeric column {name!r}, got {[*table.columns]}")
    if table.empty:
        raise ValueError("table must have at least one row, got none")
    cells = table.pivot_table(
        index=y, columns=x, values=value, aggfunc=lambda rows: rows.mean(skipna=False), dropna=False
    )
    mesh = axes.pcolormesh(
        _edges(cells.columns.to_numpy(float), axes.get_xscale() == "log"),
        _edges(cells.index.to_numpy(float), axes.get_yscale() == "log"),
        cells.to_numpy(),
        cmap="cividis",
    )
    axes.patch.set(hatch="///", edgecolor="0.7")
    axes.set(xlabel=x, ylabel=y)
    for axis, centres in ((axes.xaxis, cells.columns), (axes.yaxis, cells.index)):
        if len(centres) <= FEW:
            axis.set_ticks(list(centres), [f"{centre:g}" for centre in centres])
            axis.set_minor_locator(NullLocator())
    return mesh


def _edges(centres: np.ndarray, logarithmic: bool) -> np.ndarray:
    """Half-way points between sorted centres, and as far beyond the outer ones."""
    points = np.log(centres) if logarithmic else centres
    if len(points) == 1:
        edges = points[0] + np.array([-0.5, 0.5])
    else:
        inner = (points[1:] + points[:-1]) / 2
        edges = np.concatenate([[2 * points[0] - inner[0]], inner, [2 * points[-1] - inner[-1]]])
    return np.exp(edges) if logarithmic else edges


# Stops short of black, on which the black frontier would be lost.
SHARES = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#9a9a9a"])
FRONTIERS = (
    ("mean", "mean only", MEAN_ONLY),
    ("mean_square", "mean-square", MEAN_SQUARE),
    ("typical", "typical", TYPICAL),
)


def draw_escape_map(
    axes: Axes, result: EscapeMap, labels: tuple[str, str], places: dict[str, tuple[float, float]]
) -> ScalarMappable:
    """Share of runs that escaped, cell by cell, and the three frontiers with their names on them.

    A small cross marks a cell whose majority is not what the sign of γ predicts. A frontier that
    does not cross the map is not drawn.

    Args:
        axes: where to draw.
        result: from `lib.experiments.escape_map`.
        labels: of the two axes.
        places: by name of a frontier, the point (x, y) near which its label is to stand.

    Returns:
        the coloured mesh, for a colour bar.
    """
    share = result.escaped / result.criterion.runs
    mesh = axes.pcolormesh(result.x, result.y, share, cmap=SHARES, vmin=0, vmax=1)
    for name, text, style in FRONTIERS:
        _draw_frontier(axes, result, name, text, style, places.get(name))
    _mark_missed(axes, result, result.majority != (result.typical > 0))
    axes.set(xlabel=labels[0], ylabel=labels[1])
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
    lines = _draw_contour(axes, result, exponents, 0.0, style, 2)
    names = axes.clabel(
        lines, fmt=text, fontsize=10, colors="black", manual=False if place is None else [place]
    )
    for name_on_line in names:
        name_on_line.set_path_effects(HALO)


def _draw_contour(
    axes: Axes,
    grid: EscapeMap | MapGrid,
    values: np.ndarray,
    level: float,
    style: dict[str, str],
    width: float,
) -> ContourSet:
    names = {"color": "colors", "linestyle": "linestyles"}
    options: dict[str, Any] = {names[name]: value for name, value in style.items()}
    return axes.contour(grid.x, grid.y, values, levels=[level], linewidths=width, **options)


def _mark_missed(
    axes: Axes, grid: EscapeMap | MapGrid, missed: np.ndarray, *, halo: bool = False
) -> None:
    """A small cross on each of the cells, (rows, columns) bool."""
    rows, columns = np.nonzero(missed)
    at = grid.x[columns], grid.y[rows], "x"
    if halo:
        axes.plot(*at, color="white", markersize=5, markeredgewidth=2.5)
    axes.plot(*at, color="black", markersize=4)


LABELS = {
    "snr": "signal-to-noise ratio ‖μ‖/√E‖ξ‖²",
    "mixing": "mixing α",
    "retain_batch": "retain batch $B_r$ (samples)",
    "forget_batch": "forget batch $B_f$ (samples)",
    "learning_rate_share": "learning rate (1 = retain edge)",
}
FORGET_FRONTIER = ("typical_forget", "linearised runs", TYPICAL)


def draw_step_map(
    axes: Axes, grid: MapGrid, *, horizon: int, event: Event = "escape", named: bool = True
) -> ScalarMappable:
    """Median steps to an event, cell by cell, with the frontiers that predict it, named on them.

    Hatched: not within the horizon in most of the cell's networks. A small cross marks a cell whose
    majority is not what the typical prediction says.

    Args:
        axes: where to draw.
        grid: from a `lib.experiments.heat_map` table.
        horizon: the criterion's steps, where the colours end.
        event: "escape" or "forget".
        named: whether the frontiers' names stand on them.

    Returns:
        the coloured mesh, for a colour bar of steps.
    """
    steps = grid.median(f"{event}_step")
    x, y = (axis.flatten() for axis in np.meshgrid(grid.x, grid.y))
    finite = np.where(np.isfinite(steps), steps, np.nan).flatten()
    cells = pd.DataFrame({grid.x_name: x, grid.y_name: y, "steps": finite}).astype(float)
    mesh = _draw_cells(axes, grid, cells, "steps")
    mesh.set_norm(LogNorm(1, horizon))
    frontiers = FRONTIERS if event == "escape" else (FORGET_FRONTIER,)
    places = (0.5, 10), (0.15, -16), (0.9, 10)  # along the line, and points above it
    for (name, text, style), place in zip(frontiers, places, strict=False):
        shown = text if named else ""
        draw_share_frontier(axes, grid, grid.predicted_share(name), shown, style, place)
    _mark_missed(axes, grid, grid.happened(event) != grid.predicted(frontiers[-1][0]), halo=True)
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
    _draw_contour(axes, grid, share, 0.5, {"color": "white"}, 4).set_alpha(0.7)
    _draw_contour(axes, grid, share, 0.5, style, 2.2)
    heights = grid.frontier(share)
    crossed = np.nonzero(~np.isnan(heights))[0]
    if len(crossed) == 0 or not text:
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
    name.set_path_effects(HALO)


def draw_value_map(
    axes: Axes, grid: MapGrid, column: str, limits: tuple[float, float]
) -> ScalarMappable:
    """Median of a column over those networks of a cell where it is a number; hatched: none is."""
    values = grid.table.groupby([grid.x_name, grid.y_name])[column].median().reset_index()
    mesh = _draw_cells(axes, grid, values, column)
    mesh.set_clim(*limits)
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
    axes.plot(grid.x, grid.frontier(share), label=label, **style)
    _logarithmic(axes, grid)
    axes.set(xlabel=LABELS[grid.x_name], ylabel=LABELS[grid.y_name])


def _draw_cells(axes: Axes, grid: MapGrid, cells: pd.DataFrame, value: str) -> QuadMesh:
    _logarithmic(axes, grid)  # first: the scales decide where a cell ends
    mesh = draw_heat_map(axes, cells, grid.x_name, grid.y_name, value)
    axes.set(xlabel=LABELS[grid.x_name], ylabel=LABELS[grid.y_name])
    return mesh


def _logarithmic(axes: Axes, grid: MapGrid) -> None:
    """Logarithmic axes where the values span more than a decade and are no counts."""
    for scale, values in ((axes.set_xscale, grid.x), (axes.set_yscale, grid.y)):
        if values[-1] > 20 * values[0] and not float(values[0]).is_integer():
            scale("log")


def step_maps(
    maps: Mapping[str, tuple[MapGrid, int]], *, columns: int = 1, event: Event = "escape"
) -> Figure:
    """A figure of `draw_step_map` panels, row by row, each with its title and its colour bar.

    In one column the frontiers' names stand on them, in several in a legend above.

    Args:
        maps: by title, a map and the horizon of its runs.
        columns: panels in a row.
        event: "escape" or "forget".

    Raises:
        ValueError: maps that do not fill their rows.
    """
    rows, left = divmod(len(maps), columns)
    if left or not rows:
        raise ValueError(f"maps must fill rows of {columns}, got {len(maps)}")
    size = 6 + columns, (3 + 1 / columns) * rows
    figure, panels = plt.subplots(rows, columns, figsize=size, sharex=True, squeeze=False)
    for axes, (title, (grid, horizon)) in zip(panels.flat, maps.items(), strict=True):
        mesh = draw_step_map(axes, grid, horizon=horizon, event=event, named=columns == 1)
        axes.set_title(title)
        axes.label_outer()
        figure.colorbar(mesh, ax=axes, label=f"steps to {event}")
    if columns > 1:
        drawn = FRONTIERS if event == "escape" else (FORGET_FRONTIER,)
        options: list[dict[str, Any]] = [{**style, "label": text} for _, text, style in drawn]
        lines = [Line2D([], [], linewidth=2.2, **option) for option in options]
        figure.legend(handles=lines, loc="outside upper center", ncols=3)
    return figure


def escape_steps(coherence: np.ndarray, own: pd.DataFrame, common: pd.DataFrame) -> Figure:
    """Steps to a thousandfold growth against coherence: predicted lines, sampled points and ranges.

    Args:
        coherence: χ of each data set.
        own, common: at each model's own learning rate and at one for all; columns predicted,
            measured, low and high.
    """
    figure, axes = plt.subplots()
    lines = (
        (own, "-", "o", "each model's own learning rate"),
        (common, "--", "s", "one common learning rate"),
    )
    for steps, style, marker, label in lines:
        axes.semilogy(coherence, steps.predicted, style, color=THEORY, label=f"predicted, {label}")
        axes.vlines(coherence, steps.low, steps.high, color=SAMPLE, linewidth=7, alpha=0.7)
        axes.plot(coherence, steps.measured, marker, color=SAMPLE, label="sampled runs")
    axes.set_xlabel("coherence χ between retain and forget set")
    axes.set_ylabel("steps until ‖δ‖² has grown 10³-fold")
    axes.set_ylim(top=20 * max(own.measured.max(), common.measured.max()))
    axes.legend(loc="upper left", fontsize=10)
    return figure


def claims_by_page(claims: Sequence[Any], verdicts: Mapping[str, str]) -> Figure:
    """Stacked bars of claims a page, by verdict.

    Args:
        claims: entries of `lib.book.register`, with a title and a verdict each.
        verdicts: the words for each verdict, in the order of the stack.
    """
    titles = list(dict.fromkeys(entry.title for entry in claims))
    figure, axes = plt.subplots(figsize=(7, 0.42 * len(titles) + 1.2))
    left = np.zeros(len(titles))
    colours, hatches = (THEORY, "#9ad0bf", FORGET), ("", "", "//")
    for (verdict, words), colour, hatch in zip(verdicts.items(), colours, hatches, strict=True):
        several = [entry.title for entry in claims if entry.verdict == verdict]
        counts = np.array([several.count(title) for title in titles])
        axes.barh(titles, counts, left=left, label=words, color=colour, hatch=hatch, ec="white")
        left += counts
    axes.invert_yaxis()
    axes.set(xlabel="claims")
    axes.set_yticks(range(len(titles)), [title.split(":")[0] for title in titles], fontsize=9)
    axes.legend(loc="lower right", fontsize=9)
    return figure


def faults_by_kind(table: pd.DataFrame) -> Figure:
    """Bars of faults a kind, and on them what was lost, doubled or wrong; columns as stored."""
    figure, axes = plt.subplots(figsize=(7, 2.6))
    axes.barh(table["kind"], table["faults"], color=SAMPLE, label="faults met")
    bad = table[["lost", "doubled", "wrong"]].sum(axis=1)
    axes.barh(table["kind"], bad, color=FORGET, label="points lost, doubled or wrong")
    for place, (count, wrong) in enumerate(zip(table["faults"], bad, strict=True)):
        axes.annotate(f" {count}, {wrong} bad", (count, place), va="center", fontsize=10)
    axes.invert_yaxis()
    axes.set(xlabel="sweeps with a fault", xlim=(0, 1.25 * table["faults"].max()))
    axes.legend(loc="lower right", fontsize=10)
    return figure
