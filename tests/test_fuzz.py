"""Every function behind a door under hostile and under random valid arguments.

A hostile call has one argument of a valid call (`tests/support/calls.py`) replaced or damaged. It
may give finite numbers, or refuse with a ValueError or TypeError whose message has the argument's
name, or raise or warn of a RuntimeError of the package's own, all within ten seconds. All is
seeded. FUZZ=full makes at least 10,000 hostile and 5,000 valid calls, else a tenth of that.
"""

import dataclasses
import importlib
import math
import os
import resource
import signal
import zlib
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from lib import stability, unlearning
from tests.support import calls
from tests.support.calls import VALID_CALLS
from tests.support.dense import dense_mean, spectral_radius, tabled_second_moment
from tests.support.hostile import TooLong, complaint, hostile, names_in

SHARE = 1 if os.environ.get("FUZZ") == "full" else 10
# `fashion_mnist` has no argument, and `Accuracies` is a bare tuple: what is in one is damaged, and
# checked, in calls of `tug_of_war`. What `load_plan` takes is a file: damaged ones are refused by
# name in `tests/unlearning/test_planning.py`, and one that is not there is a FileNotFoundError.
LEFT = {("unlearning", name) for name in ("Accuracies", "fashion_mnist", "load_plan")}
FUZZED = [call for call in VALID_CALLS if call[:2] not in LEFT]
# No argument of theirs is drawn at random: one valid call each.
FIXED = {
    *("stability.Curvature", "stability.critical_moment", "random_matrix.limiting_learning_rate"),
    "stability.AxisFamily",
    *(f"cnn.{name}" for name in ("active_noise_ratio", "memorised_share", "noise_mass")),
    *(f"experiments.{name}" for name in ("Cell", "MapGrid.of", "curvatures", "disagreements")),
    *(f"experiments.{name}" for name in ("heat_map", "missed_cells", "per_sample")),
    *(f"experiments.{name}" for name in ("released_hessian_prediction", "resistance")),
    *(f"experiments.{name}" for name in ("smallest_stable_group", "trained_networks")),
    *("cnn.output_parts", "unlearning.calibrate", "unlearning.retain_sharpness"),
    *(f"unlearning.{name}" for name in ("Population", "fine_tuning", "gradient_ascent", "salun")),
    *(f"unlearning.{name}" for name in ("accuracy_gap", "membership_score", "output_gap", "scrub")),
    *(f"unlearning.{name}" for name in ("tug_of_war_mia", "u_lira", "weight_gap")),
}
HOSTILE = math.ceil(10_000 / SHARE / len(FUZZED))
VALID = math.ceil(5_000 / SHARE / (len(FUZZED) - len(FIXED)))
MEMORY = 6 << 30  # bytes that a call may ask for on top of what the process has
# Whose documentation says when they answer ∞ or NaN.
INFINITE = {
    *("forget_condition", "own_signal_threshold", "escape_steps", "steps_to_grow", "simulate"),
    *("mean_square_path", "unlearning_window", "stopping_step", "steps_to_amplify", "retain_edge"),
    *("ascent_descent", "linearised", "heat_map", "resistance", "per_sample", "first_below"),
    *("contour", "steepest_mean_steps", "growth_exponents", "lyapunov_exponent"),
    *("moment_exponent", "critical_moment", "learning_rate_bounds", "coherence_bound", "Until"),
    *("follow", "follow_weights", "run_network", "containment", "validate", "unlearn", "plan"),
    *("three_axis_bound", "spectral_density", "fit", "sample_escape_steps", "MapGrid.of"),
}
each_call = pytest.mark.parametrize(
    ("door", "name", "build"), FUZZED, ids=[f"{door}.{name}" for door, name, _ in FUZZED]
)


@pytest.fixture(autouse=True)
def _bounded():
    """Stops what runs for too long or takes too much memory, with an exception."""

    def stop(*_):
        raise TooLong

    before, limits = signal.signal(signal.SIGPROF, stop), resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    signal.signal(signal.SIGPROF, before)


def seeded(name, examples):
    """So many examples, always the same, each one a call."""
    configured = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: seed(zlib.crc32(name.encode()))(configured(given(st.data())(test)))


