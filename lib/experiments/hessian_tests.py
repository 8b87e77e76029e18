"""Hessian tests: does a sampled run escape where the theory says it does?

Maps over two of a setting's values, measured escapes (`escape`) beside the predictions in closed
form (`lib.stability.exponents`). Setting after arXiv 2511.17378, Appendix C.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from lib.checks import (
    is_finite,
    require_above,
    require_axis,
    require_batch,
    require_choice,
    require_count,
    require_kind,
    require_nonnegative,
    require_room,
    require_share,
    shown,
)
from lib.experiments.escape import LARGEST_THRESHOLD, Escape, HessianTest, count_escapes
from lib.stability.algorithm import AscentDescent, Sampling
from lib.stability.exponents import axis_laws, exponents_of, growth_exponents, moment_exponent
from lib.stability.families import AxisFamily
from lib.stability.sampling import SAMPLINGS

LARGEST_WORK = 10**8  # pairs of counts, of both sets, that one search sums over


@dataclass(frozen=True)
class SharedAxis:
    """A coherent group of samples on one axis, shared by both sets, over an incoherent rest.

    retain_group of the retain samples share axis 1, where H_r has its largest eigenvalue
    `retain_sharpness`; every other retain sample has the same curvature along an axis of its own.
    forget_group of the forget samples curve along axis 1, too, and as many along one axis that is
    the forget set's own, so that ‖H_f‖_F = `forget_sharpness`, split to give the between-set
    alignment χ = `cross` (`coherence`); by default all of it lies on axis 1. The other forget
    samples are flat.

    batch is B_r, and B_f unless `forget_batch` is given; mixing α, damping λ.

    Raises:
        ValueError: naming the argument, its value and the allowed range; from `test` where values
            do not fit each other.
    """

    n_retain: int = 100
    n_forget: int = 50
    batch: int = 10
    forget_batch: int | None = None
    retain_group: int = 20
    forget_group: int = 20
    retain_sharpness: float = 2.0
    forget_sharpness: float = 2.0
    cross: float | None = None
    mixing: float = 0.2
    learning_rate: float = 0.5
    damping: float = 0.0
    sampling: Sampling = "without_replacement"

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {"mixing": require_share("mixing", self.mixing)}
        for name in ("n_retain", "n_forget", "batch", "retain_group", "forget_group"):
            checked[name] = require_count(name, getattr(self, name), 1)
        for name in ("retain_sharpness", "forget_sharpness", "learning_rate", "damping"):
            checked[name] = require_nonnegative(name, getattr(self, name))
        if self.forget_batch is not None:
            checked["forget_batch"] = require_count("forget_batch", self.forget_batch, 1)
        if self.cross is not None:
            if not (is_finite(self.cross) and 0 <= self.cross < 2):  # `test` knows the largest
                raise ValueError(f"cross must be in [0, 1], got {shown(self.cross)}")
            checked["cross"] = float(self.cross)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        require_choice("sampling", self.sampling, SAMPLINGS)

    def largest_cross(self) -> float:
        """χ = λ_r/‖H_r‖_F when all of the forget set's curvature lies on the shared axis."""
        own_axes = self.n_retain - self.retain_group
        return 1 / math.sqrt(1 + own_axes / self.retain_group**2)

    def test(self) -> HessianTest:
        """The family and the update of this setting."""
        require_batch("retain_group", self.retain_group, self.n_retain)
        require_room("n_retain", self.n_retain, 128)
        limit = self.largest_cross()
        cross = limit if self.cross is None else self.cross
        if cross > limit * (1 + 1e-12):
            raise ValueError(f"cross must be in [0, {limit:.6g}], got {shown(cross)}")
        shared = min(cross / limit, 1.0)
        own = math.sqrt(1 - shared**2)
        rest = self.n_retain - self.retain_group
        # The shared axis, the forget set's own if it has one, one for each other retain sample.
        family = AxisFamily(
            self.n_retain,
            self.n_forget,
            np.array([self.retain_group] + [0] * (own > 0) + [1] * rest),
            np.array(
                [self.forget_group * (shared > 0)] + [self.forget_group] * (own > 0) + [0] * rest
            ),
            self.retain_sharpness
            * np.array([1.0] + [0.0] * (own > 0) + [1 / self.retain_group] * rest),
            self.forget_sharpness * np.array([shared] + [own] * (own > 0) + [0.0] * rest),
        )
        algorithm = AscentDescent(
            mixing=self.mixing,
            retain_batch=self.batch,
            forget_batch=self.batch if self.forget_batch is None else self.forget_batch,
            damping=self.damping,
            sampling=self.sampling,
        )
        return HessianTest(family, algorithm, self.learning_rate)


