"""What a plan is about: a model's samples, the part to forget, and the loss it should come to."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from lib.checks import (
    describe,
    holds_numbers,
    require_above,
    require_choice,
    require_count,
    require_device,
    require_mask,
    require_nonnegative,
    shown,
)
from lib.randomness import stream
from lib.stability.algorithm import AscentDescent
from lib.stability.losses import LOSSES, require_targets
from lib.stability.modules import Chosen, Forward, count, mapped, part, per_sample, samples
from lib.unlearning.network_run import NetworkPath, run_network
from lib.unlearning.tangent import TangentModel

WATCHED = 1000  # held-out samples that a plan follows
MEMORY = 6 * 2**30  # bytes of a kernel
FACTOR = 2.0  # by which a class's forgotten share may differ from the overall one
UNLIKELY = 1e-3  # chance that a random draw is refused for its classes


@dataclass(frozen=True)
class Data:
    """What is said of samples where they are not kept.

    samples of the dataset, forgotten, those of them to forget, held out; loss; names of the trained
    parameters; sha256 of all targets and the forget mask.
    """

    samples: int
    forgotten: int
    held: int
    loss: str
    names: tuple[str, ...] | None
    sha256: str


@dataclass(frozen=True)
class Task:
    """Samples of a dataset, then of a holdout, and what of the dataset is to be forgotten.

    Attributes:
        inputs, targets: of all samples, the dataset's n first.
        forget: (n,) bool.
        loss: its name.
        forward, device: as in `TangentModel.from_model`.
        names: of the parameters that are trained.
    """

    inputs: Any
    targets: Tensor
    forget: Tensor
    loss: str
    forward: Forward | None
    names: tuple[str, ...] | None
    device: torch.device | str | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        dataset: Any,
        forget: Any,
        holdout: Any,
        loss: str,
        *,
        forward: Forward | None,
        parameters: Chosen,
        device: torch.device | str | None,
    ) -> Task:
        """The task, with arguments as in `plan`.

        Raises:
            ValueError: naming the argument.
        """
        require_choice("loss", loss, LOSSES)
        require_device(device)
        (x, y), (held_x, held_y) = _pair("dataset", dataset), _pair("holdout", holdout)
        mask = require_mask(forget, count(x)).cpu()
        with _about("dataset"):
            net = per_sample(model, x, forward=forward, parameters=parameters, device=device)
        shape = net.at(net.trained, net.moved(part(x, slice(1)))).shape[1:]
        if shape[0] > 1:
            raise ValueError(
                f"model must give one row of outputs a sample, got {tuple(shape)}, one row a "
                f"token, whose kernel has (samples·{shape.numel()})² entries: pass forward= that "
                f"gives (n, C), such as the logits of one token or of a class head"
            )
        for name, labels in (("dataset", y), ("holdout", held_y)):
            with _about(name):
                require_targets(loss, labels, len(labels), 1, shape[-1])
        names = tuple(name.removeprefix("model.") for name in net.trained)
        targets = _stacked(y, held_y)
        return cls(_stacked(x, held_x), targets, mask, loss, forward, names, device)

    def data(self) -> Data:
        """Counts and a hash, to know the same samples again."""
        n, digest = len(self.forget), hashlib.sha256()
        for tensor in (self.targets.double(), self.forget):
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
        gone, held = int(self.forget.sum()), len(self.targets) - n
        return Data(n, gone, held, self.loss, self.names, digest.hexdigest())

    def state(self, model: nn.Module, monitored: Tensor | None = None) -> NetworkPath:
        """Losses and accuracies of a model as it is, one row."""
        update = AscentDescent(0.5, 1, 1)
        return self.run(model, update, 0.0, steps=0, seed=0, monitored=monitored)

    def write(self, model: nn.Module, weights: Tensor) -> None:
        """Set the trained parameters in place to `weights`, (p,) in their order."""
        net = per_sample(
            model, self.inputs, forward=self.forward, parameters=self.names, device=self.device
        )
        own = dict(net.module.named_parameters())
        pieces = weights.split([w.numel() for w in net.trained.values()])
        with torch.no_grad():
            for name, piece in zip(net.trained, pieces, strict=True):
                own[name].copy_(piece.view_as(own[name]))

    def run(
        self,
        model: nn.Module,
        algorithm: AscentDescent,
        learning_rate: float,
        *,
        steps: int,
        seed: int,
        until: Callable[[float, float], bool] | None = None,
        monitored: Tensor | None = None,
    ) -> NetworkPath:
        """`run_network` on this task."""
        return run_network(
            model,
            self.inputs,
            self.targets,
            self.forget,
            algorithm,
            learning_rate,
            trained=len(self.forget),
            steps=steps,
            loss=self.loss,
            seed=seed,
            forward=self.forward,
            parameters=self.names,
            device=self.device,
            until=until,
            monitored=monitored,
        )

    def sampled(self, most: int, seed: int) -> tuple[Task, Tensor]:
        """At most `most` samples of the dataset and 1,000 of the holdout, and their indices.

        The forget set comes first, all of it up to most/2, the rest is drawn from what is retained.

        Raises:
            ValueError: most < 2.
        """
        require_count("max_samples", most, 2)
        n = len(self.forget)
        generator = stream("plan samples", seed)
        gone, kept = (
            members.nonzero()[:, 0][
                torch.randperm(int(members.sum()), generator=generator, device="cpu")
            ]
            for members in (self.forget, ~self.forget)
        )
        if n > most:
            gone = gone[: max(most // 2, most - len(kept))]
            kept = kept[: most - len(gone)]
        held = (
            n + torch.randperm(len(self.targets) - n, generator=generator, device="cpu")[:WATCHED]
        )
        chosen = torch.cat([gone, kept, held]).sort().values
        small = replace(
            self,
            inputs=part(self.inputs, chosen),
            targets=self.targets[chosen],
            forget=self.forget[chosen[chosen < n]],
        )
        return small, chosen

    def tangent(self, model: nn.Module, *, sketch: int | None, seed: int) -> TangentModel:
        """The tangent model of all samples, those of the dataset trained.

        Raises:
            ValueError: naming max_samples if its kernel does not fit into 6 GiB, and what does.
        """
        n, total = len(self.forget), len(self.targets)
        net = per_sample(
            model, self.inputs, forward=self.forward, parameters=self.names, device=self.device
        )
        c = net.at(net.trained, net.moved(part(self.inputs, slice(1)))).shape[-1]
        if 4 * total * n * c**2 > MEMORY:
            held = total - n
            fits = int(((held**2 + MEMORY / c**2) ** 0.5 - held) / 2)
            raise ValueError(
                f"max_samples must be at most {fits} with {c} outputs and {held} held-out samples, "
                f"for a kernel of {MEMORY / 2**30:.0f} GiB, got {n}, which takes "
                f"{4 * total * n * c**2 / 2**30:.1f} GiB"
            )
        return TangentModel.from_model(
            model,
            self.inputs,
            trained=n,
            forward=self.forward,
            parameters=self.names,
            sketch=sketch,
            device=self.device,
            seed=seed,
        )

    def target(self, target: Any, start: NetworkPath) -> float:
        """The forget loss to come to: a number, a retrained model's, or the held-out loss.

        Args:
            target: as in `plan`.
            start: the model's own `state`.

        Raises:
            ValueError: naming target, or for "holdout" a class that shows that the forget set is no
                random draw.
        """
        if isinstance(target, nn.Module):
            other = copy.deepcopy(target).eval().requires_grad_(True)
            with _about("target"):
                found = replace(self, names=None).state(other).forget_loss
            return require_nonnegative("target, as a model, forget loss", float(found[0, 0]))
        if isinstance(target, str):
            if target != "holdout":
                raise ValueError(
                    f'target must be "holdout", a loss > 0 or a retrained model, got {target!r}'
                )
            self._require_random()
            return float(start.watched_loss[0, 0])
        return require_above("target", target, 0)

    def _require_random(self) -> None:
        """ValueError if a class's forgotten share shows that the forget set is no random draw."""
        if self.loss == "squared":
            return
        n = len(self.forget)
        labels = self.targets[:n].flatten()
        gone, share = int(self.forget.sum()), float(self.forget.double().mean())
        classes = labels.unique()
        for label in classes.tolist():
            size = int((labels == label).sum())
            here = int((labels[self.forget] == label).sum())
            law = stats.hypergeom(n, size, gone)
            chance = law.sf(here - 1) if here > share * size else law.cdf(here)
            off = not share / FACTOR <= here / size <= FACTOR * share
            if off and chance < UNLIKELY / len(classes):
                raise ValueError(
                    f'target must be a loss or a retrained model, got "holdout" where '
                    f"{here / size:.0%} of class {label} are forgotten but {share:.0%} of all: "
                    f"held-out samples stand in for forgotten ones only if the forget set is a "
                    f"random draw; for a class they ask for far too little"
                )


