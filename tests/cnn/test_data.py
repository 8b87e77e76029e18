import math

import pytest
import torch

from lib.cnn.data import signal_noise


def test_norms_and_orthogonality_follow_the_formula():
    data = signal_noise(4000, 50, 0.7, energy=2.0, seed=3)
    assert float(data.signal.norm() ** 2) == pytest.approx(2.0 * 0.49 / 1.49, rel=1e-12)
    noise = data.patches[:, 1]
    assert float((noise @ data.signal).abs().max()) < 1e-13
    mean, error = noise.square().sum(1).mean(), noise.square().sum(1).std() / math.sqrt(4000)
    assert abs(float(mean) - 2.0 / 1.49) < 4 * float(error)


def test_first_patch_is_the_label_times_the_signal_without_flips():
    data = signal_noise(30, 8, 1.5, seed=1)
    torch.testing.assert_close(data.patches[:, 0], data.labels[:, None] * data.signal)
    assert not bool(data.flipped.any())
    assert set(data.labels.tolist()) == {-1.0, 1.0}


def test_flips_change_labels_and_nothing_else():
    clean, noisy = (signal_noise(2000, 5, 1.0, flip=p, seed=2) for p in (0.0, 0.2))
    assert torch.equal(clean.patches, noisy.patches)
    assert torch.equal(noisy.flipped, clean.labels != noisy.labels)
    assert float(noisy.flipped.double().mean()) == pytest.approx(0.2, abs=4 * 0.4 / math.sqrt(2000))


def test_each_sample_may_have_its_own_snr_at_the_same_energy():
    ratios = torch.linspace(0.1, 3, 600)
    data = signal_noise(600, 400, ratios, seed=5)
    signal, noise = data.patches.square().sum(2).unbind(1)
    torch.testing.assert_close(signal, (ratios**2 / (1 + ratios**2)).double())
    assert float((signal + noise).mean()) == pytest.approx(1.0, abs=0.02)
    assert float(data.signal.norm() ** 2) == pytest.approx(float(signal.mean()), rel=1e-12)
    shared = signal_noise(600, 400, [0.5] * 600, seed=5)
    torch.testing.assert_close(shared.patches, signal_noise(600, 400, 0.5, seed=5).patches)


def test_either_end_of_the_range_of_snr_is_one_patch_alone():
    faint, loud = (signal_noise(3, 4, snr, seed=1) for snr in (1e-20, 1e20))
    assert float(faint.signal.norm()) == pytest.approx(1e-20)
    torch.testing.assert_close(loud.patches[:, 0].square().sum(1), torch.ones(3))
    assert float(loud.patches[:, 1].abs().max()) < 1e-19
    for snr in (0.99e-20, 1.01e20):
        with pytest.raises(ValueError, match=r"snr must be > 0, in \[1e-20, 1e20\]"):
            signal_noise(3, 4, snr)


def test_the_seed_decides_everything():
    first, again, other = (signal_noise(6, 4, 0.5, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.patches, again.patches)
    assert not torch.equal(first.patches, other.patches)
    assert torch.equal(signal_noise(4, 6, 1.0).patches, signal_noise(4, 6, 1.0, seed=0).patches)


def test_subset_and_dtype():
    data = signal_noise(6, 4, 0.5, seed=1)
    keep = data.labels > 0
    part = data.subset(keep).to(torch.float32)
    assert part.n_samples == int(keep.sum())
    assert part.patches.dtype == part.labels.dtype == part.signal.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("n_samples", {"n_samples": 0}),
        ("dim", {"dim": 1}),
        ("snr", {"snr": 0.0}),
        ("snr", {"snr": float("nan")}),
        ("snr", {"snr": [0.5, 0.5]}),
        ("energy", {"energy": -1.0}),
        ("flip", {"flip": 1.5}),
    ],
)
def test_bad_input_is_named(name, arguments):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        signal_noise(**{"n_samples": 3, "dim": 4, "snr": 1.0, **arguments})
