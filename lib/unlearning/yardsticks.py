"""How far an unlearned model is from one that never saw the forget set: the field's yardsticks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor

from lib.checks import (
    require_count,
    require_finite,
    require_kind,
    require_room,
    require_share,
    shown,
)
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


def accuracy_gap(unlearned: Accuracies, retrained: Accuracies) -> Accuracies:
    """|acc_unlearned − acc_retrained| on the forget, retain and test set, each in [0, 1].

    Raises:
        ValueError: naming the accuracy that is not in [0, 1].
    """
    gaps = []
    for name in Accuracies._fields:
        pair = []
        for which, model in (("unlearned", unlearned), ("retrained", retrained)):
            require_kind(which, model, Accuracies)
            pair.append(require_share(f"{which}.{name}", getattr(model, name)))
        gaps.append(abs(pair[0] - pair[1]))
    return Accuracies(*gaps)


def weight_gap(unlearned_weights: Tensor, retrained_weights: Tensor) -> Tensor:
    """‖w_unlearned − w_retrained‖/‖w_retrained‖ of each pair of models; 0 says the same weights.

    Two models retrained from different starts are far apart in it, about √2 where they have nothing
    in common: read it beside theirs.

    Args:
        unlearned_weights, retrained_weights: (models, p) each, in pairs.

    Returns:
        (models,) float64.

    Raises:
        ValueError: naming the argument of another shape, not finite, or zero where it divides.
    """
    require_finite("unlearned_weights", unlearned_weights, "models", "p")
    require_finite("retrained_weights", retrained_weights, *unlearned_weights.shape)
    u, r = unlearned_weights.double(), retrained_weights.double()
    length = r.norm(dim=1)
    if not bool((length > 0).all()):
        raise ValueError("retrained_weights must not be zero for any model, got a norm of 0")
    gap = (u - r).norm(dim=1) / length
    if not bool(gap.isfinite().all()):
        raise ValueError(
            f"unlearned_weights over retrained_weights must be within float64's range, "
            f"got {shown(gap.tolist())}"
        )
    return gap


def output_gap(unlearned_outputs: Tensor, retrained_outputs: Tensor) -> Tensor:
    """Mean over samples of ½Σ_c |p_c − q_c|, p and q the softmax of logits, in [0, 1].

    The total variation between what two models predict; 0 says the same function on these samples.

    Args:
        unlearned_outputs, retrained_outputs: logits (models, samples, C) each, in pairs.

    Returns:
        (models,) float64.

    Raises:
        ValueError: naming the argument of another shape or not finite.
    """
    require_finite("unlearned_outputs", unlearned_outputs, "models", "samples", "C")
    require_finite("retrained_outputs", retrained_outputs, *unlearned_outputs.shape)
    p, q = (f.double().softmax(-1) for f in (unlearned_outputs, retrained_outputs))
    return (p - q).abs().sum(-1).mean(-1) / 2


def tug_of_war(unlearned: Accuracies, retrained: Accuracies) -> float:
    """ToW = Π over forget, retain and test of 1 − |acc_unlearned − acc_retrained|, in [0, 1].

    1 where all three agree with a model retrained without the forget set. Accuracies alone do not
    show deletion: two models may agree in all three and not in one output.

    Raises:
        ValueError: naming the accuracy that is not in [0, 1].
        TypeError: naming the argument that is no `Accuracies`.

    Source: Zhao et al. (NeurIPS 2024), eq. 1; their α is 1 − ours.
    """
    return float(np.prod([1 - gap for gap in accuracy_gap(unlearned, retrained)]))


def tug_of_war_mia(
    unlearned: Accuracies,
    retrained: Accuracies,
    unlearned_score: float,
    retrained_score: float,
) -> float:
    """ToW-MIA: `tug_of_war` with `membership_score` in place of the accuracy on the forget set.

    Args:
        unlearned, retrained: as in `tug_of_war`; their forget accuracies do not count.
        unlearned_score, retrained_score: share of the forget set that is judged non-member.

    Raises:
        ValueError: naming the share that is not in [0, 1].

    Source: Zhao et al. (NeurIPS 2024).
    """
    for name, model in (("unlearned", unlearned), ("retrained", retrained)):
        require_kind(name, model, Accuracies)
    scores = (
        require_share("unlearned_score", unlearned_score),
        require_share("retrained_score", retrained_score),
    )
    pairs = zip((unlearned, retrained), scores, strict=True)
    return tug_of_war(*(model._replace(forget=score) for model, score in pairs))


def membership_score(
    retain_confidence: Tensor, test_confidence: Tensor, forget_confidence: Tensor
) -> float:
    """Share of the forget set that an attack on one model judges not to have been trained on.

    The attack is a support vector classifier (RBF, C = 3, gamma "auto") on the probability of the
    true class, fitted on retain (members) against test samples, as many of one as of the other: the
    first of the larger set. One classifier serves all samples, which flatters a method (`u_lira`
    does not): read it beside a retrained model's.

    Args:
        retain_confidence, test_confidence, forget_confidence: (samples,) each, in [0, 1].

    Raises:
        ValueError: naming the argument of another shape, or not in [0, 1], or empty.

    Source: Fan et al. (SalUn, ICLR 2024), "MIA-efficacy" of the confidence.
    """
    named = {
        "retain_confidence": retain_confidence,
        "test_confidence": test_confidence,
        "forget_confidence": forget_confidence,
    }
    for name, values in named.items():
        require_finite(name, values, "samples")
        require_count(f"{name}'s number of samples", len(values), 1)
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(f"{name} must be in [0, 1], got {shown(float(values.abs().max()))}")
    retain, test, forget = (values.double().numpy(force=True)[:, None] for values in named.values())
    size = min(len(retain), len(test))
    attack = SVC(C=3, gamma="auto", kernel="rbf", random_state=0)  # draws nothing, but a seed
    attack.fit(np.concatenate([retain[:size], test[:size]]), np.repeat([1, 0], size))
    return float(1 - attack.predict(forget).mean())


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
    _require_populations(unlearned_margins, retrained_margins, least=2)
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


def u_lira(unlearned_margins: Tensor, retrained_margins: Tensor) -> Tensor:
    """U-LiRA: how well a likelihood ratio tells unlearned from retrained models, sample by sample.

    For a sample the margins of the models that were trained with it and then unlearned, and of
    those that never saw it, are fitted by a normal distribution each; a model is called unlearned
    where its likelihood is the larger. Its own margin is left out of the fit. ½: deleted, as far as
    this attack sees; 1: every model is told. Over two equal sets the mean is just below ½, by what
    leaving out costs.

    Args:
        unlearned_margins, retrained_margins: (models, samples) each, at least three models: the
            shadow models, which are attacked in turn. Margins are clipped to ±100.

    Returns:
        (samples,) float64 in [0, 1], the mean over both sets of the share that is told (balanced
        accuracy). A tie counts ½.

    Raises:
        ValueError: naming the argument that is not finite, of another shape or too short.

    Source: Hayes et al. (arXiv 2403.01218), where forget sets are drawn anew for every model; here
    the set is one and all its samples are attacked in every model.
    """
    _require_populations(unlearned_margins, retrained_margins, least=3)
    u, r = (m.double().clamp(-CLIP, CLIP) for m in (unlearned_margins, retrained_margins))
    told = []
    for own, other in ((u, r), (r, u)):
        ratio = _log_likelihood(own, *_left_out(own)) - _log_likelihood(own, *_moments(other))
        told.append(((ratio > 0).double() + (ratio == 0).double() / 2).mean(dim=0))
    return (told[0] + told[1]) / 2


NARROW = 1e-6  # least standard deviation of a margin: models may agree to the last bit


def _moments(margin: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over models, (samples,) each."""
    return margin.mean(dim=0), margin.std(dim=0).clamp_min(NARROW)


def _left_out(margin: Tensor) -> tuple[Tensor, Tensor]:
    """The same of all models but one, for each of them; (models, samples) each."""
    n = len(margin)
    mean, square = margin.mean(dim=0), margin.var(dim=0)
    away = margin - mean
    left = mean - away / (n - 1)
    variance = ((n - 1) * square - away.square() * n / (n - 1)) / (n - 2)
    return left, variance.clamp_min(NARROW**2).sqrt()


def _log_likelihood(margin: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return -deviation.log() - ((margin - mean) / deviation).square() / 2


def _require_populations(unlearned: Tensor, retrained: Tensor, least: int) -> None:
    """ValueError unless both are finite (models, samples) on the same samples."""
    require_finite("unlearned_margins", unlearned, "models", "samples")
    require_finite("retrained_margins", retrained, "models", unlearned.shape[1])
    for name, values in (("unlearned_margins", unlearned), ("retrained_margins", retrained)):
        require_count(f"{name}' number of models", len(values), least)
