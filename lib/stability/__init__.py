"""Exact theory of linearised ascent–descent on per-sample curvature.

The objects: `curvature`, `families`, `losses`; a torch module's: `modules` (what is trained, what
is refused), `rows`, `gram` (streamed), `jacobian`; the update: `algorithm`, `sampling`.
What follows from them: `data_coherence`, `pairs`, `second_moment`, `dynamics` (growth, critical
rates), `momentum`, `epochs` (a data loader's), `thresholds` (bounds), `window`, `exponents`
(commuting curvature), `simulation` (sampled runs).
"""

from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.data_coherence import (
    Coherence,
    coherence,
    coherence_matrix,
    directional_coherence,
    forgettability,
    within_coherence,
)
from lib.stability.dynamics import (
    critical_learning_rate,
    critical_mixing,
    growth_factor,
    growth_mode,
    mean_square_path,
    noise_gain,
    retain_edge,
    steps_to_amplify,
    steps_to_grow,
)
from lib.stability.epochs import epoch_growth
from lib.stability.exponents import (
    Exponents,
    axis_laws,
    critical_moment,
    growth_exponents,
    moment_exponent,
)
from lib.stability.families import (
    AxisFamily,
    angled_family,
    axis_family,
    gaussian_curvature,
    grouped_family,
)
from lib.stability.jacobian import OutputGram, jacobian_vector, loss_jacobian, output_gram
from lib.stability.pairs import clipped_pairs, pair_coherence
from lib.stability.sampling import SAMPLINGS, Sampling
from lib.stability.second_moment import mean_operator
from lib.stability.simulation import lyapunov_exponent, simulate
from lib.stability.thresholds import (
    block_critical_rate,
    block_gain,
    coherence_bound,
    learning_rate_bounds,
    three_axis_bound,
)
from lib.stability.window import Window, stopping_step, unlearning_window

__all__ = [
    "SAMPLINGS",
    "AscentDescent",
    "AxisFamily",
    "Coherence",
    "Curvature",
    "Exponents",
    "OutputGram",
    "Sampling",
    "Window",
    "angled_family",
    "axis_family",
    "axis_laws",
    "block_critical_rate",
    "block_gain",
    "clipped_pairs",
    "coherence",
    "coherence_bound",
    "coherence_matrix",
    "critical_learning_rate",
    "critical_mixing",
    "critical_moment",
    "directional_coherence",
    "epoch_growth",
    "forgettability",
    "gaussian_curvature",
    "grouped_family",
    "growth_exponents",
    "growth_factor",
    "growth_mode",
    "jacobian_vector",
    "learning_rate_bounds",
    "loss_jacobian",
    "lyapunov_exponent",
    "mean_operator",
    "mean_square_path",
    "moment_exponent",
    "noise_gain",
    "output_gram",
    "pair_coherence",
    "retain_edge",
    "simulate",
    "steps_to_amplify",
    "steps_to_grow",
    "stopping_step",
    "three_axis_bound",
    "unlearning_window",
    "within_coherence",
]
