"""The heat map of Kou, Chen, Chen and Gu (ICML 2023, arXiv 2303.04145), without the dimension.

Their released setting: patches [±μ, ξ] with μ = ‖μ‖e₁ and ξ ~ N(0, I_d), noise not projected off
the signal; filters with bias, all parameters uniform on ±1/√d (PyTorch's default start); two
logits, one per class; cross-entropy, which for two logits is the logistic loss of their difference;
label noise in training and in test. The released script averages the two patches in a logit, but
the released training losses are those of the sum (`BenignSetting.output_scale`).

Nothing d-dimensional is drawn but the initial filters: given those, the training noise enters only
through its Gram matrix and its products with the filters and e₁, which have an exact joint law
(Gaussian coordinates in the filters' span, a Wishart matrix off it), and fresh test noise only
through ⟨w_r, ξ⟩ ~ N(0, WWᵀ). So every cell is one draw, exact in law, of what their loop computes.
"""

# ruff: noqa: PT028  (test_error_map is the library's function, not a test)

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from scipy.stats import linregress
from torch import Generator, Tensor

from lib.checks import (
    WIDE,
    describe,
    holds_numbers,
    is_finite,
    require_above,
    require_count,
    require_device,
    require_finite,
    require_items,
    require_kind,
    require_room,
    require_seed,
    require_share,
    shown,
)
from lib.cnn.coefficients import PatchSpan
from lib.cnn.descent import Descent
from lib.randomness import seed_sequence, stream

# Runs trained together on a CPU; a larger batch leaves the cache, a smaller one pays overhead.
CHUNK = 250
LARGEST_REPEATS = 1000  # some four seconds at one cell
LARGEST_NORM = 1e12  # of a signal, in units of the noise


@dataclass(frozen=True)
class BenignSetting:
    """The numbers of the published experiment.

    output_scale: weight of a patch's responses in a logit. 1 (their sum) gives the training losses
    and the test errors of the published table; ½ (their mean) is what the released script computes,
    with training losses 4 to 20 times the published ones.
    """

    n_samples: int = 20
    filters: int = 10
    flip: float = 0.1
    learning_rate: float = 0.1
    steps: int = 100
    test_points: int = 1000
    output_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("n_samples", "filters", "test_points"):
            require_count(name, getattr(self, name), 1)
        require_count("steps", self.steps, 0)
        require_share("flip", self.flip)
        for name in ("learning_rate", "output_scale"):
            require_above(name, getattr(self, name), 0)

    @property
    def smallest_dim(self) -> int:
        """Below it the noise off the filters' span has fewer dimensions than samples."""
        return 2 * self.filters + 1 + self.n_samples


@dataclass(frozen=True)
class ErrorMap:
    """Means over repeats: test_error, train_loss, both (len(dims), len(signal_norms))."""

    test_error: Tensor
    train_loss: Tensor


