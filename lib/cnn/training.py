"""Training to the optimum, where the linear theory starts.

`fit` and `fit_to_interpolation` train many signal-plus-noise CNNs exactly, as one batch, on their
coefficients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.checks import (
    require_above,
    require_batch,
    require_count,
    require_device,
    require_items,
    require_kind,
    require_nonnegative,
    require_room,
    require_seed,
    require_shape,
)
from lib.cnn.coefficients import PatchSpan, Responses, distinct_patches
from lib.cnn.data import SignalNoise
from lib.cnn.descent import Descent, chunks, interpolate, per_entry
from lib.cnn.network import gaussian_weights
from lib.stability.losses import scalar_loss

LARGEST_START = 1e12  # of the scale of initial weights, and its inverse the smallest
Trained = tuple[Tensor, Tensor, Tensor]  # coefficients, losses, steps taken


@dataclass(frozen=True)
class Fit:
    """Trained networks, one batch entry per data set (b entries, m filters per class, n samples).

    coefficients (b, 2, m, n + 2) of the patches (+μ, −μ, ξ_1 … ξ_n); losses (b,) mean over samples
    at the end; steps (b,) taken. Entry k started from N(0, init_scale²) weights of seed starts[k].
    """

    datasets: tuple[SignalNoise, ...]
    span: PatchSpan
    coefficients: Tensor
    losses: Tensor
    steps: Tensor
    loss: str
    init_scale: float
    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        require_kind("span", self.span, PatchSpan)
        entries = len(self.span)
        for name, kind in (("datasets", SignalNoise), ("starts", int)):
            if len(require_items(name, getattr(self, name), kind)) != entries:
                raise ValueError(f"{name} must be one per entry of the span, {entries}")
        require_shape("coefficients", self.coefficients, *self.span.start.shape)
        require_shape("losses", self.losses, entries)
        require_kind("steps", self.steps, Tensor)
        require_above("init_scale", self.init_scale, 0, LARGEST_START)
        scalar_loss(self.loss)

    def __getitem__(self, entries: Tensor) -> Fit:
        """The entries (k,) of the batch, as a batch; the same one may stand in it many times."""
        chosen = entries.tolist()
        return Fit(
            tuple(self.datasets[k] for k in chosen),
            self.span[entries],
            self.coefficients[entries],
            self.losses[entries],
            self.steps[entries],
            self.loss,
            self.init_scale,
            tuple(self.starts[k] for k in chosen),
        )

    @property
    def signal_coefficients(self) -> Tensor:
        """γ (b, 2, m) in w_jr = w_jr(0) + j γ_jr μ/‖μ‖² + Σ_i ρ_jri ξ_i/‖ξ_i‖²."""
        signs = self.coefficients.new_tensor([1.0, -1.0])[:, None]
        along = self.coefficients[..., 0] - self.coefficients[..., 1]
        return signs * along * self.span.gram[:, 0, 0][:, None, None]

    @property
    def noise_coefficients(self) -> Tensor:
        """ρ (b, 2, m, n): how far each filter has memorised each sample's noise patch."""
        squared_norms = self.span.gram.diagonal(dim1=1, dim2=2)[:, None, None, 2:]
        return self.coefficients[..., 2:] * squared_norms

    def weights(self) -> Tensor:
        """The trained w (b, 2, m, d); ValueError unless all d agree."""
        return self.stack(self.weights_of)

    def initial_weights_of(self, entry: int) -> Tensor:
        """w(0) of one entry, (2, m, d), drawn again from its seed."""
        filters, dim = self.coefficients.shape[2], self.datasets[entry].dim
        drawn = gaussian_weights(filters, dim, self.init_scale, self.starts[entry])
        return drawn.to(self.coefficients)

    def weights_of(self, entry: int) -> Tensor:
        """The trained w of one entry, (2, m, d)."""
        patches = distinct_patches(self.datasets[entry]).to(self.coefficients)
        return self.initial_weights_of(entry) + self.coefficients[entry] @ patches

    def stack(self, weights_of: Callable[[int], Tensor]) -> Tensor:
        """`weights_of` every entry, (b, 2, m, d); ValueError unless all d agree."""
        dims = sorted({data.dim for data in self.datasets})
        if len(dims) > 1:
            raise ValueError(f"datasets must share one dim to stack their weights, got {dims}")
        return torch.stack([weights_of(entry) for entry in range(len(self.datasets))])

    def responses(self) -> Responses:
        """What the trained networks answer on the training samples."""
        return self.span.respond(self.coefficients)

    def outputs(self) -> Tensor:
        """f on the training samples, (b, n)."""
        return self.responses().outputs

    def curvature_gram(self) -> Tensor:
        """√(ℓ''_i ℓ''_j) ⟨∇f_i, ∇f_j⟩ (b, n, n), ready for `Curvature.from_gram`."""
        at = self.responses()
        root = scalar_loss(self.loss).curvature(at.outputs, self.span.labels).sqrt()
        return root[:, :, None] * at.gradient_gram() * root[:, None, :]


