"""The kinds of model that curvature is computed for, and those that are refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Kind(NamedTuple):
    """A kind of model on a few samples; `refused` is what the error says, None where it works.

    make: () → (model, inputs, targets) under a fixed seed; loss and options as for `from_model`.
    """

    name: str
    make: Callable[[], tuple[nn.Module, Any, Tensor]]
    options: Mapping[str, Any] = MappingProxyType({})
    loss: str = "cross_entropy"
    refused: str | None = None
    note: str = ""


def images(n: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 2, 6, 6), torch.arange(n) % 3


def vectors(n: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 4), torch.arange(n) % 3


def tokens(n: int = 5, length: int = 4, words: int = 6) -> Tensor:
    return torch.randint(0, words, (n, length))


class Block(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList([norm(4), norm(4)])
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act(self.norms[0](self.first(x)))
        return self.act(self.norms[1](self.second(inner)) + x)


def resnet(norm: Callable[[int], nn.Module], *tail: nn.Module) -> nn.Sequential:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), *tail, nn.Linear(4, 3))
    model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), norm(4), nn.Tanh(), Block(norm), *head)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = torch.randn(4) / 4
            layer.running_var = 0.5 + torch.rand(4)
    return model.eval()


def mlp(*tail: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), *tail, nn.Linear(5, 3))


class Tied(nn.Module):
    """One weight for two layers of the same name, and one taken across a transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.again, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.again.weight = self.into.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.again(torch.tanh(self.into(x)))) @ self.into.weight)


class LowRank(nn.Module):
    """LoRA: a frozen linear layer and a trained product of two thin matrices."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.randn(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_a.T @ self.lora_b.T


def lora() -> nn.Module:
    return nn.Sequential(LowRank(nn.Linear(4, 5)), nn.Tanh(), LowRank(nn.Linear(5, 3)))


class Language(nn.Module):
    """A causal token transformer whose head is its embedding's weight."""

    def __init__(self, words: int = 6, width: int = 4, pooled: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.place = nn.Parameter(torch.randn(4, width))
        layer = nn.TransformerEncoderLayer(width, 2, 8, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 3) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]).to(self.place)
        hidden = self.body(self.embedding(x) + self.place, mask=mask)
        if self.head is not None:
            return self.head(hidden.mean(dim=1))
        return hidden @ self.embedding.weight.T


def masked_words() -> tuple[nn.Module, Tensor, Tensor]:
    targets = tokens()
    targets[0, 2:], targets[3] = -100, -100
    return Language().eval(), tokens(), targets


class Answers(nn.Module):
    """Gives a dict or a tuple; takes a dict."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.body, self.kind = mlp(), kind

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        logits = self.body(x if scale is None else x * scale)
        return {"logits": logits, "hidden": x} if self.kind is dict else (logits, x)


def keyed() -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    x, y = vectors()
    return Answers(dict), {"x": x, "scale": torch.rand(6, 1) + 0.5}, y


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(3, 4, num_layers=2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Branching(nn.Module):
    """Decides by the value of each sample which layer it goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.left(v) if v[0] > 0 else self.right(v) for v in x])


