"""Where a heat map's networks should escape, from their Gram matrix at w* alone.

Decades (base 10) by which ‖δ‖ exceeds the criterion's growth within its horizon, or, with
criterion.asymptotic, the growth of log‖δ‖ per step; escape is predicted where positive.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.cnn.runs import Until
from lib.cnn.training import Fit
from lib.cnn.unlearning import Paths, linearised
from lib.experiments.settings import Criterion, TrainedCell
from lib.stability.dynamics import growth_mode
from lib.stability.second_moment import mean_operator

LINEAR_SEEDS = 1000  # seeds of the predictions' runs begin here, apart from those of the networks
SETTLED = 1e-6  # where a damped run that has shrunk so far is taken to stay
LARGEST = 1e100  # of what the linearised runs are followed to: medians need finite numbers


def mean(at: TrainedCell, criterion: Criterion) -> float:
    """Growth of the mean J^K δ_0, J = I − ηA, in root mean square over isotropic δ_0; exact."""
    A = mean_operator(at.curvature, at.algorithm)
    logs = (1 - at.rate * torch.linalg.eigvalsh(A)).abs().log()
    if criterion.asymptotic:
        return float(logs.max())
    weights = at.cell.network.weights
    square = (2 * criterion.steps * logs).exp().sum()
    outside = (1 - at.rate * at.algorithm.damping) ** (2 * criterion.steps)
    square += (weights - len(logs)) * outside
    return 0.5 * math.log10(float(square) / weights) - math.log10(criterion.growth)


def mean_square(at: TrainedCell, criterion: Criterion) -> float:
    """½ log ρ(T), or decades: E‖δ_K‖²/‖δ_0‖² ≈ ρ^K (tr X)²/(p‖X‖²), X the eigenmatrix of ρ(T)."""
    rho, X = growth_mode(at.curvature, at.algorithm, at.rate)
    if criterion.asymptotic:
        return 0.5 * math.log(rho)
    share = float(X.trace() ** 2 / X.square().sum()) / at.cell.network.weights
    square = criterion.steps * math.log10(rho) + math.log10(share)
    return 0.5 * square - math.log10(criterion.growth)


def mean_square_along(
    cells: list[TrainedCell], shape: tuple[int, int, int], criterion: Criterion
) -> np.ndarray:
    """`mean_square` around its sign changes along the second axis of `shape`, ±∞ elsewhere.

    ρ(T) is convex in the mixing and in the learning rate (up to a monotone change of either) and
    falls with the batch size, so that along a line the stable cells are an interval. That proves
    the signs of criterion.asymptotic. With a horizon K the sign is that of ρ^K times a share within
    [1/p, q/p], on which convexity says nothing: ½ log₁₀ q decades at most about the criterion are
    not proved, only tested against evaluation of every cell.
    """
    values = np.full(len(cells), math.nan)

    def side(k: int) -> bool:
        if math.isnan(values[k]):
            values[k] = mean_square(cells[k], criterion)
        return bool(values[k] > 0)

    def fill(line: np.ndarray) -> None:
        """Signs between two evaluated ends, taking the stable set for an interval."""
        first, last, middle = side(line[0]), side(line[-1]), len(line) // 2
        if len(line) <= 2:
            return
        if first != last or (first and not side(line[middle])):
            fill(line[: middle + 1])
            fill(line[middle:])
        else:
            inner = line[1:-1]
            known = ~np.isnan(values[inner])
            values[inner[~known]] = math.inf if first else -math.inf

    for line in np.arange(len(cells)).reshape(shape).transpose(0, 2, 1).reshape(-1, shape[1]):
        fill(line)
    return values


def typical(
    trained: Fit, cells: list[TrainedCell], criterion: Criterion, seed: int
) -> dict[str, Any]:
    """Medians over sampled runs of the linearised update, from starts and batches of their own.

    typical: the Lyapunov exponent, per step, or decades; typical_forget: decades of ‖f − y‖ on the
    forget set over that of the criterion's loss.
    """
    growth, forget = [], []
    stop = criterion.forget_loss if criterion.asymptotic else LARGEST
    drift = trained.loss == "logistic" and not criterion.asymptotic
    for run in range(criterion.linear_runs):
        own = LINEAR_SEEDS * (1 + run) + seed
        path = follow(linearised, trained, cells, criterion, own, stop, drift=drift)
        growth.append(_rate(path) if criterion.asymptotic else _decades(path, criterion))
        forget.append(
            0.5 * (path.forget_loss.amax(0).clamp(max=LARGEST) / criterion.forget_loss).log10()
        )
    medians = (torch.stack(part).quantile(0.5, dim=0).numpy() for part in (growth, forget))
    return dict(zip(("typical", "typical_forget"), medians, strict=True))


def _decades(path: Paths, criterion: Criterion) -> Tensor:
    return (path.distance.amax(0).clamp(max=LARGEST) / criterion.growth).log10()


def _rate(path: Paths) -> Tensor:
    """Growth of log‖δ‖ per step over the second half of each run: the Lyapunov exponent."""
    half = path.steps // 2
    logs = path.distance.clamp(1 / LARGEST, LARGEST).log()
    end, middle = (logs.gather(0, at[None])[0] for at in (path.steps, half))
    underflow = path.distance[-1] <= 1 / LARGEST
    return torch.where(underflow, end / path.steps, (end - middle) / (path.steps - half))


def follow(
    runner: Callable[..., Any],
    trained: Fit,
    cells: list[TrainedCell],
    criterion: Criterion,
    seed: int,
    stop: float,
    **options: bool,
) -> Any:
    """`ascent_descent` or `linearised` on all cells, until a mean forget loss of `stop`."""
    return runner(
        trained,
        cells[0].cell.network.forget.to(trained.coefficients.device),
        [at.algorithm for at in cells],
        [at.rate for at in cells],
        steps=criterion.steps,
        displacement=criterion.displacement,
        seed=seed,
        until=Until(stop, SETTLED if criterion.asymptotic else 0.0),
        **options,
    )
