"""The tangent model: the network linearised at its weights, the loss kept exact.

With f(x; w_0 + δ) ≈ f_0(x) + J(x)δ every update stays in the span of the trained samples' Jacobian
rows, so a run needs the neural tangent kernel K = JJᵀ alone, and any number of settings is one
matrix product a step.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib.checks import (
    describe,
    is_finite,
    require_above,
    require_finite,
    require_items,
    require_kind,
    require_mask,
    require_nonnegative,
)
from lib.stability.algorithm import AscentDescent
from lib.stability.jacobian import jacobian_vector, output_gram
from lib.stability.modules import Chosen, Forward, per_sample, samples
from lib.unlearning.paths import (
    Batch,
    LossPath,
    Recorder,
    check_targets,
    make_batches,
    slopes,
)

CHUNK = 2**24  # outputs × settings held at a time: cache and memory, not the result, depend on it


@dataclass(frozen=True)
class TangentModel:
    """f_0 + Jδ on N samples, of which the first n can be in batches (chapter tangent_model).

    Attributes:
        outputs: (N, C), f_0, the network's outputs at its weights w_0.
        kernel: (N·C, n·C), sample-major, K = J J_{:n}ᵀ, the neural tangent kernel; a mean over
            nothing. The trained samples' outputs come first. Held column by column, since a step
            reads the batch's columns.
        anchor: (N, C), J w_0, which weight decay pulls along; zeros if there will be none.
        speed: what `calibrate` multiplies the kernel by; 1 at the weights.

    Raises:
        ValueError: naming the attribute, for shapes that do not fit, numbers that are not finite or
            beyond 1e100, a dtype below float32 or a kernel with a negative diagonal.
    """

    outputs: Tensor
    kernel: Tensor
    anchor: Tensor
    speed: float = 1.0

    def __post_init__(self) -> None:
        for name in ("outputs", "kernel", "anchor"):
            value = getattr(self, name)
            require_finite(name, value, "N", "C")
            if value.numel():
                largest = float(value.detach().abs().amax())
                require_nonnegative(f"the largest entry of {name}", largest)
            object.__setattr__(self, name, value.detach())
        n, c = self.outputs.shape
        if not n * c:
            raise ValueError(f"outputs must not be empty, got {describe(self.outputs)}")
        if self.kernel.shape[0] != n * c or self.kernel.shape[1] % c or not self.trained:
            raise ValueError(
                f"kernel must be ({n * c}, n·{c}), 1 <= n <= {n}, got {describe(self.kernel)}"
            )
        if self.trained > n or self.anchor.shape != (n, c):
            raise ValueError(f"anchor must be ({n}, {c}), got {describe(self.anchor)}")
        if bool((self.kernel[: self.kernel.shape[1]].diagonal() < 0).any()):
            raise ValueError("kernel must have no negative number on its diagonal")
        object.__setattr__(self, "speed", require_above("speed", self.speed, 0))
        object.__setattr__(self, "kernel", self.kernel.T.contiguous().T)

    @classmethod
    def from_model(
        cls,
        model: torch.nn.Module,
        inputs: Any,
        *,
        trained: int | None = None,
        forward: Forward | None = None,
        parameters: Chosen = None,
        sketch: int | None = None,
        chunk_size: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> TangentModel:
        """The tangent model of a network at its weights; the network is not changed.

        Args:
            model: in eval mode, with outputs (N,), (N, 1) or (N, C).
            inputs: N samples, all watched: a tensor, a dict or tuple of tensors, a Dataset or an
                unshuffled DataLoader.
            trained: number n of leading samples that can be in batches; all by default.
            forward: (model, inputs) → outputs, where calling the model does not give one tensor.
            parameters: what is trained: None for all that require a gradient, or names, prefixes,
                a predicate on names, or parameters (a last layer, LoRA).
            sketch: None for the exact kernel, or the width of a CountSketch of the Jacobian.
            chunk_size: samples whose Jacobian rows are held at a time.
            dtype: of the kernel, float32 or float64.
            device: where to compute; by default where the model is.
            seed: of the sketch.

        Raises:
            ValueError: naming the argument, also for a model that is random or not per sample.
        """
        x, _ = samples(inputs, None)
        options: dict[str, Any] = {"forward": forward, "parameters": parameters, "device": device}
        outputs, kernel, _ = output_gram(
            model,
            x,
            trained=trained,
            sketch=sketch,
            chunk_size=chunk_size,
            dtype=dtype,
            seed=seed,
            **options,
        )
        weights = per_sample(model, x, **options).trained.values()
        vector = torch.cat([w.flatten() for w in weights])
        anchor = jacobian_vector(model, x, vector, chunk_size=chunk_size, **options)
        return cls(outputs.to(dtype), kernel, anchor.to(dtype))

    def at_speed(self, speed: float) -> TangentModel:
        """The same with another speed; the kernel, which may be large, is not checked again.

        Raises:
            ValueError: if speed is not a number above 0.
        """
        other = copy.copy(self)
        object.__setattr__(other, "speed", require_above("speed", speed, 0))
        return other

    @property
    def trained(self) -> int:
        """Number n of samples that can be in batches."""
        return self.kernel.shape[1] // self.outputs.shape[1]

    def __repr__(self) -> str:
        n, c = self.outputs.shape
        return f"TangentModel({n} samples, {self.trained} trained, {c} outputs, {self.speed=:.3g})"


@dataclass(frozen=True)
class TangentPath(LossPath):
    """What `follow` predicts; fields as in `LossPath`."""


class _Settings(NamedTuple):
    """η·speed, η, α, λ and β of every setting, each (settings,)."""

    step: Tensor
    rate: Tensor
    mixing: Tensor
    damping: Tensor
    momentum: Tensor


def follow(
    tangent: TangentModel,
    targets: Tensor,
    forget: Tensor | Sequence[int],
    algorithm: AscentDescent | Sequence[AscentDescent],
    learning_rate: float | Sequence[float],
    *,
    steps: int,
    loss: str = "cross_entropy",
    weight_decay: float = 0.0,
    batches: Sequence[tuple[Tensor, Tensor]] | None = None,
    seed: int = 0,
) -> TangentPath:
    """Ascent–descent on the tangent model: f ← f − η K[:, batch] (weights × ∂ℓ/∂f), loss exact.

    Exactly the update of the linearised network f_0 + Jδ: with damping λ and weight decay ν the
    displacement z = Jδ moves by −η(K g + λz + ν(Jw_0 + z)), with momentum β that becomes the
    velocity's new term (as in torch.optim.SGD). The network itself where it is linear in what is
    trained. Cost: one (N·C × B·C) product a step for all settings together.

    Args:
        tangent: from `TangentModel.from_model`, or calibrated.
        targets: of all N samples; class numbers (N,) for "cross_entropy", ±1 (N,) for "logistic",
            (N, C) or, if C = 1, (N,) values for "squared".
        forget: (n,) bool, or indices, of the trained samples to forget.
        algorithm, learning_rate: one of each, or equally long sequences: settings, all on the same
            batches, so with the same batch sizes and sampling.
        steps: number of updates in [0, 5000].
        loss: "cross_entropy", "logistic" or "squared"; mean over a batch.
        weight_decay: ν ≥ 0, added to the gradient as torch.optim.SGD does.
        batches: per step a pair (retain, forget) of index tensors, divided by their own length;
            drawn by the algorithm's sampling, and divided by B, if None.
        seed: of the batches that are drawn.

    Returns:
        losses and accuracies after every step, (steps+1, settings) float64; ∞ once a run overflows.

    Raises:
        ValueError: naming the argument, its value and the allowed range.
    """
    weight_decay = require_nonnegative("weight_decay", weight_decay)
    mask, checked = fitting(tangent, targets, forget, loss)
    first, settings = _settings(algorithm, learning_rate, tangent)
    drawn = make_batches(batches, first, mask, steps=steps, seed=seed)
    width = max(1, CHUNK // tangent.outputs.numel())
    paths = []
    for part in zip(*(values.split(width) for values in settings), strict=True):
        recorder = Recorder(checked, mask, loss)
        for outputs in _outputs(tangent, checked, drawn, _Settings(*part), weight_decay, loss):
            recorder.add(outputs)
        paths.append(recorder.rows())
    return TangentPath(*torch.cat(paths, dim=2))


def follow_weights(
    tangent: TangentModel,
    targets: Tensor,
    forget: Tensor | Sequence[int],
    algorithm: AscentDescent,
    learning_rate: float,
    *,
    steps: int,
    loss: str = "cross_entropy",
    weight_decay: float = 0.0,
    batches: Sequence[tuple[Tensor, Tensor]] | None = None,
    seed: int = 0,
) -> tuple[Tensor, float]:
    """Where `follow` is after `steps` steps, as (c, a) with δ = −(J_{:n}ᵀ c + a w_0); speed 1.

    Args:
        tangent, …, seed: as in `follow`, one setting.

    Returns:
        c, (n, C), the summed pushes of the trained samples' outputs, and a, what decay took off;
        not finite where the run overflows.

    Raises:
        ValueError, TypeError: naming the argument, as `follow`.
    """
    require_kind("algorithm", algorithm, AscentDescent)
    learning_rate = require_nonnegative("learning_rate", learning_rate)
    weight_decay = require_nonnegative("weight_decay", weight_decay)
    mask, checked = fitting(tangent, targets, forget, loss)
    tangent = tangent.at_speed(1.0)
    first, settings = _settings(algorithm, learning_rate, tangent)
    drawn = make_batches(batches, first, mask, steps=steps, seed=seed)
    # Last column: a, whose push is constant. Both contract with damping and decay alike.
    held = tangent.outputs.new_zeros(len(mask) * tangent.outputs.shape[1] + 1)
    velocity = torch.zeros_like(held)
    path = _outputs(tangent, checked, drawn, settings, weight_decay, loss)
    contraction = learning_rate * (first.damping + weight_decay)
    for batch, outputs in zip(drawn, path, strict=False):
        slope = slopes(outputs[batch.samples], checked[batch.samples], loss)
        slope *= (batch.weights(settings.mixing) * settings.step).to(slope)[:, None]
        push = torch.zeros_like(held)
        push[:-1].view(len(mask), -1).index_copy_(0, batch.samples, slope[:, :, 0])
        push[-1] = learning_rate * weight_decay
        velocity = first.momentum * velocity + push - contraction * held
        held = held + velocity
    return held[:-1].view(len(mask), -1), float(held[-1])


def fitting(
    tangent: TangentModel, targets: Tensor | None, forget: Tensor | Sequence[int], loss: str
) -> tuple[Tensor, Tensor]:
    """The forget mask (n,) and the targets, as `check_targets` gives them, of a tangent model.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    require_kind("tangent", tangent, TangentModel)
    mask = require_mask(forget, tangent.trained, "tangent").to(tangent.outputs.device)
    return mask, check_targets(targets, tangent.outputs, loss)


