import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.experiments.escape import Escape, escapes_allowed
from lib.experiments.hessian_tests import (
    SharedAxis,
    escape_map,
    sister_setting,
    smallest_stable_group,
    stable_group_row,
)
from lib.stability.data_coherence import coherence
from lib.stability.dynamics import critical_learning_rate
from lib.stability.exponents import growth_exponents
from lib.stability.families import axis_family, grouped_family
from tests.support.commuting import curvature_of, grouped_critical_learning_rate
from tests.support.escapes import threshold_exponent


def test_sister_setting_is_as_published():
    """H_i = (2n/σ) e_1e_1ᵀ for i ≤ σ and (2n/σ) e_i e_iᵀ, on axes of their own, for the others."""
    n, sigma = 12, 5
    setting = replace(sister_setting(0.5, n), batch=3, retain_group=sigma)
    curvature = curvature_of(setting.test().family)
    expected = torch.zeros(n, n - sigma + 1, n - sigma + 1)
    for i in range(n):
        axis = 0 if i < sigma else 1 + i - sigma
        expected[i, axis, axis] = 2 * n / sigma
    retain = curvature.factors[~curvature.forget]
    torch.testing.assert_close(retain @ retain.transpose(1, 2), expected)
    assert float(torch.linalg.eigvalsh(curvature.retain_hessian)[-1]) == pytest.approx(2)
    assert setting.test().algorithm.mixing == 0


@pytest.mark.parametrize("cross", [0.0, 0.3, 0.7, None])
def test_setting_has_the_coherence_it_says(cross):
    setting = SharedAxis(n_retain=30, n_forget=20, retain_group=12, forget_group=7, cross=cross)
    curvature = curvature_of(setting.test().family)
    measured = coherence(curvature)
    limit = setting.largest_cross()
    assert measured.cross == pytest.approx(limit if cross is None else cross, abs=1e-12)
    assert measured.retain == pytest.approx(12)
    forget = curvature.forget_hessian
    assert float(torch.linalg.matrix_norm(forget)) == pytest.approx(setting.forget_sharpness)
    assert int((curvature.factors[curvature.forget] != 0).any(dim=1).sum()) == (
        7 if cross in (0.0, None) else 14
    )
    if cross is None:
        assert measured.forget == pytest.approx(7)


def test_frontiers_of_the_settings_are_the_general_solver_s():
    for cross, damping in ((None, 0.0), (0.4, 0.3)):
        test = SharedAxis(
            n_retain=12,
            n_forget=8,
            batch=3,
            retain_group=4,
            forget_group=3,
            cross=cross,
            damping=damping,
        ).test()
        assert grouped_critical_learning_rate(test.family, test.algorithm) == pytest.approx(
            critical_learning_rate(curvature_of(test.family), test.algorithm), rel=1e-8
        )


@pytest.mark.parametrize(
    ("eta", "batch", "bernoulli", "mean_square", "typical"),
    [(0.5, 8, 11.5, 11, 8), (0.5, 4, 24, 20, 15), (0.8, 8, 46, 32, 13)],
)
def test_smallest_stable_groups_of_the_reference_table(eta, batch, bernoulli, mean_square, typical):
    setting = replace(sister_setting(eta), batch=batch)
    assert smallest_stable_group(setting, "mean_square") == mean_square
    assert smallest_stable_group(setting, "typical") == typical
    under_bernoulli = replace(setting, sampling="bernoulli")
    assert smallest_stable_group(under_bernoulli, "mean_square") == math.floor(bernoulli) + 1
    row = stable_group_row(setting, Escape(), seed=0)
    assert [row[key] for key in list(row)[:5]] == [eta, batch, bernoulli, mean_square, typical]
    assert abs(row["measured majority"] - typical) <= 2


def test_the_coherent_axis_alone_sets_the_edge_of_the_sister_setting():
    """So the sister's family and the grouped one of the same σ have one and the same η*."""
    for group, batch in ((10, 8), (20, 3), (50, 30)):
        test = replace(sister_setting(0.5), batch=batch, retain_group=group).test()
        grouped = axis_family(grouped_family(100, 1, group, 1, 2.0, 2.0))
        assert grouped_critical_learning_rate(test.family, test.algorithm) == pytest.approx(
            grouped_critical_learning_rate(grouped, test.algorithm), rel=1e-12
        )


