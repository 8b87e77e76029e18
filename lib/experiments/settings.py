"""What an experiment is given: networks, updates and criteria; and the trained networks behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lib.checks import (
    is_finite,
    require_above,
    require_bool,
    require_choice,
    require_count,
    require_device,
    require_items,
    require_kind,
    require_nonnegative,
    require_seed,
    require_share,
    shown,
)
from lib.cnn.data import SignalNoise, signal_noise
from lib.cnn.training import Fit, fit, fit_to_interpolation
from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature

FRESH_SAMPLES = 200
# Gradients left at w* push δ; these are too small to matter to runs that shrink a millionfold.
SQUARED_TOLERANCE = 1e-26
LOGISTIC_STEPS = 200_000


@dataclass(frozen=True)
class Network:
    """A network and its data: all that training sees, apart from the seeds.

    The last n_forget samples are to be forgotten. loss "squared" is trained to interpolation,
    "logistic" by descent until the mean loss is `training_loss`. flip: chance of a wrong label.
    """

    n_retain: int = 24
    n_forget: int = 8
    dim: int = 400
    filters: int = 10
    init_scale: float = 0.01
    snr: float = 0.5
    flip: float = 0.0
    loss: Literal["squared", "logistic"] = "squared"
    training_loss: float = 0.01

    def __post_init__(self) -> None:
        for name, least in (("n_retain", 1), ("n_forget", 1), ("dim", 2), ("filters", 1)):
            require_count(name, getattr(self, name), least)
        for name in ("init_scale", "snr", "training_loss"):
            require_above(name, getattr(self, name), 0)
        require_share("flip", self.flip)
        require_choice("loss", self.loss, ("squared", "logistic"))

    @property
    def forget(self) -> Tensor:
        """(n,) bool, True for the last n_forget samples."""
        return torch.arange(self.n_retain + self.n_forget, device="cpu") >= self.n_retain

    @property
    def weights(self) -> int:
        """Number of weights p = 2md."""
        return 2 * self.filters * self.dim

    @property
    def shape(self) -> dict[str, Any]:
        """filters and init_scale, as `lib.cnn.fit` takes them."""
        return {"filters": self.filters, "init_scale": self.init_scale}

    def draw(self, seed: int, fresh: int = 0) -> SignalNoise:
        """A data set, and after it so many fresh samples."""
        n = self.n_retain + self.n_forget + fresh
        return signal_noise(n, self.dim, self.snr, flip=self.flip, seed=seed)


@dataclass(frozen=True)
class Update:
    """The unlearning update in units of a trained network.

    learning_rate_share: η as a share of 2/((1−α)λ_1(H_r)), where descent on the retain set alone
    diverges. damping_share: λ as a share of λ_1(H_r). A batch of None is the whole set. Batches are
    drawn without replacement, independently at each step or, with `reshuffle`, by data loaders
    once per epoch.
    """

    mixing: float = 0.1
    learning_rate_share: float = 0.5
    retain_batch: int | None = 6
    forget_batch: int | None = 4
    damping_share: float = 0.0
    reshuffle: bool = False

    def __post_init__(self) -> None:
        require_share("mixing", self.mixing)
        require_nonnegative("learning_rate_share", self.learning_rate_share)
        require_nonnegative("damping_share", self.damping_share)
        require_bool("reshuffle", self.reshuffle)
        for name in ("retain_batch", "forget_batch"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name), 1)

    def algorithm(self, network: Network, sharpness: float) -> AscentDescent:
        """The update where λ_1(H_r) is `sharpness`."""
        return AscentDescent(
            self.mixing,
            network.n_retain if self.retain_batch is None else self.retain_batch,
            network.n_forget if self.forget_batch is None else self.forget_batch,
            damping=self.damping_share * sharpness,
            sampling="without_replacement",
        )


@dataclass(frozen=True)
class Cell:
    """A network and an update; a map varies two of their fields."""

    network: Network = field(default_factory=Network)
    update: Update = field(default_factory=Update)

    def __post_init__(self) -> None:
        require_kind("network", self.network, Network)
        require_kind("update", self.update, Update)

    def varied(self, **values: Any) -> Cell:
        """With other values of fields of either, each found by its name."""
        own = {f.name for f in fields(Network)}
        network = {name: value for name, value in values.items() if name in own}
        update = {name: value for name, value in values.items() if name not in own}
        return Cell(replace(self.network, **network), replace(self.update, **update))


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
        require_bool("asymptotic", self.asymptotic)
        require_above("displacement", self.displacement, 0)
        for name in ("growth", "forget_loss"):
            value = getattr(self, name)
            if not (is_finite(value) and value > 0):
                raise ValueError(f"{name} must be finite and > 0, got {shown(value)}")
            require_above(name, value, 0)


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
    wanted: Sequence[Network], seeds: Sequence[int], device: str | None = None
) -> Networks:
    """One network per seed; equal networks with equal seeds share their training.

    Raises:
        ValueError: where they differ in more than their data (snr and flip).
        NotInterpolated, RuntimeError: with the losses reached, where training stalls.
    """
    wanted = require_items("wanted", wanted, Network)
    seeds = [require_seed(seed, "seeds: every seed") for seed in require_items("seeds", seeds)]
    if len(wanted) != len(seeds):
        raise ValueError(
            f"wanted and seeds must be equally long, got {len(wanted)} and {len(seeds)}"
        )
    require_device(device)
    keys = list(zip(wanted, seeds, strict=True))
    distinct = list(dict.fromkeys(keys))
    place = {key: k for k, key in enumerate(distinct)}
    base = distinct[0][0]
    if any(replace(network, snr=base.snr, flip=base.flip) != base for network, _ in distinct):
        raise ValueError("x and y must leave all of the network but its snr and flip alone")
    data = [network.draw(seed, fresh=FRESH_SAMPLES) for network, seed in distinct]
    training = torch.arange(data[0].n_samples, device="cpu") < len(base.forget)
    # Starts differ from network to network, and from the data's seeds.
    fitted = train(base, [d.subset(training) for d in data], seed=1 + max(seeds), device=device)
    curves = [Curvature.from_gram(gram, base.forget) for gram in fitted.curvature_gram().cpu()]
    entries = np.array([place[key] for key in keys])
    return Networks(fitted, curves, [d.subset(~training) for d in data])[entries]


def train(
    network: Network, datasets: Sequence[SignalNoise], *, seed: int, device: str | None = None
) -> Fit:
    """The network's training: to interpolation, or by logistic descent to `training_loss`.

    Raises:
        NotInterpolated, RuntimeError: with the losses reached, where training stalls.
    """
    options: dict[str, Any] = {**network.shape, "seed": seed, "device": device}
    if network.loss == "squared":
        return fit_to_interpolation(datasets, tolerance=SQUARED_TOLERANCE, **options)
    options |= {"loss": "logistic", "tolerance": network.training_loss}
    span = fit(datasets, learning_rate=1.0, steps=0, **options).span
    # ℓ'' ≤ ¼ and ‖∇f‖² ≤ (2/m)‖patch‖²; the n first patches all lie on one axis.
    n = span.labels.shape[1]
    patches = span.gram[:, 2:, 2:].abs().sum(2).amax(1) + n * span.gram[:, 0, 0]
    rates = 2 * network.filters * n / patches
    trained = fit(datasets, learning_rate=rates, steps=LOGISTIC_STEPS, **options)
    if not bool((trained.losses <= network.training_loss).all()):
        raise RuntimeError(
            f"mean logistic loss {float(trained.losses.max()):.3g} after {LOGISTIC_STEPS} steps, "
            f"above {network.training_loss:g}"
        )
    return trained


@dataclass(frozen=True)
class TrainedCell:
    """A cell and its network's curvature, which gives rate η and damping λ their units."""

    cell: Cell
    curvature: Curvature

    @cached_property
    def sharpness(self) -> float:
        """λ_1(H_r)."""
        return float(torch.linalg.eigvalsh(self.curvature.retain_hessian)[-1])

    @cached_property
    def algorithm(self) -> AscentDescent:
        """The update at this sharpness."""
        return self.cell.update.algorithm(self.cell.network, self.sharpness)

    @property
    def rate(self) -> float:
        """η."""
        update = self.cell.update
        return 2 * update.learning_rate_share / ((1 - update.mixing) * self.sharpness)
