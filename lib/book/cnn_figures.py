"""The figures of the two chapters of signal-plus-noise CNNs: resistance, benign overfitting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from lib.book.figures import FORGET, RETAIN, SAMPLE, SPARE, THEORY

if TYPE_CHECKING:
    from lib.cnn import BlockModel, RankCorrelation
    from lib.experiments import PerSample, Resistance
    from lib.experiments.benign_overfitting import BoundaryFit

SNR = "signal-to-noise ratio"
SET_COHERENCE = r"coherence $\sigma$ of the retain set"
PUBLISHED: dict[str, Any] = {"marker": "X", "linestyle": "none", "color": FORGET, "markersize": 10}

# --- signal and noise -----------------------------------------------------------------------------


def coefficient_paths(
    steps: Sequence[int], snrs: Mapping[str, float], paths: Mapping[str, tuple[Tensor, Tensor]]
) -> Figure:
    """Signal and noise coefficients against training steps, a panel a signal-to-noise ratio.

    Args:
        steps: at which the coefficients were taken.
        snrs: ratios by name.
        paths: by the same names, the coefficients learned and memorised, (steps,) each.
    """
    figure, panels = plt.subplots(1, len(paths), figsize=(7, 3.2), sharey=True)
    for axes, (name, (learned, memorised)) in zip(panels, paths.items(), strict=True):
        axes.plot(steps, learned, color=RETAIN, label="learned γ")
        axes.plot(steps, memorised, "--", color=FORGET, label="memorised ρ")
        axes.set(xscale="symlog", xlabel="steps", title=f"SNR {snrs[name]:.2f}")
    panels[0].set_ylabel("coefficient (units of output)")
    panels[0].legend(loc="upper left")
    return figure


def memorised_shares(
    snrs: np.ndarray, shares: Mapping[int, Tensor], law: Callable[[Tensor, int], Tensor]
) -> Figure:
    """Memorised share of the margin against the signal-to-noise ratio: means, ranges and a law.

    Args:
        snrs: ratios of the points.
        shares: by number of samples, (ratios, data sets).
        law: the share expected at ratios for a number of samples.
    """
    figure, axes = plt.subplots()
    fine = torch.tensor(np.geomspace(snrs[0], snrs[-1], 200))
    looks = zip("os^", (FORGET, SAMPLE, RETAIN), strict=True)
    for (size, share), (marker, colour) in zip(shares.items(), looks, strict=True):
        mean, (least, most) = share.mean(1), share.aminmax(dim=1)
        axes.plot(fine, law(fine, size), color=THEORY)
        span = torch.stack([mean - least, most - mean])
        axes.errorbar(snrs, mean, span, fmt=marker, color=colour, label=f"n = {size}")
    axes.set(xscale="log", xlabel=SNR, ylabel="memorised share of the margin")
    axes.legend()
    return figure


def class_blocks(snrs: Sequence[float], matrices: Sequence[Tensor]) -> Figure:
    """Coherence matrices side by side, each over its largest entry, by signal-to-noise ratio."""
    figure, panels = plt.subplots(1, len(matrices), figsize=(7, 2.7))
    for axes, snr, matrix in zip(panels, snrs, matrices, strict=True):
        image = axes.imshow(matrix / matrix.max(), cmap="cividis", vmin=0, vmax=1)
        axes.set(title=f"SNR {snr:g}", xticks=[], yticks=[])
    figure.colorbar(image, ax=panels, label=r"$S_{ij}$ / largest", shrink=0.8)
    return figure


def coherence_ladder(
    snrs: Sequence[float], table: Resistance, grid: Tensor, models: Sequence[BlockModel]
) -> Figure:
    """The three coherences against the signal-to-noise ratio, σ left and χ right.

    Args:
        snrs: ratios of the table's rows, drawn as means with standard deviations over seeds.
        table: as measured.
        grid: ratios of the predictions.
        models: predictions, the first solid and the second dashed.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6))
    looks = (
        (left, "retain", "o", RETAIN),
        (left, "forget", "s", FORGET),
        (right, "cross", "^", SAMPLE),
    )
    for axes, name, marker, colour in looks:
        values = getattr(table, f"{name}_coherence")
        bars: dict[str, Any] = {"fmt": marker, "color": colour, "label": name}
        axes.errorbar(snrs, values.mean(1), values.std(1), **bars)
        for model, line in zip(models, ("-", "--"), strict=True):
            axes.plot(grid, getattr(model, name), line, color=THEORY, linewidth=1)
    left.set(xscale="log", yscale="log", xlabel=SNR, ylabel=r"coherence $\sigma$")
    right.set(xscale="log", xlabel=SNR, ylabel=r"cross coherence $\chi$")
    left.legend()
    return figure


