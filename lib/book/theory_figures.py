"""The figures of the three chapters of theory: framework, coherence, thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from lib.book.figures import FORGET, MEAN_SQUARE, RETAIN, SAMPLE, SPARE, THEORY, TYPICAL
from lib.stability.data_coherence import Coherence

LOOKS = (("-", THEORY), ("--", RETAIN), ("-.", SAMPLE), (":", FORGET))

# --- framework ------------------------------------------------------------------------------------


def exact_and_sampled(paths: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Squared distance step by step, a panel a learning rate, on one logarithmic axis.

    Args:
        paths: by title, the exact mean (steps + 1,) and the runs (steps + 1, runs).
    """
    figure, panels = plt.subplots(1, len(paths), figsize=(7.5, 3.6), sharey=True)
    for axes, (title, (exact, runs)) in zip(panels, paths.items(), strict=True):
        mean, error = runs.mean(dim=1), runs.std(dim=1) / runs.shape[1] ** 0.5
        axes.semilogy(runs[:, :12], color="0.75", linewidth=0.7)
        axes.semilogy(mean, color=SAMPLE, linestyle="--", linewidth=2.5)
        band = range(len(mean)), mean - 2 * error, mean + 2 * error
        axes.fill_between(*band, color=SAMPLE, alpha=0.3)
        axes.semilogy(exact, color=THEORY, linewidth=1.2)
        axes.set(title=title, xlabel="step $k$")
    panels[0].set_ylabel("squared distance $‖δ‖^2$")
    panels[0].set_ylim(bottom=float(min(exact[-1] for exact, _ in paths.values())) * 1e-2)
    return figure


def growth_factors(
    rates: np.ndarray, curves: Mapping[float, tuple[Sequence[float], float]]
) -> Figure:
    """Growth factor against learning rate, a curve a mixing, with a dot at its critical rate.

    Args:
        rates: learning rates.
        curves: by share of the critical mixing, the factors at these rates and η*, 0 for none.
    """
    figure, axes = plt.subplots()
    for (share, (growth, rate)), (style, colour) in zip(curves.items(), LOOKS, strict=True):
        axes.plot(rates, growth, style, color=colour, label=f"$α = {share:g}\\,α^*$")
        if rate:
            axes.plot(rate, 1, "o", color=colour)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(ylim=(0.8, 1.4), xlabel="learning rate $η$", ylabel="growth factor $ρ(T)$, per step")
    axes.legend()
    return figure


def escape_times(
    mixings: np.ndarray,
    own: Mapping[float, Sequence[float]],
    common: Mapping[float, Sequence[float]],
) -> Figure:
    """Steps to escape against mixing, by alignment: thick at each one's own rate, thin at one."""
    figure, axes = plt.subplots()
    for alignment, (style, colour) in zip(own, LOOKS, strict=False):
        axes.semilogy(
            mixings, own[alignment], style, color=colour, label=f"alignment {alignment:g}"
        )
        axes.semilogy(mixings, common[alignment], style, color=colour, alpha=0.4, linewidth=1.2)
    axes.set(xlabel="mixing $α$", ylabel="steps to escape ($10^6$-fold growth)")
    axes.legend()
    return figure


def growth_exponents(
    rates: np.ndarray, mean_square: np.ndarray, typical: np.ndarray, unit: str
) -> Figure:
    """Exponents of the mean square, a line, and of typical runs, points with two standard errors.

    Args:
        rates, mean_square: learning rates in the unit named, and ½ log ρ(T) there.
        typical: estimates of γ and their standard errors, (rates, 2).
        unit: in which the rates are.
    """
    figure, axes = plt.subplots()
    solid: dict[str, Any] = {**MEAN_SQUARE}
    axes.plot(rates, mean_square, **solid, label="mean square, $½ \\log ρ(T)$")
    axes.errorbar(
        rates, typical[:, 0], yerr=2 * typical[:, 1], color=TYPICAL["color"], fmt="o",
        linestyle="none", capsize=3, label="typical run, $γ$",
    )  # fmt: skip
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xlabel=f"learning rate / {unit}", ylabel="growth exponent of $‖δ‖$, per step")
    axes.legend()
    return figure


