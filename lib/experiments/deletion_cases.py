"""Small networks on real data with something to forget, and those that never saw it, many at once.

Fixed before the first run: 700 samples to train on and 300 to test; MLPs with 16 hidden units;
Adam, 30 epochs; three kinds of forget set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from lib.experiments.networks import FAMILIES
from lib.randomness import stream
from lib.unlearning.images import digits, fashion_mnist
from lib.unlearning.methods import retrain
from lib.unlearning.population import Population, losses_of, train

Data = Literal["digits", "fashion", "resnet"]
Kind = Literal["random", "class", "memorised"]
TRAINED, WATCHED, SPARE = 700, 300, 300
EPOCHS, RATE = 30, 0.01  # of Adam, batches of 50
SHARE, CLASS_SHARE = 0.1, 0.7
JUDGED, TUNED = 3, 5  # the class of which most is forgotten
FOLDS, PER_FOLD = 5, 3  # cross-fits behind the memorised set


@dataclass(frozen=True)
class Case:
    """Networks that are to forget, and networks that never saw what.

    data: their name; networks: trained on all TRAINED samples; inputs, targets: those and WATCHED
    test samples;
    retrained, again: weights (models, p) of two independent sets of retrained networks, the first
    of which is the reference; target: mean forget loss of one more retrained network.
    """

    data: Data
    networks: Population
    inputs: Tensor
    targets: Tensor
    retrained: Tensor
    again: Tensor
    target: float

    @property
    def forget(self) -> Tensor:
        """(TRAINED,) bool."""
        return self.networks.forget

    def first(self, models: int) -> Case:
        """The same with the first networks only."""
        few = replace(self.networks, weights=self.networks.stacked[:models])
        return replace(self, networks=few)

    def sets(self) -> tuple[Tensor, Tensor, Tensor]:
        """Masks over all samples: forget, retain, test."""
        test = torch.arange(len(self.inputs), device="cpu") >= len(self.forget)
        gone = torch.zeros_like(test)
        gone[: len(self.forget)] = self.forget
        return gone, ~gone & ~test, test


def architecture(data: Data) -> nn.Module:
    """An MLP with 16 hidden units on the digits or Fashion-MNIST, or the GroupNorm ResNet."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        if data == "resnet":
            return FAMILIES["resnet_groupnorm"].make().float().eval()
        width = 64 if data == "digits" else 784
        layers = nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 10)
        return nn.Sequential(nn.Flatten(), *layers).float().eval()


def samples(data: Data, seed: int) -> tuple[Tensor, Tensor]:
    """TRAINED + WATCHED samples in a random order of this seed."""
    inputs, targets = (part[: TRAINED + WATCHED] for part in _drawn(data, seed))
    return inputs, targets


def spare(data: Data, seed: int) -> tuple[Tensor, Tensor]:
    """SPARE samples more, which no network is trained or judged on: a holdout for `plan`."""
    inputs, targets = (part[TRAINED + WATCHED :] for part in _drawn(data, seed))
    return inputs, targets


def _drawn(data: Data, seed: int) -> tuple[Tensor, Tensor]:
    if data == "digits":
        drawn = digits(TRAINED, WATCHED + SPARE, seed=seed)
        return drawn.images.float(), drawn.digits.long()
    inputs, targets = fashion_mnist()
    order = torch.randperm(len(inputs), generator=stream("network data", seed), device="cpu")
    chosen = order[: TRAINED + WATCHED + SPARE]
    return inputs[chosen], targets[chosen]


@lru_cache(maxsize=2)
def originals(data: Data, seed: int, models: int) -> Tensor:
    """Weights of networks trained on all TRAINED samples."""
    inputs, targets = samples(data, seed)
    return _trained(data, inputs[:TRAINED], targets[:TRAINED], models, 4 * seed)


def _trained(data: Data, inputs: Tensor, targets: Tensor, models: int, seed: int) -> Tensor:
    net = architecture(data)
    return train(net, inputs, targets, models=models, epochs=EPOCHS, learning_rate=RATE, seed=seed)


def forget_set(data: Data, kind: Kind, seed: int, label: int) -> Tensor:
    """(TRAINED,) bool: a random tenth, 70 % of a class, or the tenth that is memorised most.

    Memorised, by a proxy of leaving one out: those with the highest mean loss under networks
    trained without their fold, of five folds with three networks each.
    """
    inputs, targets = (part[:TRAINED] for part in samples(data, seed))
    order = torch.randperm(TRAINED, generator=stream("forget set", seed), device="cpu")
    size = round(SHARE * TRAINED)
    if kind == "random":
        chosen = order[:size]
    elif kind == "class":
        members = order[targets[order] == label]
        chosen = members[: round(CLASS_SHARE * len(members))]
    else:
        chosen = held_out_losses(data, inputs, targets, order, seed).topk(size).indices
    return torch.zeros(TRAINED, dtype=torch.bool).index_fill_(0, chosen, True)


def held_out_losses(
    data: Data, inputs: Tensor, targets: Tensor, order: Tensor, seed: int
) -> Tensor:
    """Mean loss of every sample under the networks that did not train on its fold, (n,)."""
    found = torch.empty(len(inputs), dtype=torch.float32)
    for number, fold in enumerate(order.chunk(FOLDS)):
        kept = torch.ones(len(inputs), dtype=torch.bool).index_fill_(0, fold, False)
        part = 1000 * (seed + 1) + number
        weights = _trained(data, inputs[kept], targets[kept], PER_FOLD, part)
        held = Population(architecture(data), inputs, targets, ~kept, weights)
        outputs = held.outputs(inputs[fold])
        same = targets[fold].expand(PER_FOLD, -1)
        found[fold] = losses_of(outputs, same, "cross_entropy").mean(dim=0)
    return found


def case(data: Data, kind: Kind, *, seed: int, models: int, label: int) -> Case:
    """Train, and retrain twice, so many networks; one retrained network more gives the target."""
    inputs, targets = samples(data, seed)
    forget = forget_set(data, kind, seed, label)
    networks = Population(
        architecture(data), inputs[:TRAINED], targets[:TRAINED], forget,
        originals(data, seed, models),
    )  # fmt: skip
    retrained = [
        retrain(replace(networks, weights=weights), epochs=EPOCHS, learning_rate=RATE, seed=part)
        for part, weights in (
            (4 * seed + 1, networks.stacked),
            (4 * seed + 2, networks.stacked),
            (4 * seed + 3, networks.stacked[:1]),
        )
    ]
    target = float(networks.at(retrained[2]).mean_loss(forget)[0])
    return Case(data, networks, inputs, targets, retrained[0], retrained[1], target)
