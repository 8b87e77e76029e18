"""Many networks of one architecture at once: what they are to forget, and any descent on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap

from lib.checks import (
    describe,
    holds_numbers,
    require_above,
    require_count,
    require_finite,
    require_kind,
    require_mask,
    require_nonnegative,
    require_seed,
)
from lib.randomness import stream
from lib.stability.algorithm import AscentDescent, batch_weights
from lib.stability.losses import loss_of
from lib.stability.modules import PerSample, per_sample
from lib.unlearning.paths import check_targets

EVALUATED = 1024  # samples in one forward pass over all networks


@dataclass(frozen=True, eq=False, repr=False)
class Population:
    """Networks of one architecture, the samples that they were trained on, and those to forget.

    Attributes:
        model: the architecture, in eval mode; never changed.
        inputs, targets: (n, …) and (n,) class numbers, or what else the loss takes.
        forget: (n,) bool, or indices.
        weights: (models, p), in the order of `model.parameters()`; by default the model's own,
            (1, p).
        loss: "cross_entropy", "logistic" or "squared".

    Raises:
        ValueError: naming the attribute; also for a model that torch.func.vmap does not take.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    forget: Tensor
    weights: Tensor | None = None
    loss: str = "cross_entropy"

    def __post_init__(self) -> None:
        loss_of(self.loss)
        net = self.net
        mask = require_mask(self.forget, len(self.inputs)).to(net.device)
        object.__setattr__(self, "forget", mask)
        object.__setattr__(self, "inputs", net.moved(self.inputs))
        own = torch.cat([w.flatten() for w in net.trained.values()])[None]
        if self.weights is not None:
            require_finite("weights", self.weights, "models", own.shape[1])
        object.__setattr__(self, "weights", own if self.weights is None else self.weights.to(own))
        require_count("weights' number of models", len(self.stacked), 1)
        with torch.no_grad():
            outputs = net.at(net.trained, self.inputs[:1]).flatten(1)
        outputs = outputs.expand(len(self.inputs), -1)
        object.__setattr__(self, "targets", check_targets(self.targets, outputs, self.loss))

    @cached_property
    def net(self) -> PerSample:
        """The architecture as a function of its weights."""
        return vmappable(self.model, self.inputs)

    @property
    def stacked(self) -> Tensor:
        """The weights, (models, p)."""
        assert self.weights is not None
        return self.weights

    def at(self, weights: Tensor | None = None) -> Networks:
        """The networks, with their own or with other weights (models, p)."""
        return Networks.of(self.net, self.stacked if weights is None else weights, self)

    def outputs(self, inputs: Tensor, weights: Tensor | None = None) -> Tensor:
        """Outputs (models, samples, C) on any inputs, without gradients."""
        moved = self.net.moved(inputs)
        with torch.no_grad():
            networks = self.at(weights)
            return torch.cat([networks.see(chunk) for chunk in moved.split(EVALUATED)], dim=1)


class Networks(NamedTuple):
    """A population at some weights, each (models, …) by name."""

    net: PerSample
    weights: dict[str, Tensor]
    samples: Population

    @classmethod
    def of(cls, net: PerSample, stacked: Tensor, samples: Population) -> Networks:
        """From weights (models, p)."""
        shapes = {name: w.shape for name, w in net.trained.items()}
        pieces = stacked.split([shape.numel() for shape in shapes.values()], dim=1)
        named = zip(shapes.items(), pieces, strict=True)
        return cls(net, {k: w.reshape(-1, *shape) for (k, shape), w in named}, samples)

    @property
    def stacked(self) -> Tensor:
        """The weights, (models, p)."""
        return torch.cat([w.flatten(1) for w in self.weights.values()], dim=1)

    def see(self, inputs: Tensor) -> Tensor:
        """Outputs (models, b, C) of the same inputs (b, …) for all."""
        return vmap(self.net.at, in_dims=(0, None))(self.weights, inputs).flatten(2)

    def outputs(self, samples: Tensor) -> Tensor:
        """Outputs (models, b, C) of each network's own samples, (models, b) indices."""
        return vmap(self.net.at)(self.weights, self.samples.inputs[samples]).flatten(2)

    def losses(self, samples: Tensor, targets: Tensor | None = None) -> Tensor:
        """Losses (models, b) of each network's own samples, with their own or other targets."""
        targets = self.samples.targets[samples] if targets is None else targets
        return losses_of(self.outputs(samples), targets, self.samples.loss)

    def mean_loss(self, members: Tensor) -> Tensor:
        """Mean loss (models,) over the samples of a mask (n,)."""
        outputs = self.see(self.samples.inputs[members])
        targets = self.samples.targets[members]
        same = targets.expand(len(outputs), *targets.shape)
        return losses_of(outputs, same, self.samples.loss).mean(dim=1)


def losses_of(outputs: Tensor, targets: Tensor, loss: str) -> Tensor:
    """Losses (models, b) of outputs (models, b, C) and targets (models, b) or (models, b, C)."""
    value = loss_of(loss).value(outputs.flatten(0, 1), targets.flatten(0, 1))
    return value.view(*outputs.shape[:2], -1).sum(dim=2)


class Batch(NamedTuple):
    """The number of a step, and its samples: (models, B_r) and (models, B_f) indices."""

    step: int
    retain: Tensor
    forget: Tensor