def coherence_by_share(shares: Tensor, coherence: Tensor, snrs: Tensor) -> Figure:
    """Coherence against the memorised share, log axes, a point a network, dark at low ratios."""
    figure, axes = plt.subplots(figsize=(7, 3.6))
    axes.scatter(shares, coherence, **_shaded(snrs, 18))
    axes.set(xscale="log", yscale="log", xlabel="memorised share of the margin")
    axes.set_ylabel(SET_COHERENCE)
    return figure


def steps_by_coherence(coherence: Tensor, linear: Tensor, steps: Tensor, snrs: Tensor) -> Figure:
    """Steps to forget against coherence and against those predicted, log axes, with equality.

    Args:
        coherence, linear, steps, snrs: of every network, of one shape; dark at low ratios.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6), sharey=True)
    left.scatter(coherence, steps, **_shaded(snrs, 18))
    right.scatter(linear, steps, **_shaded(snrs, 18))
    right.axline((10, 10), (100, 100), color=THEORY)
    left.set(xscale="log", yscale="log", xlabel=SET_COHERENCE, ylabel="steps to forget (network)")
    right.set(xscale="log", xlabel="steps predicted by linear theory")
    return figure


def memorised_samples(weak: PerSample, snrs: Tensor, wrong: PerSample) -> Figure:
    """Forgettability of single samples against their memorisation, a panel a reason for it.

    Args:
        weak: samples of different signal-to-noise ratios, dark where it is low.
        snrs: these ratios.
        wrong: samples some of which have a flipped label, marked by crosses.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6))
    left.scatter(1 - weak.left_out_margin, weak.forgettability, **_shaded(snrs, 14))
    looks = (
        (~wrong.flipped, "o", RETAIN, "true label"),
        (wrong.flipped, "x", FORGET, "flipped label"),
    )
    for here, marker, colour, name in looks:
        points = 1 - wrong.left_out_margin[here], wrong.forgettability[here]
        right.scatter(*points, marker=marker, color=colour, s=18, label=name)
    for axes, reason in ((left, "weak signal"), (right, "wrong label")):
        axes.set(yscale="log", title=f"memorised for a {reason}")
        axes.set_xlabel("memorisation (by retraining)")
    left.set_ylabel(r"forgettability $\alpha_j$")
    right.margins(y=0.25)
    right.legend(loc="lower right")
    return figure


def memory_correlations(found: Mapping[str, Mapping[str, RankCorrelation]]) -> Figure:
    """Forest plot of rank correlations with memorisation, with their intervals.

    Args:
        found: by reason for memorisation (two of them), by what memorisation is compared with.
    """
    figure, axes = plt.subplots(figsize=(7, 2.8))
    looks = ("o", RETAIN, 0.12), ("X", FORGET, -0.12)
    for (reason, values), (marker, colour, shift) in zip(found.items(), looks, strict=True):
        mean, low, high = np.array([(v.mean, v.low, v.high) for v in values.values()]).T
        rows = -np.arange(len(values))
        bars: dict[str, Any] = {"fmt": marker, "color": colour, "capsize": 3, "label": reason}
        axes.errorbar(mean, rows + shift, xerr=[mean - low, high - mean], **bars)
        axes.set_yticks(rows, list(values))
    axes.axvline(0, color=THEORY, linewidth=1)
    axes.set(
        xlabel="rank correlation with memorisation", xlim=(-1, 1), xticks=[-1, -0.5, 0, 0.5, 1]
    )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _shaded(snrs: Tensor, size: int) -> dict[str, Any]:
    """Points of a scatter plot that are darker at lower signal-to-noise ratios."""
    return {"c": snrs.log(), "cmap": "cividis", "s": size}


# --- benign overfitting ---------------------------------------------------------------------------


