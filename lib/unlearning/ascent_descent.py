"""Ascent–descent on any torch module, from its trained optimum, and its growth measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.utils import parameters_to_vector

from lib.checks import (
    describe,
    require_above,
    require_count,
    require_finite,
    require_forget,
    require_kind,
    require_nonnegative,
    require_room,
)
from lib.randomness import stream
from lib.stability.algorithm import AscentDescent, batch_weights
from lib.stability.curvature import Curvature
from lib.stability.dynamics import growth_mode
from lib.stability.jacobian import loss_jacobian
from lib.stability.losses import LOSSES, require_targets
from lib.stability.modules import PerSample, count, per_sample

LARGEST_STEPS = 5000  # of a run: some ten seconds for a handful of small networks


@dataclass(frozen=True)
class ModuleRuns:
    """Independent runs of one module.

    distance (steps+1, runs): ‖w_k − w*‖, in units of the weights; forget_loss, retain_loss
    (steps+1, runs): mean squared loss ½(f − y)² over each set. All are ∞ where a run overflowed.
    """

    distance: Tensor
    forget_loss: Tensor
    retain_loss: Tensor


@dataclass(frozen=True)
class Growth:
    """Growth factor of E‖δ‖² per step at one learning rate.

    predicted: ρ(T), from the curvature at the optimum alone; observed: that of the network's runs;
    error: its standard error over the runs.
    """

    learning_rate: float
    predicted: float
    observed: float
    error: float


def parameter_basis(curvature: Curvature, jacobian: Tensor) -> Tensor:
    """U's orthonormal basis in parameter space, E = (ΦΦᵀ)⁻¹ΦJ, so that J = ΦᵀE; (q, p).

    A displacement with coordinates z in U is Eᵀz in parameters.

    Args:
        curvature: of the model at the optimum.
        jacobian: (n, r, p), from `lib.stability.loss_jacobian` at the same point.
    """
    stacked = curvature.stacked
    return torch.linalg.solve(stacked @ stacked.T, stacked @ jacobian.flatten(0, 1))


def unlearn(
    model: torch.nn.Module,
    inputs: Tensor,
    targets: Tensor,
    forget: Tensor,
    algorithm: AscentDescent,
    learning_rate: float,
    *,
    steps: int,
    start: Tensor,
    seed: int,
) -> ModuleRuns:
    """Ascent–descent on the squared loss of any module, many runs side by side; nonlinear, exact.

    w ← w − η[(1−α)/B_r Σ_{i∈R_k} ∇ℓ_i(w) − α/B_f Σ_{j∈F_k} ∇ℓ_j(w) + λ(w − w*)], w* the model's
    parameters as given. The model itself is not changed.

    Args:
        model: module at its optimum, in eval mode, f: (n, …) → (n,) or (n, 1).
        inputs, targets, forget: (n, …), (n,) or (n, 1), (n,) bool.
        algorithm: the update; fresh batches for every run and step.
        learning_rate: η ≥ 0.
        steps: number of updates ≥ 0.
        start: (runs, p) displacements w_0 − w*, in the order of the trainable parameters.
        seed: of the batches.

    Raises:
        ValueError: naming the argument, for shapes that do not fit, a start that is not finite,
            over 5,000 steps, a model with more than one output a sample, in training mode where
            that matters, or that `torch.func.vmap` does not take.

    Source: book, chapter linearized_dynamics, the update before linearisation.
    """
    learning_rate = require_nonnegative("learning_rate", learning_rate)
    steps = require_count("steps", steps, 0, LARGEST_STEPS)
    require_kind("algorithm", algorithm, AscentDescent)
    net = per_sample(model, inputs)
    optimum = parameters_to_vector(list(net.trained.values()))
    sizes = [v.numel() for v in net.trained.values()]
    shapes = [v.shape for v in net.trained.values()]
    n = require_forget(forget, count(inputs))
    require_kind("targets", targets, Tensor)
    if targets.shape not in ((n,), (n, 1)):
        raise ValueError(f"targets must have shape ({n},) or ({n}, 1), got {describe(targets)}")
    targets = require_targets("squared", targets, n, 1, 1).reshape(-1)  # (n, 1) would broadcast
    require_finite("start", start, "runs", len(optimum))
    require_count("start's number of runs", len(start), 1)
    require_room("steps", steps + 1, len(start))
    inputs = net.moved(inputs)
    _require_scalar(net, inputs)

    def losses(weights: Tensor) -> Tensor:
        parts = [w.view(s) for w, s in zip(weights.split(sizes), shapes, strict=True)]
        outputs = net.at(dict(zip(net.trained, parts, strict=True)), inputs)
        return LOSSES["squared"].value(outputs.reshape(-1), targets)

    slope = vmap(grad(lambda weights, c: (c * losses(weights)).sum()))
    batches = batch_weights(algorithm, forget, len(start), stream("module batches", seed))
    delta, move, record = start.clone(), torch.zeros_like(start), []
    for k in range(steps + 1):
        with torch.no_grad():
            each = vmap(losses)(optimum + delta)
        distance = torch.linalg.vector_norm(delta, dim=1)
        record.append((distance, each[:, forget].mean(1), each[:, ~forget].mean(1)))
        if k < steps:
            step = slope(optimum + delta, batches().T.to(start)) + algorithm.damping * delta
            move = algorithm.momentum * move - learning_rate * step
            delta = delta + move
    parts = (torch.stack(part) for part in zip(*record, strict=True))
    return ModuleRuns(*(torch.where(part.isnan(), torch.inf, part) for part in parts))


def _require_scalar(net: PerSample, inputs: Tensor) -> None:
    """ValueError unless runs can be vectorised and a sample has one output, a finite one."""
    if net.looped:
        raise ValueError("model must work under torch.func.vmap, got one that does not")
    with torch.no_grad():
        outputs = net.at(net.trained, inputs)
    if outputs[0].numel() != 1:
        raise ValueError(f"model must give one output a sample, got {tuple(outputs.shape[1:])}")
    if not bool(outputs.isfinite().all()):
        raise ValueError("model must give finite outputs on the inputs, got NaN or infinite ones")


def measure_growth(
    model: torch.nn.Module,
    inputs: Tensor,
    targets: Tensor,
    forget: Tensor,
    algorithm: AscentDescent,
    learning_rate: float,
    *,
    steps: int,
    runs: int,
    seed: int,
    size: float = 1e-6,
) -> Growth:
    """Growth of the network's mean ‖w_k − w*‖² per step, against ρ(T) from its curvature.

    The runs start at w* + δ_0, δ_0 ~ N(0, size² X) with X the PSD eigenmatrix of T: the one start
    from which the linearised E‖δ_k‖² is exactly ρ(T)^k E‖δ_0‖² at every k, with no transient.

    Args:
        model, inputs, targets, forget, algorithm, learning_rate: as in `unlearn`.
        steps, runs: updates per run ≥ 1 and runs ≥ 2.
        seed: of the starts and the batches.
        size: root-mean-square length of δ_0, in units of the weights; small, to stay linear.

    Returns:
        observed = (mean_r ‖δ_K^r‖² / mean_r ‖δ_0^r‖²)^{1/K}, its error by the delta method.

    Raises:
        ValueError: as `unlearn`; also for a model without curvature, runs that overflow, or more
            than 2²⁷ numbers in their displacements.

    Source: book, thm-exact-criterion.
    """
    steps = require_count("steps", steps, 1, LARGEST_STEPS)
    runs = require_count("runs", runs, 2)
    size = require_above("size", size, 0)
    require_forget(forget, count(inputs))
    jacobian = loss_jacobian(model, inputs, targets, "squared")
    rows = jacobian.flatten(0, 1)
    require_room("runs", runs, rows.shape[1])
    try:
        curvature = Curvature.from_gram(rows @ rows.T, forget.to(rows.device), jacobian.shape[1])
    except ValueError as error:
        raise ValueError(f"model and inputs must give curvature, but its {error}") from error
    rho, X = growth_mode(curvature, algorithm, learning_rate)
    values, vectors = torch.linalg.eigh(X)
    # X is PSD up to rounding, which leaves eigenvalues of either sign around zero.
    root = vectors * values.clamp_min(0).sqrt()
    generator = stream("module starts", seed)
    normal = torch.randn(runs, len(X), generator=generator, dtype=X.dtype, device="cpu").to(X)
    start = size * normal @ root.T @ parameter_basis(curvature, jacobian)
    path = unlearn(
        model,
        inputs,
        targets,
        forget,
        algorithm,
        learning_rate,
        steps=steps,
        start=start,
        seed=seed,
    )
    first, last = path.distance[0].square(), path.distance[-1].square()
    ratio = last.mean() / first.mean()
    observed = float(ratio ** (1 / steps))
    relative = float((last - ratio * first).std() / runs**0.5 / last.mean())
    if not (math.isfinite(observed) and math.isfinite(relative)):
        raise ValueError(
            f"learning_rate must keep runs finite and above 0, from size {size:g} over {steps} "
            f"steps on these inputs and targets, got {learning_rate!r}, growth {observed:g} a step"
        )
    return Growth(learning_rate, rho, observed, observed * relative / steps)
