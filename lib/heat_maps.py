"""Heat maps of CNN unlearning: real networks beside what their Gram matrix at w* predicts.

A map varies two of a `Setting`'s values. Every cell has one network per seed, trained and then
unlearned by ascent–descent; the predictions see that network's curvature Gram matrix and no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.algorithm import AscentDescent, require_count
from lib.cnn_unlearning import Paths, Trajectory, ascent_descent, linearised
from lib.curvature import Curvature
from lib.data import SignalNoise, signal_noise
from lib.dynamics import growth_mode, mean_operator
from lib.network import TwoLayerCNN
from lib.training import Fit, fit, fit_to_interpolation

FRESH_SAMPLES = 200
_NONE = (math.nan,) * 3
LINEAR_SEEDS = 1000  # seeds of the predictions' runs begin here, apart from those of the networks


@dataclass(frozen=True)
class Setting:
    """A network, its data and the update; every value may be an axis of a map.

    learning_rate_share: η as a share of 2/((1−α)λ_1(H_r)), where descent on the retain set alone
    diverges. damping_share: λ as a share of λ_1(H_r). Batches are drawn without replacement,
    independently at each step or, with `reshuffle`, by data loaders once per epoch. loss "squared"
    is trained to 1e-20, "logistic" by descent until the mean loss is `training_loss`.
    """

    snr: float = 0.5
    mixing: float = 0.1
    learning_rate_share: float = 0.5
    retain_batch: int = 6
    forget_batch: int = 4
    damping_share: float = 0.0
    reshuffle: bool = False
    n_retain: int = 24
    n_forget: int = 8
    dim: int = 400
    filters: int = 10
    init_scale: float = 0.01
    loss: Literal["squared", "logistic"] = "squared"
    training_loss: float = 0.01

    @property
    def forget(self) -> Tensor:
        """(n,) bool, True for the last n_forget samples."""
        return torch.arange(self.n_retain + self.n_forget) >= self.n_retain

    @property
    def weights(self) -> int:
        """Number of weights p = 2md."""
        return 2 * self.filters * self.dim

    def network(self) -> Setting:
        """The same with all that training does not see at its default: equal for equal networks."""
        return replace(self, **{name: getattr(_DEFAULT, name) for name in _UNSEEN})


_DEFAULT = Setting()
_UNSEEN = (
    "mixing",
    "learning_rate_share",
    "retain_batch",
    "forget_batch",
    "damping_share",
    "reshuffle",
)


@dataclass(frozen=True)
class Criterion:
    """What is measured within `steps` updates from ‖δ_0‖ = displacement·‖w*‖.

    Local escape: ‖δ_k‖ ≥ growth·‖δ_0‖. Macroscopic forgetting: mean forget loss ≥ forget_loss; a
    run stops there. linear_runs: sampled runs of the linearised update per network behind the
    typical prediction. asymptotic: predict by growth rates per step, whatever the horizon.
    """

    steps: int = 200
    growth: float = 100.0
    displacement: float = 1e-6
    forget_loss: float = 0.5
    linear_runs: int = 2
    asymptotic: bool = False

    def __post_init__(self) -> None:
        require_count("steps", self.steps, 2)
        require_count("linear_runs", self.linear_runs, 1)
        for name in ("growth", "forget_loss"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be finite and > 0, got {getattr(self, name)!r}")


def heat_map(
    setting: Setting,
    x: tuple[str, Sequence[Any]],
    y: tuple[str, Sequence[Any]],
    *,
    criterion: Criterion,
    seeds: Sequence[int],
) -> pd.DataFrame:
    """One row per cell and seed: the cell's two values, the seed, predictions and measurements.

    mean, mean_square, typical: escape is predicted where positive. With criterion.asymptotic the
    growth of log‖δ‖ per step; else the decades by which ‖δ‖ exceeds the growth criterion at its
    largest within the horizon. ±∞ under mean_square: only the sign was computed, from neighbours.
    typical_forget: decades by which the linearised ‖f − y‖ on the forget set exceeds the forget
    loss's. escape_step, forget_step: first step of either event, ∞ if none; twin_step: escape_step
    of the linearised run on the same batches from the same start. At the step of forgetting, NaN
    elsewhere: retain_loss and retain_, forget_ and test_accuracy.

    Args:
        setting: what stays fixed.
        x, y: name of a field of `setting` and its values. Along y the mean-square growth must be
            convex or monotone, as it is in mixing, learning rate and either batch size.
        criterion: the horizon and the events.
        seeds: of data, start, displacement and batches; one network per cell and seed.

    Raises:
        ValueError: for values that a network, the update or the criterion rejects.
        NotInterpolated: where training stalls.
    """
    grid = [replace(setting, **{x[0]: a, y[0]: b}) for a, b in product(x[1], y[1])]
    cells = [cell for cell in grid for _ in seeds]
    networks = trained_networks(cells, list(seeds) * len(grid))
    updates = [_Update.of(*pair) for pair in zip(cells, networks.curvatures, strict=True)]
    columns = {
        "mean": [_mean(update, criterion) for update in updates],
        "mean_square": _mean_square_along(updates, (len(x[1]), len(y[1]), len(seeds)), criterion),
        **_typical_columns(networks.fit, updates, criterion, seeds[0]),
        **_measured_columns(networks, updates, criterion, seeds[0]),
    }
    axes = {name: [getattr(cell, name) for cell in cells] for name in (x[0], y[0])}
    return pd.DataFrame({**axes, "seed": list(seeds) * len(grid), **columns})


@dataclass(frozen=True)
class Networks:
    """Trained networks, one entry per cell; the curvature and fresh samples for each."""

    fit: Fit
    curvatures: list[Curvature]
    fresh: list[SignalNoise]


def trained_networks(cells: Sequence[Setting], seeds: Sequence[int]) -> Networks:
    """One network per cell and seed; cells that share a network and a seed share its training."""
    keys = [(cell.network(), seed) for cell, seed in zip(cells, seeds, strict=True)]
    distinct = list(dict.fromkeys(keys))
    place = {key: k for k, key in enumerate(distinct)}
    families = {replace(network, snr=_DEFAULT.snr) for network, _ in distinct}
    if len(families) > 1:
        raise ValueError(f"x and y must leave the network's sizes alone, got {len(families)}")
    base = distinct[0][0]
    n = base.n_retain + base.n_forget
    data = [
        signal_noise(n + FRESH_SAMPLES, base.dim, network.snr, seed=seed)
        for network, seed in distinct
    ]
    training = torch.arange(n + FRESH_SAMPLES) < n
    # Starts differ from network to network, and from the data's seeds.
    fitted = train(base, [d.subset(training) for d in data], seed=1 + max(seeds))
    curves = [Curvature.from_gram(gram, base.forget) for gram in fitted.curvature_gram()]
    fresh = [d.subset(~training) for d in data]
    entries = [place[key] for key in keys]
    return Networks(
        fitted[torch.tensor(entries)], [curves[k] for k in entries], [fresh[k] for k in entries]
    )


def train(setting: Setting, datasets: Sequence[SignalNoise], *, seed: int) -> Fit:
    """The setting's training: to interpolation, or by logistic descent to `training_loss`."""
    sizes: dict[str, Any] = {"filters": setting.filters, "init_scale": setting.init_scale}
    if setting.loss == "squared":
        return fit_to_interpolation(datasets, seed=seed, **sizes)
    start = fit(datasets, learning_rate=1.0, steps=0, loss="logistic", seed=seed, **sizes)
    # ℓ'' ≤ ¼, and activity can only double what the first patches' Gram matrix shows.
    sharpness = start.span.gram[:, 2:, 2:].abs().sum(2).amax(1) + start.span.gram[:, 0, 0]
    rates = 2 * setting.filters * datasets[0].n_samples / sharpness
    trained = fit(
        datasets,
        learning_rate=rates,
        steps=200_000,
        tolerance=setting.training_loss,
        loss="logistic",
        seed=seed,
        **sizes,
    )
    if not bool((trained.losses <= setting.training_loss).all()):
        raise RuntimeError(f"logistic loss still {float(trained.losses.max()):.2e} after training")
    return trained


