"""How the book draws: one style and one colour per role, so that figures read alike.

Colours are from the Okabe–Ito palette, told apart under the common forms of colour blindness; every
role also has a line style or marker of its own, so no figure depends on colour alone.
"""

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.ticker import NullLocator

RETAIN = "#0072B2"
FORGET = "#D55E00"
THEORY = "#000000"
SAMPLE = "#009E73"
SPARE = "#CC79A7"
MEAN_ONLY = {"color": "#56B4E9", "linestyle": ":"}
MEAN_SQUARE = {"color": "#000000", "linestyle": "-"}
TYPICAL = {"color": "#D55E00", "linestyle": "--"}
FEW = 8  # cells along an axis that each have their tick


def use_book_style() -> None:
    """Set matplotlib's defaults for the book's figures (call once at the top of a page).

    White figure background, so that the theme's dark mode shows them as light cards; text sizes
    that stay legible when a 7-inch figure is scaled to a phone's width.
    """
    sns.set_theme(style="ticks", context="notebook")
    mpl.rcParams.update(
        {
            "figure.figsize": (7.0, 4.2),
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
