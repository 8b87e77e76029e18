"""What must hold for every input, searched by hypothesis over small random problems."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.data_coherence import coherence, coherence_matrix, forgettability
from lib.stability.dynamics import critical_learning_rate, critical_mixing, growth_factor
from lib.stability.sampling import SAMPLINGS
from lib.stability.second_moment import SecondMoment, mean_operator
from lib.stability.thresholds import coherence_bound, learning_rate_bounds, three_axis_bound
from tests.support.dense import random_instance

bounded = settings(derandomize=True, max_examples=25, deadline=None)


@st.composite
def curvatures(draw, max_rank=2):
    """Random, possibly rank-deficient problems of 4 to 12 samples in at most 5 dimensions."""
    n_retain, n_forget = draw(st.integers(3, 8)), draw(st.integers(1, 4))
    p, rank = draw(st.integers(1, 5)), draw(st.integers(1, max_rank))
    hessians, forget = random_instance(
        n_retain, n_forget, p, min(p, rank), draw(st.integers(0, 10**6))
    )
    return Curvature.from_hessians(hessians, forget)


@st.composite
def problems(draw, max_rank=2):
    """A curvature with an update, as often stable at some step size as not."""
    curvature = draw(curvatures(max_rank))
    algorithm = AscentDescent(
        mixing=draw(st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.6, 1.0])),
        retain_batch=draw(st.integers(1, curvature.n_retain)),
        forget_batch=draw(st.integers(1, curvature.n_forget)),
        damping=draw(st.sampled_from([0.0, 0.1, 2.0])),
        sampling=draw(st.sampled_from(SAMPLINGS)),
    )
    return curvature, algorithm


@bounded
@given(problems(), st.floats(1e-3, 1e3))
def test_scaling_the_curvature_divides_the_critical_learning_rate(problem, scale):
    curvature, algorithm = problem
    scaled = Curvature(math.sqrt(scale) * curvature.factors, curvature.forget)
    harder = replace(algorithm, damping=scale * algorithm.damping)
    before, after = (
        critical_learning_rate(curvature, algorithm),
        critical_learning_rate(scaled, harder),
    )
    assert after == pytest.approx(before / scale, rel=1e-7)
    measured, unscaled = coherence(scaled), coherence(curvature)
    assert measured.retain == pytest.approx(unscaled.retain)
    assert measured.cross == pytest.approx(unscaled.cross)


@bounded
@given(problems(), st.randoms(use_true_random=False))
def test_permuting_the_samples_changes_nothing(problem, random):
    curvature, algorithm = problem
    order = list(range(len(curvature.forget)))
    random.shuffle(order)
    moved = Curvature(curvature.factors[order], curvature.forget[order])
    for function in (critical_learning_rate, three_axis_bound):
        expected = function(curvature, algorithm)
        assert function(moved, algorithm) == pytest.approx(expected, rel=1e-7)
    rate = 0.7 / float(torch.linalg.eigvalsh(mean_operator(curvature, algorithm)).abs().max())
    expected = growth_factor(curvature, algorithm, rate)
    assert growth_factor(moved, algorithm, rate) == pytest.approx(expected, rel=1e-7)
    S = coherence_matrix(curvature)
    torch.testing.assert_close(coherence_matrix(moved), S[order][:, order])


@bounded
@given(curvatures(), st.integers(0, 10**6))
def test_a_shared_congruence_leaves_the_critical_mixing_alone(curvature, seed):
    """H_i → C H_i Cᵀ with any invertible C: κ is an eigenvalue of H_r⁻¹H_f, up to similarity."""
    q = curvature.factors.shape[1]
    generator = torch.Generator().manual_seed(seed)
    C = torch.eye(q) + 0.5 * torch.randn(q, q, generator=generator)
    assume(float(torch.linalg.cond(C)) < 50)
    turned = Curvature(C @ curvature.factors, curvature.forget)
    assert critical_mixing(turned) == pytest.approx(critical_mixing(curvature), rel=1e-6, abs=1e-9)


@bounded
@given(problems())
def test_full_batches_give_twice_the_inverse_sharpness_of_the_mean(problem):
    """B → n: no noise under Bernoulli and without replacement, so η* = 2/λ_max(A)."""
    curvature, algorithm = problem
    assume(algorithm.sampling != "with_replacement")
    full = replace(algorithm, retain_batch=curvature.n_retain, forget_batch=curvature.n_forget)
    lam = torch.linalg.eigvalsh(mean_operator(curvature, full))
    # Flat directions of A are neutral here; those below them are unstable at every rate.
    expected = 2 / float(lam[-1]) if lam[0] > -1e-10 else 0.0
    assert critical_learning_rate(curvature, full) == pytest.approx(expected, rel=1e-9)


@bounded
@given(problems())
def test_duplicating_every_sample_scales_the_noise_as_the_sampling_scheme_says(problem):
    """(n, B) → (2n, 2B) on the same means.

    The noise halves under Bernoulli sampling and with replacement, and shrinks by (n−1)/(2n−1)
    without: drawing 2B of 2n copies is not drawing B of n twice. With replacement it is, exactly.
    """
    curvature, algorithm = problem
    twice = Curvature(curvature.factors.repeat(2, 1, 1), curvature.forget.repeat(2))
    doubled = replace(
        algorithm,
        retain_batch=2 * algorithm.retain_batch,
        forget_batch=2 * algorithm.forget_batch,
    )
    sizes = (curvature.n_retain, curvature.n_forget)
    once, again = noise_of(curvature, algorithm), noise_of(twice, doubled)
    for n, before, after in zip(sizes, once, again, strict=True):
        share = (n - 1) / (2 * n - 1) if algorithm.sampling == "without_replacement" else 0.5
        torch.testing.assert_close(after, share * before, rtol=1e-9, atol=1e-12)


def noise_of(curvature, algorithm):
    """Noise terms Σ v_i H_i² − s_c H_c² of either set, in the samples' own basis."""
    dense = curvature.factors @ curvature.factors.transpose(1, 2)
    found = []
    for part in algorithm.sets(curvature.forget):
        chosen = dense[part.members]
        mean = chosen.mean(0)
        found.append(part.per_sample * (chosen @ chosen).sum(0) - part.per_set * mean @ mean)
    return found


