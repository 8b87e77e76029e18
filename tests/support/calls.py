"""A small valid call of every function and class behind a door: (door, name, its arguments).

The arguments are made anew at each use, by keyword. Tests change one thing and look what happens:
the default device and dtype (`tests/test_device.py`), or one of the arguments (fuzz).
"""

import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib import cnn, experiments, random_matrix, stability, unlearning

Arguments = Callable[[], dict[str, Any]]
F64 = torch.float64

# Exported for their attributes; none is made by hand outside the wing that returns it.
RESULTS = {
    "stability": {"SAMPLINGS", "Coherence", "Exponents", "OutputGram", "Sampling", "Window"},
    "random_matrix": {"ExpectedCoherence", "Outlier"},
    "cnn": {"BlockModel", "Fit", "LeaveOneOut", "NotInterpolated", "Paths", "RankCorrelation"}
    | {"SignalNoise", "Trajectory"},
    "experiments": {"ErrorMap", "EscapeMap", "PerSample", "Resistance"},
    "unlearning": {"Containment", "Digits", "Growth", "LossPath", "ModuleRuns", "NetworkPath"}
    | {"Outcome", "Plan", "TangentPath", "Validity"},
}


def mask(n_retain: int = 4, n_forget: int = 2) -> torch.Tensor:
    return torch.arange(n_retain + n_forget) >= n_retain


def curvature(seed: int = 0) -> stability.Curvature:
    return stability.gaussian_curvature(8, 3, 5, alignment=0.2, seed=seed)


def grouped() -> stability.Curvature:
    return stability.grouped_family(4, 2, 2, 1, 1.0, 0.5)


def family() -> stability.AxisFamily:
    return stability.axis_family(grouped())


def rule(**changes: Any) -> stability.AscentDescent:
    return stability.AscentDescent(
        **{"mixing": 0.05, "retain_batch": 2, "forget_batch": 1} | changes
    )


def update(**more: Any) -> dict[str, Any]:
    return {"curvature": curvature(), "algorithm": rule(), "learning_rate": 0.3} | more


def on_axes(**more: Any) -> dict[str, Any]:
    return {"family": family(), "algorithm": rule(), "learning_rate": 0.3} | more


def laws() -> list[tuple[np.ndarray, np.ndarray]]:
    return stability.axis_laws(**on_axes(learning_rate=1.2))


def linear(outputs: int, samples: int) -> dict[str, Any]:
    """A linear layer of three inputs and some samples of it."""
    generator = torch.Generator().manual_seed(0)
    # Without drawing from the global generator, which calls must leave alone.
    net = torch.nn.utils.skip_init(torch.nn.Linear, 3, outputs, dtype=F64)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=F64))
    return {"model": net, "inputs": torch.randn(samples, 3, generator=generator, dtype=F64)}


def model() -> dict[str, Any]:
    made = linear(outputs=1, samples=6)
    return made | {"targets": made["inputs"][:, :1].clone(), "loss": "squared"}


def head() -> dict[str, Any]:
    """A softmax head, so that its tangent model is itself; six samples trained, two watched."""
    targets = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    return linear(outputs=4, samples=8) | {"targets": targets}


def tangent() -> unlearning.TangentModel:
    made = head()
    return unlearning.TangentModel.from_model(made["model"], made["inputs"], trained=6, dtype=F64)


def ascent(**more: Any) -> dict[str, Any]:
    return {
        "tangent": tangent(), "targets": head()["targets"], "forget": mask(),
        "algorithm": rule(sampling="without_replacement", mixing=0.4), "learning_rate": 0.3,
    } | more  # fmt: skip


def probe() -> unlearning.Probe:
    path = unlearning.follow(**ascent(), steps=12)
    target = float(path.forget_loss[8, 0])
    arguments = {k: v for k, v in ascent().items() if k != "tangent"}
    return unlearning.Probe(path, target, **arguments)