@dataclass(frozen=True, eq=False)
class EscapeMap:
    """Measured escapes beside three predictions; every array has shape (rows, columns).

    x_name, x and y_name, y: what varies along columns and rows, as named in `SharedAxis`.
    escaped: number of runs, of criterion.runs, that escaped.
    mean, mean_square, typical: `Exponents` of each cell, positive where escape is predicted.
    at_threshold: growth of the moment of order `threshold_order` of each cell, likewise.
    """

    x_name: str
    x: np.ndarray
    y_name: str
    y: np.ndarray
    criterion: Escape
    escaped: np.ndarray
    mean: np.ndarray
    mean_square: np.ndarray
    typical: np.ndarray
    at_threshold: np.ndarray

    @property
    def majority(self) -> np.ndarray:
        """Whether more than half of a cell's runs escaped."""
        return 2 * self.escaped > self.criterion.runs

    def agreement(self, prediction: np.ndarray) -> float:
        """Share of cells where the measured majority is what a bool map predicts."""
        return float(np.mean(self.majority == prediction))

    @property
    def typical_agreement(self) -> float:
        """Share of cells where most runs escape exactly if γ > 0."""
        return self.agreement(self.typical > 0)

    @property
    def threshold_agreement(self) -> float:
        """The same for the typical prediction at the criterion's finite threshold."""
        return self.agreement(self.at_threshold > 0)

    @property
    def stable_runs(self) -> tuple[int, int]:
        """(escaped, all) runs in the cells that are mean-square stable."""
        stable = self.mean_square <= 0
        return int(self.escaped[stable].sum()), int(stable.sum()) * self.criterion.runs

    def summary(self) -> dict[str, float]:
        """What a caption says: agreement in per cent of cells, mean-square-stable runs, escaped."""
        escaped, runs = self.stable_runs
        return {
            "typical": 100 * self.typical_agreement,
            "threshold": 100 * self.threshold_agreement,
            "mean_square": 100 * self.agreement(self.mean_square > 0),
            "mean": 100 * self.agreement(self.mean > 0),
            "stable_escaped": escaped,
            "stable_runs": runs,
        }


def escape_map(
    setting: SharedAxis,
    x: tuple[str, Sequence[Any]],
    y: tuple[str, Sequence[Any]],
    *,
    criterion: Escape | None = None,
    seed: int = 0,
) -> EscapeMap:
    """Escapes and predictions over a grid of two of a setting's values.

    Args:
        setting: what stays fixed.
        x, y: name of an attribute of `setting` and its values, along columns and rows.
        criterion: when a run counts as escaped; by default `Escape()`.
        seed: of the batches; runs and cells are independent.

    Raises:
        ValueError: for a value that `SharedAxis` or the criterion rejects.
    """
    require_kind("setting", setting, SharedAxis)
    criterion = Escape() if criterion is None else criterion
    require_kind("criterion", criterion, Escape)
    names = [f.name for f in fields(SharedAxis)]
    x, y = require_axis("x", x, names), require_axis("y", y, names)
    tests = [replace(setting, **{x[0]: a, y[0]: b}).test() for b in y[1] for a in x[1]]
    shape = len(y[1]), len(x[1])
    laws = [axis_laws(t.family, t.algorithm, t.learning_rate) for t in tests]
    top = [exponents_of(law) for law in laws]
    orders = [threshold_order(t, criterion.threshold) for t in tests]
    finite = [moment_exponent(law, order) for law, order in zip(laws, orders, strict=True)]
    return EscapeMap(
        x[0],
        np.asarray(x[1]),
        y[0],
        np.asarray(y[1]),
        criterion,
        count_escapes(tests, criterion, seed=seed).reshape(shape),
        **{
            name: np.array([getattr(e, name) for e in top]).reshape(shape)
            for name in ("mean", "mean_square", "typical")
        },
        at_threshold=np.array(finite).reshape(shape),
    )


