import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from lib.cnn.coefficients import PatchSpan
from lib.cnn.descent import Descent
from lib.experiments import benign_overfitting
from lib.experiments.benign_overfitting import BenignSetting, Runs, draw_runs, error_map
from lib.randomness import stream

SMALL = BenignSetting(
    n_samples=6, filters=2, flip=0.2, steps=40, learning_rate=0.2, test_points=300
)


class Published(torch.nn.Module):
    """The released network: one Conv1d over both patches, two logits."""

    def __init__(self, dim, setting):
        super().__init__()
        self.conv = torch.nn.Conv1d(1, 2 * setting.filters, dim, dim)
        self.setting = setting

    def forward(self, x):
        hidden = self.setting.output_scale * self.conv(x).relu().sum(2)
        m = self.setting.filters
        return torch.stack([hidden[:, m:].sum(1), hidden[:, :m].sum(1)], dim=1)


def released_loop(norm, dim, setting):
    """One run of the published experiment: (network, data, training loss, test error)."""

    def draw(count):
        classes = (torch.rand(count) < 0.5) * 2.0 - 1
        x = torch.zeros(count, 2, dim)
        x[:, 0, 0] = norm * classes
        x[:, 1] = torch.randn(count, dim)
        flips = torch.where(torch.rand(count) < setting.flip, -1.0, 1.0)
        return x.reshape(count, 1, 2 * dim), classes, (classes * flips + 1).div(2).long()

    network = Published(dim, setting)
    start = [p.detach().clone() for p in network.parameters()]
    x, classes, y = draw(setting.n_samples)
    optimizer = torch.optim.SGD(network.parameters(), lr=setting.learning_rate)
    entropy = torch.nn.CrossEntropyLoss()
    for _ in range(setting.steps):
        optimizer.zero_grad()
        entropy(network(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        x_test, _, y_test = draw(setting.test_points)
        error = (network(x_test).argmax(1) != y_test).double().mean()
        return network, (x, classes, y, start), float(entropy(network(x), y)), float(error)


@pytest.mark.parametrize("output_scale", [0.5, 1.0])
def test_coefficients_equal_the_released_loop(output_scale):
    torch.manual_seed(1)
    setting = BenignSetting(n_samples=6, filters=3, output_scale=output_scale)
    network, (x, classes, y, (weights, bias)), loss, _ = released_loop(1.5, 12, setting)
    signal = torch.zeros(12)
    signal[0] = 1.5
    patches = torch.cat([signal[None], -signal[None], x.reshape(6, 2, 12)[:, 1]])
    filters = weights[:, 0]
    start = (filters @ patches.T + bias[:, None]).view(1, 2, 3, 8)
    strength = torch.stack([classes > 0, classes < 0])[None].double()
    labels = (2.0 * y - 1)[None]
    span = PatchSpan((patches @ patches.T)[None] + 1, start, strength, labels, output_scale)
    descent = Descent("logistic", setting.steps, 0.0, 6, 0)
    coefficients, losses, _ = descent.run(span, torch.tensor([setting.learning_rate]), 0)
    assert float(losses[0]) == pytest.approx(loss, rel=1e-9)

    runs = Runs(span, (filters @ filters.T)[None], bias[None])
    clean, trained_bias, root = benign_overfitting._trained_filters(runs, coefficients)
    trained = network.conv.weight.detach()[:, 0]
    torch.testing.assert_close(root[0] @ root[0].T, trained @ trained.T)
    torch.testing.assert_close(trained_bias[0], network.conv.bias.detach())
    for sign, output in zip((1, -1), clean[0], strict=True):
        responses = output_scale * (sign * trained @ signal + network.conv.bias.detach()).relu()
        torch.testing.assert_close(output, responses[:3].sum() - responses[3:].sum())


@pytest.mark.long
def test_cells_have_the_law_of_the_released_loop():
    """Mean training loss and test error of 150 runs of each, within four standard errors."""
    torch.manual_seed(2)
    for norm, dim in ((0.5, 12), (2.5, 20)):
        reference = torch.tensor([released_loop(norm, dim, SMALL)[2:] for _ in range(150)])
        drawn = error_map([norm] * 150, [dim], repeats=1, setting=SMALL)
        found = torch.stack([drawn.train_loss[0], drawn.test_error[0]], dim=1)
        gap = found.mean(0) - reference.mean(0)
        error = ((found.var(0) + reference.var(0)) / 150).sqrt()
        assert bool((gap.abs() < 4 * error).all()), (gap, error)


def test_thm_dimension_free_law():
    """First and second moments of every inner product against explicit Gaussian vectors."""
    b, dim, norm = 20_000, 11, 1.3
    norms = torch.full((b,), norm)
    runs = draw_runs(norms, dim, SMALL, stream("test", 0), np.random.default_rng(0))
    k, n = 2 * SMALL.filters, SMALL.n_samples
    torch.manual_seed(3)
    bound = 1 / math.sqrt(dim)
    filters = (2 * torch.rand(b, k, dim) - 1) * bound
    bias = (2 * torch.rand(b, k) - 1) * bound
    signal = norm * torch.eye(dim)[0]
    patches = torch.cat(
        [signal.expand(b, 1, dim), -signal.expand(b, 1, dim), torch.randn(b, n, dim)], 1
    )
    for found, expected in (
        (runs.span.gram, patches @ patches.mT + 1),
        (runs.span.start.flatten(1, 2), filters @ patches.mT + bias[:, :, None]),
        (runs.filter_gram, filters @ filters.mT),
    ):
        for power in (1, 2):
            ours, theirs = found**power, expected**power
            error = ((ours.var(0) + theirs.var(0)) / b).sqrt() + 1e-6
            assert bool(((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all())
    # The joint law, through one cubic invariant: Σ ⟨ξ_i, ξ_j⟩⟨ξ_j, w_r⟩⟨w_r, ξ_i⟩.
    cubic = [
        torch.einsum("bij,brj,bri->b", gram[:, 2:, 2:] - 1, start[..., 2:], start[..., 2:])
        for gram, start in (
            (runs.span.gram, runs.span.start.flatten(1, 2) - runs.bias[:, :, None]),
            (patches @ patches.mT + 1, filters @ patches.mT),
        )
    ]
    spread = math.sqrt(sum(float(values.var()) for values in cubic) / b)
    assert abs(float(cubic[0].mean() - cubic[1].mean())) < 4 * spread


def test_contours_and_the_boundary_fit():
    norms, dims = torch.linspace(0, 10, 201), [100, 400, 900]
    centre = (3.0 * torch.tensor(dims) / 20) ** 0.25
    errors = 0.5 - 0.4 * torch.sigmoid(8 * (norms[None, :] - centre[:, None]))
    crossings = benign_overfitting.contour(norms, errors, 0.3)
    torch.testing.assert_close(crossings, centre, rtol=1e-3, atol=0)
    fitted = benign_overfitting.fit_boundary(dims, crossings, 20)
    assert fitted.constant == pytest.approx(3.0, rel=0.01)
    assert fitted.exponent == pytest.approx(1.0, abs=0.01)
    first = benign_overfitting.first_below(norms, errors, Fraction(3, 10))  # type: ignore[arg-type]
    assert bool(((first >= centre) & (first < centre + 0.0501)).all())
    nowhere = benign_overfitting.contour(norms, errors, 0.05)
    assert bool(torch.isnan(nowhere).all())
    assert bool(torch.isnan(benign_overfitting.first_below(norms, errors, 0.05)).all())
    with pytest.raises(ValueError, match="crossings must be finite"):
        benign_overfitting.fit_boundary(dims, nowhere, 20)


def test_shape_seed_and_extremes():
    arguments = ([0.0, 9.9], [60, 100])
    first = benign_overfitting.test_error_map(*arguments, repeats=3, seed=4)
    assert first.shape == (2, 2)
    assert first.dtype == torch.float64
    assert torch.equal(first, benign_overfitting.test_error_map(*arguments, repeats=3, seed=4))
    assert bool((first[:, 0] > 0.4).all() & (first[:, 1] < 0.25).all())


def test_one_row_of_the_published_map():
    """d = 350: the first ‖μ‖ with mean test error ≤ 0.2 is 3.5 in the published table."""
    norms = [round(0.1 * k, 1) for k in range(24, 48)]
    row = benign_overfitting.test_error_map(norms, [350], repeats=10, seed=0)[0]
    first = norms[int((row <= 0.2).int().argmax())]
    assert abs(first - 3.5) <= 0.4


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("signal_norms", {"signal_norms": [-0.1]}),
        ("dims", {"dims": [40]}),
        ("repeats", {"repeats": 0}),
        ("repeats", {"repeats": 1001}),
    ],
)
def test_bad_input_is_named(name, arguments):
    good = {"signal_norms": [1.0], "dims": [100]}
    with pytest.raises(ValueError, match=f"^{name} must be"):
        benign_overfitting.test_error_map(**{**good, **arguments})
