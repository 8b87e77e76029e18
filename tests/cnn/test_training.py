import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from lib.cnn.coefficients import PatchSpan
from lib.cnn.data import SignalNoise, signal_noise
from lib.cnn.network import TwoLayerCNN
from lib.cnn.training import NotInterpolated, fit, fit_to_interpolation
from lib.randomness import stream
from lib.stability.sampling import draw_counts
from tests.support.descent import VALUES, descend, initial_weights, relative_error
from tests.support.marks import long_but

STEPS = 1000


def cells(n=12, dim=30, flip=0.0):
    return [signal_noise(n, dim, snr, flip=flip, seed=k) for k, snr in enumerate((0.1, 0.7, 4.0))]


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("flip", long_but([1], [0.0, 0.3]))
def test_thm_span_full_batch_equals_autograd(loss, flip):
    datasets, rates = cells(flip=flip), [0.5, 1.0, 0.2]
    trained = fit(
        datasets, filters=4, learning_rate=rates, steps=STEPS, init_scale=0.1, loss=loss, seed=7
    )
    starts = initial_weights(trained)
    for k, (data, rate) in enumerate(zip(datasets, rates, strict=True)):
        equal = torch.full((STEPS, 12), 1 / 12, dtype=torch.float64)
        expected = descend(starts[k], data, rate=rate, sample_weights=equal, loss=loss)[-1]
        assert relative_error(trained.weights()[k], expected) < 1e-9
        outputs = TwoLayerCNN(expected)(data.patches).detach()
        assert relative_error(trained.outputs()[k], outputs) < 1e-9
        assert float(trained.losses[k]) == pytest.approx(
            float(VALUES[loss](outputs, data.labels).mean()), rel=1e-9, abs=1e-20
        )
    assert trained.steps.tolist() == [STEPS] * 3


def test_one_sample_alone_equals_autograd():
    data = signal_noise(1, 25, 0.6, seed=3)
    trained = fit([data], filters=3, learning_rate=0.3, steps=50, init_scale=0.1)
    whole = torch.ones(50, 1, dtype=torch.float64)
    expected = descend(initial_weights(trained)[0], data, rate=0.3, sample_weights=whole)[-1]
    assert relative_error(trained.weights()[0], expected) < 1e-9
    solved = fit_to_interpolation([data], filters=3, init_scale=0.1)
    assert float(solved.outputs()[0, 0]) == pytest.approx(float(data.labels[0]), abs=1e-9)


def test_mini_batches_equal_autograd():
    data = signal_noise(10, 25, 0.6, flip=0.2, seed=3)
    trained = fit(
        [data], filters=3, learning_rate=0.3, steps=STEPS, init_scale=0.1, batch_size=4, seed=5
    )
    generator = stream("mini-batches", 5)
    everyone, four = torch.ones(1, 10, dtype=torch.bool), torch.tensor([4])
    batches = [
        draw_counts(everyone, four, "without_replacement", generator)[0] / 4 for _ in range(STEPS)
    ]
    expected = descend(initial_weights(trained)[0], data, rate=0.3, sample_weights=batches)[-1]
    assert relative_error(trained.weights()[0], expected) < 1e-9


def test_samples_with_their_own_signal_strength_equal_autograd():
    data = signal_noise(10, 25, torch.linspace(0.1, 3, 10), flip=0.2, seed=3)
    trained = fit([data], filters=3, learning_rate=0.3, steps=200, init_scale=0.1)
    equal = torch.full((200, 10), 0.1, dtype=torch.float64)
    expected = descend(initial_weights(trained)[0], data, rate=0.3, sample_weights=equal)[-1]
    assert relative_error(trained.weights()[0], expected) < 1e-9


def test_coefficients_are_the_decomposition_of_the_weights():
    datasets = cells(flip=0.2)
    trained = fit(datasets, filters=4, learning_rate=0.5, steps=50, init_scale=0.1)
    rebuilt = initial_weights(trained)
    for k, data in enumerate(datasets):
        signal, noise = data.signal, data.patches[:, 1]
        for j, sign in enumerate((1, -1)):
            gamma = trained.signal_coefficients[k, j][:, None]
            rho = trained.noise_coefficients[k, j] / noise.square().sum(1)
            rebuilt[k, j] += sign * gamma * signal / (signal @ signal) + rho @ noise
    assert relative_error(trained.weights(), rebuilt) < 1e-12


def test_the_batch_does_not_matter_and_dims_may_differ():
    datasets = [signal_noise(8, dim, 0.5, seed=dim) for dim in (20, 31, 25)]
    options: dict[str, Any] = {"filters": 3, "learning_rate": 0.4, "steps": 60, "init_scale": 0.1}
    together = fit(datasets, seed=4, **options)
    for k, data in enumerate(datasets):
        alone = fit([data], seed=4 + k, **options)
        torch.testing.assert_close(together.coefficients[k], alone.coefficients[0])
    with pytest.raises(ValueError, match="datasets must share one dim"):
        together.weights()


def test_chunks_do_not_matter(monkeypatch):
    options: dict[str, Any] = {"filters": 3, "learning_rate": 0.4, "steps": 30, "init_scale": 0.1}
    whole = fit(cells(), **options)
    monkeypatch.setattr("lib.cnn.descent.CPU_CHUNK", 2)
    torch.testing.assert_close(fit(cells(), **options).coefficients, whole.coefficients)


def test_an_entry_stops_at_the_tolerance():
    options: dict[str, Any] = {"filters": 4, "learning_rate": 0.5, "init_scale": 0.1}
    trained = fit(cells(), steps=3000, tolerance=1e-3, **options)
    for k, steps in enumerate(trained.steps.tolist()):
        assert 0 < steps < 3000
        before = fit(cells(), steps=steps - 1, **options).losses[k]
        assert float(trained.losses[k]) <= 1e-3 < float(before)


