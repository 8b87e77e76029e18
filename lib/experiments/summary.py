"""What a heat map says in numbers: agreement, where its frontier lies, kinds of disagreement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.ndimage import maximum_filter, minimum_filter

from lib.checks import require_above, require_kind, shown

# A twin is a network's linearised run on the same batches: does it escape, does it forget?
Event = Literal["escape", "forget", "twin", "twin_forget"]
NEAR = 2  # cells around a frontier, for the share of agreement near it


@dataclass(frozen=True, eq=False)
class MapGrid:
    """A `heat_map` table on its grid; arrays (rows, columns), or (rows, columns, seeds).

    x, y: the values along columns and rows.
    """

    x_name: str
    x: np.ndarray
    y_name: str
    y: np.ndarray
    table: pd.DataFrame

    @classmethod
    def of(cls, table: pd.DataFrame) -> MapGrid:
        """From a table whose first three columns are x, y and the seed."""
        require_kind("table", table, pd.DataFrame)
        if len(table.columns) < 3 or table.columns[2] != "seed" or not len(table):
            raise ValueError(f"table must have the columns x, y, seed, …, got {shown(table.shape)}")
        x_name, y_name = table.columns[:2]
        ordered = table.sort_values([y_name, x_name, "seed"], kind="stable")
        x, y = (np.sort(ordered[name].unique()) for name in (x_name, y_name))
        return cls(x_name, x, y_name, y, ordered)

    def values(self, column: str) -> np.ndarray:
        """A column, (rows, columns, seeds)."""
        return self.table[column].to_numpy().reshape(len(self.y), len(self.x), -1)

    def median(self, column: str) -> np.ndarray:
        """Median over the seeds, (rows, columns); the lower one of an even number's two."""
        values = np.sort(self.values(column), axis=2)
        return values[:, :, (values.shape[2] - 1) // 2]

    def share(self, event: Event) -> np.ndarray:
        """Share of a cell's seeds in which the event happened."""
        return np.isfinite(self.values(f"{event}_step")).mean(axis=2)

    def happened(self, event: Event) -> np.ndarray:
        """Whether it happened in most of a cell's seeds."""
        return self.share(event) > 0.5

    def predicted(self, prediction: str) -> np.ndarray:
        """Whether a prediction is positive in most of a cell's seeds."""
        return self.predicted_share(prediction) > 0.5

    def predicted_share(self, prediction: str) -> np.ndarray:
        """Share of a cell's seeds in which a prediction is positive."""
        return (self.values(prediction) > 0).mean(axis=2)

    def agreement(self, prediction: str = "typical", event: Event = "escape") -> float:
        """Share of cells in which most networks do what is predicted for most."""
        return float(np.mean(self.predicted(prediction) == self.happened(event)))

    def agreement_near(
        self, prediction: str = "typical", event: Event = "escape", *, moved: int = 0
    ) -> float:
        """The same among cells that have, within `NEAR` cells, both predictions around them.

        moved: by so many cells up y the prediction is moved first (its border rows repeated), while
        the cells asked stay the same: what a prediction that is off would score.
        """
        predicted = self.predicted(prediction)
        near = near_frontier(predicted)
        rows = np.clip(np.arange(len(self.y)) - moved, 0, len(self.y) - 1)
        same = predicted[rows] == self.happened(event)
        return float(same[near].mean()) if near.any() else 1.0

    def displacement(self, prediction: str = "typical", event: Event = "escape") -> float:
        """Median over columns of |measured − predicted frontier|, in cells along y.

        A column's frontier is counted as the number of its cells where the event happens, seeds as
        fractions; columns in which neither side has a frontier are left out. NaN if all are.
        """
        measured, predicted = self.share(event).sum(0), self.predicted_share(prediction).sum(0)
        crossed = [((count > 0) & (count < len(self.y))) for count in (measured, predicted)]
        either = crossed[0] | crossed[1]
        return float(np.median(np.abs(measured - predicted)[either])) if either.any() else np.nan

    def frontier(self, share: np.ndarray) -> np.ndarray:
        """Where a share of seeds (rows, columns) crosses ½ along y, per column; else NaN.

        Interpolated in the cell's number and mapped to y; of several crossings the first.

        Raises:
            ValueError, TypeError: a share that is no finite array of that shape.
        """
        require_kind("share", share, np.ndarray)
        shape = (len(self.y), len(self.x))
        if share.shape != shape or share.dtype.kind not in "fiub" or not np.isfinite(share).all():
            raise ValueError(f"share must be finite numbers of shape {shape}, got {shown(share)}")
        places = np.full(share.shape[1], np.nan)
        numbers = np.arange(len(self.y))
        for column, values in enumerate(share.T):
            sides = values > 0.5
            if sides.any() and not sides.all():
                k = int(np.argmax(sides[1:] != sides[:-1]))
                place = k + (0.5 - values[k]) / (values[k + 1] - values[k])
                places[column] = np.interp(place, numbers, self.y)
        return places

    def stable_escapes(self) -> tuple[int, int]:
        """(Cells predicted mean-square stable in which most networks escape, all such cells)."""
        stable = ~self.predicted("mean_square")
        return int(self.happened("escape")[stable].sum()), int(stable.sum())

    def summary(self) -> dict[str, float]:
        """What a caption says of local escape: shares in per cent, displacement in cells.

        moved: of the cells near the frontier, right by a prediction one cell off, up or down.
        """
        escaped, stable = self.stable_escapes()
        return {
            "cells": self.share("escape").size,
            "seeds": self.values("seed").shape[2],
            "typical": 100 * self.agreement(),
            "near": 100 * self.agreement_near(),
            "moved": 100 * max(self.agreement_near(moved=moved) for moved in (-1, 1)),
            "displacement": self.displacement(),
            "mean_square": 100 * self.agreement("mean_square"),
            "mean": 100 * self.agreement("mean"),
            "stable_escapes": 100 * escaped / max(stable, 1),
        }


def near_frontier(predicted: np.ndarray) -> np.ndarray:
    """Cells within `NEAR` of which, both ways along both axes, a bool map is not constant."""
    size = 2 * NEAR + 1
    return maximum_filter(predicted, size) & ~minimum_filter(predicted, size)


def disagreements(grid: MapGrid) -> dict[str, float]:
    """Shares of all cells, in per cent, where the typical prediction or forgetting is missed.

    chance: the majority is not the predicted one, but the linearised runs on the same batches from
    the same starts side with it: fluctuations between sampled runs. kinks: they do not; all that
    linearising removes from this network is its ReLU kinks. restabilised: most networks escape but
    do not forget, although their linearised runs do; early: they forget although those do not.
    """
    require_kind("grid", grid, MapGrid)
    escaped, twin = grid.happened("escape"), grid.happened("twin")
    missed = grid.predicted("typical") != escaped
    forgot, twin_forgot = grid.happened("forget"), grid.happened("twin_forget")
    kinds = {
        "chance": missed & (twin == escaped),
        "kinks": missed & (twin != escaped),
        "restabilised": escaped & twin_forgot & ~forgot,
        "early": forgot & ~twin_forgot,
    }
    return {name: float(100 * cells.mean()) for name, cells in kinds.items()}


def missed_cells(grid: MapGrid) -> pd.DataFrame:
    """The cells whose majority is not the typical prediction, one row each.

    Their place, the median prediction, and the shares of networks and of their twins that escape.
    """
    require_kind("grid", grid, MapGrid)
    rows, columns = np.nonzero(grid.predicted("typical") != grid.happened("escape"))
    return pd.DataFrame(
        {
            grid.x_name: grid.x[columns],
            grid.y_name: grid.y[rows],
            "typical": grid.median("typical")[rows, columns],
            "networks": grid.share("escape")[rows, columns],
            "twins": grid.share("twin")[rows, columns],
        }
    )


def negative_curvature(linear_steps: Any, learning_rate: Any, factor: float) -> Any:
    """−λ_min(A) = (τ^{1/k} − 1)/η, in units of 1/η: `steepest_mean_steps` solved for it.

    Args:
        linear_steps: k, steps in which the mean's steepest direction grows by `factor`; ∞, where it
            never does, gives 0.
        learning_rate: η of the same run. Numbers, arrays, tensors or columns alike.
        factor: τ > 1, 10³ for `Resistance.linear_steps`.

    Raises:
        ValueError, TypeError: naming the argument that is no number > 0.
    """
    factor = require_above("factor", factor, 1)
    for name, value in (("linear_steps", linear_steps), ("learning_rate", learning_rate)):
        try:
            positive = bool((np.asarray(value, dtype=np.float64) > 0).all())
        except (TypeError, ValueError, RuntimeError, OverflowError):
            positive = False
        if not positive or isinstance(value, bool | str | list | tuple):
            raise ValueError(f"{name} must be numbers > 0, got {shown(value)}")
    return (factor ** (1 / linear_steps) - 1) / learning_rate
