"""The two-layer convolutional network of the signal-plus-noise model, as plain PyTorch."""

import numpy as np
import torch
from torch import Tensor

from lib.checks import require_above, require_count, require_finite, require_kind, require_room
from lib.randomness import seed_sequence


class TwoLayerCNN(torch.nn.Module):
    r"""f(x) = F₊(x) − F₋(x),  F_j(x) = (1/m) Σ_r [relu⟨w_jr, x⁽¹⁾⟩ + relu⟨w_jr, x⁽²⁾⟩].

    `weights` (2, m, d) holds F₊'s filters first; the second layer is fixed at ±1/m. This module is
    the reference for `lib.cnn.fit`, which runs the same descent on coefficients. The network is
    that of Cao et al. (NeurIPS 2022) and Kou et al. (ICML 2023).
    """

    def __init__(self, weights: Tensor):
        super().__init__()
        require_kind("weights", weights, Tensor)
        if weights.ndim != 3 or weights.shape[0] != 2 or not weights.numel():
            raise ValueError(f"weights must have shape (2, m, d), got {(*weights.shape,)}")
        require_finite("weights", weights, *weights.shape)
        self.weights = torch.nn.Parameter(weights.detach().clone())

    @classmethod
    def random(cls, filters: int, dim: int, init_scale: float, seed: int = 0) -> "TwoLayerCNN":
        """A network with independent N(0, init_scale²) weights, in float64."""
        filters, dim = require_count("filters", filters, 1), require_count("dim", dim, 1)
        require_room("filters and dim", 2, filters, dim)
        init_scale = require_above("init_scale", init_scale, 0)
        return cls(gaussian_weights(filters, dim, init_scale, seed))

    def forward(self, patches: Tensor) -> Tensor:
        """Outputs (n,) for patches (n, 2, d)."""
        _, filters, dim = self.weights.shape
        responses = torch.nn.functional.linear(patches, self.weights.view(-1, dim)).relu()
        positive, negative = responses.view(-1, 2, 2, filters).sum((1, 3)).unbind(1)
        return (positive - negative) / filters


def gaussian_weights(filters: int, dim: int, init_scale: float, seed: int) -> Tensor:
    """Initial weights (2, m, d), entries N(0, init_scale²), float64, drawn on the CPU.

    NumPy's ziggurat, which takes half the time of PyTorch's Box–Muller transform: this draw is the
    largest part of setting up a `PatchSpan`.
    """
    generator = np.random.default_rng(seed_sequence("initial weights", seed))
    return torch.from_numpy(generator.standard_normal((2, filters, dim))).mul_(init_scale)
