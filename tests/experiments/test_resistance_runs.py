import math
from dataclasses import replace

import pytest
import torch

from lib.cnn.data import signal_noise
from lib.cnn.memorisation import leave_one_out
from lib.cnn.network import TwoLayerCNN
from lib.cnn.training import fit_to_interpolation
from lib.cnn.unlearning import Start
from lib.experiments.resistance_runs import (
    CRITERION,
    UPDATE,
    curvatures,
    per_sample,
    resistance,
    steepest_mean_steps,
)
from lib.experiments.settings import Network
from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.data_coherence import coherence, forgettability
from lib.stability.dynamics import retain_edge
from tests.support.descent import VALUES, descend, displacements

SMALL = Network(n_retain=8, n_forget=4, dim=60, filters=4, init_scale=0.05)
SHORT = replace(CRITERION, steps=400)


def gradient_rows(weights, data):
    network = TwoLayerCNN(weights)
    rows = [
        torch.autograd.grad(output, network.weights, retain_graph=True)[0].flatten()
        for output in network(data.patches)
    ]
    return torch.stack(rows)


def test_each_column_against_the_definition():
    table = resistance([0.3, 1.0], seeds=2, network=SMALL, criterion=SHORT)
    forget = SMALL.forget
    for row, snr in enumerate((0.3, 1.0)):
        datasets = [replace(SMALL, snr=snr).draw(seed) for seed in range(2)]
        trained = fit_to_interpolation(datasets, filters=4, init_scale=0.05)
        remaining = [data.subset(~forget) for data in datasets]
        retrained = fit_to_interpolation(remaining, filters=4, init_scale=0.05).weights()
        start = displacements(Start(trained, SHORT.displacement, 0))
        for k, data in enumerate(datasets):
            weights = trained.weights()[k]
            rows = gradient_rows(weights, data)
            axes = coherence(Curvature.from_gram(rows @ rows.T, forget))
            assert float(table.retain_coherence[row, k]) == pytest.approx(axes.retain)
            assert float(table.forget_coherence[row, k]) == pytest.approx(axes.forget)
            assert float(table.cross_coherence[row, k]) == pytest.approx(axes.cross)

            sharpness = torch.linalg.eigvalsh(rows[~forget] @ rows[~forget].T / 8)[-1]
            rate = 0.5 * 2 / (0.7 * float(sharpness))
            assert float(table.learning_rate[row, k]) == pytest.approx(rate)
            signed = torch.where(forget, -0.3 / 4, 0.7 / 8)
            lowest = torch.linalg.eigvalsh(rows.T @ (signed[:, None] * rows))[0]
            steps = math.log(1e3) / math.log(1 - rate * float(lowest))
            assert float(table.linear_steps[row, k]) == pytest.approx(steps, rel=1e-6)

            path = descend(weights + start[k], data, rate=rate, sample_weights=[signed] * 400)
            outputs = torch.stack([TwoLayerCNN(w)(data.patches).detach() for w in path])
            losses = VALUES["squared"](outputs, data.labels)[:, forget].mean(1)
            step = int((losses >= 0.5).int().argmax())
            assert float(table.network_steps[row, k]) == step
            w = path[step]
            ratio = (w - retrained[k]).norm() / (weights - retrained[k]).norm()
            assert float(table.retrain_ratio[row, k]) == pytest.approx(float(ratio), rel=1e-6)


def test_a_run_that_does_not_escape_reads_infinite():
    table = resistance([0.3], seeds=1, network=SMALL, criterion=replace(CRITERION, steps=2))
    assert math.isinf(table.network_steps[0, 0])


def test_a_stable_mean_dynamics_never_amplifies():
    trained = fit_to_interpolation([replace(SMALL, snr=0.5).draw(0)], filters=4, init_scale=0.05)
    (curvature,) = curvatures(trained, SMALL.forget)
    descent = AscentDescent(0.0, 8, 4)
    rate = 0.5 * retain_edge(curvature, 0.0)
    assert math.isinf(steepest_mean_steps(curvature, descent, rate, 1e3))


