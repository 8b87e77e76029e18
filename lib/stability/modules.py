"""Torch modules seen one sample at a time: what is trained, what is not, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from lib.checks import describe, holds_numbers

Forward = Callable[[nn.Module, Any], Tensor]
Chosen = str | Iterable[str] | Iterable[nn.Parameter] | Callable[[str], bool] | None
# Samples on which a module is tried before its Jacobians are believed.
PROBE = 8
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_NOISY = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
)


class _Called(nn.Module):
    """`model` behind `forward`, so that one functional call swaps its parameters."""

    def __init__(self, model: nn.Module, forward: Forward | None) -> None:
        super().__init__()
        self.model, self.way = model, forward

    def forward(self, x: Any) -> Any:
        return self.model(x) if self.way is None else self.way(self.model, x)


@dataclass(frozen=True)
class PerSample:
    """A module as a function of its trained parameters and of one batch of inputs.

    Attributes:
        module: takes a batch; its parameters have the names of `trained` and `fixed`.
        trained: what is differentiated, by name, detached, float32 or wider.
        fixed: all other parameters and copies of the buffers, so that no call writes to the model.
        looped: whether vmap does not take the module: then samples go one by one.
    """

    module: nn.Module
    trained: dict[str, Tensor]
    fixed: dict[str, Tensor]
    looped: bool = False

    @property
    def device(self) -> torch.device:
        """Where the trained parameters are."""
        return next(iter(self.trained.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The widest type among the trained parameters."""
        found = torch.float32
        for parameter in self.trained.values():
            found = torch.promote_types(found, parameter.dtype)
        return found

    def at(self, trained: dict[str, Tensor], x: Any) -> Tensor:
        """Outputs of a batch, (b, T, V): T = 1 unless the module gives one row of V a token."""
        out = functional_call(self.module, trained | self.fixed, (x,))
        return out if out.ndim == 3 else out.reshape(out.shape[0], 1, -1)

    def one(self, trained: dict[str, Tensor], x: Any) -> Tensor:
        """Outputs of one sample without its batch dimension, (T, V)."""
        return self.at(trained, mapped(lambda t: t[None], x))[0]

    def moved(self, x: Any) -> Any:
        """Inputs where the parameters are, in float32 where they are narrower."""
        return mapped(lambda t: _wide(t).to(self.device), x)


def per_sample(
    model: nn.Module,
    inputs: Any,
    *,
    forward: Forward | None = None,
    parameters: Chosen = None,
    device: torch.device | str | None = None,
) -> PerSample:
    """The module, tried on the first inputs, as a function of one sample.

    Args:
        model: in eval mode; DataParallel and compiled wrappers are taken off.
        inputs: tensor, dict or tuple of tensors, batch first.
        forward: (model, inputs) → logits, where calling the model does not give one tensor.
        parameters: see `Curvature.from_model`.
        device: where to compute; by default where the parameters are.

    Raises:
        ValueError: naming the argument and what is in the way: a scripted module, randomness,
            samples that see one another, an output that is no tensor of 1 to 3 dimensions.
    """
    model = _unwrapped(model)
    _require_eval(model)
    if forward is not None and not callable(forward):
        raise ValueError(f"forward must be a function of model and inputs, got {forward!r}")
    called = _Called(model, forward)
    named = dict(called.named_parameters())
    buffers = {k: v.clone() for k, v in called.named_buffers()}
    chosen = _chosen(model, parameters)

    def ready(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: _wide(v.detach()).to(device or v.device) for k, v in tensors.items()}

    trained = ready({k: v for k, v in named.items() if id(v) in chosen})
    fixed = ready({k: v for k, v in named.items() if id(v) not in chosen} | buffers)
    net = PerSample(called, trained, fixed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return PerSample(called, trained, fixed, looped=_tried(net, part(inputs, slice(PROBE))))


def mapped(function: Callable[[Tensor], Tensor], x: Any) -> Any:
    """`function` of each tensor in a tensor, dict or tuple of tensors."""
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, Mapping):
        return {k: mapped(function, v) for k, v in x.items()}
    if isinstance(x, tuple | list):
        return tuple(mapped(function, v) for v in x)
    raise ValueError(f"inputs must be tensors, or dicts or tuples of them, got {type(x).__name__}")


def part(x: Any, chosen: slice | Tensor | int) -> Any:
    """Those samples of a tensor, dict or tuple of tensors."""
    return mapped(lambda t: t[chosen], x)


def count(x: Any) -> int:
    """Number of samples; ValueError unless all tensors of the inputs have as many."""
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        if not holds_numbers(tensor):
            raise ValueError(f"inputs must be dense tensors of numbers, got {describe(tensor)}")
        sizes.append(len(tensor) if tensor.ndim else 0)
        return tensor

    mapped(note, x)
    if len(set(sizes)) != 1 or not sizes[0]:
        raise ValueError(f"inputs must hold one number ≥ 1 of samples, got {sizes}")
    return sizes[0]