@bounded
@given(problems())
def test_duplicates_drawn_with_replacement_are_the_sample_itself(problem):
    """With replacement, n → 2n copies at the same B is the same law, hence the same η*."""
    curvature, algorithm = problem
    again = replace(algorithm, sampling="with_replacement")
    twice = Curvature(curvature.factors.repeat(2, 1, 1), curvature.forget.repeat(2))
    expected = critical_learning_rate(curvature, again)
    assert critical_learning_rate(twice, again) == pytest.approx(expected, rel=1e-7)


@settings(bounded, max_examples=60)
@given(problems())
def test_bounds_bracket_the_critical_learning_rate(problem):
    curvature, algorithm = problem
    exact = critical_learning_rate(curvature, algorithm)
    low, high = learning_rate_bounds(curvature, algorithm)
    assert low * (1 - 1e-8) <= exact <= high * (1 + 1e-8)
    assert exact <= three_axis_bound(curvature, algorithm) * (1 + 1e-8)
    if algorithm.sampling == "bernoulli":
        assert high <= coherence_bound(curvature, algorithm) * (1 + 1e-8)
    assert (exact == 0) == (low == 0) == (high == 0)


@bounded
@given(problems())
def test_the_critical_learning_rate_splits_stable_from_unstable(problem):
    curvature, algorithm = problem
    exact = critical_learning_rate(curvature, algorithm)
    assume(0 < exact < math.inf)
    assert growth_factor(curvature, algorithm, 0.5 * exact) <= 1 + 1e-10
    assert growth_factor(curvature, algorithm, 1.001 * exact) > 1


@bounded
@given(curvatures(max_rank=3))
def test_coherence_stays_in_its_range(curvature):
    found, rank = coherence(curvature), curvature.factors.shape[2]
    for value, n in ((found.retain, curvature.n_retain), (found.forget, curvature.n_forget)):
        assert 1 - 1e-9 <= value <= n * math.sqrt(rank) + 1e-9
    assert 0 <= found.cross <= 1 + 1e-12
    assert critical_mixing(curvature) <= float(forgettability(curvature).min()) + 1e-9


def test_second_moment_noise_is_the_dense_one():
    """The reference in this file agrees with the operator it stands for."""
    hessians, forget = random_instance(5, 3, 4, rank=2, seed=0)
    curvature = Curvature.from_hessians(hessians, forget)
    for sampling in SAMPLINGS:
        algorithm = AscentDescent(0.2, 2, 2, sampling=sampling)
        moment = SecondMoment.of(curvature, algorithm)
        V = moment.basis @ moment.noise(torch.eye(4)) @ moment.basis.T
        torch.testing.assert_close(V, sum(noise_of(curvature, algorithm)))
