import math
from itertools import product
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

from lib.cnn import memorisation
from lib.cnn.data import signal_noise
from lib.cnn.network import TwoLayerCNN
from lib.cnn.training import fit, fit_to_interpolation
from lib.stability.curvature import Curvature
from lib.stability.data_coherence import coherence, coherence_matrix, forgettability
from tests.support.forgettability import single_forgettability


def trained(flip=0.2):
    datasets = [signal_noise(10, 40, snr, flip=flip, seed=k) for k, snr in enumerate((0.3, 1.2))]
    return fit_to_interpolation(datasets, filters=4, init_scale=0.1)


def test_output_parts_are_those_of_the_patches_alone():
    model = trained()
    signal, noise = memorisation.output_parts(model)
    shares = memorisation.memorised_share(model)
    for k, data in enumerate(model.datasets):
        network = TwoLayerCNN(model.weights()[k])
        for part, which in ((signal, 0), (noise, 1)):
            alone = data.patches.clone()
            alone[:, 1 - which] = 0
            torch.testing.assert_close(part[k], data.labels * network(alone).detach())
        total = (signal[k] + noise[k]).sum()
        assert float(shares[k]) == pytest.approx(float(noise[k].sum() / total))


def test_predicted_share_over_two_decades_of_snr():
    for n in (15, 60):
        snrs = torch.tensor([0.1, 0.3, 1.0, 3.0]) * (15 / n) ** 0.5
        shares = []
        for snr in snrs.tolist():
            datasets = [signal_noise(n, 400, snr, seed=seed) for seed in range(4)]
            model = fit_to_interpolation(datasets, filters=10, init_scale=0.01)
            shares.append(memorisation.memorised_share(model).mean())
        predicted = memorisation.predicted_memorised_share(snrs, n)
        odds, expected = (s / (1 - s) for s in (torch.stack(shares), predicted))
        torch.testing.assert_close(odds, expected, rtol=0.4, atol=0)


def test_activity_and_mass_by_hand():
    model = trained()
    ratio, mass = memorisation.active_noise_ratio(model), memorisation.noise_mass(model)
    for k, data in enumerate(model.datasets):
        weights = model.weights()[k].flatten(0, 1)
        on_signal, on_noise = ((data.patches[:, p] @ weights.T > 0).double().sum() for p in (0, 1))
        assert float(ratio[k]) == pytest.approx(float(on_noise / on_signal))
        by_hand = model.noise_coefficients[k].abs().sum((0, 1)) / 4
        torch.testing.assert_close(mass[k], by_hand)


def test_block_model_is_the_coherence_of_its_gram_matrix():
    """Averaged over every labelling for σ; at balanced classes for χ."""
    snr, a, n_retain, n_forget = torch.tensor(0.8), 1.3, 4, 2
    model = memorisation.block_model(snr, n_retain, n_forget, a)
    c = 0.64 / (0.64 + a)
    forget = torch.arange(6) >= 4
    sigmas = []
    for labels in product((-1, 1), repeat=6):
        y = torch.tensor(labels)
        gram = torch.where(y[:, None] == y, c, 0.0)
        gram.fill_diagonal_(1.0)
        axes = coherence(Curvature.from_gram(gram, forget))
        sigmas.append((axes.retain, axes.forget))
        if y[:4].sum() == 0 and y[4:].sum() == 0:
            assert float(model.cross) == pytest.approx(axes.cross)
    mean = torch.tensor(sigmas).mean(0)
    assert float(model.retain) == pytest.approx(float(mean[0]))
    assert float(model.forget) == pytest.approx(float(mean[1]))


def test_single_forgettability_is_forgettability_of_one():
    gram = trained().curvature_gram()[1]
    S = coherence_matrix(Curvature.from_gram(gram, torch.arange(10) == 0))
    alphas = single_forgettability(S)
    for j in range(10):
        alone = forgettability(Curvature.from_gram(gram, torch.arange(10) == j))
        assert float(alphas[j]) == pytest.approx(float(alone[0]))


def test_leave_one_out_is_retraining_without_the_sample():
    data = signal_noise(8, 40, 0.9, flip=0.3, seed=1)
    found = memorisation.leave_one_out([data] * 2, [2, 5], filters=4, init_scale=0.1, starts=3)
    for row, sample in enumerate((2, 5)):
        keep = torch.arange(8) != sample
        margins = []
        for start in range(3):
            run = fit_to_interpolation(
                [data.subset(keep)],
                filters=4,
                init_scale=0.1,
                tolerance=1e-4,
                seed=3 * row + start,
            )
            output = TwoLayerCNN(run.weights()[0])(data.patches).detach()[sample]
            margins.append(float(output * data.labels[sample]))
        assert float(found.margin[row]) == pytest.approx(sum(margins) / 3, rel=1e-6)
        right = sum(margin > 0 for margin in margins) / 3
        assert float(found.score[row]) == pytest.approx(1 - right)


def test_strong_signals_are_learned_and_flipped_labels_memorised():
    strong = signal_noise(30, 200, 3.0, seed=1)
    score = memorisation.leave_one_out([strong] * 4, range(4), filters=6, init_scale=0.05, starts=2)
    assert float(score.score.max()) == 0.0
    noisy = signal_noise(30, 200, 3.0, flip=0.15, seed=1)
    flipped = torch.nonzero(noisy.flipped).flatten().tolist()
    score = memorisation.leave_one_out(
        [noisy] * len(flipped), flipped, filters=6, init_scale=0.05, starts=2
    )
    assert float(score.score.min()) == 1.0


def test_rank_correlation_and_its_interval():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(25, 12, generator=generator)
    y = x + torch.randn(25, 12, generator=generator)
    found = memorisation.rank_correlation(x, y)
    values = [spearmanr(a, b).statistic for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    assert found.mean == pytest.approx(sum(values) / 25)
    assert found.low < found.mean < found.high
    spread = torch.tensor(values).std() / 5
    assert found.high - found.mean == pytest.approx(2.0639 * float(spread), rel=1e-3)
    with pytest.raises(ValueError, match="x and y must be"):
        memorisation.rank_correlation(x, y[:, :3])


def test_coefficient_path_ends_where_training_does():
    data = signal_noise(10, 60, 0.8, seed=2)
    options: dict[str, Any] = {"filters": 4, "learning_rate": 0.5, "init_scale": 0.1}
    learned, memorised = memorisation.coefficient_path(data, [0, 50], **options)
    assert float(learned[0]) == float(memorised[0]) == 0.0
    run = fit([data], steps=50, **options)
    own = [
        float(run.noise_coefficients[0, 0 if y > 0 else 1, :, i].mean())
        for i, y in enumerate(data.labels)
    ]
    assert float(memorised[1]) == pytest.approx(sum(own) / 10)
    assert float(learned[1]) == pytest.approx(float(run.signal_coefficients.mean()))
    assert math.isfinite(float(learned[1]))
