import math

import pytest
import torch

from lib.stability.data_coherence import coherence
from lib.stability.families import angled_family, gaussian_curvature


def test_angled_family_without_noise_is_two_lines_at_an_angle():
    curvature = angled_family(5, 3, 7, strength=1.0, angle=math.pi / 3, seed=0)
    found = coherence(curvature)
    assert (found.retain, found.forget, found.cross) == pytest.approx((5, 3, 0.25))


def test_angled_family_has_unit_energy_and_the_angles_asked_for():
    angles = torch.linspace(0, math.pi / 2, 400)
    curvature = angled_family(400, 400, 200, strength=0.5, angle=angles, seed=1)
    gram = curvature.gram
    assert float(gram.diagonal().mean()) == pytest.approx(1.0, abs=0.02)
    # The mean inner product with the retain gradients is s·cos θ; its error per sample is 1/√d.
    inner = gram[400:, :400].mean(dim=1)
    assert float((inner - 0.5 * angles.cos()).abs().mean()) < 0.06


def test_gaussian_curvature_has_unit_energy_and_the_alignment_asked_for():
    gram = gaussian_curvature(300, 100, 200, alignment=0.3).gram
    torch.testing.assert_close(gram, gaussian_curvature(300, 100, 200, alignment=0.3, seed=0).gram)
    assert float(gram.diagonal().mean()) == pytest.approx(1.0, abs=0.02)
    between = (gram.sum() - gram.diagonal().sum()) / (400 * 399)
    assert float(between) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength": 1.5}, r"strength must be in \[0, 1\], got 1.5"),
        ({"angle": math.nan}, "angle must be finite"),
        ({"angle": torch.zeros(2)}, r"angle must be finite, one or \(3,\)"),
        ({"dim": 1}, "dim must be an integer ≥ 2, got 1"),
        ({"n_forget": 0}, "n_forget must be an integer ≥ 1, got 0"),
    ],
)
def test_angled_family_refuses_bad_input(changes, message):
    arguments = {"n_retain": 4, "n_forget": 3, "dim": 5, "strength": 0.5, "angle": 0.0, "seed": 0}
    with pytest.raises(ValueError, match=message):
        angled_family(**(arguments | changes))