def _outputs(
    tangent: TangentModel,
    targets: Tensor,
    batches: Sequence[Batch],
    settings: _Settings,
    weight_decay: float,
    loss: str,
) -> Iterator[Tensor]:
    """Outputs (N, C, settings) before the first step and after each; one buffer, overwritten."""
    n, c = tangent.outputs.shape
    start = tangent.outputs.flatten()[:, None]
    outputs = start.repeat(1, len(settings.rate))
    pulled = weight_decay > 0 or bool((settings.damping > 0).any())
    velocity = torch.zeros_like(outputs) if bool((settings.momentum > 0).any()) else None
    yield outputs.view(n, c, -1)
    each = torch.arange(c, device=start.device)
    # One buffer for the batches' columns: to have fresh memory mapped costs ten times the copy.
    most = max((len(batch.samples) for batch in batches), default=0) * c
    buffer = tangent.kernel.new_empty(most, n * c)
    for batch in batches:
        push = slopes(outputs.view(n, c, -1)[batch.samples], targets[batch.samples], loss)
        push *= (batch.weights(settings.mixing) * settings.step).to(push)[:, None]
        columns = (batch.samples[:, None] * c + each).flatten()
        kernel, push = buffer[: len(columns)], push.flatten(0, 1)
        torch.index_select(tangent.kernel.T, 0, columns, out=kernel)
        if velocity is None and not pulled:
            outputs.addmm_(kernel.T, push, alpha=-1)
        else:
            move = kernel.T @ push
            if pulled:
                away = outputs - start
                pull = settings.damping * away + weight_decay * (tangent.anchor.view(-1, 1) + away)
                move += settings.rate * pull
            if velocity is not None:
                move = velocity = settings.momentum * velocity + move
            outputs -= move
        yield outputs.view(n, c, -1)


