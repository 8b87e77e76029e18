"""The deletion chapter's figures and tables, from its stored tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.book.figures import FORGET, RETAIN, SAMPLE
from lib.experiments import four_points

COLUMNS = (
    "forget accuracy", "retain accuracy", "test accuracy", "tug of war", "tug of war, MIA",
    "membership score", "output gap, forget", "output gap, test", "weight gap",
    "KLoM, forget", "KLoM, test", "U-LiRA, forget",
)  # fmt: skip
MARKERS = {"random": "o", "class": "^", "memorised": "s"}
COLOURS = {"digits": RETAIN, "fashion": FORGET, "resnet": "0.2"}


def resistance_plane(table: pd.DataFrame) -> Figure:
    """Steps to grow against the retrain gap, one point a network, one colour a SNR."""
    fig, axes = plt.subplots(figsize=(7, 4.2))
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.95, table["snr"].nunique()))
    for shade, (snr, rows) in zip(shades, table.groupby("snr"), strict=True):
        axes.scatter(rows["gap"], rows["steps"], color=shade, s=28, label=f"{snr:g}")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=r"need for deletion: retrain gap $|f-f_{\mathrm{retrained}}|$",
    )
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


def told_apart(table: pd.DataFrame) -> pd.DataFrame:
    """The ends of every yardstick's scale over problems, a row a yardstick.

    retraining and nothing: the null's and the anti-null's least and largest value; apart: in how
    many problems their 95 % intervals do not meet, of how many.
    """
    ends = table.pivot_table(
        index="yardstick", columns=["data", "kind", "method"], values=["value", "low", "high"]
    ).reindex(list(dict.fromkeys(table["yardstick"])))
    null, anti = (ends.xs(end, axis=1, level="method") for end in ("retraining", "nothing"))
    apart = (null["high"] < anti["low"]) | (anti["high"] < null["low"])
    spans = {
        name: [
            f"{low:.3g} to {high:.3g}"
            for low, high in zip(end["value"].min(axis=1), end["value"].max(axis=1), strict=True)
        ]
        for name, end in (("retraining", null), ("nothing", anti))
    }
    return pd.DataFrame(spans, index=ends.index).assign(apart=apart.sum(axis=1), of=apart.shape[1])


def at_an_end(table: pd.DataFrame, grids: Mapping[str, list[dict[str, float]]]) -> pd.Series:
    """In how many problems a method's rate (or damping) came out as its range's least or largest.

    A grid's first axis is that range, ascending.
    """
    chosen = table.drop_duplicates(["data", "kind", "method"])
    found = {}
    for method, grid in grids.items():
        (name, low), (_, high) = (next(iter(row.items())) for row in (grid[0], grid[-1]))
        firsts = chosen.loc[chosen["method"] == method, "setting"].str.split(r", | \(").str[0]
        found[method] = int(firsts.isin([f"{name} {low:.3g}", f"{name} {high:.3g}"]).sum())
    return pd.Series(found)


def yardstick_bars(table: pd.DataFrame, scales: Mapping[str, float | None]) -> Figure:
    """Some yardsticks of all methods: a panel a yardstick and a kind of data, markers by set.

    scales: yardsticks, each with where a deleted network stands (None: no line is drawn).
    """
    methods, kinds = (list(dict.fromkeys(table[name])) for name in ("method", "kind"))
    sorts = list(dict.fromkeys(table["data"]))
    size = 7.0, 0.8 + 4.0 * len(sorts)
    fig, panels = plt.subplots(
        len(sorts), len(scales), figsize=size, sharex="col", sharey=True, squeeze=False
    )
    for (row, data), (column, name) in product(enumerate(sorts), enumerate(scales)):
        axes = panels[row, column]
        for number, kind in enumerate(kinds):
            chosen = (table["data"] == data) & (table["kind"] == kind)
            rows = table[chosen & (table["yardstick"] == name)].set_index("method")
            rows = rows.reindex(methods)
            place = np.arange(len(methods)) + 0.25 * (number - (len(kinds) - 1) / 2)
            reach = (rows["high"] - rows["value"]).to_numpy()
            colour = (SAMPLE, FORGET, RETAIN)[number]
            style = {"fmt": MARKERS[kind], "color": colour, "markersize": 5, "label": kind}
            axes.errorbar(rows["value"], place, xerr=reach, **style)
        if (ideal := scales[name]) is not None:
            axes.axvline(ideal, color="0.5", linestyle=":", linewidth=1)
        axes.set(yticks=range(len(methods)), yticklabels=methods)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.set_title(str(data) if column == 0 else "")
        if row == len(sorts) - 1:
            axes.set_xlabel(name)
    panels[0, 0].invert_yaxis()  # shared by all
    if len(kinds) > 1:
        handles, labels = panels[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, title="forget set", loc="outside upper right", ncols=3)
    return fig


def distance_courses(table: pd.DataFrame) -> Figure:
    """Distance to retraining over the steps, real and predicted: a row a mixing, a column a data.

    One colour and marker a learning rate; the table is `courses` of one kind of forget set.
    """
    sorts, mixings = list(dict.fromkeys(table["data"])), sorted(set(table["mixing"]))
    rates = sorted(set(table["learning_rate"]))
    size = 0.6 + 3.2 * len(sorts), 0.7 + 2.3 * len(mixings)
    fig, panels = plt.subplots(len(mixings), len(sorts), figsize=size, sharex=True, squeeze=False)
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(rates)))
    for (row, mixing), (column, data) in product(enumerate(mixings), enumerate(sorts)):
        axes = panels[row, column]
        here = table[(table["mixing"] == mixing) & (table["data"] == data)]
        for rate, shade, marker in zip(rates, shades, "o^sD", strict=True):
            rows = here[here["learning_rate"] == rate]
            axes.plot(rows["step"], rows["distance"], color=shade, label=f"{rate:g}")
            axes.plot(rows["step"], rows["predicted"], marker, color=shade, markersize=4)
        axes.axhline(here["floor"].iloc[0], color="0.4", linestyle=":")
        axes.set_title(f"{data}, α = {mixing:g}", fontsize=11)
        if column == 0:
            axes.set_ylabel("distance")
        if row == len(mixings) - 1:
            axes.set_xlabel("step")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, title="learning rate", loc="outside upper right", ncols=4)
    return fig


def loss_courses(table: pd.DataFrame) -> Figure:
    """Losses over the steps of one setting, a panel a kind of data; dots: forget loss predicted."""
    sorts = list(dict.fromkeys(table["data"]))
    fig, panels = plt.subplots(1, len(sorts), figsize=(0.6 + 3.2 * len(sorts), 3.6), squeeze=False)
    styles = {"forget": (FORGET, "-"), "retain": (RETAIN, "--"), "test": (SAMPLE, "-.")}
    for axes, data in zip(panels[0], sorts, strict=True):
        rows = table[table["data"] == data]
        for name, (colour, line) in styles.items():
            axes.plot(rows["step"], rows[name], color=colour, linestyle=line, label=name)
        axes.plot(rows["step"], rows["predicted_forget"], "o", color=FORGET, markersize=4)
        axes.axhline(rows["target"].iloc[0], color="0.4", linestyle=":", label="retrained")
        axes.set(yscale="log", xlabel="step", title=data)
    panels[0, 0].set_ylabel("mean loss")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper right", ncols=4, fontsize=10)
    return fig


def closest_approach(table: pd.DataFrame) -> Figure:
    """Predicted against real step of the closest approach, and how near run and rule come."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 4.4))
    for (data, kind), rows in table.groupby(["data", "kind"], sort=False):
        marker, colour = MARKERS[str(kind)], COLOURS[str(data)]
        filled = colour if data == "digits" else "none"  # told apart without colour, too
        style = {"s": 22, "marker": marker, "facecolors": filled, "edgecolors": colour}
        left.scatter(rows["predicted_time"], rows["real_time"], **style, label=f"{data}, {kind}")
        met = rows[rows["reached"] == 1]
        right.scatter(met["nearest"] / met["floor"], met["stopped"] / met["floor"], **style)
    left.plot([0, 60], [0, 60], color="0.5", linewidth=1)
    left.set(xlabel="predicted step of closest approach", ylabel="real step")
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    ends = [1, float((table["stopped"] / table["floor"]).max())]
    right.plot(ends, ends, color="0.5", linewidth=1)
    right.set(xscale="log", yscale="log", xlabel="nearest distance / floor")
    right.set(ylabel="distance at the loss's stop / floor")
    return fig
