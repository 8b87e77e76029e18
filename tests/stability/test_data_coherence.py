import pytest
import torch

from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.data_coherence import (
    coherence,
    coherence_matrix,
    directional_coherence,
    forgettability,
    within_coherence,
)
from lib.stability.dynamics import critical_learning_rate, critical_mixing, growth_factor
from lib.stability.families import grouped_family
from tests.support.dense import random_instance


def matrix_root(hessian):
    values, vectors = torch.linalg.eigh(hessian)
    return vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T


@pytest.mark.parametrize("rank", [1, 3])
def test_coherence_matrix_is_the_norm_of_root_products(rank):
    hessians, forget = random_instance(4, 3, 6, rank)
    roots = [matrix_root(h) for h in hessians]
    expected = torch.tensor([[torch.linalg.norm(a @ b) for b in roots] for a in roots])
    S = coherence_matrix(Curvature.from_hessians(hessians, forget))
    torch.testing.assert_close(S, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("rank", [1, 2])
def test_three_axes_against_dense_hessians(rank):
    hessians, forget = random_instance(5, 3, 6, rank)
    measured = coherence(Curvature.from_hessians(hessians, forget))
    products = torch.einsum("iab,jba->ij", hessians, hessians)
    for members, value in ((~forget, measured.retain), (forget, measured.forget)):
        top = torch.linalg.eigvalsh(products[members][:, members].sqrt())[-1]
        sharpest = max(torch.linalg.eigvalsh(h)[-1] for h in hessians[members])
        assert value == pytest.approx(float(top / sharpest), rel=1e-9)
    H_r, H_f = hessians[~forget].mean(0), hessians[forget].mean(0)
    chi = (H_r * H_f).sum() / (torch.linalg.norm(H_r) * torch.linalg.norm(H_f))
    assert measured.cross == pytest.approx(float(chi), rel=1e-9)


def test_coherence_at_its_ends():
    forget = torch.arange(8) >= 5
    orthogonal = coherence(Curvature.from_gram(torch.eye(8), forget))
    assert (orthogonal.retain, orthogonal.forget, orthogonal.cross) == pytest.approx((1, 1, 0))
    aligned = coherence(Curvature.from_gram(torch.ones(8, 8), forget))
    assert (aligned.retain, aligned.forget, aligned.cross) == pytest.approx((5, 3, 1))


def test_coherence_needs_curvature_in_both_sets():
    gram = torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match="curvature must not vanish on the forget set"):
        coherence(Curvature.from_gram(gram, torch.tensor([False, False, True])))


def test_forgettability_bounds_the_critical_mixing():
    for seed in range(20):
        hessians, forget = random_instance(9, 4, 3, rank=1 + seed % 2, seed=seed)
        curvature = Curvature.from_hessians(hessians, forget)
        alpha = forgettability(curvature)
        products = torch.einsum("iab,jba->ij", hessians, hessians)
        chi = products[~forget][:, forget].mean(0) / products[forget][:, forget].mean(0)
        torch.testing.assert_close(alpha, chi / (1 + chi))
        assert critical_mixing(curvature) <= float(alpha.min()) + 1e-12


def test_a_flat_forget_sample_forces_nothing():
    gram = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0]))
    alpha = forgettability(Curvature.from_gram(gram, torch.tensor([False, False, True, True])))
    torch.testing.assert_close(alpha, torch.tensor([0.0, 1.0]))


def test_within_coherence_is_at_least_that_of_the_mean_curvature():
    """σ_c ≥ n_c λ_1(H_c)/max λ_1(H_i), because n_c λ_1(H_c) ≤ λ_1(S_cc)."""
    for seed in range(20):
        hessians, forget = random_instance(7, 3, 5, rank=1 + seed % 3, seed=seed)
        curvature = Curvature.from_hessians(hessians, forget)
        sharpest = torch.linalg.eigvalsh(hessians[~forget])[:, -1].max()
        least = 7 * torch.linalg.eigvalsh(hessians[~forget].mean(0))[-1] / sharpest
        assert within_coherence(curvature, ~forget) >= float(least) - 1e-12


@pytest.mark.parametrize("rank", [1, 3])
def test_directional_coherence_is_the_participation_ratio(rank):
    hessians, forget = random_instance(6, 4, 5, rank)
    curvature = Curvature.from_hessians(hessians, forget)
    dense = curvature.factors @ curvature.factors.transpose(1, 2)
    directions = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    values = torch.einsum("ak,iab,bk->ik", directions, dense, directions)
    for members, measured in zip(
        (~forget, forget), directional_coherence(curvature, directions), strict=True
    ):
        chosen = values[members]
        torch.testing.assert_close(measured, chosen.sum(0) ** 2 / chosen.square().sum(0))
        assert bool(((measured >= 1) & (measured <= len(chosen))).all())
    single = directional_coherence(curvature, directions[:, 1] * 1e-3)
    torch.testing.assert_close(single[0], directional_coherence(curvature, directions)[0][1])