def overfitting_map(
    norms: np.ndarray,
    dims: np.ndarray,
    errors: Tensor,
    crossings: Tensor,
    *,
    level: float,
    published: tuple[Sequence[int], Sequence[float]],
    n_samples: int,
    constant: float,
) -> Figure:
    """Test error over signal norm and dimension, with its frontier as found, published, as a law.

    Args:
        norms, dims: signal norms ‖μ‖ and dimensions d, the map's columns and rows.
        errors: cell by cell, (dims, norms).
        crossings: ‖μ‖ where each row crosses the level.
        level: the error of the frontier.
        published: the frontier's dimensions and norms elsewhere.
        n_samples, constant: n and C of the law n‖μ‖⁴ = C d, drawn dotted for C = 1, too.
    """
    figure, axes = plt.subplots()
    shades: dict[str, Any] = {"cmap": "cividis", "vmin": 0.05, "vmax": 0.55, "rasterized": True}
    mesh = axes.pcolormesh(norms, dims, errors, shading="nearest", **shades)
    fine = np.linspace(dims[0], published[0][-1], 200)
    law: dict[str, Any] = {"color": THEORY}
    law["path_effects"] = [withStroke(linewidth=4, foreground="white")]
    for c, style, name in ((constant, "-", r"$n\|\mu\|^4 = C\,d$"), (1, ":", "$C=1$")):
        axes.plot((c * fine / n_samples) ** 0.25, fine, style, label=name, **law)
    points: dict[str, Any] = {"color": SAMPLE, "markersize": 7, "markeredgewidth": 0.5}
    axes.plot(crossings, dims, ".", mec="white", label=f"error {level:g}, here", **points)
    cross = {**PUBLISHED, "label": f"error {level:g}, published", "markeredgecolor": "white"}
    axes.plot(published[1], published[0], **cross)
    axes.set(xlabel=r"signal norm $\|\mu\|$ (units of the noise level $\sigma_p$)")
    axes.set(ylabel="dimension d")
    axes.set_ylim(top=published[0][-1] + 20)
    axes.legend(loc="upper right", frameon=True, facecolor="white", framealpha=0.9)
    figure.colorbar(mesh, label="test error")
    return figure


def published_norms(
    dims: Sequence[int], published: Sequence[float], mean: Tensor, spread: Tensor, level: float
) -> Figure:
    """First signal norm with an error of at most a level against dimension, here and published.

    Args:
        dims, published: dimensions and the norms published for them.
        mean, spread: of the norms found here, and their standard deviation.
        level: the error.
    """
    figure, axes = plt.subplots(figsize=(7, 3.6))
    bars: dict[str, Any] = {"fmt": "o", "color": SAMPLE, "capsize": 4}
    axes.errorbar(dims, mean, spread, label="here, mean and standard deviation", **bars)
    axes.plot(dims, published, label="published", **PUBLISHED)
    axes.set(xlabel="dimension d", ylim=(2, 5))
    axes.set_ylabel(rf"first $\|\mu\|$ with error $\leq {level:g}$")
    axes.legend(loc="lower right")
    return figure


def contour_slopes(
    dims: np.ndarray,
    levels: Sequence[float],
    contours: Sequence[Tensor],
    fits: Sequence[BoundaryFit],
    n_samples: int,
) -> Figure:
    """n‖μ‖⁴ along the map's contours against dimension, log axes, with a line of slope 1 each.

    Args:
        dims: dimensions d.
        levels: errors, four.
        contours: at each, ‖μ‖ by dimension.
        fits: the laws fitted to them.
        n_samples: n.
    """
    figure, axes = plt.subplots()
    colours = FORGET, SAMPLE, RETAIN, SPARE
    rows = zip(levels, contours, fits, "vos^", colours, strict=True)
    for level, norms, fit, marker, colour in rows:
        axes.loglog(dims, fit.constant * dims, color=THEORY, linewidth=1)
        points: dict[str, Any] = {"color": colour, "markersize": 5}
        points["label"] = f"error {level:.2f}: slope {fit.exponent:.2f}"
        axes.loglog(dims, n_samples * norms**4, marker, **points)
    axes.set(xlabel="dimension d", ylabel=r"$n\|\mu\|^4$ at the contour")
    axes.legend(title="black lines: slope 1", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