def planned() -> dict[str, Any]:
    """Arguments of `plan`."""
    given = head()
    inputs, targets = given["inputs"], given["targets"]
    return {
        "model": given["model"], "dataset": (inputs[:6], targets[:6]), "forget": mask(),
        "holdout": (inputs[6:], targets[6:]), "target": 4.0, "retain_floor": 0.1,
        "mixing": (0.4,), "steps": 10, "seeds": 2, "verify": 1,
    }  # fmt: skip


@lru_cache
def saved_plan() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """A plan as a file, and the folder that goes when the process ends."""
    folder = tempfile.TemporaryDirectory()
    return folder, unlearning.plan(**planned()).save(Path(folder.name, "plan.json"))


def population() -> unlearning.Population:
    """Two softmax heads, as `head`'s."""
    made = head()
    weights = random_numbers(2, 16)
    return unlearning.Population(
        made["model"], made["inputs"][:6], made["targets"][:6], mask(), weights
    )


def descent(**more: Any) -> dict[str, Any]:
    schedule = unlearning.Schedule(0.1, 3, retain_batch=2, forget_batch=1)
    return {"population": population(), "schedule": schedule} | more


def margin_table(shift: float = 0.0) -> torch.Tensor:
    return random_numbers(6, 3) + shift


def data(seed: int = 0, n: int = 6) -> cnn.SignalNoise:
    return cnn.signal_noise(n, 20, 0.7, seed=seed)


@lru_cache
def trained() -> cnn.Fit:
    return cnn.fit_to_interpolation([data(0), data(1)], filters=3, init_scale=0.01)


def run(**more: Any) -> dict[str, Any]:
    common = {"fit": trained(), "forget": mask(), "algorithm": rule(mixing=0.3)}
    return common | {"learning_rate": 0.1, "steps": 5} | more


def small_network(**changes: Any) -> experiments.Network:
    sizes = {"n_retain": 4, "n_forget": 2, "dim": 30, "filters": 3}
    return experiments.Network(**sizes | changes)


def whole_batches() -> experiments.Update:
    return experiments.Update(mixing=0.3, retain_batch=None, forget_batch=None)


def criterion() -> experiments.Criterion:
    return experiments.Criterion(steps=20, displacement=1e-3, linear_runs=1)


@lru_cache
def table() -> Any:
    """A heat map of two by two cells."""
    return experiments.heat_map(**heat_map())


def heat_map() -> dict[str, Any]:
    cell = experiments.Cell(small_network(), experiments.Update(retain_batch=2, forget_batch=1))
    axes = {"x": ("snr", [0.3, 1.0]), "y": ("mixing", [0.1, 0.3])}
    return {"cell": cell, **axes, "criterion": criterion(), "seeds": [0]}


def grid() -> experiments.MapGrid:
    return experiments.MapGrid.of(table())


def setting() -> experiments.SharedAxis:
    return experiments.SharedAxis(
        n_retain=8, n_forget=4, batch=4, retain_group=6, forget_group=2, learning_rate=0.2
    )


def ensemble() -> random_matrix.GaussianEnsemble:
    return random_matrix.GaussianEnsemble(5, 10, 6)


def limit() -> random_matrix.ProportionalLimit:
    return random_matrix.ProportionalLimit(0.05, 0.5, 1.0, 0.5, 0.5)


def ratios(**more: Any) -> dict[str, Any]:
    return {"retain_ratio": 0.25, "forget_ratio": 1.0} | more


def points() -> torch.Tensor:
    return torch.tensor([-0.5, 0.3, 1.0], dtype=F64)


def random_numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=F64)


def errors() -> torch.Tensor:
    rows = [[0.4, 0.2, 0.1], [0.5, 0.3, 0.05], [0.45, 0.32, 0.12]]
    return torch.tensor(rows, dtype=F64)


def gaussian_rows() -> torch.Tensor:
    return random_numbers(6, 4)


