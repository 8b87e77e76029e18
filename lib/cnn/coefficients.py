r"""The two-layer ReLU CNN, trained through the inner products of its patches.

Every gradient of f(x) = s Σ_jr j Σ_p relu⟨w_jr, x⁽ᵖ⁾⟩ (j = ±1, s the output scale) is a combination
of the patches, so w_jr(t) = w_jr(0) + Σ_a C_jra z_a over the *distinct* patches z_a: +μ, −μ and the
noise patches ξ_1 … ξ_n (a positive multiple |c|·μ gives the same ReLU pattern as μ). Gradient and
Gauss–Newton steps thus need the patches' Gram matrix and ⟨w_jr(0), z_a⟩, never the dimension d.
This is the decomposition of Cao et al. (NeurIPS 2022), used as an algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lib.checks import describe, require_above, require_kind, require_shape
from lib.cnn.data import SignalNoise
from lib.cnn.network import gaussian_weights


@dataclass(frozen=True)
class PatchSpan:
    """A batch of b networks with n samples each, reduced to inner products of p = n + 2 patches.

    gram (b, p, p): ⟨z_a, z_b⟩, z = (+μ, −μ, ξ_1 … ξ_n);  start (b, 2, m, p): ⟨w_jr(0), z_a⟩;
    strength (b, 2, n): how much of +μ and of −μ the first patch of each sample holds, ≥ 0;
    labels (b, n);  output_scale s, 1/m for the mean over filters.
    """

    gram: Tensor
    start: Tensor
    strength: Tensor
    labels: Tensor
    output_scale: float

    def __post_init__(self) -> None:
        require_kind("labels", self.labels, Tensor)
        require_kind("start", self.start, Tensor)
        if self.labels.ndim != 2 or self.start.ndim != 4:
            raise ValueError(
                "labels and start must be (b, n) and (b, 2, m, n + 2), "
                f"got {describe(self.labels)} and {describe(self.start)}"
            )
        b, n = self.labels.shape
        require_shape("labels", self.labels, b, n)
        require_shape("gram", self.gram, b, n + 2, n + 2)
        require_shape("start", self.start, b, 2, self.start.shape[2], n + 2)
        require_shape("strength", self.strength, b, 2, n)
        object.__setattr__(
            self, "output_scale", require_above("output_scale", self.output_scale, 0)
        )

    @classmethod
    def from_datasets(
        cls, datasets: Sequence[SignalNoise], filters: int, init_scale: float, seed: int
    ) -> PatchSpan:
        """One entry per data set; entry k starts from N(0, init_scale²) weights of seed + k."""
        parts = []
        for offset, data in enumerate(datasets):
            strengths = _checked_strengths(data)
            weights = gaussian_weights(filters, data.dim, init_scale, seed + offset).to(strengths)
            strength = torch.stack([strengths, -strengths]).clamp(min=0)
            start = _patch_products(data, weights.flatten(0, 1)).view(2, filters, -1)
            gram = _patch_products(data, data.patches[:, 1])
            parts.append((_with_signal_rows(gram, data.signal), start, strength, data.labels))
        gram, start, strengths, labels = map(torch.stack, zip(*parts, strict=True))
        return cls(gram, start, strengths, labels, 1.0 / filters)

    @cached_property
    def readout(self) -> Tensor:
        """±s, by which the filters' responses enter f, (b, 1, 2m)."""
        entries, _, filters, _ = self.start.shape
        signs = self.start.new_ones(2, filters)
        signs[1] = -1
        return (self.output_scale * signs).reshape(1, 1, -1).expand(entries, 1, -1)

    def respond(self, coefficients: Tensor) -> Responses:
        """The networks at C (b, 2, m, p)."""
        return Responses(self, coefficients)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, entries: slice | Tensor) -> PatchSpan:
        """The chosen entries of the batch, as a batch."""
        return self._map(lambda tensor: tensor[entries])

    def to(self, device: torch.device | str | None) -> PatchSpan:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> PatchSpan:
        gram, start, strength = map(change, (self.gram, self.start, self.strength))
        return PatchSpan(gram, start, strength, change(self.labels), self.output_scale)


