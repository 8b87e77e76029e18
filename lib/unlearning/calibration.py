"""A tangent model's clock, fixed by one real run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lib.stability.algorithm import AscentDescent
from lib.unlearning.paths import LossPath
from lib.unlearning.tangent import TangentModel, follow

FASTEST = 8.0  # speed, and its inverse the slowest, that are looked for
SPEEDS, ROUNDS = 25, 2  # tried at once, then between two of these; the rest by interpolation


@dataclass(frozen=True)
class Probe:
    """One real run of the network, with the settings that `follow` would take, for `calibrate`.

    real: the network's losses, from `run_network` with these settings; target: the forget loss at
    whose passing the two clocks are compared. The rest as in `follow`.
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
    wanted = float(probe.real.crossing(probe.target)[0])
    if not 0 < wanted < torch.inf:
        raise RuntimeError(
            f"probe must pass forget loss {probe.target:.3g} after its start, got {wanted} steps"
        )
    low, high = 1 / FASTEST, FASTEST
    for again in range(ROUNDS):
        speeds = np.geomspace(low, high, SPEEDS)
        late = _times(tangent, probe, speeds) - wanted
        if not (again or late[0] >= 0 >= late[-1]):
            raise RuntimeError(
                f"the network passes forget loss {probe.target:.3g} after {wanted:.3g} steps, its "
                f"tangent after {late[0] + wanted:.3g} at {low:g} and {late[-1] + wanted:.3g} at "
                f"{high:g} of its speed: no speed in [1/8, 8] explains that"
            )
        # The slowest speed in time, but the ends, where rounding may say otherwise than before.
        first = next((i for i in range(1, SPEEDS - 1) if late[i] <= 0), SPEEDS - 1)
        low, high = speeds[first - 1], speeds[first]
    before, after = late[first - 1], late[first]
    part = before / (before - after) if math.isfinite(before) and before > after else 1.0
    return replace(tangent, speed=float(low * (high / low) ** min(max(part, 0.0), 1.0)))


def _times(tangent: TangentModel, probe: Probe, speeds: np.ndarray) -> np.ndarray:
    """When the tangent model passes the target at each speed, ∞ where well after the network did.

    Without weight decay speed s is rate s·η with damping λ/s, so all are settings of one run.
    """
    steps = len(probe.real.forget_loss) - 1
    together = [replace(probe.algorithm, damping=probe.algorithm.damping / s) for s in speeds]
    runs: list[tuple[TangentModel, list[AscentDescent], list[float]]] = [
        (replace(tangent, speed=1.0), together, [float(s) * probe.learning_rate for s in speeds])
    ]
    if probe.weight_decay > 0:
        rate = [probe.learning_rate]
        runs = [(replace(tangent, speed=float(s)), [probe.algorithm], rate) for s in speeds]
    paths = [
        follow(
            model,
            probe.targets,
            probe.forget,
            algorithms,
            rates,
            steps=steps + 1 + steps // 8 if probe.batches is None else steps,
            loss=probe.loss,
            weight_decay=probe.weight_decay,
            batches=probe.batches,
            seed=probe.seed,
        )
        for model, algorithms, rates in runs
    ]
    return torch.cat([path.crossing(probe.target) for path in paths]).cpu().numpy()
