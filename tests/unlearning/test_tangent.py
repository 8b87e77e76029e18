"""The tangent model against the linearised network in parameter space, and against networks."""

import itertools
from typing import Any

import pytest
import torch
from torch.func import functional_call, jacrev, vmap
from torch.nn.utils import parameters_to_vector

from lib.stability import AscentDescent
from lib.unlearning.calibration import Probe, calibrate
from lib.unlearning.network_run import run_network
from lib.unlearning.paths import draw_batches
from lib.unlearning.tangent import TangentModel, follow, follow_weights
from lib.unlearning.validity import validate

SCHEMES = ["bernoulli", "without_replacement", "with_replacement", "reshuffled"]
TRAINED, WATCHED, WIDTH = 20, 6, 5


def network(outputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, 7), torch.nn.Tanh(), torch.nn.Linear(7, outputs)
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2)
    return model.eval()


def data(loss, outputs, seed=1):
    generator = torch.Generator().manual_seed(seed)
    n = TRAINED + WATCHED
    inputs = torch.randn(n, WIDTH, generator=generator, dtype=torch.float64)
    if loss == "cross_entropy":
        targets = torch.randint(outputs, (n,), generator=generator)
    elif loss == "logistic":
        targets = torch.randint(2, (n,), generator=generator).double() * 2 - 1
    else:
        targets = torch.randn(n, outputs, generator=generator, dtype=torch.float64)
    return inputs, targets, torch.arange(TRAINED) >= 14


def jacobian_of(model, inputs):
    """(N, C, p) by reverse mode, and w_0: the dumb reference."""
    weights = {k: v.detach() for k, v in model.named_parameters()}

    def output(w, x):
        return functional_call(model, w, (x[None],))[0]

    parts = vmap(jacrev(output), in_dims=(None, 0))(weights, inputs)
    return torch.cat([part.flatten(2) for part in parts.values()], dim=2)


def built(model, inputs):
    J = jacobian_of(model, inputs)
    rows = J.flatten(0, 1)
    w = parameters_to_vector(model.parameters()).detach()
    c = J.shape[1]
    outputs = model(inputs).detach()
    return TangentModel(outputs, rows @ rows[: TRAINED * c].T, (J @ w).detach())


def linearised(model, inputs, targets, forget, algorithm, rate, batches, loss, decay):
    """Losses of f_0 + Jδ, δ moved by autograd of the batch's loss and torch's own SGD."""
    J, f0 = jacobian_of(model, inputs), model(inputs).detach()
    w0 = parameters_to_vector(model.parameters()).detach()
    shifted = torch.zeros_like(w0, requires_grad=True)  # w, so that SGD decays w and not δ
    shifted.data.copy_(w0)
    optimiser = torch.optim.SGD([shifted], lr=rate, momentum=algorithm.momentum, weight_decay=decay)

    def per_sample():
        f = f0 + J @ (shifted - w0)
        if loss == "cross_entropy":
            return torch.nn.functional.cross_entropy(f, targets, reduction="none")
        if loss == "logistic":
            return torch.nn.functional.softplus(-targets * f[:, 0])
        return 0.5 * (f - targets).square().sum(1)

    rows = []
    for k in range(len(batches) + 1):
        value = per_sample()
        rows.append(
            [
                value[:TRAINED][forget].mean().item(),
                value[:TRAINED][~forget].mean().item(),
                value[TRAINED:].mean().item(),
            ]
        )
        if k < len(batches):
            objective = 0.5 * algorithm.damping * (shifted - w0).square().sum()
            for i, share, ascends in zip(*batches[k], strict=True):
                objective = objective + value[i] * share * (
                    -algorithm.mixing if ascends else 1 - algorithm.mixing
                )
            optimiser.zero_grad()
            objective.backward()
            optimiser.step()
    return torch.tensor(rows, dtype=torch.float64)


CASES = [
    (loss, outputs, sampling, momentum, damping, decay)
    for (loss, outputs), sampling in itertools.product(
        [("cross_entropy", 4), ("logistic", 1), ("squared", 3), ("squared", 1)], SCHEMES
    )
    for momentum, damping, decay in [
        (0.0, 0.0, 0.0),
        (0.8, 0.0, 0.0),
        (0.0, 0.3, 0.02),
        (0.6, 0.2, 0.05),
    ]
]


