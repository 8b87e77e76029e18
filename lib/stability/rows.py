"""Rows of per-sample Jacobians, a layer at a time: Jᵀ times given cotangents, sample by sample.

One backward pass through a batch gives every sample's signal at every layer; what a linear,
convolutional or normalising layer makes of it is a product with the layer's input. Everything else
goes through `torch.func`, and what that does not take through autograd, one sample at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vjp, vmap

from lib.stability.modules import PROBE, PerSample, count, part

# Numbers of a piece of rows: just below where an allocator clears new pages each time.
PIECE = 7 * 2**20
Piece = tuple[str, slice, slice, Tensor]
# From the outputs of a batch, (b, T, V), the r cotangents of each sample, (r, b, T, V).
Cotangents = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Use:
    """One call of a layer: its input (b, …) and the signals that came back to it, (b, r, …)."""

    names: dict[str, str]  # of the module's own parameters → of those trained
    layer: nn.Module
    input: Tensor
    signals: Tensor

    def piece(self, samples: slice, cotangents: slice) -> Use:
        """The same call, for some of its samples and of their cotangents."""
        signals = self.signals[samples, cotangents]
        return Use(self.names, self.layer, self.input[samples], signals)


@dataclass(frozen=True)
class RowSource:
    """Per-sample rows of a module's Jacobian.

    Attributes:
        net: the module.
        layered: names whose rows come from signals and inputs of their layers.
        crossed: those of them whose layer is linear, sees one vector a sample and is used once:
            their Gram matrix is (inputs' Gram matrix) ∘ (signals' Gram matrix).
        shape: (T, V) of one sample's outputs.
        signal: numbers that one backward pass keeps a sample.
    """

    net: PerSample
    layered: frozenset[str]
    crossed: frozenset[str]
    shape: tuple[int, int]
    signal: int = 0

    @property
    def rank(self) -> int:
        """Outputs a sample, T · V."""
        return self.shape[0] * self.shape[1]

    @classmethod
    def of(cls, net: PerSample, x: Any) -> RowSource:
        """Tries the layers on the first samples and keeps those that reproduce autograd there."""
        x = net.moved(part(x, slice(PROBE)))
        with torch.no_grad():
            _, tokens, classes = net.at(net.trained, x).shape
        if net.looped:
            return cls(net, frozenset(), frozenset(), (tokens, classes))
        weights: list[Tensor] = []

        def mix(out: Tensor) -> Tensor:
            generator = torch.Generator("cpu").manual_seed(0)
            draw = torch.randn(out.shape, generator=generator, dtype=out.dtype, device="cpu")
            weights.append(draw.to(out.device))
            return weights[0][None]

        uses = _uses(net, x, mix)
        seen = [name for use in uses for name in use.names.values()]
        names = dict.fromkeys(seen)
        rows = {name: _layer_rows(uses, name) for name in names}
        exact = _gradient(net, x, weights[0], list(names))
        layered = {k for k, r in rows.items() if r is not None and _agree(r, exact[k])}
        crossed = {
            name
            for use in uses
            for name in use.names.values()
            if type(use.layer) is nn.Linear and use.input.ndim == 2 and seen.count(name) == 1
        }
        signal = sum(use.signals[0].numel() for use in uses)
        crossed &= layered
        return cls(net, frozenset(layered), frozenset(crossed), (tokens, classes), signal)

    def blocks(
        self, x: Any, cotangents: Cotangents, crossed: bool = False
    ) -> tuple[Tensor, list[Use], Iterator[Piece]]:
        """Outputs, uses of crossed layers, and pieces of the rows of all the others.

        A piece is (name, samples, cotangents, rows): rows (b', r', p_name) for these ranges of the
        b samples and r cotangents, at most `PIECE` numbers where a layer makes them.

        Args:
            x: inputs of b samples.
            cotangents: called once, with the outputs.
            crossed: whether crossed layers are handed out as uses; else as rows like the others.
        """
        x = self.net.moved(x)
        kept: list[Tensor] = []

        def keep(out: Tensor) -> Tensor:
            kept.extend((out, cotangents(out)))
            return kept[1]

        uses = _uses(self.net, x, keep, self.layered)
        out, seeds = kept
        apart = self.crossed if crossed else frozenset()
        hand_out = [use for use in uses if apart & {*use.names.values()}]

        def others() -> Iterator[Piece]:
            slow = {k for k in self.net.trained if k not in self.layered}
            found = _slow_rows(self.net, x, seeds, slow) if slow else {}
            for name, weight in self.net.trained.items():
                if name in found:
                    yield name, slice(None), slice(None), found.pop(name)
                elif name not in apart:
                    for b, r in _pieces(len(out), len(seeds), weight.numel()):
                        rows = _layer_rows([use.piece(b, r) for use in uses], name)
                        assert rows is not None
                        yield name, b, r, rows

        return out, hand_out, others()


def _uses(
    net: PerSample, x: Any, cotangents: Cotangents, only: frozenset[str] | None = None
) -> list[Use]:
    """Every call of a known layer with trained parameters, in the order of the calls."""
    own = {id(p): k for k, p in net.module.named_parameters() if k in net.trained}
    calls: list[tuple[dict[str, str], nn.Module, Tensor, Tensor]] = []
    hooks = []

    def listen(layer: nn.Module, names: dict[str, str]) -> None:
        def hook(_: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            if len(args) != 1 or not isinstance(output, Tensor) or not output.requires_grad:
                return None
            calls.append((names, layer, args[0].detach(), output))
            return output.clone()  # an in-place activation must not overwrite the one kept

        hooks.append(layer.register_forward_hook(hook))

    for layer in net.module.modules():
        held = {k: own[id(p)] for k, p in layer.named_parameters(recurse=False) if id(p) in own}
        held = {k: name for k, name in held.items() if only is None or name in only}
        if held and _known(layer):
            listen(layer, held)
    try:
        with torch.enable_grad():
            leaves = {k: v.detach().requires_grad_() for k, v in net.trained.items()}
            out = net.at(leaves, x)
    finally:
        for handle in hooks:
            handle.remove()
    seeds = cotangents(out.detach())
    places = [output for *_, output in calls]
    if not places:
        return []
    back = [
        torch.autograd.grad(out, places, g, retain_graph=True, materialize_grads=True)
        for g in seeds
    ]
    b = out.shape[0]
    return [
        Use(names, layer, a, torch.stack([g[i] for g in back], dim=1))
        for i, (names, layer, a, z) in enumerate(calls)
        if z.shape[0] == b == a.shape[0]
    ]


def _known(layer: nn.Module) -> bool:
    if type(layer) in (nn.Conv1d, nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) in (nn.Linear, nn.GroupNorm, nn.LayerNorm) or isinstance(
        layer, nn.modules.batchnorm._BatchNorm
    )


def _pieces(b: int, r: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Ranges of samples and cotangents with at most `PIECE` numbers, one row at least."""
    rows = max(1, PIECE // size)
    samples, cotangents = max(1, rows // r), min(r, rows)
    for i in range(0, b, samples):
        for j in range(0, r, cotangents):
            yield slice(i, i + samples), slice(j, j + cotangents)


def _layer_rows(uses: list[Use], name: str) -> Tensor | None:
    """Σ over the uses of one parameter of its rows, (b, r, p_name)."""
    total: Tensor | None = None
    for use in uses:
        for kind, known in use.names.items():
            if known == name:
                rows = _rule(use, kind).flatten(2)
                total = rows if total is None else total + rows
    return total


def _rule(use: Use, kind: str) -> Tensor:
    """Rows of a layer's "weight" or "bias": signals times what the parameter multiplies."""
    layer, a, s = use.layer, use.input, use.signals
    b, r = s.shape[:2]
    if isinstance(layer, nn.Linear):
        s = s.reshape(b, r, -1, s.shape[-1])
        if kind == "bias":
            return s.sum(dim=2)
        return torch.einsum("brko,bkd->brod", s, a.reshape(b, -1, a.shape[-1]))
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        s = s.flatten(3)
        if kind == "bias":
            return s.sum(dim=3)
        columns = _columns(layer, a)
        grouped = s.view(b, r, layer.groups, -1, s.shape[3]).transpose(1, 2)
        rows = grouped.flatten(2, 3) @ columns.transpose(2, 3)  # (b, groups, r · out, in · kernel)
        return rows.view(*grouped.shape[:4], -1).transpose(1, 2)
    if kind == "weight":
        s = s * _normalised(layer, a)[:, None]
    if isinstance(layer, nn.LayerNorm):
        return s.reshape(b, r, -1, *layer.normalized_shape).sum(dim=2)
    return s.reshape(b, r, a.shape[1], -1).sum(dim=3)


def _columns(layer: nn.Conv1d | nn.Conv2d, a: Tensor) -> Tensor:
    """Input patches, (b, groups, channels · kernel, places)."""
    own = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    kernel, dilation, padding, stride = (tuple(int(v) for v in sizes) for sizes in own)
    if isinstance(layer, nn.Conv1d):  # one row of an image
        kernel, dilation, padding, stride = (
            (1, *kernel),
            (1, *dilation),
            (0, *padding),
            (1, *stride),
        )
        a = a[:, :, None]
    patches = F.unfold(a, kernel, dilation, padding, stride)
    return patches.view(len(a), layer.groups, -1, patches.shape[2])


def _normalised(layer: nn.Module, a: Tensor) -> Tensor:
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(a, layer.num_groups, eps=layer.eps)
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
    mean, variance = layer.running_mean, layer.running_var
    return F.batch_norm(a, _like(mean, a), _like(variance, a), eps=layer.eps)


def _like(statistic: Tensor | None, a: Tensor) -> Tensor | None:
    return None if statistic is None else statistic.to(a)


def _slow_rows(net: PerSample, x: Any, seeds: Tensor, names: set[str]) -> dict[str, Tensor]:
    """Rows of these parameters by `torch.func`, or by autograd one sample at a time."""
    asked = {k: v for k, v in net.trained.items() if k in names}
    rest = {k: v for k, v in net.trained.items() if k not in names}

    def one(sample: Any, seed: Tensor) -> dict[str, Tensor]:
        pull = vjp(lambda w: net.one(w | rest, sample), asked)[1]
        return vmap(pull)(seed)[0]

    if not net.looped:
        found = vmap(one, in_dims=(0, 1))(x, seeds)
        return {k: rows.flatten(2) for k, rows in found.items()}
    each = []
    for i in range(count(x)):
        with torch.enable_grad():
            leaves = {k: v.detach().requires_grad_() for k, v in asked.items()}
            out = net.one(leaves | rest, part(x, i))
        each.append([_grads(out, leaves, g) for g in seeds[:, i]])
    return {
        k: torch.stack([torch.stack([g[j].flatten() for g in gs]) for gs in each])
        for j, k in enumerate(asked)
    }


def _grads(out: Tensor, leaves: dict[str, Tensor], seed: Tensor) -> tuple[Tensor, ...]:
    if not out.requires_grad:
        return tuple(torch.zeros_like(v) for v in leaves.values())
    return torch.autograd.grad(
        out, list(leaves.values()), seed, retain_graph=True, materialize_grads=True
    )


def _gradient(net: PerSample, x: Any, seed: Tensor, names: list[str]) -> dict[str, Tensor]:
    with torch.enable_grad():
        leaves = {k: net.trained[k].detach().requires_grad_() for k in names}
        out = net.at(net.trained | leaves, x)
    return dict(zip(names, _grads(out, leaves, seed), strict=True))


def _agree(rows: Tensor, gradient: Tensor) -> bool:
    """Whether Σ_i rows_i is autograd's gradient, to what rounding leaves of the precision."""
    total, scale = rows.sum(dim=(0, 1)), rows.abs().sum(dim=(0, 1)).max()
    gap = (total - gradient.flatten()).abs().max()
    return bool(gap <= torch.finfo(rows.dtype).eps ** 0.6 * scale)
