"""Data sets of the experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lib.checks import (
    require_above,
    require_count,
    require_finite,
    require_numbers,
    require_room,
    require_share,
    shown,
)
from lib.randomness import stream

LARGEST_SNR = 1e20  # and its inverse the smallest


@dataclass(frozen=True)
class SignalNoise:
    """Samples x_i = [c_i μ, ξ_i] of two patches, with labels in ±1.

    patches (n, 2, d), labels (n,), signal μ (d,), float32 or float64. The sign of c_i is the class
    before label noise.
    """

    patches: Tensor
    labels: Tensor
    signal: Tensor

    def __post_init__(self) -> None:
        require_finite("patches", self.patches, "n", 2, "d")
        require_finite("labels", self.labels, len(self.patches))
        require_finite("signal", self.signal, self.dim)

    @property
    def n_samples(self) -> int:
        """Number of samples n."""
        return self.patches.shape[0]

    @property
    def dim(self) -> int:
        """Dimension d of a patch."""
        return self.patches.shape[2]

    @property
    def strengths(self) -> Tensor:
        """The multiples c_i of the signal in the first patches, (n,); ±1 if one SNR serves all."""
        return self.patches[:, 0] @ self.signal / (self.signal @ self.signal)

    @property
    def flipped(self) -> Tensor:
        """Which labels disagree with the sign of the signal, (n,) bool."""
        return torch.sign(self.strengths) != self.labels

    def subset(self, keep: Tensor) -> SignalNoise:
        """The samples selected by a mask (n,) or by indices, in order, with the same signal."""
        return replace(self, patches=self.patches[keep], labels=self.labels[keep])

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> SignalNoise:
        """The same data in another dtype or on another device."""
        patches, labels, signal = (
            t.to(device, dtype) for t in (self.patches, self.labels, self.signal)
        )
        return SignalNoise(patches, labels, signal)


def signal_noise(
    n_samples: int,
    dim: int,
    snr: float | Sequence[float] | Tensor,
    *,
    energy: float = 1.0,
    flip: float = 0.0,
    seed: int = 0,
) -> SignalNoise:
    r"""x = [y·μ, ξ], ξ ~ N(0, σ²(I − μμᵀ/‖μ‖²)), at fixed energy ‖μ‖² + E‖ξ‖² (the CNN chapter).

    SNR is ‖μ‖/√E‖ξ‖², so ‖μ‖² = energy·snr²/(1 + snr²); since E‖ξ‖² = σ²(d−1), it differs from
    ‖μ‖/(σ√d) by a factor √(1 − 1/d). Labels are uniform on ±1 and then flipped with probability
    `flip`; the patch keeps the sign it had. μ points in a uniformly random direction.

    `snr` may be a sequence of length n: sample i then holds its own signal and noise norms, each at
    the same energy, and `.signal` has the root-mean-square norm of the signals. One seed draws the
    same directions, labels and flips at every SNR, so that cells of a sweep are paired.
    """
    ratios = _check(n_samples, dim, snr, energy, flip)
    n_samples, dim = int(n_samples), int(dim)
    generator = stream("signal-noise data", seed)
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": "cpu"}
    direction = torch.randn(dim, **options)
    direction /= direction.norm()
    classes = 2.0 * torch.randint(2, (n_samples,), generator=generator, device="cpu").double() - 1.0
    flips = torch.rand(n_samples, **options) < flip
    noise = torch.randn(n_samples, dim, **options)
    noise -= torch.outer(noise @ direction, direction)

    signal_norms = (energy * ratios**2 / (1 + ratios**2)).sqrt()
    noise *= (energy / ((1 + ratios**2) * (dim - 1))).sqrt()[:, None]
    signal = signal_norms.square().mean().sqrt() * direction
    patches = torch.stack([torch.outer(classes * signal_norms, direction), noise], dim=1)
    return SignalNoise(patches, torch.where(flips, -classes, classes), signal)


def _check(
    n_samples: int, dim: int, snr: float | Sequence[float] | Tensor, energy: float, flip: float
) -> Tensor:
    """The signal-to-noise ratio of every sample, (n,), after every argument was found in range."""
    require_count("n_samples", n_samples, 1)
    require_count("dim", dim, 2)
    require_room("n_samples and dim", n_samples, dim)
    require_above("energy", energy, 0)
    require_share("flip", flip)
    ratios = require_numbers("snr", snr, n_samples)
    if not bool(((ratios >= 1 / LARGEST_SNR) & (ratios <= LARGEST_SNR)).all()):
        raise ValueError(f"snr must be > 0, in [1e-20, 1e20], got {shown(snr)}")
    return ratios.expand(n_samples)