@pytest.mark.long
@each_call
def test_hostile_arguments_give_numbers_or_are_refused_by_name(door, name, build):
    function, good = attrgetter(name)(importlib.import_module(f"lib.{door}")), build()
    made = 0

    @seeded(f"{door}.{name}", HOSTILE)
    def call(data):
        nonlocal made
        made += 1
        changed = data.draw(st.sampled_from(sorted(good)))
        arguments = {key: lambda key=key: build()[key] for key in good}
        arguments[changed] = data.draw(hostile(build()[changed]))
        names = names_in(good[changed], changed)
        found = complaint(function, arguments, names=names, infinite=name in INFINITE)
        assert found is None, f"{changed}: {found}"

    call()
    assert made >= HOSTILE


def scaled(log_scale, alignment, seed):
    """Gaussian curvature of the table's sizes, times 4^log_scale."""
    drawn = stability.gaussian_curvature(8, 3, 5, alignment=alignment, seed=seed)
    return dataclasses.replace(drawn, factors=2.0**log_scale * drawn.factors)


def curvatures(log_scales):
    return st.builds(scaled, log_scales, st.floats(0, 0.95), SEEDS)


def rules(**changes):
    values = {
        "mixing": st.floats(0.01, 0.9),
        "damping": st.one_of(st.just(0.0), st.floats(0.01, 2)),
        "sampling": st.sampled_from(["bernoulli", "without_replacement", "with_replacement"]),
        "retain_batch": st.integers(1, 4),
    }
    return st.builds(calls.rule, **values | changes)


SEEDS = st.integers(0, 2**63 - 1)
# Random values by an argument's name; an argument without one stays as in the table.
VALUES = {
    "algorithm": rules(),
    "alignment": st.floats(0, 0.95),
    "amplification": st.floats(1.1, 1e6),
    "angle": st.floats(-4, 4),
    "curvature": curvatures(st.integers(-9, 9)),
    "damping": st.floats(0, 2),
    "dim": st.integers(8, 40),
    "draws": st.integers(1, 4),
    "factor": st.floats(1.1, 1e6),
    "filters": st.integers(1, 5),
    "flip": st.floats(0, 0.5),
    "forget_ratio": st.floats(0.05, 3),
    "init_scale": st.floats(1e-3, 0.1),
    "learning_rate": st.floats(1e-3, 0.5),
    "level": st.floats(0.15, 0.35),
    "log_growth": st.floats(1e-3, 2),
    "mixing": st.floats(0.01, 0.5),
    "n_forget": st.integers(2, 9),
    "n_retain": st.integers(4, 12),
    "order": st.floats(0.1, 4),
    "retain_ratio": st.floats(0.05, 0.9),
    "retain_sharpness": st.floats(0.1, 10),
    "runs": st.integers(2, 5),
    "seed": SEEDS,
    "steps": st.integers(5, 30),
    "strength": st.floats(0.01, 1),
    "threshold": st.floats(2, 1e4),
}
BERNOULLI = {"algorithm": rules(sampling=st.just("bernoulli"))}
UNIT = {"curvature": curvatures(st.just(0))}
CALM = UNIT | {  # the mean dynamics are stable
    "algorithm": rules(
        sampling=st.just("bernoulli"), damping=st.floats(3, 5), mixing=st.floats(0, 0.3)
    ),
    "learning_rate": st.floats(1e-3, 0.1),
}