@dataclass(frozen=True)
class Schedule:
    """How a method descends: plain SGD, w ← w − η∇, with batches of both sets at each step.

    Batches are drawn without replacement, anew at each step and for each network; those of a single
    network are `run_network`'s with the same seed.
    """

    learning_rate: float
    steps: int
    retain_batch: int = 64
    forget_batch: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        require_nonnegative("learning_rate", self.learning_rate)
        require_count("steps", self.steps, 0)
        require_count("retain_batch", self.retain_batch, 1)
        require_count("forget_batch", self.forget_batch, 1)
        require_seed(self.seed)

    def batches(self, forget: Tensor, models: int) -> Iterator[Batch]:
        """The batches of every step; ValueError for one that is larger than its set."""
        rule = AscentDescent(
            0.5, self.retain_batch, self.forget_batch, sampling="without_replacement"
        )
        following = batch_weights(rule, forget, models, stream("unlearning batches", self.seed))
        for step in range(self.steps):
            weights = following().T
            parts = (weights > 0, weights < 0)
            yield Batch(step, *(p.nonzero()[:, 1].view(models, -1) for p in parts))


Objective = Callable[[Networks, Batch], Tensor]


def descend(
    population: Population,
    schedule: Schedule,
    objective: Objective,
    *,
    mask: dict[str, Tensor] | None = None,
    done: Callable[[Networks], Tensor] | None = None,
) -> Iterator[Networks]:
    """The networks at the start and after every step of w ← w − η∇objective.

    Args:
        population, schedule: what descends, and how.
        objective: (models,), each network's own, of its weights and its batch.
        mask: 1 where a weight may move and 0 where not, by name, (models, …); all by default.
        done: (models,) bool; a network that is done, at the start or after a step, stays.

    Raises:
        RuntimeError: weights are no longer finite.
    """
    require_kind("population", population, Population)
    require_kind("schedule", schedule, Schedule)
    now = population.at()
    moving = torch.ones(len(population.stacked), dtype=torch.bool, device=population.net.device)
    for batch in schedule.batches(population.forget, len(population.stacked)):
        if done is not None:
            with torch.no_grad():
                moving = moving & ~done(now)
        yield now
        if not bool(moving.any()):
            continue
        with torch.enable_grad():
            leaves = {name: w.detach().requires_grad_() for name, w in now.weights.items()}
            value = objective(now._replace(weights=leaves), batch)
            slope = torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True)
        weights = {}
        for (name, w), g in zip(now.weights.items(), slope, strict=True):
            step = schedule.learning_rate * g
            if mask is not None:
                step = mask[name] * step
            weights[name] = torch.where(moving.view(-1, *[1] * (w.ndim - 1)), w - step, w)
        now = now._replace(weights=weights)
        if not all(bool(w.isfinite().all()) for w in weights.values()):
            raise RuntimeError(
                f"weights overflowed at step {batch.step + 1}: learning_rate "
                f"{schedule.learning_rate:g} is too large"
            )
    yield now


def train(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    models: int,
    epochs: int,
    batch: int = 50,
    learning_rate: float = 0.003,
    seed: int = 0,
) -> Tensor:
    """Weights (models, p) of networks trained side by side with cross-entropy, by Adam.

    Each has its own start, drawn by the modules' `reset_parameters`, and its own order of batches
    in every epoch. The model itself is not changed.

    Args:
        model: the architecture, in eval mode.
        inputs, targets: (n, …) and (n,) class numbers.
        models, epochs, batch: numbers ≥ 1.
        learning_rate: Adam's, > 0.
        seed: of starts and batches.

    Raises:
        ValueError: naming the argument; for a module with parameters of its own that cannot be
            started anew.
    """
    for name, value in (("models", models), ("epochs", epochs), ("batch", batch)):
        require_count(name, value, 1)
    require_above("learning_rate", learning_rate, 0)
    net = vmappable(model, inputs)
    x = net.moved(inputs)
    starts = [_start(model, net, number, seed) for number in range(models)]
    weights = {name: torch.stack([s[name] for s in starts]).requires_grad_() for name in starts[0]}
    with torch.no_grad():
        y = check_targets(targets, net.at(starts[0], x).flatten(1), "cross_entropy")
    optimiser = torch.optim.Adam(list(weights.values()), lr=learning_rate)
    generator = stream("training batches", seed)
    for _ in range(epochs):
        drawn = torch.rand(models, len(x), generator=generator, dtype=torch.float32, device="cpu")
        for chosen in drawn.argsort(dim=1).to(net.device).split(batch, dim=1):
            optimiser.zero_grad()
            with torch.enable_grad():
                outputs = vmap(net.at)(weights, x[chosen]).flatten(2)
                losses_of(outputs, y[chosen], "cross_entropy").mean(dim=1).sum().backward()
            optimiser.step()
    return torch.cat([w.detach().flatten(1) for w in weights.values()], dim=1)


def vmappable(model: nn.Module, inputs: Tensor) -> PerSample:
    """The model as a function of its weights; ValueError for one that vmap does not take."""
    require_kind("model", model, nn.Module)
    require_kind("inputs", inputs, Tensor)
    if not holds_numbers(inputs):
        raise ValueError(f"inputs must hold numbers, got {describe(inputs)}")
    net = per_sample(model, inputs)
    if net.looped:
        raise ValueError("model must work under torch.func.vmap, got one that does not")
    return net


def _start(model: nn.Module, net: PerSample, number: int, seed: int) -> dict[str, Tensor]:
    """Untrained weights, by the trained parameters' names."""
    other = copy.deepcopy(model)
    own = stream("network start", seed, number)
    drawn = int(torch.randint(2**31, (1,), generator=own, device="cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(drawn)
        for module in other.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                raise ValueError(
                    f"model must have modules with reset_parameters, got {type(module).__name__}"
                )
    named = dict(other.named_parameters())
    found = {name: named[name.removeprefix("model.")].detach() for name in net.trained}
    return {name: w.to(net.trained[name]) for name, w in found.items()}
