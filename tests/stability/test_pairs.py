import pytest
import torch

from lib.stability.curvature import Curvature
from lib.stability.families import gaussian_curvature, grouped_family
from lib.stability.pairs import clipped_pairs, pair_coherence
from tests.support.dense import random_instance


def dense(hessians, forget, mixing):
    """From explicit matrices: coherence, and the share of negative traces."""
    pairs = [(1 - mixing) * h - mixing * g for h in hessians[~forget] for g in hessians[forget]]
    traces = torch.tensor([[float((a * b).sum()) for b in pairs] for a in pairs])
    top = max(float(torch.linalg.eigvalsh(a)[-1]) for a in pairs)
    S = traces.clamp(min=0).sqrt()
    return float(torch.linalg.eigvalsh(S)[-1]) / top, float((traces < 0).double().mean())


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("mixing", [0.0, 0.1, 0.5, 0.9])
def test_pair_coherence_is_that_of_the_explicit_matrices(rank, mixing):
    for seed in range(4):
        hessians, forget = random_instance(5, 3, 6, rank, seed)
        curvature = Curvature.from_hessians(hessians, forget)
        coherence, clipped = dense(hessians, forget, mixing)
        assert pair_coherence(curvature, mixing) == pytest.approx(coherence, rel=1e-9)
        assert clipped_pairs(curvature, mixing) == pytest.approx(clipped, abs=1e-12)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 2), (3, 1), (2, 2)])
def test_a_few_pairs_are_those_of_the_explicit_matrices(sizes):
    hessians, forget = random_instance(sizes[0], sizes[1], 4, seed=3)
    curvature = Curvature.from_hessians(hessians, forget)
    assert pair_coherence(curvature, 0.2) == pytest.approx(dense(hessians, forget, 0.2)[0])


def test_blocks_do_not_change_the_result(monkeypatch):
    curvature = gaussian_curvature(9, 7, 5, alignment=0.4, seed=1)
    whole = pair_coherence(curvature, 0.3)
    monkeypatch.setattr("lib.stability.pairs._BLOCK", 1)
    assert pair_coherence(curvature, 0.3) == pytest.approx(whole, rel=1e-12)


def test_one_group_without_ascent_is_all_pairs_alike():
    curvature = grouped_family(6, 4, 6, 4, 1.0, 1.0)
    assert pair_coherence(curvature, 0.0) == pytest.approx(24, rel=1e-9)


def test_extreme_scales_and_bad_mixings():
    curvature = gaussian_curvature(6, 5, 4, seed=2)
    tiny = Curvature(curvature.factors * 1e-60, curvature.forget)
    assert pair_coherence(tiny, 0.2) == pytest.approx(pair_coherence(curvature, 0.2), rel=1e-9)
    for mixing in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="mixing must be in"):
            pair_coherence(curvature, mixing)


@pytest.mark.long
def test_ten_thousand_pairs():
    curvature = grouped_family(100, 100, 20, 20, 2.0, 2.0)
    # Without ascent a pair is its retain sample: five groups of 20, and 100 partners each.
    assert pair_coherence(curvature, 0.0) == pytest.approx(2000, rel=1e-9)


@pytest.mark.parametrize("ascent", [1.0, 2.0])
def test_pairs_that_only_ascend_or_cancel_are_refused_not_divided_by_rounding(ascent):
    forget = torch.tensor([False, True])
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        for rank in (1, 2):
            h = torch.randn(3, rank, generator=generator, dtype=torch.float64)
            H = h @ h.T
            both = torch.cat([h, ascent * h], dim=1).T
            for curvature in (
                Curvature.from_hessians(torch.stack([H, ascent**2 * H]), forget),
                Curvature.from_gram(both @ both.T, forget, rank=rank),
            ):  # A = ½(1 − ascent²)hhᵀ, zero or negative
                with pytest.raises(ValueError, match="some pair a positive curvature"):
                    pair_coherence(curvature, 0.5)
