import math
from typing import Any

import pytest
import torch

from lib.cnn.data import signal_noise
from lib.cnn.network import TwoLayerCNN
from lib.cnn.runs import Until
from lib.cnn.training import fit, fit_to_interpolation
from lib.cnn.unlearning import ascent_descent, linearised
from lib.cnn.updates import UpdateColumns
from lib.randomness import stream
from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.dynamics import growth_factor
from lib.stability.sampling import SAMPLINGS
from tests.support.descent import VALUES, descend, displacements, relative_error
from tests.support.marks import long_but

FORGET = torch.arange(12) < 4


def trained(loss="squared", flip=0.2):
    datasets = [signal_noise(12, 30, snr, flip=flip, seed=k) for k, snr in enumerate((0.2, 0.8))]
    if loss == "squared":
        return fit_to_interpolation(datasets, filters=4, init_scale=0.1, seed=3)
    return fit(datasets, filters=4, learning_rate=0.5, steps=300, init_scale=0.1, loss=loss, seed=3)


def check_against_autograd(model, algorithm, rate, steps, forget=FORGET, displacement=0.05):
    path = ascent_descent(
        model, forget, algorithm, rate, steps=steps, displacement=displacement, seed=9
    )
    update = UpdateColumns.of(algorithm, rate, forget.expand(2, 12), model.span.labels)
    generator = stream("unlearning batches", 9, 0)
    batches = torch.stack([update.sample_weights(generator) for _ in range(steps)])
    anchors, starts = model.weights(), model.weights() + displacements(path.start)
    for k, data in enumerate(model.datasets):
        rule = algorithm if isinstance(algorithm, AscentDescent) else algorithm[k]
        eta = rate if isinstance(rate, float) else rate[k]
        expected = descend(
            starts[k],
            data,
            rate=eta,
            sample_weights=batches[:, k] / eta,
            loss=model.loss,
            damping=rule.damping,
            anchor=anchors[k],
        )
        assert relative_error(path.weights()[k], expected[-1]) < 1e-9
        distance = (expected - anchors[k]).flatten(1).norm(dim=1)
        torch.testing.assert_close(path.distance[:, k], distance / distance[0], rtol=1e-8, atol=0)
        mask = forget if forget.ndim == 1 else forget[k]
        for name, members in (("forget_loss", mask), ("retain_loss", ~mask)):
            values = torch.stack(
                [
                    VALUES[model.loss](TwoLayerCNN(w)(data.patches), data.labels).detach()
                    for w in expected
                ]
            )
            means = values[:, members].mean(1)
            torch.testing.assert_close(getattr(path, name)[:, k], means, rtol=1e-8, atol=1e-18)


@pytest.mark.parametrize("loss", long_but([1], ["squared", "logistic"]))
def test_full_batch_equals_autograd(loss):
    check_against_autograd(trained(loss), AscentDescent(0.02, 8, 4), 0.3, steps=1000)


@pytest.mark.parametrize("sampling", long_but([0], SAMPLINGS))
def test_mini_batches_with_damping_equal_autograd(sampling):
    algorithm = AscentDescent(0.1, 3, 2, damping=0.2, sampling=sampling)
    check_against_autograd(trained(), algorithm, 0.2, steps=300)


def test_entries_may_differ_in_everything():
    forget = torch.stack([torch.arange(12) < 4, torch.arange(12) > 9])
    algorithms = [AscentDescent(0.1, 3, 4), AscentDescent(0.05, 10, 1, 0.1, "with_replacement")]
    check_against_autograd(trained(), algorithms, [0.2, 0.3], steps=100, forget=forget)


def test_batches_have_the_stated_law():
    """Mean and covariance of the sample weights are those of the framework chapter's table."""
    forget, draws = FORGET.expand(4000, 12), 5
    labels = torch.ones(4000, 12)
    for sampling in ("bernoulli", "without_replacement", "with_replacement"):
        rule = AscentDescent(0.3, 3, 2, sampling=sampling)
        generator = stream("test", 0)
        update = UpdateColumns.of(rule, 1.0, forget, labels)
        weights = torch.cat([update.sample_weights(generator) for _ in range(draws)])
        mean = torch.where(FORGET, -0.3 / 4, 0.7 / 8)
        error = weights.std(0) / len(weights) ** 0.5
        assert bool(((weights.mean(0) - mean).abs() < 4.5 * error).all())
        omega, n, batch = 0.7, 8, 3
        variance = (
            omega**2
            * {
                "bernoulli": (1 / n) * (1 / batch - 1 / n),
                "without_replacement": (n - batch) * (n - 1) / (batch * n * n * (n - 1)),
                "with_replacement": (n - 1) / (batch * n * n),
            }[sampling]
        )
        found = weights[:, ~FORGET].var(0).mean()
        assert float(found) == pytest.approx(variance, rel=0.03)