def gaussian(*shape):
    """Independent Gaussian numbers."""
    return SEEDS.map(lambda seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def outer(rows):
    return rows[:, :, None] * rows[:, None]


ACCURACIES = st.builds(unlearning.Accuracies, *[st.floats(0, 1)] * 3)
# Where a function takes other or fewer values than others do, or its arguments hang together.
NARROWER: dict[str, dict[str, st.SearchStrategy]] = {
    "cnn.TwoLayerCNN": {"weights": gaussian(2, 3, 5)},
    "cnn.Until": {"forget_loss": st.floats(0, 10), "distance": st.floats(0, 1)},
    "cnn.predicted_memorised_share": {"n_samples": st.integers(2, 100)},
    "cnn.rank_correlation": {"x": gaussian(3, 5), "y": gaussian(3, 5)},
    "experiments.fit_boundary": {"n_samples": st.integers(1, 1000)},
    "experiments.Criterion": {"steps": st.integers(2, 10**4)},
    "experiments.released_family": {"sigma": st.integers(1, 100)},
    **{
        f"random_matrix.{name}": {"dim": st.integers(8, 10**4)}
        for name in ("critical_snr", "detectability", "noise_floor")
    },
    "random_matrix.averaging_test_error": {"ratio": st.floats(0.1, 10)},
    "stability.Curvature.from_gram": {"gram": curvatures(st.integers(-9, 9)).map(lambda c: c.gram)},
    "stability.Curvature.from_hessians": {"hessians": gaussian(6, 4).map(outer)},
    "stability.Curvature.from_model": {"inputs": gaussian(6, 3)},
    "stability.jacobian_vector": {"inputs": gaussian(8, 3), "vector": gaussian(16)},
    "stability.loss_jacobian": {"inputs": gaussian(6, 3)},
    "stability.output_gram": {"inputs": gaussian(8, 3), "trained": st.integers(1, 8)},
    "unlearning.TangentModel": {"speed": st.floats(0.1, 8)},
    "unlearning.TangentModel.from_model": {"inputs": gaussian(8, 3), "trained": st.integers(1, 8)},
    "unlearning.fastest_rise": {
        "algorithm": rules(sampling=st.sampled_from(["without_replacement", "reshuffled"]))
    },
    "unlearning.interpolate": {"tolerance": st.floats(1e-9, 1e-3)},
    "unlearning.klom": {f"{which}_margins": gaussian(6, 3) for which in ("unlearned", "retrained")},
    "unlearning.margins": {"outputs": gaussian(5, 4)},
    "unlearning.tug_of_war": {"unlearned": ACCURACIES, "retrained": ACCURACIES},
    "stability.AxisFamily": {key: st.just(value) for key, value in vars(calls.family()).items()},
    "stability.axis_family": {
        "curvature": st.builds(
            partial(stability.grouped_family, 4, 2, 2, 1), st.floats(0.1, 10), st.floats(0.1, 10)
        )
    },
    "stability.block_critical_rate": BERNOULLI,
    "stability.block_gain": CALM,
    "stability.coherence_bound": BERNOULLI,
    "stability.epoch_growth": {"algorithm": rules(retain_batch=st.just(2))},
    "stability.noise_gain": CALM,
    "stability.steps_to_amplify": UNIT | {"learning_rate": st.floats(10, 50)},
    "random_matrix.sample_learning_rates": {"dim": st.sampled_from([4, 6, 10, 16])},
}


def dense(curvature, algorithm, learning_rate):
    hessians = curvature.factors @ curvature.factors.mT
    return tabled_second_moment(hessians, curvature.forget, algorithm, learning_rate)


def dense_growth(curvature, algorithm, learning_rate):
    return spectral_radius(dense(curvature, algorithm, learning_rate))


def dense_path(curvature, algorithm, learning_rate, steps):
    operator, q = dense(curvature, algorithm, learning_rate), curvature.factors.shape[1]
    moment, identity = torch.eye(q).flatten() / q, torch.eye(q).flatten()
    path = []
    for _ in range(steps + 1):
        path.append(moment @ identity)
        moment = operator @ moment
    return torch.stack(path)


def dense_operator(curvature, algorithm):
    return dense_mean(curvature.factors @ curvature.factors.mT, curvature.forget, algorithm)


def dense_mixing(curvature, damping):
    H = curvature.factors @ curvature.factors.mT
    retain, forget = H[~curvature.forget].mean(0), H[curvature.forget].mean(0)
    damped = retain + damping * torch.eye(len(retain))
    return min(
        1.0, 1 / float(torch.linalg.eigvals(torch.linalg.solve(damped, retain + forget)).real.max())
    )


def dense_coherence(curvature):
    """√tr(H_iH_j) is |h_i·h_j| at rank one; its square would lose a small one to rounding."""
    h = curvature.factors[:, :, 0]
    return (h @ h.T).abs()


DENSE: dict[str, Callable[..., Any]] = {
    "stability.coherence_matrix": dense_coherence,
    "stability.critical_mixing": dense_mixing,
    "stability.growth_factor": dense_growth,
    "stability.mean_operator": dense_operator,
    "stability.mean_square_path": dense_path,
}


@pytest.mark.long
@each_call
def test_random_valid_arguments_give_finite_and_right_numbers(door, name, build):
    full = f"{door}.{name}"
    function, good = attrgetter(name)(importlib.import_module(f"lib.{door}")), build()
    values = {key: value for key, value in VALUES.items() if key in good} | NARROWER.get(full, {})
    made = 0

    @seeded(f"{full} valid", VALID)
    def call(data):
        nonlocal made
        made += 1
        arguments = build() | {key: data.draw(value, key) for key, value in values.items()}
        makers = {key: lambda value=value: value for key, value in arguments.items()}
        assert complaint(function, makers, infinite=name in INFINITE) is None
        if full in DENSE:
            found = torch.as_tensor(function(**arguments))
            expected = torch.as_tensor(DENSE[full](**arguments))
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)

    call()
    assert made == 1 if full in FIXED else made >= VALID