def samples(inputs: Any, targets: Tensor | None) -> tuple[Any, Tensor | None]:
    """Inputs and targets as tensors, in the order of a Dataset or an unshuffled DataLoader.

    Raises:
        ValueError: for a loader that shuffles: then no position means one sample.
    """
    if isinstance(inputs, DataLoader):
        sequential = isinstance(inputs.sampler, SequentialSampler)
        if not sequential or type(inputs.batch_sampler) not in (BatchSampler, type(None)):
            raise ValueError("inputs must be a DataLoader with shuffle=False and no own sampler")
        loader = inputs
    elif isinstance(inputs, Dataset):
        loader = DataLoader(inputs, batch_size=256)
    else:
        return inputs, targets
    with torch.random.fork_rng(devices=[]):  # a loader draws a seed for its workers
        batches = [_pair(batch) for batch in loader]
    joined = _joined([x for x, _ in batches])
    if targets is None and all(y is not None for _, y in batches):
        targets = _joined([y for _, y in batches])
    return joined, targets


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Mapping) and "labels" in batch:
        return {k: v for k, v in batch.items() if k != "labels"}, batch["labels"]
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return batch[0], None
    return batch, None


def _joined(batches: list[Any]) -> Any:
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(batches)
    if isinstance(first, Mapping):
        return {k: _joined([b[k] for b in batches]) for k in first}
    return tuple(_joined([b[i] for b in batches]) for i in range(len(first)))


def _wide(tensor: Tensor) -> Tensor:
    narrow = tensor.is_floating_point() and tensor.itemsize < 4
    return tensor.float() if narrow else tensor


def _unwrapped(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    while isinstance(model, _WRAPPERS) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, _WRAPPERS) else model._orig_mod
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError("model must not be TorchScript: pass the module that was scripted")
    return model


def _require_eval(model: nn.Module) -> None:
    for name, module in model.named_modules():
        dropping = isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout > 0
        if module.training and (dropping or isinstance(module, _NOISY)):
            kind = type(module).__name__
            raise ValueError(
                f"model must be in eval mode, got {name or 'it'} ({kind}) in training mode"
            )


def _chosen(model: nn.Module, parameters: Chosen) -> set[int]:
    """Identities of the chosen parameters; ValueError for none, or a name that fits none."""
    named = list(model.named_parameters(remove_duplicate=False))
    wanted: list[Any] = []
    if parameters is None:
        chosen = {id(p) for _, p in named if p.requires_grad}
    elif callable(parameters):
        chosen = {id(p) for k, p in named if parameters(k)}
    elif isinstance(parameters, Iterable):
        wanted = [parameters] if isinstance(parameters, str) else list(parameters)
        chosen = set()
    else:
        raise ValueError(f"parameters must be names, a function or Parameters, got {parameters!r}")
    for item in wanted:
        if isinstance(item, str):
            found = {id(p) for k, p in named if k == item or k.startswith(item.rstrip(".") + ".")}
        else:
            found = {id(p) for _, p in named if p is item}
        if not found:
            known = item if isinstance(item, str) else type(item).__name__
            raise ValueError(f"parameters must name, or be, some of the model's, got {known!r}")
        chosen |= found
    if not chosen:
        raise ValueError("parameters must select at least one of the model's, got none to train")
    return chosen


def _tried(net: PerSample, x: Any) -> bool:
    """Whether samples must go one by one; ValueError if the module is no function of one sample."""
    x = net.moved(x)
    state = torch.random.get_rng_state()
    try:
        out = functional_call(net.module, net.trained | net.fixed, (x,))
    except Exception as error:
        raise ValueError(f"model must take the inputs, got {error}") from error
    _require_output(out, count(x))
    again = functional_call(net.module, net.trained | net.fixed, (x,))
    drawn = not torch.equal(state, torch.random.get_rng_state())
    if drawn or not torch.equal(out.nan_to_num(), again.nan_to_num()):
        raise ValueError("model must give the same outputs each time, got random ones")
    together = net.at(net.trained, x)
    try:
        alone, looped = vmap(net.one, in_dims=(None, 0))(net.trained, x), False
    except Exception as error:
        if "random operation" in str(error):
            raise ValueError("model must draw no random numbers, got a layer that does") from error
        alone, looped = _one_by_one(net, x), True
    gap, scale = float((together - alone).abs().max()), float(together.abs().max())
    if gap > torch.finfo(out.dtype).eps ** 0.5 * scale:
        raise ValueError(f"model must see each sample alone, got outputs that differ by {gap:.3g}")
    return looped


def _one_by_one(net: PerSample, x: Any) -> Tensor:
    try:
        return torch.stack([net.one(net.trained, part(x, i)) for i in range(count(x))])
    except Exception as error:
        raise ValueError(f"model must see each sample alone, got {error}") from error


def _require_output(out: Any, n: int) -> None:
    if not isinstance(out, Tensor):
        kind = type(out).__name__
        raise ValueError(f"model must return one tensor, got {kind}: pass forward= to make it one")
    if not out.is_floating_point() or not 1 <= out.ndim <= 3 or len(out) != n or not out.numel():
        raise ValueError(
            f"model must give outputs ({n},), ({n}, C) or ({n}, tokens, V), got {describe(out)}"
        )
