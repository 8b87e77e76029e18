"""The tangent model against the linearised network in parameter space, and against networks."""

import itertools

import pytest
import torch
from torch.func import functional_call, jacrev, vmap
from torch.nn.utils import parameters_to_vector

from lib.stability import AscentDescent
from lib.unlearning.network_run import run_network
from lib.unlearning.paths import draw_batches
from lib.unlearning.tangent import TangentModel, follow

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
        head, inputs, targets, forget, algorithm, 0.1, steps=200, weight_decay=0.01, seed=5
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
