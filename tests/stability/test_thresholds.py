import math

import pytest
import torch
from scipy.linalg import eigh

from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.data_coherence import coherence, coherence_matrix, directional_coherence
from lib.stability.dynamics import critical_learning_rate, growth_factor, retain_edge
from lib.stability.families import grouped_family
from lib.stability.sampling import SAMPLINGS
from lib.stability.thresholds import (
    coherence_bound,
    learning_rate_bounds,
    three_axis_bound,
)
from tests.support.dense import dense_mean, dense_second_moment, random_instance, spectral_radius


def dense_operators(hessians, forget, algorithm):
    """ℒ and 𝒬 as p² × p² matrices, from T_η = I − ηℒ + η²𝒬 enumerated at η = ±1."""
    plus, minus = (dense_second_moment(hessians, forget, algorithm, e) for e in (1.0, -1.0))
    return (minus - plus) / 2, (plus + minus) / 2 - torch.eye(len(plus))


def instances(count, sampling):
    """Random problems with A ≻ 0 and without, of ranks 1 and 2, damped and not."""
    for seed in range(count):
        hessians, forget = random_instance(5, 3, 3, rank=1 + seed % 2, seed=seed)
        mixing = (0.02, 0.05, 0.1, 0.3)[seed % 4]
        damping = (0.0, 0.4)[seed // 2 % 2]
        yield hessians, forget, AscentDescent(mixing, 2, 1, damping, sampling)


def commuting_instance(seed, rank):
    """Random curvatures with one common eigenbasis, turned out of the coordinate axes."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(12, 5, generator=generator)
    drop = torch.rand(12, 5, generator=generator).argsort(dim=1) >= rank
    values[drop] = 0.0
    basis = torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    return basis @ torch.diag_embed(values) @ basis.T, torch.arange(12) >= 8


# thm-two-sided


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_theorem_6_two_sided_threshold(sampling):
    """On random instances: ρ(T) < 1 below the lower side, ρ(T) > 1 above the upper one."""
    stable = 0
    for hessians, forget, algorithm in instances(12, sampling):
        curvature = Curvature.from_hessians(hessians, forget)
        low, high = learning_rate_bounds(curvature, algorithm)
        indefinite = torch.linalg.eigvalsh(dense_mean(hessians, forget, algorithm))[0] < 0
        if indefinite:
            assert (low, high) == (0.0, 0.0)
            continue
        stable += 1

        below = dense_second_moment(hessians, forget, algorithm, 0.9999 * low)
        above = dense_second_moment(hessians, forget, algorithm, 1.0001 * high)
        assert spectral_radius(below) < 1 < spectral_radius(above)
        assert low <= critical_learning_rate(curvature, algorithm) * (1 + 1e-9)
    assert stable >= 4


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_theorem_6_sides_are_the_quotients_of_the_dense_operators(sampling):
    """The pencil (𝒬(I); ℒ(I)/2) below, no more than the quotient at any direction tried above."""
    for hessians, forget, algorithm in instances(8, sampling):
        low, high = learning_rate_bounds(Curvature.from_hessians(hessians, forget), algorithm)
        if low == 0:
            continue
        L, Q = dense_operators(hessians, forget, algorithm)
        eye = torch.eye(3).flatten()
        A2V, A = (Q @ eye).reshape(3, 3).numpy(), (L @ eye).reshape(3, 3).numpy() / 2
        assert low == pytest.approx(2 / eigh(A2V, A, eigvals_only=True)[-1], rel=1e-9)
        u = torch.randn(3, 4000, generator=torch.Generator().manual_seed(2))
        X = torch.einsum("ak,bk->abk", u, u).reshape(9, -1)
        quotients = (X * (L @ X)).sum(0) / (X * (Q @ X)).sum(0)
        assert high <= float(quotients.min()) * (1 + 1e-9)
        assert high >= 0.98 * float(quotients.min())  # 4,000 directions cover this sphere


def test_theorem_6_formula_in_directional_coherences():
    """Under Bernoulli sampling the upper quotient is the theorem's, at any u."""
    hessians, forget = random_instance(5, 3, 3, rank=2, seed=4)
    curvature, algorithm = Curvature.from_hessians(hessians, forget), AscentDescent(0.2, 2, 1, 0.3)
    dense, forget = dense_instance(curvature)
    L, Q = dense_operators(dense, forget, algorithm)
    u = torch.nn.functional.normalize(
        torch.randn(3, generator=torch.Generator().manual_seed(3)), dim=0
    )
    X = torch.outer(u, u).flatten()
    sigma_r, sigma_f = directional_coherence(curvature, u)
    lam_r, lam_f = u @ curvature.retain_hessian @ u, u @ curvature.forget_hessian @ u
    a = 0.8 * lam_r - 0.2 * lam_f + 0.3
    noise = 0.64 * lam_r**2 * (5 / 2 - 1) / sigma_r + 0.04 * lam_f**2 * (3 - 1) / sigma_f
    torch.testing.assert_close((X @ L @ X) / (X @ Q @ X), 2 * a / (a**2 + noise))


def dense_instance(curvature):
    return curvature.factors @ curvature.factors.transpose(1, 2), curvature.forget


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_theorem_6_sides_meet_when_curvatures_commute(rank, sampling):
    for seed in range(3):
        hessians, forget = commuting_instance(seed, rank)
        curvature = Curvature.from_hessians(hessians, forget)
        algorithm = AscentDescent(0.1, 3, 2, damping=0.2, sampling=sampling)
        low, high = learning_rate_bounds(curvature, algorithm)
        exact = critical_learning_rate(curvature, algorithm)
        assert exact > 0
        assert (low, high) == pytest.approx((exact, exact), rel=1e-8)


def axis_rates(n_r, n_f, retain_group, forget_group, lam_r, lam_f, alpha, damping, b_r, b_f):
    """2a/(a² + noise) on each axis of the grouped family, counted from its definition."""
    for g in range(max(math.ceil(n_r / retain_group), math.ceil(n_f / forget_group))):
        k_r = max(0, min(retain_group, n_r - g * retain_group))
        k_f = max(0, min(forget_group, n_f - g * forget_group))
        r, f = k_r / retain_group * lam_r * (1 - alpha), k_f / forget_group * lam_f * alpha
        noise = r**2 * (n_r / b_r - 1) / max(k_r, 1) + f**2 * (n_f / b_f - 1) / max(k_f, 1)
        a = r - f + damping
        yield 2 * a / (a * a + noise) if a > 0 else 0.0


@pytest.mark.parametrize("retain_group", range(1, 9))
@pytest.mark.parametrize("forget_group", [1, 2, 3, 5])
def test_theorem_6_is_tight_in_both_coherences(retain_group, forget_group):
    """Both sides equal η*, the least 2a/(a² + noise) over the axes, whatever the group sizes."""
    curvature = grouped_family(8, 5, retain_group, forget_group, 1.5, 0.6)
    algorithm = AscentDescent(0.2, 3, 2, damping=0.3)
    expected = min(axis_rates(8, 5, retain_group, forget_group, 1.5, 0.6, 0.2, 0.3, 3, 2))
    assert learning_rate_bounds(curvature, algorithm) == pytest.approx((expected, expected))
    found = coherence(curvature)
    assert (found.retain, found.forget) == pytest.approx((retain_group, forget_group))


@pytest.mark.parametrize("retain_coherence", [1, 2, 5, 9])
@pytest.mark.parametrize("forget_coherence", [1, 3, 4])
def test_theorem_6_is_attained_at_every_pair_of_integer_coherences(
    retain_coherence, forget_coherence
):
    """Three groups a set: η* is the theorem's expression with σ_r, σ_f in place of σ_c(u)."""
    n_r, n_f, alpha = 3 * retain_coherence, 3 * forget_coherence, 0.2
    curvature = grouped_family(n_r, n_f, retain_coherence, forget_coherence, 1.5, 0.6)
    a = (1 - alpha) * 1.5 - alpha * 0.6
    noise = (1 - alpha) ** 2 * 1.5**2 * (n_r / 2 - 1) / retain_coherence
    noise += alpha**2 * 0.6**2 * (n_f - 1) / forget_coherence
    exact = critical_learning_rate(curvature, AscentDescent(alpha, 2, 1))
    assert exact == pytest.approx(2 * a / (a**2 + noise), rel=1e-9)


def test_retain_edge_is_where_full_batch_descent_stops_contracting():
    hessians, forget = random_instance(6, 2, 3, seed=1)
    curvature = Curvature.from_hessians(3.0 * hessians, forget)
    for mixing in (0.0, 0.4):
        rate = retain_edge(curvature, mixing)
        step = torch.eye(3) - rate * (1 - mixing) * 3.0 * hessians[~forget].mean(dim=0)
        assert float(torch.linalg.eigvalsh(step).abs().max()) == pytest.approx(1.0, rel=1e-12)
    assert retain_edge(curvature, 1.0) == math.inf


def test_theorem_6_without_ascent_is_the_one_set_boundary():
    """α = 0: η* = (2/λ_r) σ/(σ + n/B − 1)."""
    for group, batch in [(1, 1), (3, 2), (5, 4), (12, 1), (7, 12)]:
        curvature = grouped_family(12, 2, group, 1, 1.7, 0.3)
        expected = 2 / 1.7 * group / (group + 12 / batch - 1)
        bounds = learning_rate_bounds(curvature, AscentDescent(0.0, batch, 1))
        assert bounds == pytest.approx((expected, expected))


def test_bounds_where_no_rate_or_every_rate_is_stable():
    curvature = grouped_family(6, 6, 1, 1, 1.0, 1.0)
    assert learning_rate_bounds(curvature, AscentDescent(0.6, 6, 6)) == (0.0, 0.0)
    assert learning_rate_bounds(curvature, AscentDescent(0.5, 6, 3)) == (0.0, 0.0)
    assert learning_rate_bounds(curvature, AscentDescent(0.5, 6, 6)) == (math.inf, math.inf)
    # Forget-only axes are neutral at mixing 0 and do not count.
    longer = grouped_family(3, 6, 1, 1, 1.0, 1.0)
    assert learning_rate_bounds(longer, AscentDescent(0.0, 3, 1)) == pytest.approx((2.0, 2.0))


def test_critical_learning_rate_is_infinite_where_nothing_moves():
    curvature = grouped_family(6, 6, 1, 1, 1.0, 1.0)
    for sampling in ("bernoulli", "without_replacement"):
        algorithm = AscentDescent(0.5, 6, 6, sampling=sampling)
        assert critical_learning_rate(curvature, algorithm) == math.inf
        assert growth_factor(curvature, algorithm, 7.0) == pytest.approx(1.0)


# thm-coherence-bound


def test_theorem_5_coherence_bound():
    """ρ(T) > 1 above the bound, on random instances and whatever the mixing."""
    for hessians, forget, algorithm in instances(12, "bernoulli"):
        bound = coherence_bound(Curvature.from_hessians(hessians, forget), algorithm)
        assert spectral_radius(dense_second_moment(hessians, forget, algorithm, 1.0001 * bound)) > 1


def test_theorem_5_formula_and_its_weaker_place_beside_theorem_6():
    for hessians, forget, algorithm in instances(12, "bernoulli"):
        curvature = Curvature.from_hessians(hessians, forget)
        sigma = coherence(curvature)
        sides = []
        for members, value, weight, n, batch in (
            (~forget, sigma.retain, 1 - algorithm.mixing, 5, 2),
            (forget, sigma.forget, algorithm.mixing, 3, 1),
        ):
            sharpness = float(torch.linalg.eigvalsh(hessians[members].mean(0))[-1])
            sides.append(value / (weight * sharpness) * (n / batch - 1) ** -0.5)
        bound = coherence_bound(curvature, algorithm)
        assert bound == pytest.approx(min(sides), rel=1e-9)
        assert learning_rate_bounds(curvature, algorithm)[1] <= bound * (1 + 1e-9)


def test_coherence_bound_is_infinite_without_noise():
    curvature = grouped_family(6, 4, 2, 2, 1.0, 0.0)
    assert coherence_bound(curvature, AscentDescent(0.3, 6, 4)) == math.inf
    assert coherence_bound(curvature, AscentDescent(0.3, 6, 1)) == math.inf  # flat forget set
    assert coherence_bound(curvature, AscentDescent(1.0, 1, 1)) == math.inf
    with pytest.raises(ValueError, match=r"algorithm.sampling must be 'bernoulli'"):
        coherence_bound(curvature, AscentDescent(0.3, 2, 2, sampling="with_replacement"))


# thm-three-axis


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_three_axis_bound_has_the_units_of_a_rate(sampling):
    hessians, forget = random_instance(5, 3, 3, seed=1)
    algorithm = AscentDescent(0.05, 2, 1, sampling=sampling)
    bound = three_axis_bound(Curvature.from_hessians(hessians, forget), algorithm)
    assert 0 < bound < math.inf
    for scale in (1e-6, 1e6):
        scaled = three_axis_bound(Curvature.from_hessians(scale * hessians, forget), algorithm)
        assert scaled * scale == pytest.approx(bound)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_theorem_6_prime_three_axis_bound(sampling):
    """The quotient of the dense operators at X = I, so ρ(T) > 1 above it; 0 where tr A < 0."""
    for hessians, forget, algorithm in instances(12, sampling):
        bound = three_axis_bound(Curvature.from_hessians(hessians, forget), algorithm)
        if torch.trace(dense_mean(hessians, forget, algorithm)) < 0:
            assert bound == 0.0
            continue
        L, Q = dense_operators(hessians, forget, algorithm)
        eye = torch.eye(3).flatten()
        assert bound == pytest.approx(float((eye @ L @ eye) / (eye @ Q @ eye)), rel=1e-9)
        assert spectral_radius(dense_second_moment(hessians, forget, algorithm, 1.0001 * bound)) > 1


def test_theorem_6_prime_needs_the_coherence_matrix_alone():
    """For rank-one curvature, λ = 0 and Bernoulli: block means and the diagonal of S."""
    hessians, forget = random_instance(6, 4, 5, seed=3)
    curvature = Curvature.from_hessians(hessians, forget)
    S, alpha = coherence_matrix(curvature), 0.1
    rr, ff, rf = (S[~forget][:, ~forget], S[forget][:, forget], S[~forget][:, forget])
    noise_r = (1 / 2 - 1 / 6) * rr.diagonal().square().mean()
    noise_f = (1 / 3 - 1 / 4) * ff.diagonal().square().mean()
    top = (1 - alpha) * rr.diagonal().mean() - alpha * ff.diagonal().mean()
    bottom = (1 - alpha) ** 2 * (rr.square().mean() + noise_r)
    bottom += alpha**2 * (ff.square().mean() + noise_f)
    bottom -= 2 * alpha * (1 - alpha) * rf.square().mean()
    bound = three_axis_bound(curvature, AscentDescent(alpha, 2, 3))
    assert bound == pytest.approx(float(2 * top / bottom), rel=1e-9)


def test_theorem_6_prime_approaches_the_threshold_for_isotropic_curvature():
    gaps = []
    for p in (10, 40):
        generator = torch.Generator().manual_seed(0)
        factors = torch.randn(6 * p, p, 1, generator=generator)
        curvature = Curvature(factors, torch.arange(6 * p) >= 4 * p)
        algorithm = AscentDescent(0.05, p // 5, p // 10)
        bound = three_axis_bound(curvature, algorithm)
        gaps.append(bound / critical_learning_rate(curvature, algorithm) - 1)
    assert 0 < gaps[1] < gaps[0] < 0.1


def test_theorem_6_prime_where_nothing_moves():
    curvature = grouped_family(6, 6, 1, 1, 1.0, 1.0)
    assert three_axis_bound(curvature, AscentDescent(0.5, 6, 6)) == math.inf


# The grouped family


def test_grouped_family_is_as_written():
    curvature = grouped_family(6, 4, 3, 2, 2.0, 0.5)
    hessians, forget = dense_instance(curvature)
    assert forget.tolist() == [False] * 6 + [True] * 4
    for i in range(6):
        expected = torch.zeros(2, 2)
        expected[i // 3, i // 3] = 6 * 2.0 / 3
        torch.testing.assert_close(hessians[i], expected)
    torch.testing.assert_close(curvature.retain_hessian, 2.0 * torch.eye(2))
    torch.testing.assert_close(curvature.forget_hessian, 0.5 * torch.eye(2))


def test_grouped_family_with_a_last_group_of_fewer_samples():
    curvature = grouped_family(7, 1, 3, 1, 2.0, 0.0)
    sharpness = torch.tensor([2.0, 2.0, 2.0 / 3])
    torch.testing.assert_close(curvature.retain_hessian, torch.diag(sharpness))
    assert directional_coherence(curvature, torch.eye(3))[0].tolist() == [3.0, 3.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 1, 1, 1.0, 1.0), "n_retain must be an integer ≥ 1, got 0"),
        ((6, 4, 7, 1, 1.0, 1.0), r"retain_group must be in \[1, 6\].*got 7"),
        ((6, 4, 1, 0, 1.0, 1.0), "forget_group must be an integer ≥ 1, got 0"),
        ((6, 4, 1.5, 1, 1.0, 1.0), "retain_group must be an integer ≥ 1, got 1.5"),
        ((6, 4, 1, 1, -1.0, 1.0), "retain_sharpness must be a finite number ≥ 0, got -1.0"),
        ((6, 4, 1, 1, 1.0, math.inf), "forget_sharpness must be a finite number ≥ 0, got inf"),
        ((6, 4, 1, 1, 0.0, 0.0), "must not both be 0"),
    ],
)
def test_grouped_family_refuses_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        grouped_family(*arguments)