@pytest.mark.parametrize(("loss", "outputs", "sampling", "momentum", "damping", "decay"), CASES)
def test_the_tangent_model_is_the_linearised_network(
    loss, outputs, sampling, momentum, damping, decay
):
    model = network(outputs)
    inputs, targets, forget = data(loss, outputs)
    tangent = built(model, inputs)
    algorithms = [
        AscentDescent(mixing, 4, 3, damping=damping, sampling=sampling, momentum=momentum)
        for mixing in (0.0, 0.2, 0.5, 1.0)
    ]
    rates = [0.05, 0.1, 0.02, 0.01]
    path = follow(
        tangent, targets, forget, algorithms, rates, steps=40, loss=loss, weight_decay=decay, seed=3
    )
    batches = draw_batches(algorithms[0], forget, steps=40, seed=3)
    for s, (algorithm, rate) in enumerate(zip(algorithms, rates, strict=True)):
        expected = linearised(model, inputs, targets, forget, algorithm, rate, batches, loss, decay)
        found = torch.stack([path.forget_loss, path.retain_loss, path.watched_loss], 1)[:, :, s]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampling", SCHEMES)
def test_a_softmax_head_is_followed_exactly_for_two_hundred_steps(sampling):
    head = torch.nn.Linear(WIDTH, 4).double()
    inputs, targets, forget = data("cross_entropy", 4)
    tangent = built(head, inputs)
    algorithm = AscentDescent(0.3, 4, 3, sampling=sampling, momentum=0.5, damping=0.01)
    path = follow(tangent, targets, forget, algorithm, 0.1, steps=200, weight_decay=0.01, seed=5)
    real = run_network(
        head,
        inputs,
        targets,
        forget,
        algorithm,
        0.1,
        trained=TRAINED,
        steps=200,
        weight_decay=0.01,
        seed=5,
    )
    for name in (
        "forget_loss",
        "retain_loss",
        "watched_loss",
        "forget_accuracy",
        "retain_accuracy",
        "watched_accuracy",
    ):
        torch.testing.assert_close(getattr(path, name), getattr(real, name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("outputs", [1, 3])
def test_from_model_is_the_explicit_jacobian_s(outputs):
    model = network(outputs)
    inputs, *_ = data("squared", outputs)
    made = TangentModel.from_model(model, inputs, trained=TRAINED, dtype=torch.float64)
    expected = built(model, inputs)
    for name in ("outputs", "kernel", "anchor"):
        torch.testing.assert_close(
            getattr(made, name), getattr(expected, name), rtol=1e-10, atol=1e-12
        )
    assert made.trained == TRAINED


def test_a_last_layer_alone_is_followed_exactly():
    model = network(4)
    inputs, targets, forget = data("cross_entropy", 4)
    tangent = TangentModel.from_model(
        model, inputs, trained=TRAINED, parameters="2", dtype=torch.float64
    )
    algorithm = AscentDescent(0.3, 4, 3, sampling="reshuffled")
    before = parameters_to_vector(model.parameters()).detach().clone()
    path = follow(tangent, targets, forget, algorithm, 0.3, steps=60, seed=1)
    real = run_network(
        model,
        inputs,
        targets,
        forget,
        algorithm,
        0.3,
        trained=TRAINED,
        steps=60,
        seed=1,
        parameters="2",
    )
    torch.testing.assert_close(path.forget_loss, real.forget_loss, rtol=1e-9, atol=1e-9)
    assert torch.equal(parameters_to_vector(model.parameters()), before)


def test_given_batches_are_divided_by_their_own_length():
    model = network(4)
    inputs, targets, forget = data("cross_entropy", 4)
    tangent = built(model, inputs)
    every = [(torch.arange(14), torch.arange(14, 20))] * 20
    algorithm = AscentDescent(0.3, 4, 3)
    path = follow(tangent, targets, forget, algorithm, 0.2, steps=20, batches=every)
    whole = follow(
        tangent,
        targets,
        forget,
        AscentDescent(0.3, 14, 6, sampling="without_replacement"),
        0.2,
        steps=20,
    )
    torch.testing.assert_close(path.forget_loss, whole.forget_loss, rtol=1e-12, atol=1e-12)
    twice = [(torch.tensor([0, 0, 1]), torch.tensor([15, 15]))] * 20
    path = follow(tangent, targets, forget, algorithm, 0.2, steps=20, batches=twice)
    real = linearised_of_pairs(model, inputs, targets, algorithm, 0.2, twice)
    torch.testing.assert_close(path.forget_loss[:, 0], real, rtol=1e-9, atol=1e-9)


def linearised_of_pairs(model, inputs, targets, algorithm, rate, pairs):
    """Repeated samples count as often as they are named."""
    batches = [
        (
            torch.cat(pair),
            torch.cat([torch.full((len(p),), 1 / len(p), dtype=torch.float64) for p in pair]),
            torch.arange(sum(map(len, pair))) >= len(pair[0]),
        )
        for pair in pairs
    ]
    forget = torch.arange(TRAINED) >= 14
    return linearised(
        model, inputs, targets, forget, algorithm, rate, batches, "cross_entropy", 0.0
    )[:, 0]


def test_settings_do_not_see_each_other_however_they_are_chunked(monkeypatch):
    model = network(4)
    inputs, targets, forget = data("cross_entropy", 4)
    tangent = built(model, inputs)
    algorithms = [AscentDescent(0.1 * k, 4, 3, damping=0.1 * k, momentum=0.1 * k) for k in range(7)]
    rates = [0.02 * (k + 1) for k in range(7)]
    together = follow(tangent, targets, forget, algorithms, rates, steps=10)
    monkeypatch.setattr("lib.unlearning.tangent.CHUNK", 2 * tangent.outputs.numel())
    apart = follow(tangent, targets, forget, algorithms, rates, steps=10)
    torch.testing.assert_close(together.retain_loss, apart.retain_loss, rtol=1e-12, atol=1e-12)
    again = follow(tangent, targets, forget, algorithms, rates, steps=10)
    assert torch.equal(apart.retain_loss, again.retain_loss)


def test_calibration_finds_the_speed_a_network_was_given():
    model = network(4)
    inputs, targets, forget = data("cross_entropy", 4)
    tangent = built(model, inputs)
    algorithm = AscentDescent(0.4, 4, 3, damping=0.05, sampling="reshuffled")
    fast = TangentModel(tangent.outputs, 1.7 * tangent.kernel, tangent.anchor)
    real = follow(fast, targets, forget, algorithm, 0.05, steps=60)
    target = float(real.forget_loss[25, 0])
    probe = Probe(real, target, targets, forget, algorithm, 0.05)
    assert calibrate(tangent, probe).speed == pytest.approx(1.7, rel=1e-3)
    with pytest.raises(RuntimeError, match="probe"):
        calibrate(tangent, Probe(real, 1e6, targets, forget, algorithm, 0.05))


def test_another_speed_is_another_model_on_the_same_kernel():
    inputs, targets, forget = data("cross_entropy", 4)
    tangent = built(network(4), inputs)
    fast = tangent.at_speed(1.7)
    assert (fast.speed, tangent.speed) == (1.7, 1.0)
    assert fast.kernel.data_ptr() == tangent.kernel.data_ptr()
    checked = TangentModel(tangent.outputs, tangent.kernel, tangent.anchor, speed=1.7)
    paths = [
        follow(model, targets, forget, AscentDescent(0.4, 4, 3), 0.05, steps=20)
        for model in (fast, checked)
    ]
    assert torch.equal(paths[0].forget_loss, paths[1].forget_loss)
    with pytest.raises(ValueError, match="speed"):
        tangent.at_speed(0.0)


@pytest.mark.parametrize(("damping", "decay", "momentum"), [(0.0, 0.0, 0.0), (0.2, 0.05, 0.6)])
def test_the_weights_that_follow_reaches_give_its_outputs(damping, decay, momentum):
    model = network(4)
    inputs, targets, forget = data("cross_entropy", 4)
    tangent, J = built(model, inputs), jacobian_of(model, inputs)
    algorithm = AscentDescent(0.4, 4, 3, damping=damping, momentum=momentum)
    options: dict[str, Any] = {"steps": 30, "weight_decay": decay, "seed": 2}
    push, pulled = follow_weights(tangent, targets, forget, algorithm, 0.05, **options)
    w = parameters_to_vector(model.parameters()).detach()
    delta = -(push.flatten() @ J[:TRAINED].flatten(0, 1) + pulled * w)
    value = torch.nn.functional.cross_entropy(
        tangent.outputs + J @ delta, targets, reduction="none"
    )
    path = follow(tangent, targets, forget, algorithm, 0.05, **options)
    assert float(path.forget_loss[-1, 0]) == pytest.approx(float(value[:TRAINED][forget].mean()))
    assert float(path.watched_loss[-1, 0]) == pytest.approx(float(value[TRAINED:].mean()))


def test_a_linear_network_is_trusted_and_its_numbers_are_those_of_autograd():
    head = torch.nn.Linear(WIDTH, 4).double()
    inputs, targets, forget = data("cross_entropy", 4)
    tangent = TangentModel.from_model(head, inputs, trained=TRAINED, dtype=torch.float64)
    algorithm = AscentDescent(0.3, 4, 3, sampling="reshuffled")
    found = validate(
        head, inputs, targets, forget, tangent, algorithm, 0.1, steps=30, weight_decay=0.01
    )
    assert found.trusted
    assert found.reasons == ()
    assert found.growth == pytest.approx(1, abs=1e-12)
    assert found.bend == pytest.approx(0, abs=1e-12)
    value = torch.nn.functional.cross_entropy(
        head(inputs)[:TRAINED][forget], targets[:TRAINED][forget]
    )
    norm = parameters_to_vector(torch.autograd.grad(value, list(head.parameters()))).norm()
    assert found.forget_gradient == pytest.approx(float(norm))


def test_a_path_far_from_the_weights_is_not_trusted():
    model = network(4)
    inputs, targets, forget = data("cross_entropy", 4)
    tangent = TangentModel.from_model(model, inputs, trained=TRAINED, dtype=torch.float64)
    algorithm = AscentDescent(0.9, 4, 3, sampling="reshuffled")
    far = validate(model, inputs, targets, forget, tangent, algorithm, 2.0, steps=40)
    assert not far.trusted
    assert any("bend" in reason or "grow" in reason for reason in far.reasons)
    J = jacobian_of(model, inputs)
    push, _ = follow_weights(tangent, targets, forget, algorithm, 2.0, steps=40)
    delta = -(push.flatten() @ J[:TRAINED].flatten(0, 1))
    moved = network(4)
    torch.nn.utils.vector_to_parameters(
        parameters_to_vector(model.parameters()).detach() + delta, moved.parameters()
    )
    chosen = torch.arange(TRAINED)[forget]
    near, far_along = (J @ delta)[chosen], (jacobian_of(moved, inputs) @ delta)[chosen]
    assert far.growth == pytest.approx(float(far_along.norm() / near.norm()))
    bend = (moved(inputs) - model(inputs)).detach()[chosen] - near
    assert far.bend == pytest.approx(float(bend.norm() / near.norm()))


def test_a_run_stops_where_its_rule_says():
    model = network(4)
    inputs, targets, forget = data("cross_entropy", 4)
    algorithm = AscentDescent(0.5, 4, 3)
    options: dict[str, Any] = {"trained": TRAINED, "seed": 1}
    whole = run_network(model, inputs, targets, forget, algorithm, 0.3, steps=60, **options)
    target = float(whole.forget_loss[20, 0])
    stopped = run_network(
        model,
        inputs,
        targets,
        forget,
        algorithm,
        0.3,
        steps=60,
        until=lambda forgotten, kept: forgotten >= target,
        **options,
    )
    taken = int(whole.steps_to(target)[0])
    assert len(stopped.forget_loss) == taken + 1
    assert torch.equal(stopped.retain_loss, whole.retain_loss[: taken + 1])
    assert taken - 1 < float(whole.crossing(target)[0]) <= taken


class Recurrent(torch.nn.Module):
    """The last state of a GRU through a linear layer: no forward-mode derivative in PyTorch."""

    def __init__(self):
        super().__init__()
        self.core = torch.nn.GRU(2, 3, batch_first=True)
        self.head = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.core(x)[0][:, -1])


def test_a_recurrent_network_is_looked_at_as_by_finite_differences():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = Recurrent().double(), torch.randn(6, 4, 2, dtype=torch.float64)
    targets, forget = torch.tensor([0, 1, 0, 1, 0, 1]), torch.arange(6) >= 4
    tangent = TangentModel.from_model(model, inputs, dtype=torch.float64)
    setting = (targets, forget), (AscentDescent(0.4, 4, 2), 0.5)
    found = validate(model, inputs, *setting[0], tangent, *setting[1], steps=5)
    push, _ = follow_weights(tangent, *setting[0], *setting[1], steps=5)
    start = parameters_to_vector(model.parameters()).detach()
    named = dict(model.named_parameters())

    def at(w):
        pieces = w.split([p.numel() for p in named.values()])
        values = {k: v.view(p.shape) for (k, p), v in zip(named.items(), pieces, strict=True)}
        return functional_call(model, values, (inputs,)).detach()

    total = (model(inputs) * push).sum()
    gradient = torch.autograd.grad(total, list(model.parameters()))
    delta = -torch.cat([g.flatten() for g in gradient])

    def along(w, step=1e-5):
        return (at(w + step * delta) - at(w - step * delta))[forget] / (2 * step)

    near, far = along(start), along(start + delta)
    assert found.growth == pytest.approx(float(far.norm() / near.norm()), rel=1e-6)
    bent = at(start + delta)[forget] - at(start)[forget] - near
    assert found.bend == pytest.approx(float(bent.norm() / near.norm()), rel=1e-5)
