import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.experiments.heat_maps import heat_map
from lib.experiments.predictions import mean, mean_square, mean_square_along
from lib.experiments.settings import Cell, Criterion, TrainedCell, train, trained_networks
from lib.stability.dynamics import growth_mode, mean_square_path
from lib.stability.second_moment import mean_operator

SMALL = Cell().varied(n_retain=8, n_forget=4, retain_batch=4, forget_batch=2, dim=40, filters=4)
SHORT = Criterion(steps=60, growth=30.0, linear_runs=3)


def updates(cells, seed=0):
    networks = trained_networks([cell.network for cell in cells], [seed] * len(cells))
    return [TrainedCell(*pair) for pair in zip(cells, networks.curvatures, strict=True)]


def test_rate_and_damping_are_shares_of_the_retain_sharpness():
    (update,) = updates([SMALL.varied(mixing=0.3, learning_rate_share=0.4, damping_share=0.2)])
    sharpness = float(torch.linalg.eigvalsh(update.curvature.retain_hessian)[-1])
    assert update.rate == pytest.approx(0.4 * 2 / (0.7 * sharpness))
    assert update.algorithm.damping == pytest.approx(0.2 * sharpness)


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_the_mean_against_its_matrix_power(damping):
    """Root mean square over isotropic starts in all p directions, most of them flat."""
    (update,) = updates([SMALL.varied(mixing=0.4, damping_share=damping)])
    A = mean_operator(update.curvature, update.algorithm)
    J = torch.eye(len(A)) - update.rate * A
    outside = SMALL.network.weights - len(A)
    pull = 1 - update.rate * update.algorithm.damping
    square = torch.linalg.matrix_power(J, 60).square().sum() + outside * pull**120
    expected = 0.5 * math.log10(float(square) / SMALL.network.weights) - math.log10(30)
    assert mean(update, SHORT) == pytest.approx(expected, rel=1e-9)
    rate = mean(update, replace(SHORT, asymptotic=True))
    assert rate == pytest.approx(math.log(float(torch.linalg.eigvalsh(J).abs().max())))


def test_the_mean_square_against_the_exact_path():
    """ρ^K and the growing mode's share, beside tr T^K of the isotropic start, which is exact."""
    (update,) = updates([SMALL.varied(mixing=0.3, learning_rate_share=0.05)])
    criterion = replace(SHORT, steps=400)
    q = update.curvature.factors.shape[1]
    start = torch.eye(q) / SMALL.network.weights
    arguments = update.curvature, update.algorithm, update.rate
    exact = float(mean_square_path(*arguments, steps=400, start=start)[-1])
    assert 1e6 < exact < 1e300
    decades = 0.5 * math.log10(exact) - math.log10(30)
    assert mean_square(update, criterion) == pytest.approx(decades, abs=1e-3)
    rate = mean_square(update, replace(criterion, asymptotic=True))
    assert rate == pytest.approx(0.5 * math.log(growth_mode(*arguments)[0]))


@pytest.mark.parametrize("asymptotic", [False, True])
def test_signs_between_evaluated_cells_are_those_of_evaluation(asymptotic):
    criterion = replace(SHORT, asymptotic=asymptotic)
    damped = SMALL.varied(damping_share=0.1, retain_batch=2, learning_rate_share=0.6)
    grid = [
        damped.varied(snr=snr, mixing=mixing)
        for snr in (0.1, 1.0, 3.0)
        for mixing in np.linspace(0.01, 0.9, 9).tolist()
        for _ in range(2)
    ]
    networks = trained_networks([cell.network for cell in grid], [0, 1] * (len(grid) // 2))
    every = [TrainedCell(*pair) for pair in zip(grid, networks.curvatures, strict=True)]
    found = mean_square_along(every, (3, 9, 2), criterion)
    expected = np.array([mean_square(update, criterion) for update in every])
    assert np.array_equal(found > 0, expected > 0)
    known = np.isfinite(found)
    assert known.sum() < len(found)
    np.testing.assert_allclose(found[known], expected[known])


def test_a_map_pairs_every_network_with_its_prediction():
    """Full batches, where the only chance is δ_0: network, twin and mean agree cell by cell."""
    full = SMALL.varied(retain_batch=8, forget_batch=4)
    mixings = [0.02, 0.1, 0.3, 0.6, 0.8]
    x, y = ("snr", [0.3, 3.0]), ("mixing", mixings)
    table = heat_map(full, x, y, criterion=SHORT, seeds=range(3))
    assert [*table.columns[:3]] == ["snr", "mixing", "seed"]
    assert table["mixing"].tolist() == [m for _ in range(2) for m in mixings for _ in range(3)]
    escaped = np.isfinite(table["escape_step"])
    assert np.array_equal(escaped, np.isfinite(table["twin_step"]))
    clear = table["mean"].abs() > 0.6  # decades: δ_0's own luck is a factor of a few
    assert clear.sum() > 20
    assert np.array_equal(escaped[clear], table["mean"][clear] > 0)
    assert np.array_equal(escaped[clear], table["typical"][clear] > 0)
    both = escaped & (table["escape_step"] > 5)
    ratio = table["twin_step"][both] / table["escape_step"][both]
    assert ((ratio > 0.8) & (ratio < 1.25)).all()
    forgot = np.isfinite(table["forget_step"])
    assert (table["forget_step"][forgot] >= table["escape_step"][forgot]).all()
    for name in ("retain_loss", "retain_accuracy", "forget_accuracy", "test_accuracy"):
        assert np.array_equal(table[name].notna(), forgot)
    again = heat_map(full, x, y, criterion=SHORT, seeds=range(3))
    assert table.equals(again)


def test_damped_runs_that_have_shrunk_are_settled():
    held = SMALL.varied(damping_share=0.3, mixing=0.02)
    criterion = replace(SHORT, steps=4000, displacement=1e-5, asymptotic=True)
    table = heat_map(held, ("snr", [3.0]), ("mixing", [0.02]), criterion=criterion, seeds=[0, 1])
    assert (table["typical"] < 0).all()
    assert np.isinf(table["escape_step"]).all()
    assert (table["last"] < -5.9).all()


def test_logistic_training_stops_at_its_loss():
    network = SMALL.varied(loss="logistic", training_loss=0.05).network
    trained = trained_networks([network, replace(network, snr=2.0)], [0, 0]).fit
    assert (trained.losses <= 0.05).all()
    assert (trained.losses > 0.03).all()


def test_logistic_training_that_stalls_says_so(monkeypatch):
    monkeypatch.setattr("lib.experiments.settings.LOGISTIC_STEPS", 3)
    network = SMALL.varied(loss="logistic", training_loss=1e-4).network
    networks = trained_networks([SMALL.network], [0])
    with pytest.raises(RuntimeError, match=r"after 3 steps, above 0.0001"):
        train(network, networks.fit.datasets, seed=0)


def test_a_criterion_names_what_is_out_of_range():
    with pytest.raises(ValueError, match=r"^growth must be finite and > 0, got 0.0"):
        Criterion(growth=0.0)
    with pytest.raises(ValueError, match=r"^forget_loss must be finite and > 0, got nan"):
        Criterion(forget_loss=math.nan)
    with pytest.raises(ValueError, match=r"^steps must be an integer ≥ 2"):
        Criterion(steps=1)


def test_a_batch_larger_than_its_set_is_named():
    with pytest.raises(ValueError, match=r"^retain_batch must be in \[1, 8\]"):
        heat_map(SMALL, ("snr", [1.0]), ("retain_batch", [9]), criterion=SHORT, seeds=[0])