# --- coherence ------------------------------------------------------------------------------------


def coherence_blocks(
    matrices: Mapping[str, Tensor], found: Mapping[str, Coherence], n_retain: int
) -> Figure:
    """Coherence matrices side by side, retain samples first, with the three axes below each."""
    figure, panels = plt.subplots(1, len(matrices), figsize=(7.5, 3.6), sharey=True)
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=True):
        image = axes.imshow(matrix, vmin=0, vmax=1, cmap="cividis")
        axes.axhline(n_retain - 0.5, color="white", linewidth=1.5)
        axes.axvline(n_retain - 0.5, color="white", linewidth=1.5)
        c = found[name]
        below = f"$σ_r={c.retain:.1f}$, $σ_f={c.forget:.1f}$\n$χ={c.cross:.2f}$"
        axes.set(title=name, xlabel=f"sample $j$\n{below}")
    panels[0].set_ylabel("sample $i$")
    figure.colorbar(image, ax=panels, label="$S_{ij}$", shrink=0.7)
    return figure


def directional_profiles(
    profiles: Mapping[str, tuple[tuple[Sequence[float], Sequence[float]], Sequence[float]]],
    whole: Mapping[str, float],
) -> Figure:
    """Directional coherence along the retain set's eigenvectors, a panel a data set.

    Args:
        profiles: by name, of the retain and the forget set, and the retain set's lower bound.
        whole: by name, the retain set's σ_r.
    """
    figure, panels = plt.subplots(1, len(profiles), figsize=(7.5, 3.7), sharey=True)
    for axes, (name, ((retain, forget), floor)) in zip(panels, profiles.items(), strict=True):
        number = range(1, len(retain) + 1)
        axes.plot(number, retain, "o", color=RETAIN, markersize=5, label="retain $σ_r(u)$")
        axes.plot(number, forget, "^", color=FORGET, markersize=5, label="forget $σ_f(u)$")
        axes.plot(number, floor, ":", color=RETAIN, label="bound, retain")
        axes.axhline(whole[name], color="0.6", linewidth=1)
        axes.set(title=name, xlabel="eigenvector of $H_r$", yscale="log", xticks=[1, 10, 20])
    panels[0].set_ylabel("effective number of samples")
    legend = panels[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside upper center", ncols=3, fontsize=10)
    return figure


def forcing_mixings(degrees: np.ndarray, expected: Tensor, measured: Tensor) -> Figure:
    """Mixing above which one forget sample forces divergence, against its angle: line, points."""
    figure, axes = plt.subplots()
    axes.plot(degrees, expected, color=THEORY, label="expected")
    axes.plot(degrees, measured, "^", color=FORGET, markersize=8, label="measured")
    axes.set(xlabel="angle to the retain set's direction (degrees)")
    axes.set(ylabel="forcing mixing $α_j$")
    axes.set_ylim(bottom=-0.02)
    axes.legend()
    return figure


def bound_and_exact(bound: np.ndarray, exact: np.ndarray) -> Figure:
    """Exact critical mixing against a bound, problem by problem, aligned from 0 (dark) to 0.9."""
    figure, axes = plt.subplots()
    colours = 0.9 * np.arange(len(bound)) / len(bound)
    points = axes.scatter(bound, exact, c=colours, cmap="cividis", s=28)
    axes.plot([0, 0.6], [0, 0.6], color=THEORY, linewidth=1, label="equality")
    axes.set(xlabel=r"least forcing mixing, $\min_j\,α_j$", ylabel="exact critical mixing $α^*$")
    axes.legend(loc="upper left")
    figure.colorbar(points, label="alignment of all samples")
    return figure


# --- thresholds -----------------------------------------------------------------------------------


def bounds_on_rate(batches: np.ndarray, curves: np.ndarray) -> Figure:
    """Learning rates against batch size, log axes: two sides, exact, three-axis, coherence bound.

    Args:
        batches: sizes of both mini-batches.
        curves: below, exact, above, three-axis and single-set rate, (batches, 5).
    """
    below, exact, above, three, single = curves.T
    figure, axes = plt.subplots()
    axes.fill_between(batches, below, above, color="0.8", label="two-sided threshold")
    axes.loglog(batches, exact, color=THEORY, label="exact $η^*$")
    axes.loglog(batches, three, "-.", color=SPARE, linewidth=2, label="three-axis threshold")
    axes.loglog(batches, single, ":", color=FORGET, linewidth=2.5, label="coherence bound")
    axes.set(xlabel="mini-batch size $B$", ylabel="learning rate $η$")
    axes.set_ylim(top=8 * max(above.max(), 1e-9))
    axes.legend(fontsize=10)
    return figure


def rate_by_coherences(coherences: np.ndarray, rates: np.ndarray) -> Figure:
    """Critical learning rate, as colour and number, over retain (x) and forget coherence (y)."""
    figure, axes = plt.subplots(figsize=(6.6, 4.6))
    image = axes.imshow(rates, origin="lower", cmap="cividis", aspect="auto")
    for (i, j), value in np.ndenumerate(rates):
        dark = value < rates.min() + 0.55 * np.ptp(rates)
        place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9}
        axes.text(j, i, f"{value:.2f}", color="white" if dark else "black", **place)
    names = [str(value) for value in coherences]
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="coherence within retain $σ_r$", ylabel="coherence within forget $σ_f$")
    figure.colorbar(image, label="critical learning rate $η^*$")
    return figure