def stable_group_row(setting: SharedAxis, criterion: Escape, *, seed: int) -> dict[str, float]:
    """Smallest stable σ_r by three routes: the Hessian-test chapter's table with a measured column.

    Bernoulli mean-square: σ > (n/B − 1)/(2/(ηλ_1) − 1), thm-two-sided, no ascent; "mean-square" and
    "typical" by `smallest_stable_group` for the setting's own sampling; "measured majority" the
    smallest σ from which on most simulated runs stay.
    """
    require_kind("setting", setting, SharedAxis)
    setting.test()
    groups = range(1, setting.n_retain + 1)
    tests = [replace(setting, retain_group=group).test() for group in groups]
    escaped = np.flatnonzero(2 * count_escapes(tests, criterion, seed=seed) > criterion.runs)
    slack = 2 / (setting.learning_rate * setting.retain_sharpness) - 1
    return {
        "η": setting.learning_rate,
        "B": setting.batch,
        "Bernoulli, mean-square: σ >": round((setting.n_retain / setting.batch - 1) / slack, 1),
        "mean-square": smallest_stable_group(setting, "mean_square"),
        "typical": smallest_stable_group(setting, "typical"),
        "measured majority": int(escaped.max(initial=-1)) + 2,
    }


def threshold_order(test: HessianTest, threshold: float) -> float:
    """p = 2 log 2 / log(qτ), the order of the moment that predicts a majority at threshold τ.

    Where E|X_a|^p ≤ 1 an axis that starts with a share 1/q of ‖δ_0‖² reaches τ‖δ_0‖² with
    probability at most (qτ)^{−p/2} = ½, so most runs do not escape through it. As τ → ∞, p → 0 and
    the frontier becomes the typical one, γ = 0. That runs do escape beyond it is not proved.

    Source: this book's Hessian tests chapter.
    """
    require_kind("test", test, HessianTest)
    threshold = require_above("threshold", threshold, 1, LARGEST_THRESHOLD)
    return 2 * math.log(2) / math.log(len(test.family.retain_group) * threshold)


def sister_setting(learning_rate: float, n: int = 100) -> SharedAxis:
    """Descent only: no mixing, and so a forget sample that takes no part (arXiv 2511.17378, C.3).

    H_i = (2n/σ) e_1e_1ᵀ for σ samples and (2n/σ) on an axis of its own for every other, so that
    λ_1(H) = 2; σ is `retain_group`, B is `batch`.
    """
    n = require_count("n", n, 1)
    return SharedAxis(
        n_retain=n,
        n_forget=1,
        forget_batch=1,
        forget_group=1,
        mixing=0.0,
        learning_rate=require_nonnegative("learning_rate", learning_rate),
    )


def smallest_stable_group(
    setting: SharedAxis, prediction: Literal["mean_square", "typical"]
) -> int:
    """Smallest σ_r from which on, up to n_r, every cell is predicted to be stable, past rounding.

    Raises:
        ValueError: if even σ_r = n_r is predicted to escape; for n_r beyond 2,000 or n_r²n_f beyond
            10⁸, where the n_r predictions, each a sum over up to n_r·n_f pairs of counts, would
            take longer than seconds.
    """
    require_kind("setting", setting, SharedAxis)
    work = require_count("n_retain", setting.n_retain, 1, 2000) ** 2 * setting.n_forget
    if work > LARGEST_WORK:
        raise ValueError(
            f"n_retain and n_forget must keep n_retain²·n_forget at most {LARGEST_WORK}, got {work}"
        )
    require_choice("prediction", prediction, ("mean_square", "typical"))
    setting.test()
    for group in range(setting.n_retain, 0, -1):
        test = replace(setting, retain_group=group).test()
        exponents = growth_exponents(test.family, test.algorithm, test.learning_rate)
        if getattr(exponents, prediction) >= -1e-12:
            if group == setting.n_retain:
                raise ValueError(f"setting must have a stable group, got {setting!r}")
            return group + 1
    return 1
