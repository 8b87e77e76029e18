import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from lib.experiments import escape
from lib.experiments.escape import (
    Escape,
    HessianTest,
    count_escapes,
    escape_bound,
    escapes_allowed,
)
from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.dynamics import critical_learning_rate, mean_square_path
from lib.stability.exponents import axis_laws, critical_moment, growth_exponents, moment_exponent
from lib.stability.families import AxisFamily
from lib.stability.sampling import SAMPLINGS, draw_group_counts
from lib.stability.simulation import simulate
from tests.stability.test_exponents import random_algorithm, random_family
from tests.support.commuting import curvature_of
from tests.support.dense import batches, dense_second_moment, random_instance
from tests.support.escapes import squared_norms
from tests.support.marks import long_but


def plain_squared_norms(test, retain_batches, forget_batches):
    """‖δ_k‖² along given batches of one run, by applying the samples' Hessians one by one."""
    curvature, algorithm = curvature_of(test.family), test.algorithm
    hessians = (curvature.factors @ curvature.factors.transpose(1, 2)).numpy()
    delta = np.ones(hessians.shape[1]) / math.sqrt(hessians.shape[1])
    path = [delta @ delta]
    for R, F in zip(retain_batches, forget_batches, strict=True):
        gradient = algorithm.damping * delta
        for i in R:
            gradient = gradient + (1 - algorithm.mixing) / len(R) * hessians[i] @ delta
        for j in F:
            gradient = (
                gradient - algorithm.mixing / len(F) * hessians[test.family.n_retain + j] @ delta
            )
        delta = delta - test.learning_rate * gradient
        path.append(delta @ delta)
    return np.array(path)


def counts_of(group, batches_):
    """How many samples of each group every batch holds; samples fill the groups in order."""
    axis = np.repeat(np.arange(len(group)), group)
    return np.array(
        [[np.sum(axis[b[b < len(axis)]] == a) for a in range(len(group))] for b in batches_]
    )


@pytest.mark.parametrize("seed", range(5))
def test_squared_norms_equal_the_plain_loop_given_the_batches(seed):
    family = random_family(seed)
    algorithm = random_algorithm(family, seed, "without_replacement")
    test, random = HessianTest(family, algorithm, 0.7), np.random.default_rng(seed)
    steps = 60
    drawn = [
        [random.choice(n, size, replace=False) for _ in range(steps)]
        for n, size in (
            (family.n_retain, algorithm.retain_batch),
            (family.n_forget, algorithm.forget_batch),
        )
    ]
    fast = squared_norms(
        test,
        counts_of(family.retain_group, drawn[0])[:, None],
        counts_of(family.forget_group, drawn[1])[:, None],
    )
    np.testing.assert_allclose(fast[:, 0], plain_squared_norms(test, *drawn), rtol=1e-11)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("group", [[2, 1], [1, 1, 1], [3, 0, 2]])
def test_counts_are_drawn_jointly_from_every_batch(group, sampling):
    """Chi-square of 20,000 draws against the law by enumeration, groups together."""
    n, batch, draws = 6, 3, 20_000
    law: dict[tuple[int, ...], float] = {}
    for p, chosen in batches(list(range(n)), batch, sampling):
        key = tuple(counts_of(np.array(group), [np.array(chosen, dtype=int)])[0])
        law[key] = law.get(key, 0) + p
    counts = draw_group_counts(
        np.array(group), n, batch, sampling, (draws,), np.random.default_rng(1)
    )
    observed = dict.fromkeys(law, 0)
    for row in counts:
        observed[tuple(row)] += 1
    expected = draws * np.array(list(law.values()))
    chi2 = np.sum((np.array(list(observed.values())) - expected) ** 2 / expected)
    assert stats.chi2.sf(chi2, len(law) - 1) > 1e-3


def test_both_ways_to_draw_without_replacement_share_one_law():
    """Few groups and a large batch take another of numpy's methods than many and a small one."""
    n, batch, draws = 40, 20, 20_000
    for group in ([10], [4] * 9):
        counts = draw_group_counts(
            np.array(group), n, batch, "without_replacement", (draws,), np.random.default_rng(2)
        )
        spread = stats.hypergeom(n, group[0], batch).var()
        assert abs(counts[:, 0].mean() - batch * group[0] / n) < 4 * math.sqrt(spread / draws)
        assert counts[:, 0].var() == pytest.approx(spread, rel=0.05)