def test_threshold_exponent_lies_between_typical_and_mean_square():
    test = SharedAxis(learning_rate=1.5).test()
    exponents = growth_exponents(test.family, test.algorithm, 1.5)
    ladder = [threshold_exponent(test, tau) for tau in (1e300, 1e12, 1e3)]
    assert exponents.typical < ladder[0] < ladder[1] < ladder[2] < exponents.mean_square


def test_a_coarse_map_of_the_sister_setting():
    rule = Escape(steps=400, runs=10)
    groups, batches = range(2, 51, 6), range(1, 50, 6)
    result = escape_map(
        sister_setting(0.8), ("batch", batches), ("retain_group", groups), criterion=rule, seed=0
    )
    assert result.escaped.shape == (len(groups), len(batches))
    for i, j in ((0, 0), (3, 5), (8, 8)):
        test = replace(sister_setting(0.8), batch=batches[j], retain_group=groups[i]).test()
        exponents = growth_exponents(test.family, test.algorithm, 0.8)
        assert result.typical[i, j] == exponents.typical
        assert result.mean_square[i, j] == exponents.mean_square
        assert result.mean[i, j] == exponents.mean
        assert result.at_threshold[i, j] == threshold_exponent(test, 1000.0)
    escaped, runs = result.stable_runs
    assert escaped <= escapes_allowed(runs, rule.threshold)
    assert result.typical_agreement >= 0.95  # 81 cells: at most four on the frontier
    again = escape_map(
        sister_setting(0.8), ("batch", batches), ("retain_group", groups), criterion=rule, seed=0
    )
    np.testing.assert_array_equal(result.escaped, again.escaped)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cross": 1.0}, r"cross must be in \[0, 0.9"),
        ({"cross": -0.1}, "cross must be in"),
        ({"retain_group": 0}, "retain_group must be an integer ≥ 1"),
        ({"retain_group": 101}, "retain_group"),
        ({"forget_group": 51}, "forget_group"),
        ({"batch": 51}, "forget_batch"),
        ({"mixing": 1.5}, "mixing"),
        ({"learning_rate": -0.5}, "learning_rate"),
        ({"damping": -0.5}, "damping"),
    ],
)
def test_settings_refuse_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SharedAxis(), **change).test()


def test_no_stable_group_is_said():
    with pytest.raises(ValueError, match="stable group"):
        smallest_stable_group(replace(sister_setting(5.0), batch=8), "mean_square")


BATCHES, GROUPS = list(range(1, 50, 2)), list(range(2, 51, 2))
RATE_MAP = (
    SharedAxis(batch=10, retain_group=20, forget_group=20),
    ("learning_rate", np.linspace(0.08, 2.4, 30).tolist()),
    ("mixing", np.linspace(0, 0.6, 25).tolist()),
)
DAMPED = SharedAxis(retain_group=50, batch=5, forget_group=4, damping=0.2, learning_rate=0.7)
MAPS = {
    "batch, retain coherence": (
        SharedAxis(learning_rate=1.0, mixing=0.2, forget_group=10),
        ("batch", BATCHES),
        ("retain_group", GROUPS),
    ),
    "batch, forget coherence": (
        SharedAxis(learning_rate=2.0, mixing=0.25, retain_group=100, forget_sharpness=4.0),
        ("batch", BATCHES),
        ("forget_group", GROUPS),
    ),
    "mixing, alignment": (
        DAMPED,
        ("mixing", np.linspace(0.02, 0.6, 30).tolist()),
        ("cross", np.linspace(0, DAMPED.largest_cross(), 25).tolist()),
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", MAPS)
def test_majorities_of_the_book_s_maps_are_the_sign_of_the_typical_exponent(name):
    setting, x, y = MAPS[name]
    result = escape_map(setting, x, y, seed=0)
    escaped, runs = result.stable_runs
    assert result.typical_agreement >= 0.98
    assert escaped <= escapes_allowed(runs, result.criterion.threshold)


@pytest.mark.long
def test_the_typical_exponent_predicts_majorities_once_the_threshold_is_high():
    """At 10³ excursions decide about one cell in twenty of this map, at 10²⁴ one in a hundred."""
    results = [
        escape_map(*RATE_MAP, criterion=Escape(steps, 10, threshold), seed=0)
        for steps, threshold in ((1000, 1e3), (8000, 1e24))
    ]
    for result in results:
        escaped, runs = result.stable_runs
        assert escaped <= escapes_allowed(runs, result.criterion.threshold)
        assert result.threshold_agreement > result.typical_agreement
    assert results[1].typical_agreement >= 0.98 > results[0].typical_agreement