def test_directional_coherence_counts_the_samples_of_a_group():
    curvature = grouped_family(12, 4, 3, 2, 1.0, 0.5)
    retain, forget = directional_coherence(curvature, torch.eye(4))
    torch.testing.assert_close(retain, torch.full((4,), 3.0))
    torch.testing.assert_close(forget, torch.tensor([2.0, 2.0, 0.0, 0.0]))


@pytest.mark.parametrize("bad", [torch.ones(3), torch.zeros(4), torch.full((4,), torch.nan)])
def test_directional_coherence_refuses_what_is_no_direction(bad):
    with pytest.raises(ValueError, match="directions must be"):
        directional_coherence(grouped_family(12, 4, 3, 2, 1.0, 0.5), bad)


def test_corollary_on_forgettability():
    """(1−α) mean_R S_ij² + λ tr H_j < α mean_F S_lj² for some j: divergence at every η."""
    seen = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        hessians, forget = random_instance(8, 3, 4, rank=1 + seed % 3, seed=seed)
        curvature = Curvature.from_hessians(hessians, forget)
        mixing, damping = torch.rand(2, generator=generator).tolist()
        algorithm = AscentDescent(mixing, 8, 3, damping)
        products = torch.einsum("iab,jba->ij", hessians, hessians)[:, forget]
        trace = torch.einsum("jaa->j", hessians[forget])
        held = (1 - mixing) * products[~forget].mean(0) + damping * trace
        if bool((held < mixing * products[forget].mean(0)).any()):
            seen += 1
            assert critical_learning_rate(curvature, algorithm) == 0.0
    assert 10 < seen < 60


def test_theorem_ranges_of_coherence():
    """1 ≤ σ_c ≤ n_c√rank, n_c λ_c(u)/max λ_1(H_i) ≤ σ_c(u) ≤ n_c, n_c λ_1(H_c) ≤ λ_1(S_cc)."""
    for seed in range(30):
        rank = 1 + seed % 3
        hessians, forget = random_instance(7, 4, 5, rank, seed)
        curvature = Curvature.from_hessians(hessians, forget)
        u = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))
        dense = curvature.factors @ curvature.factors.transpose(1, 2)
        for c, directional in zip(
            (~forget, forget), directional_coherence(curvature, u), strict=True
        ):
            n, sharpest = int(c.sum()), float(torch.linalg.eigvalsh(hessians[c])[:, -1].max())
            S = coherence_matrix(curvature)[c][:, c]
            top = float(torch.linalg.eigvalsh(S)[-1])
            assert n * float(torch.linalg.eigvalsh(hessians[c].mean(0))[-1]) <= top + 1e-9
            assert sharpest - 1e-9 <= top <= n * rank**0.5 * sharpest + 1e-9
            along = torch.einsum("ak,ab,bk->k", u, dense[c].mean(0), u) / u.square().sum(0)
            assert bool((directional >= n * along / sharpest - 1e-9).all())
            assert bool((directional <= n + 1e-9).all())


def test_the_coherence_matrix_may_be_indefinite_but_its_square_entries_are_a_gram_matrix():
    lines = torch.tensor([0.0, 45.0, 90.0, 135.0]).deg2rad()
    gram = (lines[:, None] - lines[None, :]).cos()
    S = coherence_matrix(Curvature.from_gram(gram, torch.tensor([False, False, True, True])))
    assert float(torch.linalg.eigvalsh(S)[0]) == pytest.approx(1 - 2**0.5)
    assert float(torch.linalg.eigvalsh(S.square())[0]) > -1e-12


def test_corollary_speed_of_forgetting():
    """ρ(T) ≥ (1 − η tr(AH_j)/tr H_j)² for every forget sample with tr(AH_j) < 0, at any rank."""
    for seed in range(20):
        hessians, forget = random_instance(6, 3, 4, rank=1 + seed % 3, seed=seed)
        curvature, algorithm = Curvature.from_hessians(hessians, forget), AscentDescent(0.5, 2, 1)
        A = 0.5 * hessians[~forget].mean(0) - 0.5 * hessians[forget].mean(0)
        pulls = torch.einsum("ab,jba->j", A, hessians[forget])
        speeds = pulls / torch.einsum("jaa->j", hessians[forget])
        for speed in speeds[speeds < 0].tolist():
            assert growth_factor(curvature, algorithm, 0.1) >= (1 - 0.1 * speed) ** 2 - 1e-9


@pytest.mark.parametrize("scale", [1e-100, 1e-12, 1e12, 1e100])
def test_coherence_does_not_depend_on_units(scale):
    hessians, forget = random_instance(5, 3, 4, seed=2)
    plain = coherence(Curvature.from_hessians(hessians, forget))
    scaled = coherence(Curvature.from_hessians(scale * hessians, forget))
    assert scaled.cross == pytest.approx(plain.cross, rel=1e-9)
    assert scaled.retain == pytest.approx(plain.retain, rel=1e-9)