def _settings(
    algorithm: AscentDescent | Sequence[AscentDescent],
    learning_rate: float | Sequence[float],
    tangent: TangentModel,
) -> tuple[AscentDescent, _Settings]:
    """One algorithm (batch sizes and sampling are those of all) and every setting's numbers."""
    several = (
        [algorithm]
        if isinstance(algorithm, AscentDescent)
        else require_items("algorithm", algorithm, AscentDescent)
    )
    given: Any = [learning_rate] if is_finite(learning_rate) else learning_rate
    rates = [
        require_nonnegative("learning_rate", rate) for rate in require_items("learning_rate", given)
    ]
    if len(several) != len(rates):
        raise ValueError(
            f"algorithm and learning_rate must be equally long sequences of at least one setting, "
            f"got {len(several)} and {len(rates)}"
        )
    shared = {(a.retain_batch, a.forget_batch, a.sampling) for a in several}
    if len(shared) > 1:
        raise ValueError(
            "algorithm must have the same batch sizes and sampling in every setting, since they "
            f"share their batches, got {sorted(shared)}"
        )
    columns = [[tangent.speed * rate for rate in rates], rates]
    columns += [[getattr(a, name) for a in several] for name in ("mixing", "damping", "momentum")]
    return several[0], _Settings(*(tangent.outputs.new_tensor(column) for column in columns))
