"""A tangent model's clock, fixed by one real run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.checks import (
    is_finite,
    require_kind,
    require_members,
    require_nonnegative,
    require_seed,
    shown,
)
from lib.stability.algorithm import AscentDescent
from lib.stability.losses import loss_of
from lib.unlearning.paths import LARGEST_STEPS, LossPath
from lib.unlearning.tangent import TangentModel, follow

FASTEST = 8.0  # speed, and its inverse the slowest, that are looked for
SPEEDS, ROUNDS = 13, 3  # tried at once, each time between two of before: to 1 part in 400


@dataclass(frozen=True)
class Probe:
    """One real run of the network, with the settings that `follow` would take, for `calibrate`.

    real: the network's losses, from `run_network` with these settings; target: the forget loss at
    whose passing the two clocks are compared. The rest as in `follow`.

    Raises:
        ValueError, TypeError: naming the attribute.
    """

    real: LossPath
    target: float
    targets: Tensor
    forget: Tensor | Sequence[int]
    algorithm: AscentDescent
    learning_rate: float
    loss: str = "cross_entropy"
    weight_decay: float = 0.0
    batches: Sequence[tuple[Tensor, Tensor]] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_kind("real", self.real, LossPath)
        require_kind("targets", self.targets, Tensor)
        require_kind("algorithm", self.algorithm, AscentDescent)
        if not is_finite(self.target):
            raise ValueError(f"target must be a finite number, got {shown(self.target)}")
        loss_of(self.loss)
        forget: Any = self.forget
        mask = isinstance(forget, Tensor) and forget.dtype == torch.bool
        sized = forget if mask else self.targets  # how many samples are trained is not known here
        require_members("forget", forget, len(sized) if sized.ndim else 0, "targets")
        for name in ("learning_rate", "weight_decay"):
            object.__setattr__(self, name, require_nonnegative(name, getattr(self, name)))
        object.__setattr__(self, "target", float(self.target))
        object.__setattr__(self, "seed", require_seed(self.seed))


def calibrate(tangent: TangentModel, probe: Probe) -> TangentModel:
    """The tangent model with its kernel scaled so that it passes the target when the network did.

    As a network unlearns its kernel grows (seldom: shrinks), by a factor that depends on the
    network much more than on the setting; so one real run fixes it for all settings. The factor,
    `speed`, multiplies the kernel, not damping or weight decay. Measured, not proved: chapter
    tangent_model.

    Raises:
        RuntimeError: if the network did not pass the target, passed it at the start, or no speed in
            [1/8, 8] explains when it did; with the times that were found.
    """
    require_kind("tangent", tangent, TangentModel)
    require_kind("probe", probe, Probe)
    wanted = float(probe.real.crossing(probe.target)[0])
    if not 0 < wanted < torch.inf:
        raise RuntimeError(
            f"probe must pass forget loss {probe.target:.3g} after its start, got {wanted} steps"
        )
    low, high = 1 / FASTEST, FASTEST
    late = _times(tangent, probe, np.array([low, high])) - wanted
    if not late[0] >= 0 >= late[1]:
        found = ", ".join(
            f"{t + wanted:.3g} at {s:.3g}" for t, s in zip(late, (low, high), strict=True)
        )
        raise RuntimeError(
            f"the network passes forget loss {probe.target:.3g} after {wanted:.3g} steps, its "
            f"tangent after {found} of its speed: no speed in [1/8, 8] explains that"
        )
    for _ in range(ROUNDS):
        speeds = np.geomspace(low, high, SPEEDS)
        late = _times(tangent, probe, speeds) - wanted
        # The slowest speed in time, but the ends, where rounding may say otherwise than before.
        first = next((i for i in range(1, SPEEDS - 1) if late[i] <= 0), SPEEDS - 1)
        low, high = speeds[first - 1], speeds[first]
    before, after = late[first - 1], late[first]
    part = before / (before - after) if math.isfinite(before) and before > after else 1.0
    return tangent.at_speed(float(low * (high / low) ** min(max(part, 0.0), 1.0)))


def _times(tangent: TangentModel, probe: Probe, speeds: np.ndarray) -> np.ndarray:
    """When the tangent model passes the target at each speed, ∞ where well after the network did.

    Without weight decay speed s is rate s·η with damping λ/s, so all are settings of one run.
    """
    steps = len(probe.real.forget_loss) - 1
    together = [replace(probe.algorithm, damping=probe.algorithm.damping / s) for s in speeds]
    runs: list[tuple[TangentModel, list[AscentDescent], list[float]]] = [
        (tangent.at_speed(1.0), together, [float(s) * probe.learning_rate for s in speeds])
    ]
    if probe.weight_decay > 0:
        rate = [probe.learning_rate]
        runs = [(tangent.at_speed(float(s)), [probe.algorithm], rate) for s in speeds]
    paths = [
        follow(
            model,
            probe.targets,
            probe.forget,
            algorithms,
            rates,
            steps=min(steps + 1 + steps // 8, LARGEST_STEPS) if probe.batches is None else steps,
            loss=probe.loss,
            weight_decay=probe.weight_decay,
            batches=probe.batches,
            seed=probe.seed,
        )
        for model, algorithms, rates in runs
    ]
    return torch.cat([path.crossing(probe.target) for path in paths]).cpu().numpy()