@pytest.mark.parametrize("run", [ascent_descent, linearised])
def test_the_default_seed_is_zero(run):
    model, rule = trained(), AscentDescent(0.3, 3, 2)
    plain, zero, one = (
        run(model, FORGET, rule, 0.1, steps=3, **given).distance
        for given in ({}, {"seed": 0}, {"seed": 1})
    )
    assert torch.equal(plain, zero)
    assert not torch.equal(plain, one)


def test_small_displacements_follow_the_linearised_recursion():
    """δ ← δ − ηAδ with A from autograd gradients at w*, never growing faster than √ρ(T) a step."""
    # Wide data keep the optimum off the ReLU kinks; the residual stays far below the displacement.
    datasets = [signal_noise(8, 400, 0.5, seed=seed) for seed in (0, 1)]
    model = fit_to_interpolation(datasets, filters=4, init_scale=0.1, tolerance=1e-29)
    forget, algorithm, rate = torch.arange(8) < 3, AscentDescent(0.3, 5, 3), 2.0
    path = ascent_descent(model, forget, algorithm, rate, steps=500, displacement=1e-8)
    signed = torch.where(forget, -0.3 / 3, 0.7 / 5)
    for k, data in enumerate(model.datasets):
        network = TwoLayerCNN(model.weights()[k])
        outputs = network(data.patches)
        rows = torch.stack(
            [torch.autograd.grad(f, network.weights, retain_graph=True)[0] for f in outputs]
        ).flatten(1)
        delta = displacements(path.start)[k].flatten()
        lengths = [delta.norm()]
        for _ in range(500):
            delta = delta - rate * rows.T @ (signed * (rows @ delta))
            lengths.append(delta.norm())
        expected = torch.stack(lengths) / lengths[0]
        linear = expected < 1e3
        assert float(expected[linear].max()) > 500
        torch.testing.assert_close(path.distance[linear, k], expected[linear], rtol=1e-3, atol=0)
        curvature = Curvature.from_gram(model.curvature_gram()[k], forget)
        steepest = path.distance[linear, k].log().diff().max()
        assert float(steepest) <= 0.5 * math.log(growth_factor(curvature, algorithm, rate)) + 1e-4


def test_a_run_stops_at_the_forget_loss():
    model, algorithm = trained(), AscentDescent(0.3, 8, 4)
    options: dict[str, Any] = {"steps": 300, "displacement": 1e-3}
    free = ascent_descent(model, FORGET, algorithm, 3.0, **options)
    path = ascent_descent(model, FORGET, algorithm, 3.0, until=Until(forget_loss=0.5), **options)
    first = (free.forget_loss >= 0.5).int().argmax(0)
    assert torch.equal(path.steps, first)
    for k, step in enumerate(first.tolist()):
        torch.testing.assert_close(path.distance[: step + 1, k], free.distance[: step + 1, k])
        assert bool((path.distance[step:, k] == path.distance[step, k]).all())


def test_a_run_stops_at_the_distance():
    """At the first step where ‖w − w*‖ is at most the share asked for; here the pull halves it."""
    model, algorithm = trained(), AscentDescent(0.0, 8, 4, damping=0.5)
    for distance, steps in ((1.0, 0), (0.6, 1), (0.3, 2)):
        path = linearised(model, FORGET, algorithm, 1.0, steps=9, until=Until(distance=distance))
        assert path.steps.tolist() == [steps, steps]


def test_overflow_reads_infinite():
    path = ascent_descent(trained(), FORGET, AscentDescent(0.9, 8, 4), 30.0, steps=3000)
    assert bool(torch.isinf(path.distance[-1]).all() & torch.isinf(path.forget_loss[-1]).all())
    assert not bool(torch.isnan(path.distance).any())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("forget", {"forget": FORGET[:5]}),
        ("forget", {"forget": FORGET.double()}),
        ("forget", {"forget": torch.zeros(12, dtype=torch.bool)}),
        ("algorithm", {"algorithm": [AscentDescent(0.1, 8, 4)] * 3}),
        ("retain_batch", {"algorithm": AscentDescent(0.1, 9, 4)}),
        ("forget_batch", {"algorithm": AscentDescent(0.1, 8, 5)}),
        ("learning_rate", {"learning_rate": -0.1}),
        ("steps", {"steps": -1}),
        ("displacement", {"displacement": 0.0}),
    ],
)
def test_bad_input_is_named(name, arguments):
    good: dict[str, Any] = {
        "forget": FORGET,
        "algorithm": AscentDescent(0.1, 8, 4),
        "learning_rate": 0.1,
    }
    with pytest.raises(ValueError, match=f"^{name} must"):
        ascent_descent(trained(), **{**good, "steps": 2, **arguments})