def excess_over_exact(sizes: Sequence[int], excess: Mapping[str, np.ndarray]) -> Figure:
    """Excess of two predictions over the exact rate against dimension, log axes, in per cent.

    Args:
        sizes: dimensions p.
        excess: by name of the prediction, a row a dimension and a column a random problem.
    """
    figure, axes = plt.subplots()
    for (name, values), colour, marker in zip(excess.items(), (SPARE, RETAIN), "os", strict=True):
        each = np.repeat(sizes, values.shape[1]), 100 * values.ravel()
        axes.loglog(sizes, 100 * values.mean(1), color=colour)
        axes.loglog(*each, marker, color=colour, alpha=0.6, label=name)
    axes.set(xlabel="dimension $p$", ylabel="excess over exact $η^*$ (%)")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_yticks([1, 2, 5], ["1", "2", "5"])
    axes.minorticks_off()
    axes.legend()
    return figure


def window_by_angle(
    angles: np.ndarray, low: np.ndarray, high: np.ndarray, stop: np.ndarray, budget: float
) -> Figure:
    """The window of learning rates, and the step to stop at, against the angle between the sets.

    Args:
        angles: in degrees.
        low, high: the window's edges; it is open where low ≤ high.
        stop: the stopping step.
        budget: steps there are.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 4.1))
    left.semilogy(angles, low, "--", color=FORGET, label="$η_{low}$: forgets in time")
    left.semilogy(angles, high, color=RETAIN, label="$η_{high}$: retain stable")
    is_open = low <= high
    left.fill_between(angles, low, high, where=is_open, color=SAMPLE, alpha=0.3, label="window")
    left.set(xlabel="angle between the sets (degrees)", ylabel="learning rate $η$")
    legend = left.get_legend_handles_labels()
    figure.legend(*legend, loc="outside upper center", ncols=3, fontsize=10)
    right.semilogy(angles[is_open], stop[is_open], "o", color=SAMPLE, label="window open")
    right.semilogy(angles[~is_open], stop[~is_open], "x", color=FORGET, label="resists")
    right.axhline(budget, color="0.6")
    right.set(xlabel="angle between the sets (degrees)", ylabel="stopping step")
    right.legend(fontsize=10)
    return figure
