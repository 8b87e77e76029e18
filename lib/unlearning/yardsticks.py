"""How far an unlearned model is from one that never saw the forget set: the field's yardsticks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.checks import require_count, require_finite, require_kind, require_room, require_share
from lib.randomness import seed_sequence
from lib.stability.losses import require_targets

BINS, CLIP, EMPTY = 20, 100.0, 1e-5


class Accuracies(NamedTuple):
    """Accuracies of one model on the forget, retain and test set, each in [0, 1].

    A bare tuple, which holds what it is given; `tug_of_war` checks it.
    """

    forget: float
    retain: float
    test: float


def tug_of_war(unlearned: Accuracies, retrained: Accuracies) -> float:
    """ToW = Π over forget, retain and test of 1 − |acc_unlearned − acc_retrained|, in [0, 1].

    1 where all three agree with a model retrained without the forget set. Accuracies alone do not
    show deletion: two models may agree in all three and not in one output.

    Raises:
        ValueError: naming the accuracy that is not in [0, 1].
        TypeError: naming the argument that is no `Accuracies`.

    Source: Zhao et al. (NeurIPS 2024), eq. 1; their α is 1 − ours.
    """
    require_kind("unlearned", unlearned, Accuracies)
    require_kind("retrained", retrained, Accuracies)
    score = 1.0
    for name, first, second in zip(Accuracies._fields, unlearned, retrained, strict=True):
        pair = require_share(f"unlearned.{name}", first), require_share(f"retrained.{name}", second)
        score *= 1 - abs(pair[0] - pair[1])
    return score


def margins(outputs: Tensor, targets: Tensor) -> Tensor:
    """z_y − log Σ_{c≠y} e^{z_c} of logits (…, samples, C) and classes (samples,); (…, samples).

    Raises:
        ValueError: naming the argument, for logits that are not finite, fewer than two of them a
            sample, or classes outside [0, C).
    """
    require_kind("outputs", outputs, Tensor)
    require_finite("outputs", outputs, *["models"] * (outputs.ndim - 2), "samples", "C")
    samples, classes = outputs.shape[-2:]
    require_count("outputs' number of classes", classes, 2)
    targets = require_targets("cross_entropy", targets, samples, 1, classes).long()
    index = targets.to(outputs.device).expand(outputs.shape[:-1])[..., None]
    own = outputs.gather(-1, index)[..., 0]
    found = own - outputs.scatter(-1, index, -torch.inf).logsumexp(-1)
    require_finite("outputs' margins", found, *found.shape)  # a difference may overflow
    return found


def klom(unlearned_margins: Tensor, retrained_margins: Tensor) -> Tensor:
    """KLoM: per sample KL(unlearned ‖ retrained) of the margins' distributions over models, nats.

    Margins are clipped to ±100 and counted in 20 bins over both models' common range; 1e-5 is added
    to every bin's share before either histogram is normalised. Its floor, what equal distributions
    give, falls with the number of models: show `klom_floor` beside it; never use fewer than 100.

    Args:
        unlearned_margins, retrained_margins: (models, samples) each; numbers of models may differ.

    Returns:
        (samples,) float64, ≥ 0.

    Raises:
        ValueError: naming the argument that is not finite or of another shape.

    Source: Georgiev et al. (arXiv 2410.23232), section on KL divergence of margins.
    """
    require_finite("unlearned_margins", unlearned_margins, "models", "samples")
    samples = unlearned_margins.shape[1]
    require_finite("retrained_margins", retrained_margins, "models", samples)
    for name, values in (
        ("unlearned_margins", unlearned_margins),
        ("retrained_margins", retrained_margins),
    ):
        require_count(f"{name}' number of models", len(values), 2)
    u, r = (m.double().clamp(-CLIP, CLIP) for m in (unlearned_margins, retrained_margins))
    low = torch.minimum(u.amin(0), r.amin(0))
    width = torch.maximum(u.amax(0), r.amax(0)) - low
    p, q = (_shares(m, low, width) for m in (u, r))
    return (p * (p / q).log()).sum(dim=0)


def _shares(margin: Tensor, low: Tensor, width: Tensor) -> Tensor:
    """Smoothed histogram of each column, (bins, samples); a range of width 0 is one bin."""
    place = torch.where(width > 0, (margin - low) / width, 0.0)
    bins = (place * BINS).long().clamp_max(BINS - 1)
    counts = torch.zeros(BINS, margin.shape[1], dtype=torch.float64, device=margin.device)
    counts.scatter_add_(0, bins, torch.ones_like(margin))
    shares = counts / len(margin) + EMPTY
    return shares / shares.sum(dim=0)


def klom_floor(models: int, *, repeats: int = 1000, seed: int = 0) -> tuple[float, float]:
    """What `klom` gives for two equal Gaussian distributions: mean and 95th percentile.

    Args:
        models: number N in either set, ≥ 2.
        repeats: pairs of sets that are drawn; N·repeats at most 2²⁴.
        seed: of the draws.

    Raises:
        ValueError: naming the argument.
    """
    models, repeats = require_count("models", models, 2), require_count("repeats", repeats, 1)
    require_room("models and repeats", 2, 4, models, repeats)  # what is made of each set
    generator = np.random.default_rng(seed_sequence("KLoM floor", seed))
    pair = torch.from_numpy(generator.standard_normal((2, models, repeats)))
    found = klom(*pair).numpy()
    return float(found.mean()), float(np.quantile(found, 0.95))