@dataclass(frozen=True)
class _Update:
    """A cell's update in the units of its network."""

    setting: Setting
    curvature: Curvature
    algorithm: AscentDescent
    rate: float

    @classmethod
    def of(cls, setting: Setting, curvature: Curvature) -> _Update:
        sharpness = float(torch.linalg.eigvalsh(curvature.retain_hessian)[-1])
        algorithm = AscentDescent(
            setting.mixing,
            setting.retain_batch,
            setting.forget_batch,
            damping=setting.damping_share * sharpness,
            sampling="without_replacement",
        )
        rate = 2 * setting.learning_rate_share / ((1 - setting.mixing) * sharpness)
        return cls(setting, curvature, algorithm, rate)


def _mean(update: _Update, criterion: Criterion) -> float:
    """Growth of J^K δ_0, J = I − ηA, in root mean square over isotropic δ_0; exact."""
    A = mean_operator(update.curvature, update.algorithm)
    logs = (1 - update.rate * torch.linalg.eigvalsh(A)).abs().log()
    if criterion.asymptotic:
        return float(logs.max())
    outside = math.log(abs(1 - update.rate * update.algorithm.damping))
    weights = update.setting.weights
    square = (2 * criterion.steps * logs).exp().sum()
    square += (weights - len(logs)) * math.exp(2 * criterion.steps * outside)
    return 0.5 * math.log10(float(square) / weights) - math.log10(criterion.growth)


def _mean_square(update: _Update, criterion: Criterion) -> float:
    """½ log ρ(T), or decades: E‖δ_K‖²/‖δ_0‖² ≈ ρ^K (tr X)²/(p‖X‖²), X the eigenmatrix of ρ(T)."""
    rho, X = growth_mode(update.curvature, update.algorithm, update.rate)
    if criterion.asymptotic:
        return 0.5 * math.log(rho)
    share = float(X.trace() ** 2 / X.square().sum()) / update.setting.weights
    square = criterion.steps * math.log10(rho) + math.log10(share)
    return 0.5 * square - math.log10(criterion.growth)