STABILITY: list[tuple[str, Arguments]] = [
    ("AscentDescent", lambda: {"mixing": 0.1, "retain_batch": 2, "forget_batch": 1}),
    ("AxisFamily", lambda: vars(family())),
    ("Curvature", lambda: {"factors": curvature().factors, "forget": curvature().forget}),
    ("Curvature.from_gram", lambda: {"gram": curvature().gram, "forget": curvature().forget}),
    (
        "Curvature.from_hessians",
        lambda: {
            "hessians": gaussian_rows()[:, :, None] * gaussian_rows()[:, None],
            "forget": mask(),
        },
    ),
    ("Curvature.from_model", lambda: model() | {"forget": mask()}),
    (
        "angled_family",
        lambda: {
            "n_retain": 4, "n_forget": 2, "dim": 5, "strength": 0.5, "angle": 0.3, "seed": 0,
        },
    ),
    ("axis_family", lambda: {"curvature": grouped()}),
    ("axis_laws", on_axes),
    ("block_critical_rate", lambda: {"curvature": curvature(), "algorithm": rule()}),
    ("block_gain", update),
    ("clipped_pairs", lambda: {"curvature": curvature(), "mixing": 0.1}),
    ("coherence", lambda: {"curvature": curvature()}),
    ("coherence_bound", lambda: {"curvature": curvature(), "algorithm": rule()}),
    ("coherence_matrix", lambda: {"curvature": curvature()}),
    ("critical_learning_rate", lambda: {"curvature": curvature(), "algorithm": rule()}),
    ("critical_mixing", lambda: {"curvature": curvature(), "damping": 0.1}),
    ("critical_moment", lambda: {"laws": laws()}),
    (
        "directional_coherence",
        lambda: {"curvature": curvature(), "directions": random_numbers(5, 2)},
    ),
    ("epoch_growth", on_axes),
    ("forgettability", lambda: {"curvature": curvature()}),
    ("gaussian_curvature", lambda: {"n_retain": 4, "n_forget": 2, "dim": 5, "seed": 0}),
    (
        "grouped_family",
        lambda: {
            "n_retain": 4, "n_forget": 2, "retain_group": 2, "forget_group": 1,
            "retain_sharpness": 1.0, "forget_sharpness": 0.5,
        },
    ),
    ("growth_exponents", on_axes),
    ("growth_factor", update),
    ("growth_mode", update),
    ("learning_rate_bounds", lambda: {"curvature": curvature(), "algorithm": rule()}),
    (
        "jacobian_vector",
        lambda: {
            "model": head()["model"], "inputs": head()["inputs"], "vector": random_numbers(16),
        },
    ),
    ("loss_jacobian", model),
    ("lyapunov_exponent", lambda: update(steps=8, runs=3, seed=0)),
    ("mean_operator", lambda: {"curvature": curvature(), "algorithm": rule()}),
    (
        "output_gram",
        lambda: {
            "model": head()["model"], "inputs": head()["inputs"], "trained": 6, "dtype": F64,
        },
    ),
    ("mean_square_path", lambda: update(steps=5)),
    ("moment_exponent", lambda: {"laws": laws(), "order": 1.5}),
    ("noise_gain", update),
    ("pair_coherence", lambda: {"curvature": curvature(), "mixing": 0.1}),
    ("retain_edge", lambda: {"curvature": curvature(), "mixing": 0.1}),
    ("simulate", lambda: update(steps=5, runs=3, seed=0)),
    ("steps_to_amplify", lambda: update(learning_rate=4.0, amplification=10.0)),
    ("steps_to_grow", lambda: {"factor": 10.0, "log_growth": 0.1}),
    ("stopping_step", lambda: update(learning_rate=4.0, amplification=10.0)),
    ("three_axis_bound", lambda: {"curvature": curvature(), "algorithm": rule()}),
    (
        "unlearning_window",
        lambda: {
            "curvature": curvature(), "algorithm": rule(), "steps": 50, "amplification": 10.0,
        },
    ),
    ("within_coherence", lambda: {"curvature": curvature(), "members": ~curvature().forget}),
]  # fmt: skip