def test_error_map(
    signal_norms: Sequence[float] | Tensor,
    dims: Sequence[int] | Tensor,
    *,
    repeats: int = 10,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Mean test error over `repeats` networks per cell, (len(dims), len(signal_norms)), float64.

    Fraction of 1000 fresh points whose (flipped) label is missed. Arguments as in `error_map`.
    """
    return error_map(signal_norms, dims, repeats=repeats, seed=seed, device=device).test_error


# Without this, pytest would collect it wherever a test imports it by name.
test_error_map.__test__ = False  # type: ignore[attr-defined]


def error_map(
    signal_norms: Sequence[float] | Tensor,
    dims: Sequence[int] | Tensor,
    *,
    repeats: int = 10,
    seed: int = 0,
    device: torch.device | str | None = None,
    setting: BenignSetting | None = None,
) -> ErrorMap:
    """Test error and training loss over a grid of signal norms ‖μ‖ (σ_p = 1) and dimensions d.

    Raises ValueError for a negative norm, a dimension below 2·filters + 1 + n, or more than 1,000
    repeats.
    """
    setting = BenignSetting() if setting is None else setting
    require_kind("setting", setting, BenignSetting)
    repeats, seed = require_count("repeats", repeats, 1, LARGEST_REPEATS), require_seed(seed)
    require_device(device)
    place = device or getattr(signal_norms, "device", "cpu")
    norms = _numbers("signal_norms", signal_norms, place)
    dims = require_items("dims", dims)
    for dim in dims:
        if is_finite(dim) and dim < setting.smallest_dim:
            raise ValueError(f"dims must be >= {setting.smallest_dim}, got {dim}")
    sizes = [require_count("dims", dim, setting.smallest_dim) for dim in dims]
    require_room("repeats and signal_norms", repeats, norms.numel(), 2 * setting.filters)
    if norms.ndim != 1 or not bool((torch.isfinite(norms) & (norms >= 0)).all()):
        raise ValueError(f"signal_norms must be a list of finite numbers >= 0, got {signal_norms}")
    rows = [_row(norms.repeat(repeats), dim, setting, seed) for dim in sizes]
    errors, losses = (torch.stack(column) for column in zip(*rows, strict=True))
    shape = (len(sizes), repeats, len(norms))
    return ErrorMap(errors.view(shape).mean(1), losses.view(shape).mean(1))


def first_below(signal_norms: Sequence[float] | Tensor, errors: Tensor, level: float) -> Tensor:
    """The first ‖μ‖ of each row whose error is at most `level`, as published; NaN where none is."""
    norms = _cells(signal_norms, errors, level)
    below = errors <= float(level)
    first = norms[below.int().argmax(1)]
    return torch.where(below.any(1), first, math.nan)


def contour(signal_norms: Sequence[float] | Tensor, errors: Tensor, level: float) -> Tensor:
    """Where each row's error, made monotone by least squares, crosses `level`; NaN where nowhere.

    Unlike `first_below` it does not seize the first lucky cell: isotonic regression uses all cells.
    """
    norms = _cells(signal_norms, errors, level).double().cpu().numpy()
    crossings = []
    for row in errors.detach().double().cpu().numpy():
        falling = isotonic_regression(row, increasing=False).x
        inside = falling[0] > level >= falling[-1]
        # interp wants rising abscissae; equal neighbours (pooled cells) keep the later norm.
        crossing = np.interp(-level, -falling, norms) if inside else math.nan
        crossings.append(crossing)
    return torch.from_numpy(np.array(crossings, dtype=np.float64))


@dataclass(frozen=True)
class BoundaryFit:
    """n‖μ‖⁴ = C d^β: `constant` C at β = 1, and the free `exponent` β with its standard error."""

    constant: float
    exponent: float
    exponent_error: float


def fit_boundary(dims: Sequence[int] | Tensor, crossings: Tensor, n_samples: int) -> BoundaryFit:
    """Least squares of log n‖μ‖⁴ on log d, over the dimensions where the contour exists (≥ 3).

    Args:
        dims: d > 0, (k,), not all the same.
        crossings: ‖μ‖ in [1e-12, 1e12], (k,); not finite where there is no contour.
        n_samples: n ≥ 1.

    Raises:
        ValueError: naming the argument, its value and the allowed range.
    """
    require_kind("crossings", crossings, Tensor)
    if crossings.dtype not in WIDE or crossings.ndim != 1 or not holds_numbers(crossings):
        raise ValueError(f"crossings must be numbers (k,), got {describe(crossings)}")
    n_samples = require_count("n_samples", n_samples, 1)
    crossings, sizes = crossings.detach().cpu(), _numbers("dims", dims, "cpu")
    if sizes.shape != crossings.shape or not bool((sizes > 0).all()):
        raise ValueError(f"dims and crossings must be equally long, dims > 0, got {shown(dims)}")
    known = torch.isfinite(crossings)
    if int(known.sum()) < 3:
        raise ValueError(f"crossings must be finite at 3 dims or more, got {int(known.sum())}")
    for end in crossings[known].aminmax():
        require_above("crossings", float(end), 0, LARGEST_NORM)
    if len(sizes[known].unique()) < 2:
        raise ValueError(f"dims must not all be the same where crossings are finite, got {dims}")
    x = sizes[known].log().numpy()
    y = (math.log(n_samples) + 4 * crossings[known].log()).numpy()
    line = linregress(x, y)
    return BoundaryFit(math.exp(float((y - x).mean())), float(line.slope), float(line.stderr))


def _numbers(name: str, values: Any, device: Any) -> Tensor:
    """(k,) float64; ValueError unless they are k finite numbers up to 1e12."""
    if isinstance(values, Tensor) and values.is_complex():
        raise ValueError(f"{name} must be real numbers, got {shown(values)}")
    try:
        numbers = torch.as_tensor(values, dtype=torch.float64, device=device)
        fits = numbers.ndim == 1 and len(numbers) and bool((numbers.abs() <= LARGEST_NORM).all())
    except (TypeError, ValueError, RuntimeError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(
            f"{name} must be a list of finite numbers >= 0, at most {LARGEST_NORM:g}, "
            f"got {shown(values)}"
        )
    return numbers


def _cells(signal_norms: Any, errors: Tensor, level: float) -> Tensor:
    """The norms as `errors` are held, once they are its columns; `level` is an error as well."""
    require_kind("errors", errors, Tensor)
    norms = _numbers("signal_norms", signal_norms, "cpu")
    require_finite("errors", errors, "rows", len(norms))
    require_share("level", level)
    return norms.to(errors.detach())


def _row(norms: Tensor, dim: int, setting: BenignSetting, seed: int) -> tuple[Tensor, Tensor]:
    """Test errors and training losses of independent runs at one dimension, one per norm."""
    generator = stream("benign overfitting", seed, dim, norms.device)
    chi = np.random.default_rng(seed_sequence("benign overfitting, chi", seed, dim))
    descent = Descent("logistic", setting.steps, 0.0, setting.n_samples, seed)
    parts = []
    for part in norms.split(CHUNK if norms.device.type == "cpu" else len(norms)):
        drawn = draw_runs(part, dim, setting, generator, chi)
        rates = torch.full_like(part, setting.learning_rate)
        coefficients, losses, _ = descent.run(drawn.span, rates, 0)
        parts.append((error_rates(drawn, coefficients, setting, generator), losses))
    errors, losses = (torch.cat(column) for column in zip(*parts, strict=True))
    return errors, losses


@dataclass(frozen=True)
class Runs:
    """Training sets and initial networks, reduced to inner products; b runs, k = 2·filters.

    span: its patches carry a last coordinate 1 for the bias; filter_gram (b, k, k): ⟨w_r, w_s⟩ of
    the initial filters; bias (b, k).
    """

    span: PatchSpan
    filter_gram: Tensor
    bias: Tensor


def draw_runs(
    norms: Tensor, dim: int, setting: BenignSetting, generator: Generator, chi: np.random.Generator
) -> Runs:
    """Training data and initial networks of independent runs, one for each ‖μ‖ in `norms` (b,).

    With B = [e₁; W(0)] and BBᵀ = LLᵀ, the noise patches Ξ have ΞBᵀ = A Lᵀ with A standard Gaussian,
    and ΞΞᵀ = AAᵀ + an independent Wishart matrix of d − k − 1 degrees of freedom.
    """
    b, n, k = len(norms), setting.n_samples, 2 * setting.filters
    bound = 1 / math.sqrt(dim)
    filters = norms.new_empty(b, k, dim, dtype=torch.float32)
    filters.uniform_(-bound, bound, generator=generator)
    bias = norms.new_empty(b, k).uniform_(-bound, bound, generator=generator)
    axis_gram = _gram_with_first_axis(filters)
    inside = norms.new_empty(b, n, k + 1).normal_(generator=generator)
    products = inside @ torch.linalg.cholesky(axis_gram).mT
    outside = _wishart_factor(b, n, dim - k - 1, generator, chi)
    noise_gram = inside @ inside.mT + outside @ outside.mT

    uniform = norms.new_empty(2, b, n).uniform_(generator=generator)
    classes, flips = uniform[0] < 0.5, uniform[1] < setting.flip
    strength = torch.stack([classes, ~classes], dim=1).double()
    labels = torch.where(classes ^ flips, 1.0, -1.0).double()
    gram, start = _with_signal(norms, noise_gram, products, axis_gram[:, 1:, 0])
    # Each patch ends in a coordinate 1 and each filter in its bias.
    start = (start + bias[:, :, None]).view(b, 2, setting.filters, n + 2)
    span = PatchSpan(gram + 1, start, strength, labels, setting.output_scale)
    return Runs(span, axis_gram[:, 1:, 1:], bias)


def error_rates(
    runs: Runs, coefficients: Tensor, setting: BenignSetting, generator: Generator
) -> Tensor:
    """Share of fresh points whose flipped label each trained network misses, (b,).

    On noise ξ the filters respond with W ξ ~ N(0, WWᵀ), drawn as such.
    """
    signal, bias, root = _trained_filters(runs, coefficients)
    count, filters = setting.test_points, setting.filters
    bias, root = bias.float(), root.float()
    normal = bias.new_empty(len(bias), count, 2 * filters).normal_(generator=generator)
    responses = torch.baddbmm(bias[:, None], normal, root.mT).relu_()
    noise = responses[..., :filters].sum(2) - responses[..., filters:].sum(2)
    uniform = bias.new_empty(2, len(bias), count).uniform_(generator=generator)
    classes, flips = uniform[0] < 0.5, uniform[1] < setting.flip
    outputs = setting.output_scale * noise + torch.where(classes, signal[:, :1], signal[:, 1:])
    return ((outputs > 0) != (classes ^ flips)).double().mean(1)


def _trained_filters(runs: Runs, coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output on the patches ±μ alone (b, 2), biases (b, k) and a root of WWᵀ (b, k, k)."""
    responses = runs.span.respond(coefficients).preactivations[..., :2].relu().sum(2)
    signal = runs.span.output_scale * (responses[:, 0] - responses[:, 1])
    moves = coefficients.flatten(1, 2)
    cross = (runs.span.start.flatten(1, 2) - runs.bias[:, :, None]) @ moves.mT
    covariance = runs.filter_gram + cross + cross.mT + moves @ (runs.span.gram - 1) @ moves.mT
    return signal, runs.bias + moves.sum(2), torch.linalg.cholesky(covariance)


def _gram_with_first_axis(filters: Tensor) -> Tensor:
    """Gram matrix (b, k + 1, k + 1) of e₁ and the filters, for filters (b, k, d)."""
    b, k, _ = filters.shape
    gram = torch.ones(b, k + 1, k + 1, dtype=torch.float64, device=filters.device)
    gram[:, 1:, 1:] = filters @ filters.mT
    gram[:, 0, 1:] = gram[:, 1:, 0] = filters[:, :, 0]
    return gram


def _wishart_factor(
    b: int, n: int, degrees: int, generator: Generator, chi: np.random.Generator
) -> Tensor:
    """Bartlett: lower-triangular T (b, n, n) with TTᵀ Wishart of the given degrees of freedom."""
    square = torch.empty(b, n, n, dtype=torch.float64, device=generator.device)
    below = square.normal_(generator=generator).tril(-1)
    diagonal = np.sqrt(chi.chisquare(degrees - np.arange(n), size=(b, n)))
    return below + torch.diag_embed(torch.from_numpy(diagonal).to(below))


def _with_signal(
    norms: Tensor, noise_gram: Tensor, products: Tensor, filters_on_axis: Tensor
) -> tuple[Tensor, Tensor]:
    """Gram matrix and products with the filters of the patches (+μ, −μ, ξ_1 … ξ_n), no bias."""
    signs = torch.stack([norms, -norms], dim=1)
    along = torch.cat([signs, products[..., 0]], dim=1)
    gram = along[:, :, None] * along[:, None, :]
    gram[:, 2:, 2:] = noise_gram
    start = torch.cat([filters_on_axis[..., None] * signs[:, None, :], products[..., 1:].mT], dim=2)
    return gram, start