def test_float32_follows_float64():
    datasets = cells()
    options: dict[str, Any] = {"filters": 4, "learning_rate": 0.5, "steps": 100, "init_scale": 0.1}
    single = fit([data.to(torch.float32) for data in datasets], **options)
    assert single.coefficients.dtype == single.weights().dtype == torch.float32
    assert relative_error(single.weights().double(), fit(datasets, **options).weights()) < 1e-4


def test_divergence_is_announced():
    with pytest.warns(RuntimeWarning, match=r"diverged .* in entries \[1\]"):
        trained = fit(cells(), filters=3, learning_rate=[0.1, 1e4, 0.1], steps=400, init_scale=0.1)
    assert torch.isinf(trained.losses).tolist() == [False, True, False]


def test_curvature_gram_is_the_gradients_gram():
    """Also where noise is not orthogonal to the signal, so that the two patches' parts cross."""
    (data, *others), tilt = cells(flip=0.2), torch.linspace(-0.5, 1, 12)
    patches = data.patches.clone()
    patches[:, 1] += tilt[:, None] * data.signal / data.signal.norm()
    datasets = [data, *others, SignalNoise(patches, data.labels, data.signal)]
    options: dict[str, Any] = {"filters": 4, "learning_rate": 0.5, "steps": 50, "init_scale": 0.1}
    for loss in ("squared", "logistic"):
        trained = fit(datasets, loss=loss, **options)
        for k, data in enumerate(datasets):
            network = TwoLayerCNN(trained.weights()[k])
            outputs = network(data.patches)
            rows = []
            for output, label in zip(outputs, data.labels, strict=True):
                (slope,) = torch.autograd.grad(output, network.weights, retain_graph=True)
                value = output.detach().requires_grad_()
                (first,) = torch.autograd.grad(VALUES[loss](value, label), value, create_graph=True)
                (second,) = torch.autograd.grad(first, value)
                rows.append(second.sqrt() * slope.flatten())
            expected = torch.stack(rows) @ torch.stack(rows).T
            torch.testing.assert_close(trained.curvature_gram()[k], expected)


def test_interpolation_over_all_snr_without_a_rate():
    snrs = torch.logspace(math.log10(0.05), math.log10(5), 9).tolist()
    datasets = [signal_noise(20, 120, snr, flip=0.1, seed=k) for k, snr in enumerate(snrs)]
    trained = fit_to_interpolation(datasets, filters=6, init_scale=0.01, seed=1)
    for k, data in enumerate(datasets):
        outputs = TwoLayerCNN(trained.weights()[k])(data.patches).detach()
        assert float(0.5 * (outputs - data.labels).square().mean()) < 1.1e-20
    assert bool((trained.losses <= 1e-20).all())


@pytest.mark.long
def test_gauss_newton_ends_where_descent_would_have(monkeypatch):
    datasets = [signal_noise(16, 200, snr, seed=1) for snr in (0.7, 2.0)]
    fast = fit_to_interpolation(datasets, filters=8, init_scale=0.05)
    monkeypatch.setattr("lib.cnn.descent.DESCENT_STEPS", 20_000)
    slow = fit_to_interpolation(datasets, filters=8, init_scale=0.05)
    assert bool((slow.steps > 1000).all())
    travelled = (slow.weights() - initial_weights(slow)).norm()
    assert float((fast.weights() - slow.weights()).norm() / travelled) < 0.01


def test_contradictory_labels_raise_with_the_losses():
    data = signal_noise(6, 10, 1.0, seed=1)
    twins = SignalNoise(
        torch.cat([data.patches, data.patches[:1]]),
        torch.cat([data.labels, -data.labels[:1]]),
        data.signal,
    )
    good = signal_noise(7, 10, 1.0, seed=2)
    with pytest.raises(NotInterpolated, match=r"in entries \{0:") as caught:
        fit_to_interpolation([twins, good], filters=5, init_scale=0.1)
    assert caught.value.losses[0] == pytest.approx(1 / 7, rel=1e-6)
    assert caught.value.losses[1] <= 1e-20


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("datasets", {"datasets": []}),
        ("datasets", {"datasets": [signal_noise(4, 9, 1.0), signal_noise(5, 9, 1.0)]}),
        ("filters", {"filters": 0}),
        ("learning_rate", {"learning_rate": 0.0}),
        ("learning_rate", {"learning_rate": [0.1, 0.1]}),
        ("steps", {"steps": -1}),
        ("init_scale", {"init_scale": -1.0}),
        ("loss", {"loss": "hinge"}),
        ("batch_size", {"batch_size": 9}),
    ],
)
def test_bad_input_is_named(name, arguments):
    good = {"filters": 2, "learning_rate": 0.1, "steps": 1, "init_scale": 0.1}
    with pytest.raises(ValueError, match=f"^{name} must be"):
        fit(**{"datasets": [signal_noise(4, 9, 1.0)], **good, **arguments})


@pytest.mark.parametrize("changed", [{"labels": 1}, {"start": 2}])
def test_a_span_of_tensors_of_other_ranks_is_refused(changed):
    span = PatchSpan.from_datasets([signal_noise(4, 9, 1.0)], 2, 0.1, 0)
    ((name, rank),) = changed.items()
    with pytest.raises(ValueError, match="labels and start must be"):
        replace(span, **{name: getattr(span, name).flatten(0, -rank)})


def test_patches_off_the_signal_are_refused():
    data = signal_noise(4, 9, 1.0)
    broken = SignalNoise(data.patches.flip(1), data.labels, data.signal)
    with pytest.raises(ValueError, match="multiples of their signal"):
        fit([broken], filters=2, learning_rate=0.1, steps=1, init_scale=0.1)