RANDOM_MATRIX: list[tuple[str, Arguments]] = [
    ("FreeDifference", lambda: ratios(mixing=0.1)),
    ("GaussianEnsemble", lambda: {"dim": 5, "n_retain": 10, "n_forget": 6}),
    ("ProportionalLimit", lambda: vars(limit())),
    ("averaging_test_error", lambda: {"ratio": 2.0}),
    ("critical_mixing", lambda: ratios(damping=0.1)),
    ("critical_snr", lambda: {"n_samples": 10, "dim": 20}),
    ("detectability", lambda: {"snr": 0.5, "n_samples": 10, "dim": 20}),
    ("edge_scales", lambda: ratios(mixing=0.1)),
    ("escape_steps", lambda: ratios(strength=2.0, mixing=0.2)),
    ("expected_coherence", lambda: {"snr": 0.5, "dim": 20, "n_retain": 10, "n_forget": 5}),
    ("forget_condition", ratios),
    ("gain_matrix", lambda: {"limit": limit(), "learning_rate": 0.1}),
    (
        "kolmogorov_distance",
        lambda: {"values": random_numbers(5), "mixing": 0.1, "ensemble": ensemble()},
    ),
    ("limiting_learning_rate", lambda: {"limit": limit()}),
    ("lowest_eigenvalue", lambda: ratios(strength=2.0, mixing=0.2)),
    ("noise_floor", lambda: {"dim": 20}),
    ("own_signal_critical_mixing", lambda: ratios(strength=8.0)),
    ("own_signal_threshold", ratios),
    (
        "sample_averaging_error",
        lambda: {"snr": 0.5, "dim": 20, "n_samples": 10, "draws": 2, "seed": 0},
    ),
    (
        "sample_coherence",
        lambda: {"snr": 0.5, "dim": 20, "n_retain": 10, "n_forget": 5, "draws": 2, "seed": 0},
    ),
    (
        "sample_critical_mixing",
        lambda: {"ensemble": ensemble(), "damping": 0.1, "draws": 2, "seed": 0},
    ),
    (
        "sample_escape_steps",
        lambda: {"ensemble": ensemble(), "mixing": 0.2, "draws": 2, "seed": 0},
    ),
    ("sample_learning_rates", lambda: {"limit": limit(), "dim": 4, "draws": 2, "seed": 0}),
    ("sample_spectra", lambda: {"ensemble": ensemble(), "mixing": 0.2, "draws": 2, "seed": 0}),
    ("sample_top_pairs", lambda: {"ensemble": ensemble(), "mixing": 0.2, "draws": 2, "seed": 0}),
    ("shared_signal_critical_mixing", lambda: ratios(strength=2.0, damping=0.1)),
    ("shared_signal_outliers", lambda: ratios(strength=20.0, mixing=0.1)),
    ("single_set_outlier", lambda: {"strength": 2.0, "ratio": 0.5}),
    ("spectral_density", lambda: ratios(points=points(), mixing=0.1)),
    ("spectral_distribution", lambda: ratios(points=points(), mixing=0.1)),
    ("spectrum_edges", lambda: ratios(mixing=0.1)),
    ("support", lambda: ratios(mixing=0.1)),
]

