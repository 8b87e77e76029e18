"""The figures of the chapters on trained networks: real images, the tangent model, plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lib.book.figures import FORGET, RETAIN, SAMPLE, THEORY

LOOKS = {"random": ("o", RETAIN), "class": ("^", FORGET)}


def _by_forget_set(rows: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """How points of each kind of forget set look, and their rows, which may be none."""
    for forget_set, (marker, colour) in LOOKS.items():
        look = {"marker": marker, "color": colour, "label": forget_set}
        yield look, rows[rows["forget_set"] == forget_set]


def _draw_diagonal(axes: Axes, low: float, high: float) -> None:
    axes.plot([low, high], [low, high], color="0.5", linewidth=1)


# --- real images ----------------------------------------------------------------------------------


def growth_on_network(
    rates: np.ndarray, predicted: Sequence[float], observed: pd.DataFrame, unit: str
) -> Figure:
    """Growth factor against learning rate: a line predicted, points with two standard errors.

    Args:
        rates, predicted: learning rates in the unit named, and ρ(T) there.
        observed: by learning rate in this unit, columns observed and error.
        unit: in which the rates are.
    """
    figure, axes = plt.subplots()
    axes.plot(rates, predicted, color=THEORY, label="predicted, ρ(T)")
    points: dict[str, Any] = {"fmt": "o", "color": SAMPLE, "capsize": 3}
    seen, error = observed["observed"], 2 * observed["error"]
    axes.errorbar(observed.index, seen, error, label="observed on the network", **points)
    axes.axhline(1, color="grey", linestyle="--", linewidth=1)
    axes.set_xlabel(f"learning rate / {unit}")
    axes.set_ylabel("growth of mean squared\ndistance, per step")
    axes.legend(loc="upper left")
    return figure


def loss_courses(courses: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Losses of forget and retain set, step by step, by title a panel, on one logarithmic axis."""
    figure, panels = plt.subplots(1, len(courses), figsize=(7, 4.2), sharey=True)
    for axes, (title, (forget, retain)) in zip(panels, courses.items(), strict=True):
        axes.semilogy(forget, color=FORGET, label="forget")
        axes.semilogy(retain, "--", color=RETAIN, label="retain")
        axes.set(title=title, xlabel="step")
    panels[0].set_ylabel("squared loss, mean")
    panels[0].legend()
    return figure


# --- tangent model --------------------------------------------------------------------------------


def curvature_and_loss(path: pd.DataFrame) -> Figure:
    """Negative curvature along a run, and its forget loss beside two models' of it.

    Args:
        path: a row a step; columns step, lowest (eigenvalue), target, and the forget losses
            network, tangent and frozen.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.4))
    left.plot(path["step"], -path["lowest"], color=FORGET, marker="o", markersize=4)
    left.set(xlabel="step", ylabel=r"$-\lambda_{\min}(A(w))$", yscale="log")
    lines = ("network", "-", THEORY), ("tangent", "--", SAMPLE), ("frozen", ":", FORGET)
    for column, style, colour in lines:
        right.plot(path["step"], path[column], style, color=colour, linewidth=2, label=column)
    target = path["target"][0]
    right.axhline(target, color="0.6", linewidth=1)
    right.set(xlabel="step", ylabel="forget loss", ylim=(0, 4 * target))
    right.legend(fontsize=10)
    return figure


def times_by_family(runs: pd.DataFrame, horizon: int) -> Figure:
    """Real against predicted time to the target, a panel a family of four, a marker a forget set.

    Args:
        runs: columns family, forget_set, predicted_time and real_time.
        horizon: steps there are; a prediction that does not arrive stands beyond it.
    """
    figure, panels = plt.subplots(2, 2, figsize=(7, 6.4), sharex=True, sharey=True)
    for axes, (family, rows) in zip(panels.flat, runs.groupby("family", sort=False), strict=False):
        for look, part in _by_forget_set(rows):
            axes.scatter(*_times(part, "predicted_time", horizon), s=14, alpha=0.6, **look)
        _draw_diagonal(axes, 0, horizon)
        axes.set(title=family, xlabel="predicted", ylabel="real")
    panels[0, 0].legend(fontsize=10)
    return figure


def times_by_clock(runs: Mapping[str, Sequence[pd.DataFrame]], horizon: int) -> Figure:
    """Real against predicted time to the target, raw and with the clock fixed, a panel a family.

    Args:
        runs: by family, tables as for `times_by_family`, with a column calibrated_time.
        horizon: as there.
    """
    figure, panels = plt.subplots(1, len(runs), figsize=(7.5, 3.4), sharex=True, sharey=True)
    for axes, (family, tables) in zip(panels, runs.items(), strict=True):
        for look, part in chain.from_iterable(map(_by_forget_set, tables)):
            for column, colour in (("predicted_time", "0.65"), ("calibrated_time", SAMPLE)):
                points: dict[str, Any] = {**look, "color": colour, "s": 14, "alpha": 0.7}
                axes.scatter(*_times(part, column, horizon), **points)
        _draw_diagonal(axes, 0, horizon)
        axes.set(title=family.replace("_", ",\n"), xlabel="predicted")
    panels[0].set_ylabel("real")
    return figure


def _times(runs: pd.DataFrame, column: str, horizon: int) -> tuple[pd.Series, pd.Series]:
    """A prediction, cut a little beyond the horizon, and the real time."""
    return runs[column].clip(upper=horizon + 5), runs["real_time"]


# --- your model -----------------------------------------------------------------------------------


def paired_differences(cases: pd.DataFrame, margin: float) -> Figure:
    """Differences of test accuracy in points with 95 % intervals, in the order of the cases.

    Args:
        cases: columns forget_set, test_gap and its standard error test_error, both as shares.
        margin: difference, in points, at which a line stands.
    """
    figure, axes = plt.subplots(figsize=(7, 3.4))
    bars: dict[str, Any] = {"linestyle": "none", "elinewidth": 1, "markersize": 4}
    for look, part in _by_forget_set(cases.assign(place=range(1, len(cases) + 1))):
        gap, error = 100 * part["test_gap"], 196 * part["test_error"]
        axes.errorbar(part["place"], gap, error, **bars, **look)
    axes.axhline(margin, color="0.6", linewidth=1)
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="case, sorted", ylabel="test accuracy, plan − grid, points")
    axes.legend(fontsize=10, loc="upper left")
    return figure


def retrained_and_held_out(plans: pd.DataFrame) -> Figure:
    """Forget loss of retrained networks against held-out loss, log axes, with standard errors.

    Args:
        plans: columns forget_set, held_loss, retrained and retrained_error.
    """
    figure, axes = plt.subplots(figsize=(4.6, 4))
    bars: dict[str, Any] = {"linestyle": "none", "elinewidth": 1, "markersize": 5}
    for look, part in _by_forget_set(plans):
        held, retrained, error = (
            part[name] for name in ("held_loss", "retrained", "retrained_error")
        )
        axes.errorbar(held, retrained, error, **bars, **look)
    _draw_diagonal(axes, 0.05, 4)
    axes.set(xlabel="held-out loss", ylabel="forget loss, retrained", xscale="log", yscale="log")
    axes.legend(fontsize=10)
    return figure
