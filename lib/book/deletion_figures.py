"""The deletion chapter's figures and tables, from its stored tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.book.figures import FORGET, RETAIN
from lib.experiments import four_points

COLUMNS = (
    "forget accuracy", "retain accuracy", "test accuracy", "tug of war", "tug of war, MIA",
    "membership score", "output gap, forget", "output gap, test", "weight gap",
    "KLoM, forget", "KLoM, test", "U-LiRA, forget",
)  # fmt: skip


def resistance_plane(table: pd.DataFrame) -> Figure:
    """Steps to grow against the retrain gap, one point a network, one colour a SNR."""
    fig, axes = plt.subplots(figsize=(7, 4.2))
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.95, table["snr"].nunique()))
    for shade, (snr, rows) in zip(shades, table.groupby("snr"), strict=True):
        axes.scatter(rows["gap"], rows["steps"], color=shade, s=28, label=f"{snr:g}")
    axes.set(xscale="log", yscale="log", xlabel="need for deletion: retrain gap |f − f_retrained|")
    axes.set(ylabel="resistance: steps to grow 10³-fold")
    axes.legend(title="SNR", fontsize=9, ncols=3)
    return fig


def four_point_drift(mixings: Sequence[float], critical: float) -> Figure:
    """Rest points of ascent–descent on four points against the mixing, and A at the original."""
    first, retrained = four_points.original(), four_points.retrained()
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.4))
    rest = [four_points.rest_points(mixing)[0] for mixing in mixings]
    left.plot(mixings, rest, color=FORGET, label="rest point")
    left.axhline(first, color="0.4", linestyle=":", label="original")
    left.axhline(retrained, color=RETAIN, linestyle="--", label="retrained")
    left.set(xlabel="mixing α", ylabel="weight", ylim=(-3, 1))
    left.legend(fontsize=9)
    right.plot(mixings, [four_points.bend(first, mixing) for mixing in mixings], color="0.2")
    right.axhline(0, color="0.7", linewidth=1)
    right.axvline(critical, color="0.4", linestyle=":")
    right.set(xlabel="mixing α", ylabel="A at the original weight")
    return fig


def yardstick_table(table: pd.DataFrame, floor: float) -> pd.DataFrame:
    """A row a method, a column a yardstick, "value ± half the interval"; KLoM with its floor."""
    halves = table["high"] - table["value"]
    shown = [f"{v:.3g} ± {half:.1g}" for v, half in zip(table["value"], halves, strict=True)]
    cells = table.assign(text=shown)
    wide = cells.pivot_table(
        index="method", columns="yardstick", values="text", aggfunc="first", sort=False
    )
    names = [name for name in COLUMNS if name in wide]
    settings = table.drop_duplicates("method").set_index("method")["setting"].fillna("")
    wide = wide[names].assign(setting=settings)
    return wide[["setting", *names]].rename(
        columns={name: f"{name} (floor {floor:.2f})" for name in names if name.startswith("KLoM")}
    )


def yardstick_bars(table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Some yardsticks of all methods: a panel a yardstick and a kind of data, colours by set."""
    methods, kinds = (list(dict.fromkeys(table[name])) for name in ("method", "kind"))
    sorts = list(dict.fromkeys(table["data"]))
    size = 2.9 * len(names), 4.2 * len(sorts)
    fig, panels = plt.subplots(
        len(sorts), len(names), figsize=size, sharex="col", sharey=True, squeeze=False
    )
    for (row, data), (column, name) in product(enumerate(sorts), enumerate(names)):
        axes = panels[row, column]
        for number, kind in enumerate(kinds):
            chosen = (table["data"] == data) & (table["kind"] == kind)
            rows = table[chosen & (table["yardstick"] == name)].set_index("method")
            rows = rows.reindex(methods)
            place = np.arange(len(methods)) + 0.25 * (number - (len(kinds) - 1) / 2)
            reach = (rows["high"] - rows["value"]).to_numpy()
            axes.errorbar(rows["value"], place, xerr=reach, fmt="o", markersize=4, label=kind)
        axes.set(yticks=range(len(methods)), yticklabels=methods)
        axes.set_title(str(data) if column == 0 else "")
        if row == len(sorts) - 1:
            axes.set_xlabel(name)
    panels[0, 0].invert_yaxis()  # shared by all
    panels[0, 0].legend(fontsize=8, loc="lower left")
    return fig


def closest_approach(table: pd.DataFrame) -> Figure:
    """Predicted against real step of the closest approach, and how near run and rule come."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6))
    for (data, kind), rows in table.groupby(["data", "kind"], sort=False):
        marker = {"random": "o", "class": "^", "memorised": "s"}[str(kind)]
        colour = RETAIN if data == "digits" else FORGET
        style = {"s": 16, "alpha": 0.6, "marker": marker, "color": colour}
        left.scatter(rows["predicted_time"], rows["real_time"], **style, label=f"{data}, {kind}")
        met = rows[rows["reached"] == 1]
        right.scatter(met["nearest"] / met["floor"], met["stopped"] / met["floor"], **style)
    left.plot([0, 60], [0, 60], color="0.5", linewidth=1)
    left.set(xlabel="predicted step of closest approach", ylabel="real")
    left.legend(fontsize=8)
    ends = [1, float((table["stopped"] / table["floor"]).max())]
    right.plot(ends, ends, color="0.5", linewidth=1)
    right.set(xscale="log", yscale="log", xlabel="nearest distance / floor")
    right.set(ylabel="distance at the loss's stop / floor")
    return fig