def test_coherence_and_resistance_rise_with_the_signal():
    """Theory §7's table at two ends: the aligned model resists far longer."""
    table = resistance([0.2, 1.5], seeds=2)
    assert bool((table.retain_coherence[1] > 5 * table.retain_coherence[0]).all())
    assert bool((table.network_steps[1] > 5 * table.network_steps[0]).all())
    assert bool((table.retrain_ratio > 1).all())


def test_per_sample_columns_against_their_parts():
    data = signal_noise(10, 60, torch.linspace(0.2, 2, 10), flip=0.2, seed=4)
    found = per_sample([data], [1, 7], network=SMALL, update=UPDATE, criterion=SHORT, starts=2)
    trained = fit_to_interpolation([data] * 2, filters=4, init_scale=0.05)
    left_out = leave_one_out([data] * 2, [1, 7], filters=4, init_scale=0.05, starts=2)
    torch.testing.assert_close(found.memorisation[0], left_out.score)
    torch.testing.assert_close(found.left_out_margin[0], left_out.margin)
    assert torch.equal(found.flipped[0], data.flipped[[1, 7]])
    start = displacements(Start(trained, SHORT.displacement, 0))
    for k, sample in enumerate((1, 7)):
        weights, forget = trained.weights()[k], torch.arange(10) == sample
        rows = gradient_rows(weights, data)
        alone = forgettability(Curvature.from_gram(rows @ rows.T, forget))
        assert float(found.forgettability[0, k]) == pytest.approx(float(alone[0]))
        mass = trained.noise_coefficients[k, :, :, sample].abs().sum() / 4
        assert float(found.noise_mass[0, k]) == pytest.approx(float(mass))
        noise_only = data.patches[sample].clone()
        noise_only[0] = 0
        part = data.labels[sample] * TwoLayerCNN(weights)(noise_only[None])
        assert float(found.noise_part[0, k]) == pytest.approx(float(part.detach()))

        sharpness = torch.linalg.eigvalsh(rows[~forget] @ rows[~forget].T / 9)[-1]
        signed = torch.where(forget, -0.3, 0.7 / 9)
        rate = 1 / (0.7 * float(sharpness))
        path = descend(weights + start[k], data, rate=rate, sample_weights=[signed] * 400)
        outputs = torch.stack([TwoLayerCNN(w)(data.patches[forget]).detach()[0] for w in path])
        losses = 0.5 * (outputs - data.labels[sample]).square()
        assert float(found.steps[0, k]) == int((losses >= 0.5).int().argmax())
        target = 0.5 * max(1 - float(left_out.margin[k]), 0) ** 2
        matched = path[int((losses >= target).int().argmax())]
        others = TwoLayerCNN(matched)(data.patches[~forget]).detach() - data.labels[~forget]
        collateral = float(0.5 * others.square().mean())
        assert float(found.collateral[0, k]) == pytest.approx(collateral, rel=1e-6)


@pytest.mark.long
def test_resistance_reproduces_the_reference_table_within_its_seeds_spread():
    """Reference means, computed independently of this engine on three seeds, at five SNRs."""
    reference = {
        "retain_coherence": [1.31, 1.61, 7.20, 16.2, 22.8],
        "cross_coherence": [0.019, 0.043, 0.678, 0.939, 0.984],
        "linear_steps": [9.0, 10.7, 42, 183, 1556],
        "network_steps": [15, 18, 78, 452, 3293],
        "retrain_ratio": [1.4, 2.7, 9.5, 36, 184],
    }
    measured = resistance([0.05, 0.2, 0.7, 1.5, 5.0], seeds=6)
    for name, expected in reference.items():
        values = getattr(measured, name).double()
        gap = (torch.tensor(expected) - values.mean(1)).abs()
        assert bool((gap <= 3 * values.std(1)).all()), name