@contextmanager
def _about(name: str) -> Iterator[None]:
    """A ValueError inside says which of `plan`'s arguments it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _pair(name: str, data: Any) -> tuple[Any, Tensor]:
    """Inputs and targets as tensors of one length, all of them finite."""
    is_pair = isinstance(data, tuple | list) and len(data) == 2
    with _about(name):
        if is_pair:
            x, y = data
        elif isinstance(data, Mapping) and "labels" in data:
            x, y = {k: v for k, v in data.items() if k != "labels"}, data["labels"]
        else:
            x, y = samples(data, None)
        if y is None:
            raise ValueError("must be (inputs, targets) or a Dataset of such pairs, got no targets")
        x = mapped(_finite, x if isinstance(x, Tensor | Mapping | tuple | list) else _tensor(x))
        y = _finite(_tensor(y)).cpu()
        if y.ndim == 0 or count(x) != len(y):
            raise ValueError(f"must hold a target a sample, got {count(x)} and {describe(y)}")
    return x, y


def _tensor(values: Any) -> Tensor:
    """An array or anything that NumPy makes one of, as a tensor; ValueError for no numbers."""
    try:
        return values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"must hold numbers, got {shown(values)}") from error


def _finite(tensor: Tensor) -> Tensor:
    """The tensor without its graph; ValueError unless it is dense and holds finite real numbers."""
    if tensor.is_complex() or not holds_numbers(tensor) or not bool(tensor.isfinite().all()):
        raise ValueError(f"must hold finite real numbers in dense tensors, got {describe(tensor)}")
    return tensor.detach()


def _stacked(first: Any, second: Any) -> Any:
    """Samples of two tensors, dicts or tuples of tensors, one after the other.

    Raises:
        ValueError: naming holdout, whose samples are not like the dataset's.
    """
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        alike = first.is_floating_point() == second.is_floating_point()
        if alike and first.shape[1:] == second.shape[1:]:
            return torch.cat([first, second.to(first)])
    elif isinstance(first, Mapping) and isinstance(second, Mapping):
        if first.keys() == second.keys():
            return {key: _stacked(value, second[key]) for key, value in first.items()}
    elif isinstance(first, tuple) and isinstance(second, tuple) and len(first) == len(second):
        return tuple(_stacked(a, b) for a, b in zip(first, second, strict=True))
    raise ValueError(
        f"holdout must hold samples like the dataset's, {_said(first)}, got {_said(second)}"
    )


def _said(x: Any) -> str:
    return describe(x) if isinstance(x, Tensor) else f"a {type(x).__name__} of {len(x)}"