CNN: list[tuple[str, Arguments]] = [
    ("TwoLayerCNN", lambda: {"weights": random_numbers(2, 3, 5)}),
    ("TwoLayerCNN.random", lambda: {"filters": 3, "dim": 5, "init_scale": 0.1, "seed": 0}),
    ("Until", lambda: {"forget_loss": 0.5, "distance": 0.1}),
    ("active_noise_ratio", lambda: {"trained": trained()}),
    ("ascent_descent", run),
    ("block_model", lambda: {"snr": points().abs(), "n_retain": 10, "n_forget": 5}),
    (
        "coefficient_path",
        lambda: {
            "data": data(), "checkpoints": [0, 5], "filters": 3, "learning_rate": 0.1,
            "init_scale": 0.01,
        },
    ),
    (
        "fit",
        lambda: {
            "datasets": [data(0), data(1)], "filters": 3, "learning_rate": 0.1, "steps": 5,
            "init_scale": 0.01, "batch_size": 2, "tolerance": 1e-3,
        },
    ),
    (
        "fit_to_interpolation",
        lambda: {"datasets": [data(0), data(1)], "filters": 3, "init_scale": 0.01},
    ),
    (
        "leave_one_out",
        lambda: {
            "datasets": [data(0)], "samples": [1], "filters": 3, "init_scale": 0.01, "starts": 2,
        },
    ),
    ("linearised", lambda: run(algorithm=[rule(mixing=0.3), rule(sampling="with_replacement")])),
    ("memorised_share", lambda: {"trained": trained()}),
    ("noise_mass", lambda: {"trained": trained()}),
    ("output_parts", lambda: {"trained": trained()}),
    ("predicted_memorised_share", lambda: {"snr": points().abs(), "n_samples": 10}),
    ("rank_correlation", lambda: {"x": random_numbers(3, 5), "y": random_numbers(3, 5) ** 2}),
    ("signal_noise", lambda: {"n_samples": 6, "dim": 20, "snr": 0.7, "flip": 0.1, "seed": 0}),
]  # fmt: skip

EXPERIMENTS: list[tuple[str, Arguments]] = [
    ("BenignSetting", lambda: {"n_samples": 10, "filters": 3, "steps": 5}),
    ("Cell", lambda: {"network": small_network(), "update": experiments.Update()}),
    ("Criterion", lambda: {"steps": 20, "growth": 10.0}),
    ("Escape", lambda: {"steps": 20, "runs": 4, "threshold": 100.0}),
    ("HessianTest", on_axes),
    ("MapGrid.of", lambda: {"table": table()}),
    ("Network", lambda: {"n_retain": 4, "n_forget": 2, "dim": 30, "filters": 3, "snr": 0.5}),
    ("SharedAxis", lambda: vars(setting())),
    ("Update", lambda: {"mixing": 0.1, "learning_rate_share": 0.5, "retain_batch": 2}),
    ("contour", lambda: {"signal_norms": [1.0, 2.0, 3.0], "errors": errors(), "level": 0.25}),
    (
        "count_escapes",
        lambda: {
            "tests": [setting().test()], "criterion": experiments.Escape(20, 4), "seed": 0,
        },
    ),
    ("curvatures", lambda: {"fit": trained(), "forget": mask()}),
    ("disagreements", lambda: {"grid": grid()}),
    (
        "error_map",
        lambda: {
            "signal_norms": [1.0, 3.0], "dims": [40, 60], "repeats": 2, "seed": 0,
            "setting": experiments.BenignSetting(n_samples=10, filters=3, steps=5),
        },
    ),
    ("escape_bound", lambda: {"test": setting().test(), "threshold": 1000.0}),
    (
        "escape_map",
        lambda: {
            "setting": setting(), "x": ("batch", [2, 4]), "y": ("retain_group", [4, 6]),
            "criterion": experiments.Escape(20, 4), "seed": 0,
        },
    ),
    ("escapes_allowed", lambda: {"runs": 1000, "threshold": 100.0}),
    ("first_below", lambda: {"signal_norms": [1.0, 2.0, 3.0], "errors": errors(), "level": 0.25}),
    (
        "fit_boundary",
        lambda: {"dims": [40, 60, 80], "crossings": points().abs(), "n_samples": 10},
    ),
    ("heat_map", heat_map),
    ("missed_cells", lambda: {"grid": grid()}),
    (
        "per_sample",
        lambda: {
            "datasets": [data(0), data(1)], "samples": [0, 2], "network": small_network(),
            "update": whole_batches(), "criterion": criterion(), "starts": 2,
        },
    ),
    ("released_family", lambda: {"sigma": 20}),
    ("released_hessian_prediction", lambda: {"batches": [2, 8], "sigmas": [5, 30]}),
    (
        "released_hessian_test",
        lambda: {
            "batches": [2, 8], "sigmas": [5, 30], "repetitions": 2, "steps": 10, "seed": 0,
        },
    ),
    (
        "released_map",
        lambda: {
            "batches": [2, 8], "sigmas": [5, 30], "repetitions": 2, "steps": 10, "seed": 0,
        },
    ),
    (
        "negative_curvature",
        lambda: {"linear_steps": 20.0, "learning_rate": 0.1, "factor": 1e3},
    ),
    (
        "resistance",
        lambda: {
            "snrs": [0.5, 1.0], "seeds": 1, "network": small_network(),
            "update": whole_batches(), "criterion": criterion(),
        },
    ),
    ("sister_setting", lambda: {"learning_rate": 0.5, "n": 20}),
    ("smallest_stable_group", lambda: {"setting": setting(), "prediction": "typical"}),
    (
        "stable_group_row",
        lambda: {"setting": setting(), "criterion": experiments.Escape(20, 4), "seed": 0},
    ),
    ("steepest_mean_steps", lambda: update(factor=100.0)),
    (
        "test_error_map",
        lambda: {"signal_norms": [1.0, 3.0], "dims": [60], "repeats": 2, "seed": 0},
    ),
    ("threshold_order", lambda: {"test": setting().test(), "threshold": 1000.0}),
    ("trained_networks", lambda: {"wanted": [small_network()] * 2, "seeds": [0, 1]}),
]  # fmt: skip