def _mean_square_along(
    updates: list[_Update], shape: tuple[int, int, int], criterion: Criterion
) -> np.ndarray:
    """`_mean_square` around its sign changes along the second axis, ±∞ elsewhere."""
    values = np.full(len(updates), math.nan)

    def side(k: int) -> bool:
        if math.isnan(values[k]):
            values[k] = _mean_square(updates[k], criterion)
        return bool(values[k] > 0)

    def fill(line: np.ndarray) -> None:
        """Signs between two evaluated ends: the stable set is an interval, by convexity."""
        first, last, middle = side(line[0]), side(line[-1]), len(line) // 2
        if len(line) <= 2:
            return
        if first != last or (first and not side(line[middle])):
            fill(line[: middle + 1])
            fill(line[middle:])
        else:
            inner = line[1:-1]
            known = ~np.isnan(values[inner])
            values[inner[~known]] = math.inf if first else -math.inf

    for line in np.arange(len(updates)).reshape(shape).transpose(0, 2, 1).reshape(-1, shape[1]):
        fill(line)
    return values


def _typical_columns(
    trained: Fit, updates: list[_Update], criterion: Criterion, seed: int
) -> dict[str, Any]:
    """Medians over sampled runs of the linearised update, from starts and batches of their own."""
    growth, forget = [], []
    for run in range(criterion.linear_runs):
        path = _run(linearised, trained, updates, criterion, LINEAR_SEEDS * (1 + run) + seed, 1e40)
        growth.append(_rate(path) if criterion.asymptotic else _decades(path, criterion))
        forget.append(0.5 * (path.forget_loss.amax(0) / criterion.forget_loss).log10())
    medians = (torch.stack(part).quantile(0.5, dim=0).numpy() for part in (growth, forget))
    return dict(zip(("typical", "typical_forget"), medians, strict=True))


def _decades(path: Paths, criterion: Criterion) -> Tensor:
    return (path.distance.amax(0) / criterion.growth).log10()


def _rate(path: Paths) -> Tensor:
    """Growth of log‖δ‖ per step over the second half of each run: the Lyapunov exponent."""
    half = path.steps // 2
    logs = path.distance.log()
    end, middle = (logs.gather(0, at[None])[0] for at in (path.steps, half))
    return (end - middle) / (path.steps - half)


def _measured_columns(
    networks: Networks, updates: list[_Update], criterion: Criterion, seed: int
) -> dict[str, Any]:
    path = _run(ascent_descent, networks.fit, updates, criterion, seed, criterion.forget_loss)
    twin = _run(linearised, networks.fit, updates, criterion, seed, criterion.forget_loss)
    forget_step = _first(path.forget_loss >= criterion.forget_loss)
    columns = {
        "escape_step": _first(path.distance >= criterion.growth),
        "twin_step": _first(twin.distance >= criterion.growth),
        "forget_step": forget_step,
        "twin_forget_step": _first(twin.forget_loss >= criterion.forget_loss),
        "retain_loss": torch.where(forget_step.isfinite(), path.retain_loss[-1], math.nan),
    }
    rows = [
        _accuracies(path, k, fresh, updates[k].setting.forget) if math.isfinite(step) else _NONE
        for k, (step, fresh) in enumerate(zip(forget_step.tolist(), networks.fresh, strict=True))
    ]
    names = ("retain_accuracy", "forget_accuracy", "test_accuracy")
    accuracies = dict(zip(names, np.array(rows).T, strict=True))
    return {**{name: column.numpy() for name, column in columns.items()}, **accuracies}


def _run(
    runner: Callable[..., Any],
    trained: Fit,
    updates: list[_Update],
    criterion: Criterion,
    seed: int,
    stop: float,
) -> Any:
    return runner(
        trained,
        updates[0].setting.forget,
        [update.algorithm for update in updates],
        [update.rate for update in updates],
        steps=criterion.steps,
        displacement=criterion.displacement,
        seed=seed,
        stop_forget_loss=stop,
        reshuffle=updates[0].setting.reshuffle and runner is ascent_descent,
    )


def _first(reached: Tensor) -> Tensor:
    """First step at which each entry (steps+1, b) is True, ∞ if none."""
    return torch.where(reached.any(0), reached.int().argmax(0).double(), math.inf)


def _accuracies(
    path: Trajectory, entry: int, fresh: SignalNoise, forget: Tensor
) -> tuple[float, float, float]:
    """Shares that the last weights get right: of the retain set, the forget set, fresh samples."""
    data, network = path.start.fit.datasets[entry], TwoLayerCNN(path.weights_of(entry))
    with torch.no_grad():
        right, test = ((network(part.patches) * part.labels > 0).double() for part in (data, fresh))
    return float(right[~forget].mean()), float(right[forget].mean()), float(test.mean())
