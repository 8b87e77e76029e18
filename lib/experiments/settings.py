"""The cells of a heat map: the settings, the trained networks behind them, and their updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lib.checks import require_count
from lib.cnn.data import SignalNoise, signal_noise
from lib.cnn.training import Fit, fit, fit_to_interpolation
from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature

FRESH_SAMPLES = 200
# Gradients left at w* push δ; these are too small to matter to runs that shrink a millionfold.
SQUARED_TOLERANCE = 1e-26
LOGISTIC_STEPS = 200_000


@dataclass(frozen=True)
class Setting:
    """A network, its data and the update; SNR and the update's values may be axes of a map.

    learning_rate_share: η as a share of 2/((1−α)λ_1(H_r)), where descent on the retain set alone
    diverges. damping_share: λ as a share of λ_1(H_r). Batches are drawn without replacement,
    independently at each step or, with `reshuffle`, by data loaders once per epoch. loss "squared"
    is trained to 1e-26, "logistic" by descent until the mean loss is `training_loss`.
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
    typical prediction. asymptotic: predict by growth rates per step, whatever the horizon;
    a run that shrinks a millionfold is then taken to stay.
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


@dataclass(frozen=True)
class Networks:
    """Trained networks, one entry per cell; the curvature and fresh samples for each."""

    fit: Fit
    curvatures: list[Curvature]
    fresh: list[SignalNoise]

    def __getitem__(self, entries: np.ndarray) -> Networks:
        """The chosen entries."""
        return Networks(
            self.fit[torch.from_numpy(entries)],
            [self.curvatures[k] for k in entries],
            [self.fresh[k] for k in entries],
        )


def trained_networks(
    cells: Sequence[Setting], seeds: Sequence[int], device: str | None = None
) -> Networks:
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
    fitted = train(base, [d.subset(training) for d in data], seed=1 + max(seeds), device=device)
    curves = [Curvature.from_gram(gram, base.forget) for gram in fitted.curvature_gram().cpu()]
    fresh = [d.subset(~training) for d in data]
    entries = [place[key] for key in keys]
    return Networks(
        fitted[torch.tensor(entries)], [curves[k] for k in entries], [fresh[k] for k in entries]
    )


def train(
    setting: Setting, datasets: Sequence[SignalNoise], *, seed: int, device: str | None = None
) -> Fit:
    """The setting's training: to interpolation, or by logistic descent to `training_loss`.

    Raises:
        NotInterpolated, RuntimeError: with the losses reached, where training stalls.
    """
    options: dict[str, Any] = {
        "filters": setting.filters,
        "init_scale": setting.init_scale,
        "seed": seed,
        "device": device,
    }
    if setting.loss == "squared":
        return fit_to_interpolation(datasets, tolerance=SQUARED_TOLERANCE, **options)
    options |= {"loss": "logistic", "tolerance": setting.training_loss}
    span = fit(datasets, learning_rate=1.0, steps=0, **options).span
    # ℓ'' ≤ ¼ and ‖∇f‖² ≤ (2/m)‖patch‖²; the n first patches all lie on one axis.
    n = span.labels.shape[1]
    patches = span.gram[:, 2:, 2:].abs().sum(2).amax(1) + n * span.gram[:, 0, 0]
    rates = 2 * setting.filters * n / patches
    trained = fit(datasets, learning_rate=rates, steps=LOGISTIC_STEPS, **options)
    if not bool((trained.losses <= setting.training_loss).all()):
        raise RuntimeError(
            f"mean logistic loss {float(trained.losses.max()):.3g} after {LOGISTIC_STEPS} steps, "
            f"above {setting.training_loss:g}"
        )
    return trained


@dataclass(frozen=True)
class CellUpdate:
    """A cell's update, with rate η and damping λ in the units of its network."""

    setting: Setting
    curvature: Curvature
    algorithm: AscentDescent
    rate: float

    @classmethod
    def of(cls, setting: Setting, curvature: Curvature) -> CellUpdate:
        """Scale the shares by the network's λ_1(H_r)."""
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