UNLEARNING: list[tuple[str, Arguments]] = [
    ("Accuracies", lambda: {"forget": 0.5, "retain": 0.9, "test": 0.8}),
    ("Probe", lambda: vars(probe())),
    (
        "Population",
        lambda: {
            "model": head()["model"], "inputs": head()["inputs"], "targets": head()["targets"],
            "forget": mask(6, 2), "weights": random_numbers(2, 16), "loss": "cross_entropy",
        },
    ),
    (
        "Schedule",
        lambda: {
            "learning_rate": 0.1, "steps": 3, "retain_batch": 2, "forget_batch": 1, "seed": 0,
        },
    ),
    (
        "TangentModel",
        lambda: {
            "outputs": tangent().outputs, "kernel": tangent().kernel, "anchor": tangent().anchor,
            "speed": 1.5,
        },
    ),
    (
        "TangentModel.from_model",
        lambda: {
            "model": head()["model"], "inputs": head()["inputs"], "trained": 6, "dtype": F64,
        },
    ),
    (
        "accuracy_gap",
        lambda: {
            "unlearned": unlearning.Accuracies(0.5, 0.9, 0.8),
            "retrained": unlearning.Accuracies(0.6, 0.9, 0.7),
        },
    ),
    ("calibrate", lambda: {"tangent": tangent(), "probe": probe()}),
    (
        "containment",
        lambda: {k: v for k, v in ascent().items() if k != "learning_rate"},
    ),
    ("digits", lambda: {"n_retain": 5, "n_forget": 2, "seed": 0}),
    ("distillation", lambda: descent(mixing=0.3)),
    ("fashion_mnist", dict),
    ("fastest_rise", lambda: {k: v for k, v in ascent().items() if k != "targets"}),
    ("fine_tuning", descent),
    ("follow", lambda: ascent(steps=4, weight_decay=0.01, seed=1)),
    ("follow_weights", lambda: ascent(steps=4, weight_decay=0.01, seed=1)),
    ("gradient_ascent", descent),
    (
        "interpolate",
        lambda: {
            k: v for k, v in model().items() if k != "loss"
        } | {"tolerance": 1e-3, "max_steps": 50},
    ),
    (
        "klom",
        lambda: {"unlearned_margins": margin_table(), "retrained_margins": margin_table(1.0)},
    ),
    ("klom_floor", lambda: {"models": 10, "repeats": 20, "seed": 0}),
    (
        "margins",
        lambda: {"outputs": random_numbers(5, 4), "targets": torch.tensor([0, 1, 2, 3, 0])},
    ),
    (
        "measure_growth",
        lambda: {k: v for k, v in model().items() if k != "loss"} | {
            "forget": mask(), "algorithm": rule(), "learning_rate": 0.1, "steps": 3, "runs": 3,
            "seed": 0,
        },
    ),
    (
        "membership_score",
        lambda: {
            "retain_confidence": errors()[0], "test_confidence": errors()[1],
            "forget_confidence": errors()[2],
        },
    ),
    ("neg_grad_plus", lambda: descent(mixing=0.3, target=5.0)),
    ("newton_step", lambda: {"population": population(), "damping": 0.5, "weight_decay": 0.1}),
    ("npo", lambda: descent(beta=0.5, mixing=0.3)),
    (
        "output_gap",
        lambda: {
            "unlearned_outputs": random_numbers(2, 5, 4),
            "retrained_outputs": random_numbers(2, 5, 4) + 1,
        },
    ),
    ("plan", planned),
    ("load_plan", lambda: {"path": saved_plan()[1]}),
    ("retrain", lambda: {"population": population(), "epochs": 2, "batch": 3, "seed": 0}),
    (
        "retain_sharpness",
        lambda: {k: ascent()[k] for k in ("tangent", "targets", "forget")},
    ),
    (
        "run_network",
        lambda: head() | {
            "forget": mask(), "algorithm": rule(), "learning_rate": 0.1, "trained": 6, "steps": 3,
            "seed": 0,
        },
    ),
    ("salun", lambda: descent(share=0.5)),
    ("scrub", lambda: descent(ascents=1, anchor=0.5)),
    (
        "train",
        lambda: head() | {"models": 2, "epochs": 2, "batch": 3, "learning_rate": 0.01, "seed": 0},
    ),
    (
        "tug_of_war",
        lambda: {
            "unlearned": unlearning.Accuracies(0.5, 0.9, 0.8),
            "retrained": unlearning.Accuracies(0.6, 0.9, 0.7),
        },
    ),
    (
        "tug_of_war_mia",
        lambda: {
            "unlearned": unlearning.Accuracies(0.5, 0.9, 0.8),
            "retrained": unlearning.Accuracies(0.6, 0.9, 0.7),
            "unlearned_score": 0.5, "retrained_score": 0.6,
        },
    ),
    (
        "u_lira",
        lambda: {"unlearned_margins": margin_table(), "retrained_margins": margin_table(1.0)},
    ),
    (
        "weight_gap",
        lambda: {
            "unlearned_weights": random_numbers(2, 5),
            "retrained_weights": random_numbers(2, 5) + 1,
        },
    ),
    (
        "unlearn",
        lambda: {k: v for k, v in model().items() if k != "loss"} | {
            "forget": mask(), "algorithm": rule(), "learning_rate": 0.1, "steps": 3, "seed": 0,
            "start": 0.1 * random_numbers(2, 4),
        },
    ),
    (
        "validate",
        lambda: head() | {
            "forget": mask(), "tangent": tangent(), "algorithm": rule(), "learning_rate": 0.1,
            "steps": 3, "seed": 0,
        },
    ),
]  # fmt: skip

TABLES = {
    "unlearning": UNLEARNING,
    "stability": STABILITY,
    "random_matrix": RANDOM_MATRIX,
    "cnn": CNN,
    "experiments": EXPERIMENTS,
}
VALID_CALLS: list[tuple[str, str, Arguments]] = [
    (door, name, build) for door, calls in TABLES.items() for name, build in calls
]