@pytest.mark.parametrize("damping", [0.0, 0.02])
def test_the_linearisation_is_the_recursion_of_the_dynamics(damping):
    """Against δ ← (I − ηÂ)δ with explicit Hessians, on the batches that the run drew."""
    model = trained()
    rule = AscentDescent(0.3, 3, 2, damping=damping, sampling="without_replacement")
    path = linearised(model, FORGET, rule, 0.8, steps=20, displacement=1e-6, seed=5)
    update = UpdateColumns.of(rule, 0.8, FORGET.expand(2, 12), model.span.labels)
    batches = update.batches(stream("unlearning batches", 5, 0))
    weights = torch.stack([batches() for _ in range(20)])
    start = ascent_descent(model, FORGET, rule, 0.8, steps=0, displacement=1e-6, seed=5).start
    for k, data in enumerate(model.datasets):
        network = TwoLayerCNN(model.weights()[k])
        rows = [torch.autograd.grad(f, network.weights)[0] for f in iter_outputs(network, data)]
        h = torch.stack(rows).flatten(1)
        delta = start.displacement_of(k).flatten()
        lengths, losses = [delta.norm()], [(h @ delta)[FORGET].square().mean() / 2]
        for step in weights[:, k]:
            delta = (1 - 0.8 * damping) * delta - h.T @ (step * (h @ delta))
            lengths.append(delta.norm())
            losses.append((h @ delta)[FORGET].square().mean() / 2)
        distance = torch.stack(lengths) / lengths[0]
        torch.testing.assert_close(path.distance[:, k], distance, rtol=1e-3, atol=0)
        torch.testing.assert_close(path.forget_loss[:, k], torch.stack(losses), rtol=1e-2, atol=0)


def iter_outputs(network, data):
    for i in range(data.n_samples):
        yield network(data.patches[i : i + 1])[0]


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("reshuffle", [False, True])
def test_a_small_displacement_follows_its_linearisation(loss, reshuffle):
    """Same start, same batches: equal to O(‖δ‖), while no ReLU has changed its sign."""
    datasets = [signal_noise(12, 60, 0.8, seed=k) for k in range(2)]
    large: dict[str, Any] = {"filters": 4, "init_scale": 1.0}  # preactivations far from the kinks
    if loss == "squared":
        model = fit_to_interpolation(datasets, **large)
    else:
        model = fit(datasets, learning_rate=1.0, steps=300, loss=loss, **large)
    rule = AscentDescent(0.3, 4, 2, sampling="without_replacement")
    # A logistic network's gradients at w* are not zero, so that δ grows at once.
    displacement, rate = {"squared": (1e-7, 2.0), "logistic": (1e-5, 1e-3)}[loss]
    options: dict[str, Any] = {"steps": 8, "seed": 2, "reshuffle": reshuffle}
    real = ascent_descent(model, FORGET, rule, rate, displacement=displacement, **options)
    linear = linearised(model, FORGET, rule, rate, displacement=displacement, **options)
    torch.testing.assert_close(real.distance, linear.distance, rtol=1e-6, atol=0)
    torch.testing.assert_close(real.retain_loss, linear.retain_loss, rtol=1e-5, atol=1e-19)
    assert float((real.distance[-1] - 1).abs().min()) > 1e-3


def test_reshuffling_needs_batches_without_replacement():
    rule = AscentDescent(0.3, 4, 2, sampling="bernoulli")
    with pytest.raises(ValueError, match=r"algorithm.sampling must be 'without_replacement'"):
        ascent_descent(trained(), FORGET, rule, 0.1, steps=1, reshuffle=True)


def test_entries_of_a_fit_run_as_they_would_alone():
    """Chosen twice, an entry is the same network, with a δ_0 and batches of its own."""
    model = trained()
    twice = model[torch.tensor([1, 1, 0])]
    torch.testing.assert_close(twice.weights()[0], model.weights()[1], rtol=0, atol=0)
    torch.testing.assert_close(twice.weights()[2], model.weights()[0], rtol=0, atol=0)
    start = ascent_descent(
        twice, FORGET, AscentDescent(0.1, 8, 4), 0.1, steps=0, displacement=1e-3
    ).start
    start = displacements(start)
    lengths = start.flatten(1).norm(dim=1) / twice.weights().flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((3,), 1e-3))
    assert not torch.equal(start[0], start[1])


def test_a_loader_s_batches_by_their_name_and_momentum_refused():
    model = trained()
    named = AscentDescent(0.3, 2, 2, sampling="reshuffled")
    flagged = AscentDescent(0.3, 2, 2, sampling="without_replacement")
    one = ascent_descent(model, FORGET, named, 0.1, steps=9, seed=4)
    other = ascent_descent(model, FORGET, flagged, 0.1, steps=9, seed=4, reshuffle=True)
    assert torch.equal(one.distance, other.distance)
    with pytest.raises(ValueError, match=r"algorithm\.momentum must be 0"):
        ascent_descent(model, FORGET, AscentDescent(0.3, 2, 2, momentum=0.5), 0.1, steps=1)