class Called(nn.Module):
    """A layer and then any function of its outputs."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(4, 3), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x))


def frozen_part() -> nn.Module:
    model = resnet(lambda c: nn.GroupNorm(2, c))
    model[0].requires_grad_(False)
    return model


def half(dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    x, y = vectors()
    return mlp().to(dtype), x.to(dtype), y


def training(*tail: nn.Module) -> nn.Module:
    return mlp(*tail).train()


def _first(model: nn.Module, x: Any) -> Tensor:
    return model(x)[0]


def _logits(model: nn.Module, x: Any) -> Tensor:
    return (model(**x) if isinstance(x, dict) else model(x))["logits"]


def _of(model: Callable[[], Any], data: Callable[[], tuple] = vectors) -> Callable:
    return lambda: (model(), *data())


WORKS = [
    Kind("ResNet, BatchNorm in eval mode", _of(lambda: resnet(nn.BatchNorm2d), images)),
    Kind("ResNet, GroupNorm", _of(lambda: resnet(lambda c: nn.GroupNorm(2, c)), images)),
    Kind("ResNet, dropout in eval mode", _of(lambda: resnet(nn.BatchNorm2d, nn.Dropout()), images)),
    Kind("some layers frozen", _of(frozen_part, images)),
    Kind("weights tied or used twice", _of(Tied)),
    Kind("LoRA adapters", _of(lora)),
    Kind("last layer only", _of(mlp), {"parameters": ["2"]}, note="`parameters=`"),
    Kind("float32", lambda: half(torch.float32)),
    Kind("float16", lambda: half(torch.float16), note="differentiated in float32"),
    Kind("bfloat16", lambda: half(torch.bfloat16), note="differentiated in float32"),
    Kind(
        "token transformer, one class a sequence",
        lambda: (Language(pooled=True).eval(), tokens(), torch.arange(5) % 3),
    ),
    Kind("language model, one class a token", masked_words, note="−100 masks a token"),
    Kind("output in a tuple", _of(lambda: Answers(tuple)), {"forward": _first}, note="`forward=`"),
    Kind("output and input in a dict", keyed, {"forward": _logits}, note="`forward=`"),
    Kind("DataParallel", _of(lambda: nn.DataParallel(mlp())), note="unwrapped"),
    Kind("torch.compile'd", _of(lambda: torch.compile(mlp())), note="unwrapped"),
    Kind(
        "GRU, LSTM",
        lambda: (Recurrent(), torch.randn(5, 4, 3), torch.arange(5) % 3),
        note="one sample at a time",
    ),
    Kind("branches that depend on the data", _of(Branching), note="one sample at a time"),
]

REFUSED = [
    Kind("TorchScript", _of(lambda: torch.jit.script(mlp())), refused="TorchScript"),
    Kind("dict output without `forward=`", _of(lambda: Answers(dict)), refused="got dict"),
    Kind("tuple output without `forward=`", _of(lambda: Answers(tuple)), refused="got tuple"),
    Kind("everything frozen", _of(lambda: mlp().requires_grad_(False)), refused="none to train"),
    Kind("dropout in training mode", _of(lambda: training(nn.Dropout())), refused=r"\(Dropout\)"),
    Kind(
        "alpha dropout in training mode",
        _of(lambda: training(nn.AlphaDropout())),
        refused=r"\(AlphaDropout\)",
    ),
    Kind(
        "BatchNorm in training mode",
        _of(lambda: training(nn.BatchNorm1d(5))),
        refused=r"\(BatchNorm1d\)",
    ),
    Kind(
        "BatchNorm without running statistics",
        _of(lambda: mlp(nn.BatchNorm1d(5, track_running_stats=False)).eval()),
        refused="each sample alone",
    ),
    Kind("RReLU in training mode", _of(lambda: training(nn.RReLU())), refused=r"\(RReLU\)"),
    Kind(
        "attention with dropout in training mode",
        lambda: (
            Called(nn.MultiheadAttention(3, 1, dropout=0.5, batch_first=True)),
            *vectors(),
        ),
        refused=r"\(MultiheadAttention\)",
    ),
    Kind(
        "GRU with dropout in training mode",
        _of(lambda: Called(nn.GRU(3, 3, 2, dropout=0.5))),
        refused=r"\(GRU\)",
    ),
    Kind(
        "FractionalMaxPool",
        _of(
            lambda: nn.Sequential(nn.FractionalMaxPool2d(2, 3), resnet(nn.BatchNorm2d)).eval(),
            images,
        ),
        refused="same outputs each time",
    ),
    Kind(
        "dropout called as a function",
        _of(lambda: Called(F.dropout).eval()),
        refused="same outputs each time",
    ),
    Kind(
        "samples that see one another",
        _of(lambda: Called(lambda z: z - z.mean(dim=0))),
        refused="each sample alone",
    ),
    Kind(
        "images as outputs",
        _of(lambda: nn.Conv2d(2, 3, 3).eval(), images),
        refused=r"outputs \(6,\), \(6, C\) or \(6, tokens, V\)",
    ),
]
