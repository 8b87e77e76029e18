"""The unlearning window: the learning rates that forget within a budget and spare the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lib.checks import require_above, require_count
from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.dynamics import growth_factor, steps_to_grow
from lib.stability.sampling import RESHUFFLED
from lib.stability.second_moment import SecondMoment, require_setting
from lib.stability.subspace import GrowingSubspace

# Growth per step that the Lanczos run of `growth_factor` cannot tell from none.
_RESOLUTION = 1e-11
SATURATED = 1e-12  # tr H_i: that of a softmax at a logit gap of 28, gradients of length 1


@dataclass(frozen=True)
class Window:
    """Learning rates that forget within a budget of steps and leave the retain set stable.

    Attributes:
        low: η_low, at which ρ(T)^K is the asked amplification. Below it no isotropic start grows by
            that much within the budget (a chosen one may). Infinite if no rate reaches it.
        high: η_high, above which the retain dynamics alone lose mean-square stability. Infinite
            where nothing is descended on (mixing 1, no damping).
        learning_rate: the rate to which stop_step belongs: the geometric middle of an open window,
            as far from either edge in factors; min(low, high) where the model resists (the fastest
            rate that spares the retain set) or there is no upper edge.
        stop_step: steps, not rounded, until E‖δ‖² has grown by the amplification at learning_rate:
            at most the budget in an open window, more than it where the model resists, infinite if
            it never grows that far.
    """

    low: float
    high: float
    learning_rate: float
    stop_step: float

    def __repr__(self) -> str:
        kind = "resists" if self.resists else "open"
        stop = f"stop_step {self.stop_step:.3g} at {self.learning_rate:.3g}"
        return f"Window({self.low:.3g} to {self.high:.3g}: {kind}, {stop})"

    @property
    def resists(self) -> bool:
        """Whether no rate forgets within the budget without losing the retain set: low > high."""
        return self.low > self.high


def unlearning_window(
    curvature: Curvature, algorithm: AscentDescent, *, steps: int, amplification: float
) -> Window:
    """Window between η_low, ρ(T_η)^K = τ, and η_high, η* of the retain terms alone.

    ρ(T_η) is a maximum of convex quadratics in η and 1 at η = 0, so it passes τ^{1/K} > 1 once.
    η_high keeps the weight 1−α (and the damping) on the retain terms and drops the forget terms.

    Args:
        curvature: per-sample curvature at the optimum.
        algorithm: the update.
        steps: the budget K ≥ 1, in updates.
        amplification: τ > 1, growth of E‖δ‖² (not of ‖δ‖) that counts as forgotten.

    Raises:
        ValueError: naming the argument, the value and the allowed range; for a curvature below
            1e-12 everywhere, that of a saturated loss, whose window would open at absurd rates.
        RuntimeError: if the Lanczos run does not converge.

    Source: book, thm-window.
    """
    require_setting(curvature, algorithm)
    algorithm.require_plain("unlearning_window, whose lower edge need not be unique,")
    algorithm.require_independent("unlearning_window")
    steps = require_count("steps", steps, 1, 10**12)
    amplification = require_above("amplification", amplification, 1)
    _require_unsaturated(curvature)
    if math.log(amplification) / steps <= _RESOLUTION:
        raise ValueError(
            f"amplification must exceed exp({_RESOLUTION} · steps), the resolution of ρ(T), "
            f"got {amplification!r} in {steps} steps"
        )
    moment = SecondMoment.of(curvature, algorithm)
    low = _reaching_rate(moment, math.exp(math.log(amplification) / steps))
    high = _retain_critical_rate(curvature, algorithm)
    rate = math.sqrt(low * high) if low <= high < math.inf else min(low, high)
    stop = _steps_until(amplification, moment, rate) if rate < math.inf else math.inf
    return Window(low=low, high=high, learning_rate=rate, stop_step=stop)


def stopping_step(
    curvature: Curvature, algorithm: AscentDescent, learning_rate: float, *, amplification: float
) -> float:
    """log τ / log ρ(T_η): steps, not rounded, in which E‖δ‖² grows by τ at the long-run pace.

    Infinite where ρ(T_η) ≤ 1 (to 1e-11, the accuracy of ρ).

    Args:
        curvature, algorithm, learning_rate: as in `growth_factor`.
        amplification: τ > 1, of E‖δ‖².

    Raises:
        ValueError: naming the argument, the value and the allowed range.
        RuntimeError: if the Lanczos run does not converge.

    Source: book, thm-window.
    """
    amplification = require_above("amplification", amplification, 1)
    require_setting(curvature, algorithm)
    if algorithm.momentum or algorithm.sampling == RESHUFFLED:
        return _pace(amplification, growth_factor(curvature, algorithm, learning_rate))
    return _steps_until(amplification, SecondMoment.of(curvature, algorithm), learning_rate)


def _steps_until(amplification: float, moment: SecondMoment, learning_rate: float) -> float:
    rate = moment.require_rate(learning_rate)
    return _pace(amplification, GrowingSubspace(moment).growth(rate))


def _pace(amplification: float, rho: float) -> float:
    return steps_to_grow(amplification, math.log(rho) if rho > 1 + _RESOLUTION else 0.0)


def _require_unsaturated(curvature: Curvature) -> None:
    """ValueError where no sample curves: what moves such a model is not its curvature at w*."""
    largest = float(curvature.factors.square().sum(dim=(1, 2)).max())
    if largest < SATURATED:
        raise ValueError(
            f"curvature must have a sample with tr H_i ≥ {SATURATED:g} for a window, got at most "
            f"{largest:.3g}: a saturated loss, or inputs to be rescaled"
        )


def _reaching_rate(moment: SecondMoment, target: float) -> float:
    """The η > 0 with ρ(T_η) = target > 1; infinite if 𝒬 = 0, where ρ is 1 at every rate.

    Bracketed from above by ρ(T_η) ≥ ⟨X, T_ηX⟩/⟨X, X⟩ = 1 − 2ηa + η²c at X = I: past the larger root
    of this parabola the growth is beyond the target.
    """
    lam, search = moment.eigenvalues, GrowingSubspace(moment)
    a = float(lam.mean())
    c = float(lam.square().mean() + search.noises[0].trace() / len(lam) ** 0.5)
    if c <= moment.rounding**2:
        return math.inf
    return search.reaching(target, (a + math.sqrt(a * a + c * (target - 1))) / c)


def _retain_critical_rate(curvature: Curvature, algorithm: AscentDescent) -> float:
    """η* of T without the forget terms, which see η only through η(1−α) and η(1−α)·λ/(1−α)."""
    weight = 1 - algorithm.mixing
    if weight == 0:
        return 2 / algorithm.damping if algorithm.damping else math.inf
    retain_only = replace(algorithm, mixing=0.0, damping=algorithm.damping / weight)
    moment = SecondMoment.of(curvature, retain_only).contracting()
    if moment is None:
        return 0.0
    if not len(moment.eigenvalues):
        return math.inf
    return GrowingSubspace(moment).critical() / weight
