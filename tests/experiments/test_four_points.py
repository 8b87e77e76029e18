"""The four-point model against numerical optimisation and integration."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.special import lambertw

from lib.experiments import four_points
from lib.stability import AscentDescent, critical_mixing, mean_operator

X = torch.tensor([-1.0] * 5 + [1.0] * 4 + [3.0] + [4.0] * 4, dtype=torch.float64)
Y = torch.tensor([-1.0] * 5 + [1.0] * 4 + [-1.0] + [1.0] * 4, dtype=torch.float64)
FORGET = torch.arange(14) >= 12


def objective(w, mixing):
    loss = torch.nn.functional.softplus(-Y * X * w)
    ridge = 0.05 * w**2
    if mixing is None:
        return loss.mean() + ridge
    return (1 - mixing) * loss[~FORGET].mean() - mixing * loss[FORGET].mean() + ridge


def optimised(mixing, start):
    """Newton's method by autograd, from the sample-wise loss."""
    w = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    for _ in range(100):
        (g,) = torch.autograd.grad(objective(w, mixing), w, create_graph=True)
        (h,) = torch.autograd.grad(g, w)
        w = (w - g / h).detach().requires_grad_()
    return float(w.detach())


def test_the_solutions_are_those_of_numerical_optimisation():
    assert four_points.original() == pytest.approx(optimised(None, 0.1), abs=1e-10)
    assert four_points.retrained() == pytest.approx(optimised(0.0, 0.1), abs=1e-10)
    for mixing in (0.05, 0.1, 0.3, 0.6, 1.0):
        found = four_points.rest_points(mixing)
        assert found
        for weight in found:
            assert optimised(mixing, weight) == pytest.approx(weight, abs=1e-10)


def test_no_rest_point_is_missed():
    for mixing in (0.0, 0.1, 0.2, 0.5, 1.0):
        fine = np.linspace(-60, 60, 200_001)
        signs = np.sign([four_points.slope(w, mixing) for w in fine[::4]])
        assert len(four_points.rest_points(mixing)) == int((signs[1:] != signs[:-1]).sum())


def test_ascent_s_flow_is_lambert_s():
    start = four_points.original()
    run = solve_ivp(lambda t, w: -4 / (1 + np.exp(4 * w)), (0, 3), [start], rtol=1e-12, atol=1e-13)
    assert four_points.ascended(3.0) == pytest.approx(run.y[0, -1], abs=1e-10)
    assert four_points.ascended(0.0) == pytest.approx(start, abs=1e-12)
    s = np.exp(4 * start) + 4 * start - 16 * 0.1
    assert 4 * four_points.ascended(0.1) == pytest.approx(s - lambertw(np.exp(s)).real, abs=1e-10)
    # Euler's steps tend to the flow.
    w, eta = start, 1e-5
    for _ in range(10_000):
        w -= eta * 4 / (1 + np.exp(4 * w))
    assert four_points.ascended(0.1) == pytest.approx(w, abs=1e-4)


def test_the_mean_operator_and_the_critical_mixing_are_the_library_s():
    curve, w = four_points.curvature(), four_points.original()
    update = AscentDescent(0.2, 12, 2, damping=four_points.RIDGE)
    assert float(mean_operator(curve, update)) == pytest.approx(four_points.bend(w, 0.2), abs=1e-12)
    critical = critical_mixing(curve, four_points.RIDGE)
    assert four_points.bend(w, critical) == pytest.approx(0.0, abs=1e-12)


def test_small_steps_come_to_the_rest_point_below():
    path = four_points.descended(0.1, 0.1, 4000)
    assert min(abs(path[-1] - w) for w in four_points.rest_points(0.1)) < 1e-9