class Responses:
    """What the networks w(0) + Σ_a C_a z_a of a span answer, at the C last given.

    outputs f (b, n);  preactivations ⟨w_jr, z_a⟩ and active, 1 where they are positive, else 0,
    both (b, 2, m, p). Gradients are those at this C, wherever it has moved since.
    """

    def __init__(self, span: PatchSpan, coefficients: Tensor, start: Tensor | None = None):
        self.span = span
        self.preactivations = torch.empty_like(coefficients)
        self.active = torch.empty_like(coefficients)
        self.outputs = self._respond(coefficients, span.start if start is None else start)

    def renew(self, coefficients: Tensor, start: Tensor | None = None) -> Responses:
        """The same at another C, and from another `start` than the span's, in the same memory.

        Fresh memory for two such tensors costs a training step a tenth of its time.
        """
        self.outputs = self._respond(coefficients, self.span.start if start is None else start)
        return self

    def _respond(self, coefficients: Tensor, start: Tensor) -> Tensor:
        """One product with the Gram matrix, and f (b, n)."""
        flat = (len(start), -1, start.shape[-1])
        values, responses = self.preactivations.view(flat), self.active.view(flat)
        torch.baddbmm(start.reshape(flat), coefficients.view(flat), self.span.gram, out=values)
        torch.clamp(values, min=0, out=responses)
        per_patch = torch.bmm(self.span.readout, responses)
        torch.gt(values, 0, out=responses)
        return torch.baddbmm(per_patch[..., 2:], per_patch[..., :2], self.span.strength)[:, 0]

    def descend(self, coefficients: Tensor, steps: Tensor) -> None:
        """Add to C, in place, a move of every weight by −Σ_i steps_i ∇f_i, steps (b, n)."""
        signal = torch.bmm(self.span.strength, steps[..., None])[..., 0]
        per_patch = torch.cat([signal, steps], dim=1)
        signed = torch.stack([-per_patch, per_patch], dim=1)[:, :, None]
        coefficients.addcmul_(self.active, signed, value=self.span.output_scale)

    def gradient_gram(self) -> Tensor:
        """⟨∇f_i, ∇f_j⟩ (b, n, n) over all weights."""
        pattern, strength = self.active.flatten(1, 2), self.span.strength
        shared = self.span.output_scale**2 * self.span.gram * (pattern.mT @ pattern)
        cross = strength.mT @ shared[:, :2, 2:]
        signal = strength.mT @ shared[:, :2, :2] @ strength
        return shared[:, 2:, 2:] + cross + cross.mT + signal

    def gradient_products(self, overlaps: Tensor) -> Tensor:
        """⟨∇f_i, v⟩ (b, n) from ⟨v_jr, z_a⟩ (b, 2, m, p)."""
        per_patch = torch.bmm(self.span.readout, (self.active * overlaps).flatten(1, 2))
        return (per_patch[..., 2:] + per_patch[..., :2] @ self.span.strength)[:, 0]


def distinct_patches(data: SignalNoise) -> Tensor:
    """The patches z = (+μ, −μ, ξ_1 … ξ_n) as rows, (n + 2, d).

    Raises ValueError where a first patch is not a multiple of the signal.
    """
    _checked_strengths(data)
    return torch.cat([torch.stack([data.signal, -data.signal]), data.patches[:, 1]])


def _patch_products(data: SignalNoise, vectors: Tensor) -> Tensor:
    """⟨v, z_a⟩ (k, n + 2) of vectors (k, d) with the distinct patches, without copying those."""
    along = (vectors @ data.signal)[:, None]
    return torch.cat([along, -along, vectors @ data.patches[:, 1].T], dim=1)


def _with_signal_rows(noise_products: Tensor, signal: Tensor) -> Tensor:
    """The Gram matrix (p, p) from its last n rows."""
    square = signal @ signal
    corner = torch.stack([torch.stack([square, -square]), torch.stack([-square, square])])
    above = torch.cat([corner, noise_products[:, :2].T], dim=1)
    return torch.cat([above, noise_products])


def _checked_strengths(data: SignalNoise) -> Tensor:
    """`data.strengths`, and a ValueError where a first patch is not a multiple of the signal."""
    if not bool(data.signal.any()):
        raise ValueError("datasets must have a signal that is not zero")
    first, strengths = data.patches[:, 0], data.strengths
    residual = torch.addr(first, strengths, data.signal, alpha=-1).abs_().max()
    if residual > 1e3 * torch.finfo(first.dtype).eps * data.signal.norm():
        raise ValueError(
            "datasets must have first patches that are multiples of their signal, got one that is "
            f"off by {float(residual):.1e}"
        )
    return strengths