def fit(
    datasets: Sequence[SignalNoise],
    *,
    filters: int,
    learning_rate: float | Sequence[float] | Tensor,
    steps: int,
    init_scale: float,
    loss: str = "squared",
    tolerance: float = 0.0,
    batch_size: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Fit:
    """Gradient descent on the mean loss, ½(f−y)² or log(1+e^{−yf}), one entry per data set.

    Runs `steps` steps (full batch, or `batch_size` samples drawn without replacement at each step)
    and stops an entry once its mean loss is at most `tolerance` > 0. Exactly plain descent on the
    weights of `TwoLayerCNN`, at a cost per step free of d. `learning_rate` is one number or one
    per entry. Data sets share n but may differ in d; their dtype is the dtype of the training.
    Entry k starts from N(0, init_scale²) weights drawn with seed + k.
    A run that overflows ends with loss ∞ and a RuntimeWarning naming its entry.
    """
    steps = require_count("steps", steps, 0)
    tolerance = require_nonnegative("tolerance", tolerance)
    scalar_loss(loss)

    def descend(span: PatchSpan, part: slice) -> Trained:
        n = span.labels.shape[1]
        size = n if batch_size is None else require_batch("batch_size", batch_size, n)
        rates = per_entry("learning_rate", learning_rate, span.labels)
        return Descent(loss, steps, tolerance, size, seed).run(span[part], rates[part], part.start)

    trained = _train(datasets, descend, loss, filters, init_scale, seed, device)
    _warn_of_overflow(trained.losses)
    return trained


def fit_to_interpolation(
    datasets: Sequence[SignalNoise],
    *,
    filters: int,
    init_scale: float,
    tolerance: float = 1e-20,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Fit:
    """Train every entry until its mean squared loss ½(f−y)² is at most `tolerance`.

    Descent at a rate taken from each entry's own sharpness settles the ReLU patterns; damped
    Gauss–Newton steps, which stay in the same span, do the rest. Arguments as in `fit`.
    Raises `NotInterpolated` (with `.losses`) if an entry cannot get there, as happens when two
    samples have the same gradient and different labels, or below the dtype's rounding.
    """
    tolerance = require_above("tolerance", tolerance, 0)

    def solve(span: PatchSpan, part: slice) -> Trained:
        return interpolate(span[part], tolerance)

    trained = _train(datasets, solve, "squared", filters, init_scale, seed, device)
    if not bool((trained.losses <= tolerance).all()):
        raise NotInterpolated(trained.losses, tolerance)
    return trained


class NotInterpolated(RuntimeError):
    """Raised where training stalled above the tolerance; `.losses` (b,) holds what was reached."""

    def __init__(self, losses: Tensor, tolerance: float):
        self.losses = losses
        missed = {k: f"{v:.2e}" for k, v in enumerate(losses.tolist()) if not v <= tolerance}
        super().__init__(f"mean loss still above {tolerance:g} in entries {missed}")


def _train(
    datasets: Sequence[SignalNoise],
    run: Callable[[PatchSpan, slice], Trained],
    loss: str,
    filters: int,
    init_scale: float,
    seed: int,
    device: torch.device | str | None,
) -> Fit:
    """All entries, from their starts by `run`, chunk by chunk."""
    datasets = require_items("datasets", datasets, SignalNoise)
    sizes = sorted({data.n_samples for data in datasets})
    if len(sizes) != 1:
        raise ValueError(f"datasets must be one or more with equal n_samples, got sizes {sizes}")
    filters = require_count("filters", filters, 1)
    init_scale = require_above("init_scale", init_scale, 0, LARGEST_START)
    seed = require_seed(seed)
    require_room("filters", len(datasets), 2 * filters, max(data.dim for data in datasets))
    require_room("filters", len(datasets), 2 * filters, sizes[0] + 2)
    span = PatchSpan.from_datasets(datasets, filters, init_scale, seed)
    span = span.to(require_device(device))
    parts = zip(*(run(span, part) for part in chunks(span)), strict=True)
    coefficients, losses, taken = map(torch.cat, parts)
    starts = tuple(range(seed, seed + len(datasets)))
    return Fit(tuple(datasets), span, coefficients, losses, taken, loss, init_scale, starts)


def _warn_of_overflow(losses: Tensor) -> None:
    """Put ∞ where a loss is not finite, and say so."""
    diverged = ~torch.isfinite(losses)
    if bool(diverged.any()):
        losses[diverged] = float("inf")
        entries = torch.nonzero(diverged).flatten().tolist()
        message = f"training diverged (loss = inf) in entries {entries}: lower their learning_rate"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