CASES = [
    # family, learning rate: two axes that both can expand
    (
        AxisFamily(
            8, 4, np.array([4, 4]), np.array([2, 1]), np.array([2.0, 2]), np.array([1.0, 0.5])
        ),
        1.1,
    ),
    # one that can, over an incoherent rest that cannot
    (
        AxisFamily(
            8,
            3,
            np.array([3, 1, 1, 1]),
            np.array([2, 0, 0, 0]),
            np.array([2.0, 0.5, 0.5, 0.5]),
            np.array([1.0, 0, 0, 0]),
        ),
        0.6,
    ),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("case", long_but([0], range(len(CASES))))
def test_escapes_in_distribution_against_the_general_simulator(case, sampling):
    """Shares of 1,500 runs each, threshold by threshold, within 4 standard errors."""
    family, eta = CASES[case]
    algorithm = AscentDescent(
        mixing=0.2, retain_batch=2, forget_batch=1, damping=0.02, sampling=sampling
    )
    runs, steps, q = 1500, 25, len(family.retain_group)
    start = torch.full((q, runs), 1 / math.sqrt(q))
    path = simulate(
        curvature_of(family), algorithm, eta, steps=steps, runs=runs, seed=3, start=start
    ).numpy()
    for k, threshold in enumerate((1.05, 1.5, 5.0, 100.0)):
        test, rule = HessianTest(family, algorithm, eta), Escape(steps, runs, threshold)
        fast = count_escapes([test], rule, seed=10 + k)[0] / runs
        slow = float((path.max(axis=0) >= threshold).mean())
        assert abs(fast - slow) <= 4 * math.sqrt((slow * (1 - slow) + 1 / runs) * 2 / runs)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_axes_left_aside_change_no_law(sampling, monkeypatch):
    """Passive axes drawn only when they may decide, against all of them drawn always."""
    family, eta = CASES[1]
    algorithm = AscentDescent(mixing=0.2, retain_batch=2, forget_batch=1, sampling=sampling)
    test, runs = HessianTest(family, algorithm, eta), 2000
    assert list(escape._can_expand(test)) == [True, False, False, False]
    rule, shares = Escape(8, runs, 1.1), []
    shares.append(count_escapes([test], rule, seed=5)[0] / runs)
    monkeypatch.setattr(escape, "_can_expand", lambda t: np.ones(4, dtype=bool))
    shares.append(count_escapes([test], rule, seed=6)[0] / runs)
    assert 0.1 < shares[1] < 0.9
    assert abs(shares[0] - shares[1]) <= 4 * math.sqrt(2 * shares[1] * (1 - shares[1]) / runs)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_mean_of_squared_norms_is_the_exact_mean_square(sampling):
    family, eta = CASES[0]
    algorithm = AscentDescent(mixing=0.2, retain_batch=3, forget_batch=2, sampling=sampling)
    shape, random = (6, 40_000), np.random.default_rng(7)
    retain = draw_group_counts(family.retain_group, 8, 3, sampling, shape, random)
    forget = draw_group_counts(family.forget_group, 4, 2, sampling, shape, random)
    paths = squared_norms(HessianTest(family, algorithm, eta), retain, forget)
    exact = mean_square_path(curvature_of(family), algorithm, eta, steps=6).numpy()
    error = paths.std(axis=1) / math.sqrt(shape[1])
    assert np.all(np.abs(paths.mean(axis=1) - exact) <= 4 * error + 1e-12)


def test_escapes_are_reproducible_and_cells_independent():
    family, eta = CASES[0]
    test = HessianTest(family, AscentDescent(0.2, 2, 1, sampling="without_replacement"), eta)
    rule = Escape(50, 200, 10.0)
    first = count_escapes([test, test], rule, seed=0)
    np.testing.assert_array_equal(first, count_escapes([test, test], rule, seed=0))
    assert first[0] != first[1]
    assert first[0] == count_escapes([test], rule, seed=0)[0]


def test_escape_at_the_extremes():
    family, _ = CASES[1]
    algorithm = AscentDescent(0.0, 2, 1, sampling="without_replacement")
    rule = Escape(1000, 7, 1000.0)
    tests = [HessianTest(family, algorithm, eta) for eta in (0.0, 1e-3, 1e6)]
    np.testing.assert_array_equal(count_escapes(tests, rule, seed=0), [0, 0, 7])


@pytest.mark.long
def test_theorem_rare_escape():
    """T(X) ⪯ X and X ⪰ I bound escape by ⟨δ_0, Xδ_0⟩/(τ‖δ_0‖²); curvatures that do not commute."""
    for seed, sampling in itertools.product(range(3), SAMPLINGS):
        hessians, forget = random_instance(4, 2, 2, seed=seed)
        algorithm = AscentDescent(0.1, 2, 1, damping=0.3, sampling=sampling)
        curvature = Curvature.from_hessians(hessians, forget)
        eta = 0.9 * critical_learning_rate(curvature, algorithm)
        dense = dense_second_moment(hessians, forget, algorithm, eta)
        X = torch.linalg.solve(torch.eye(4) - dense, torch.eye(2).flatten()).reshape(2, 2)
        TX = (dense @ X.flatten()).reshape(2, 2)
        assert torch.linalg.eigvalsh(X - TX)[0] > 0  # a supermartingale: E[δ'ᵀXδ' | δ] ≤ δᵀXδ
        assert torch.linalg.eigvalsh(X - torch.eye(2))[0] >= 0
        # The same X, by Σ_k T^k(I), in the coordinates of the simulator.
        exact = mean_square_path(curvature, algorithm, eta, steps=1500)
        runs, tau = 2000, 4.0
        path = simulate(curvature, algorithm, eta, steps=100, runs=runs, seed=seed)
        share = float((path.max(dim=0).values >= tau).double().mean())
        bound = float(exact.sum()) / tau  # ⟨X, I/q⟩/τ, starts being uniform on the sphere
        assert float(X.trace()) / 2 == pytest.approx(float(exact.sum()), rel=1e-6)
        assert share <= bound + 3 * math.sqrt(max(bound, 0.01) / runs)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("seed", long_but([0], range(6)))
def test_theorem_moment_ladder(seed, sampling):
    """If E|X_a|^p ≤ 1 on every axis then P(sup ‖δ_k‖² ≥ τ) ≤ q^{1−p/2} τ^{−p/2}, p = 2 included."""
    family = random_family(seed, q=2)
    algorithm = random_algorithm(family, seed, sampling)
    etas = np.linspace(0.05, 4, 80)
    for p in (0.5, 1.0, 2.0):
        stable = [eta for eta in etas if moment_exponent(axis_laws(family, algorithm, eta), p) <= 0]
        if not stable:  # unstable in this moment at every rate
            continue
        runs, tau = 3000, 20.0
        test = HessianTest(family, algorithm, float(stable[-1]))
        share = count_escapes([test], Escape(300, runs, tau), seed=seed)[0] / runs
        bound = 2 ** (1 - p / 2) * tau ** (-p / 2)
        if p == 2:
            assert growth_exponents(family, algorithm, test.learning_rate).mean_square <= 0
        assert share <= bound + 3 * math.sqrt(bound / runs)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("seed", range(6))
def test_theorem_moment_ladder_on_one_axis(seed, sampling):
    """P(sup_k δ_a,k² ≥ s δ_a,0²) ≤ s^{−p/2} for the largest p with E|X_a|^p ≤ 1, whatever p is."""
    family = random_family(seed, q=1)
    algorithm = random_algorithm(family, seed, sampling)
    for eta in (0.7, 1.3, 2.1):
        p, runs, s = critical_moment(axis_laws(family, algorithm, eta)), 3000, 8.0
        test = HessianTest(family, algorithm, eta)
        share = count_escapes([test], Escape(300, runs, s), seed=seed)[0] / runs
        bound = 0.0 if p == math.inf else s ** (-p / 2)
        assert share <= bound + 3 * math.sqrt(bound * (1 - bound) / runs)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("case", range(2))
def test_escape_bound_holds(case, sampling):
    family, _ = CASES[case]
    algorithm = AscentDescent(0.2, 2, 1, sampling=sampling)
    for eta in (0.3, 0.5, 0.6, 0.7):
        test, runs = HessianTest(family, algorithm, eta), 1500
        share = count_escapes([test], Escape(100, runs, 6.0), seed=case)[0] / runs
        bound = escape_bound(test, 6.0)
        assert 0 <= bound <= 1
        assert share <= bound + 3 * math.sqrt(bound * (1 - bound) / runs)


@pytest.mark.parametrize("outer", [-1.5, -3.0])
def test_escape_bound_in_closed_form(outer):
    """Four axes of one sample each, B = 1: X is ½, or a given number in one of four draws."""
    algorithm, threshold = AscentDescent(0.0, 1, 1, 0.5, "without_replacement"), 100.0

    def bound(*drawn):
        one, none = np.ones(4, dtype=int), np.zeros(4, dtype=int)
        family = AxisFamily(4, 2, one, none, (0.5 - np.array(drawn)) / 4, none)
        return escape_bound(HessianTest(family, algorithm, 1.0), threshold)

    p = optimize.brentq(lambda p: 0.75 * 0.5**p + 0.25 * abs(outer) ** p - 1, 0.1, 9)
    assert bound(-1.0, 0.5, 0.25, -0.5) == 0  # no axis can expand
    assert bound(outer, 0.5, 0.25, -0.5) == pytest.approx((4 * 99 + 1) ** (-p / 2), rel=1e-8)
    order = min(p, 2.0)
    expected = 4 ** (1 - order / 2) * threshold ** (-order / 2)
    assert bound(outer, outer, 0.25, -0.5) == pytest.approx(expected, rel=1e-8)


def test_escapes_allowed_is_the_binomial_quantile():
    allowed = escapes_allowed(10_000, 1000.0)
    law = stats.binom(10_000, 1e-3)
    assert law.sf(allowed) <= 1e-3 < law.sf(allowed - 1)
    assert escapes_allowed(0, 1000.0) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [({"steps": 0}, "steps"), ({"runs": 0}, "runs"), ({"threshold": 1.0}, "threshold")],
)
def test_escape_refuses_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        replace(Escape(), **change)


def test_simulation_refuses_bad_input():
    family, _ = CASES[0]
    good = HessianTest(family, AscentDescent(0.2, 2, 1), 0.1)
    for change, message in (
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"algorithm": AscentDescent(0.2, 9, 1)}, "retain_batch must be in"),
        ({"algorithm": AscentDescent(0.2, 2, 5)}, "forget_batch must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(good, **change)
    with pytest.raises(ValueError, match="level"):
        escapes_allowed(10, 1000.0, level=-1.0)
