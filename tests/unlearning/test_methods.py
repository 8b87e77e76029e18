"""Unlearning methods against single runs of the package's update, and against plain loops."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lib.stability.algorithm import AscentDescent
from lib.unlearning.methods import (
    distillation,
    divergence,
    fine_tuning,
    gradient_ascent,
    neg_grad_plus,
    newton_step,
    npo,
    retrain,
    salun,
    scrub,
)
from lib.unlearning.network_run import run_network
from lib.unlearning.population import Population, Schedule, train

N, FORGOTTEN = 20, 6
SCHEDULE = Schedule(0.3, 5, 4, 2, seed=3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network():
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    drawn = generator()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=drawn, dtype=torch.float64))
    return net


def samples():
    inputs = torch.randn(N, 2, 3, generator=generator(1), dtype=torch.float64)
    targets = torch.randint(3, (N,), generator=generator(2))
    return inputs, targets, torch.arange(N) >= N - FORGOTTEN


def population(models=1):
    net = network()
    own = parameters_to_vector(net.parameters()).detach()
    more = torch.randn(models - 1, len(own), generator=generator(4), dtype=torch.float64)
    inputs, targets, forget = samples()
    return Population(net, inputs, targets, forget, torch.cat([own[None], more]))


def real_run(mixing, steps=SCHEDULE.steps, until=None):
    update = AscentDescent(mixing, 4, 2, sampling="without_replacement")
    inputs, targets, forget = samples()
    return run_network(
        network(), inputs, targets, forget, update, 0.3, steps=steps, seed=3, until=until
    )


def one_step(case, objective, learning_rate=0.3):
    """A plain gradient step on the first batch: objective(outputs of retain, of forget, at)."""
    net = network()
    batch = next(iter(SCHEDULE.batches(case.forget, 1)))
    retain, forget = batch.retain[0], batch.forget[0]
    value = objective(net(case.inputs[retain]), net(case.inputs[forget]), retain, forget)
    slope = parameters_to_vector(torch.autograd.grad(value, list(net.parameters())))
    return parameters_to_vector(net.parameters()).detach() - learning_rate * slope


ONCE = Schedule(0.3, 1, 4, 2, seed=3)


@pytest.mark.parametrize(
    ("method", "mixing"),
    [
        (fine_tuning, 0.0),
        (gradient_ascent, 1.0),
        (lambda *given: neg_grad_plus(*given, mixing=0.3), 0.3),
    ],
)
def test_what_fits_the_update_is_the_update(method, mixing):
    torch.testing.assert_close(method(population(), SCHEDULE)[0], real_run(mixing).weights)


def test_a_population_is_its_networks_each_alone():
    case, batches = population(3), {}
    for batch in SCHEDULE.batches(case.forget, 3):
        batches[batch.step] = batch
    together = neg_grad_plus(case, SCHEDULE, mixing=0.4)
    inputs, targets, forget = samples()
    for model in range(3):
        net = network()
        vector_to_parameters(case.weights[model], net.parameters())
        pairs = [(batches[k].retain[model], batches[k].forget[model]) for k in range(5)]
        update = AscentDescent(0.4, 4, 2)
        alone = run_network(
            net, inputs, targets, forget, update, 0.3, steps=5, batches=pairs
        ).weights
        torch.testing.assert_close(together[model], alone)
    # Each network draws its own.
    assert not torch.equal(batches[0].retain[0], batches[0].retain[1])


def test_the_model_is_never_changed():
    case = population()
    before = copy.deepcopy(case.model.state_dict())
    for weights in (
        salun(case, SCHEDULE, share=0.5),
        newton_step(case, damping=1.0),
        retrain(case, epochs=1, seed=0),
    ):
        assert weights.shape == case.weights.shape
    assert all(torch.equal(w, before[name]) for name, w in case.model.state_dict().items())


def test_ascent_descent_stops_at_the_target():
    case = population(4)
    start = case.at().mean_loss(case.forget)
    target = float(start.median()) + 0.2
    long = Schedule(0.05, 200, 4, 2, seed=3)
    weights = neg_grad_plus(case, long, mixing=0.5, target=target)
    end = case.at(weights).mean_loss(case.forget)
    assert bool((end >= target).all())
    assert bool((weights[start >= target] == case.weights[start >= target]).all())
    assert bool((end[start < target] < target + 0.2).all())
    alone = Population(case.model, case.inputs, case.targets, case.forget)
    reached = neg_grad_plus(alone, SCHEDULE, mixing=1.0, target=float(start[0]) + 0.1)
    path = real_run(1.0, until=lambda gone, kept: gone >= float(start[0]) + 0.1)
    torch.testing.assert_close(reached[0], path.weights)


def test_npo_tends_to_ascent_descent_and_its_gradient_is_as_stated():
    case = population()
    torch.testing.assert_close(
        npo(case, SCHEDULE, beta=1e-7, mixing=0.3),
        neg_grad_plus(case, SCHEDULE, mixing=0.3),
        rtol=1e-5,
        atol=1e-7,
    )
    # At the start any β gives the same step.
    torch.testing.assert_close(
        npo(case, ONCE, beta=3.0, mixing=0.3), neg_grad_plus(case, ONCE, mixing=0.3)
    )

    def objective(kept, gone, retain, forget):
        now = -F.cross_entropy(gone, case.targets[forget], reduction="none")
        ratio = (now - now.detach() + 0.7).exp()  # as if it were e^.7 more likely than before
        return (2 / 1.5) * (1 + ratio**1.5).log().mean()

    weight = 2 * math.exp(0.7 * 1.5) / (1 + math.exp(0.7 * 1.5))
    plain = one_step(case, lambda kept, gone, r, f: -F.cross_entropy(gone, case.targets[f]))
    own = case.weights[0]
    torch.testing.assert_close(one_step(case, objective) - own, weight * (plain - own))


def test_scrub_s_divergence_is_zero_at_the_start_and_right_beside_it():
    case = population(2)
    at, chosen = case.at(), torch.arange(8).view(2, 4)
    assert float(divergence(at, at, chosen).abs().max()) < 1e-12
    moved = case.at(case.weights + 0.1)
    p, q = at.outputs(chosen).softmax(-1), moved.outputs(chosen).softmax(-1)
    torch.testing.assert_close(divergence(at, moved, chosen), (p * (p / q).log()).sum(-1))


def test_scrub_ascends_on_even_steps_and_then_only_descends():
    case = population()
    # The first step, on the forget set, finds no gradient.
    torch.testing.assert_close(scrub(case, ONCE, ascents=3), case.weights)
    torch.testing.assert_close(
        scrub(case, SCHEDULE, ascents=0, anchor=0.0), fine_tuning(case, SCHEDULE)
    )
    batches = list(SCHEDULE.batches(case.forget, 1))
    net, teacher = network(), network()
    for step, batch in enumerate(batches):
        gone = step in (0, 2)  # two ascents, then descent alone
        x = case.inputs[(batch.forget if gone else batch.retain)[0]]
        y = case.targets[(batch.forget if gone else batch.retain)[0]]
        apart = F.kl_div(
            net(x).log_softmax(1), teacher(x).log_softmax(1), reduction="batchmean", log_target=True
        )
        value = -apart if gone else 0.4 * apart + 0.6 * F.cross_entropy(net(x), y)
        slope = torch.autograd.grad(value, list(net.parameters()))
        with torch.no_grad():
            for w, g in zip(net.parameters(), slope, strict=True):
                w.sub_(0.3 * g)
    expected = parameters_to_vector(net.parameters()).detach()
    torch.testing.assert_close(scrub(case, SCHEDULE, ascents=2, anchor=0.4)[0], expected)


def test_distillation_begins_with_ascent_alone():
    case = population()
    expected = one_step(
        case, lambda kept, gone, r, f: -0.3 * F.cross_entropy(gone, case.targets[f])
    )
    torch.testing.assert_close(distillation(case, ONCE, mixing=0.3)[0], expected)


def test_salun_moves_only_the_steepest_weights_to_random_labels():
    case = population(2)
    weights = salun(case, SCHEDULE, share=0.25)
    for model in range(2):
        net = network()
        vector_to_parameters(case.weights[model], net.parameters())
        gone = F.cross_entropy(net(case.inputs[case.forget]), case.targets[case.forget])
        slope = parameters_to_vector(torch.autograd.grad(gone, list(net.parameters()))).abs()
        steep = slope >= slope.sort(descending=True).values[round(0.25 * len(slope)) - 1]
        assert torch.equal(weights[model] != case.weights[model], steep)
    everything = salun(case, SCHEDULE, share=1.0)
    assert bool((everything != case.weights).all())


def ridge(decay, n=12, p=4):
    x = torch.randn(n, p, generator=generator(5), dtype=torch.float64)
    y = torch.randn(n, generator=generator(6), dtype=torch.float64)

    def solution(members):
        gram = x[members].T @ x[members] / members.sum() + decay * torch.eye(p).double()
        return torch.linalg.solve(gram, x[members].T @ y[members] / members.sum())

    forget = torch.arange(n) < 3
    net = nn.Linear(p, 1, bias=False).double()
    everyone = torch.ones(n, dtype=torch.bool)
    case = Population(net, x, y, forget, solution(everyone)[None], loss="squared")
    return case, solution(~forget)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_newton_step_is_exact_on_ridge_regression(decay):
    case, retrained = ridge(decay)
    found = newton_step(case, damping=0.0, weight_decay=decay, tolerance=1e-13)
    torch.testing.assert_close(found[0], retrained, rtol=1e-9, atol=1e-11)


def test_a_newton_step_solves_with_the_dense_gauss_newton_matrix():
    case = population(2)
    found = newton_step(case, damping=0.2, tolerance=1e-12)
    kept = ~case.forget
    for model in range(2):

        def outputs(w):
            net = copy.deepcopy(case.model)
            names = dict(net.named_parameters())
            pieces = w.split([v.numel() for v in names.values()])
            weights = {k: p.view_as(v) for (k, v), p in zip(names.items(), pieces, strict=True)}
            return torch.func.functional_call(net, weights, (case.inputs[kept],))

        w = case.weights[model]
        J, p = torch.autograd.functional.jacobian(outputs, w), outputs(w).softmax(1)
        curved = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        G = torch.einsum("ncp,ncd,ndq->pq", J, curved, J) / int(kept.sum())
        slope = torch.einsum("ncp,nc->p", J, p - F.one_hot(case.targets[kept], 3)) / int(kept.sum())
        step = torch.linalg.solve(G + 0.2 * torch.eye(len(w)), slope)
        torch.testing.assert_close(found[model], w - step, rtol=1e-7, atol=1e-9)
    with pytest.warns(RuntimeWarning, match="residual"):
        newton_step(case, damping=1e-8, tolerance=1e-12, most=2)


def test_training_is_adam_one_network_at_a_time_and_never_sees_the_forget_set():
    inputs, targets, forget = samples()
    given: dict[str, Any] = {"epochs": 3, "batch": 7, "learning_rate": 0.01, "seed": 5}
    weights = train(network(), inputs[~forget], targets[~forget], models=3, **given)
    case = population(3)
    changed = Population(
        case.model, torch.where(forget[:, None, None], 100.0, inputs), targets, forget, case.weights
    )
    assert torch.equal(weights, retrain(changed, **given))
    start = train(network(), inputs, targets, models=3, **given | {"learning_rate": 1e-12})
    net = network()
    vector_to_parameters(start[1], net.parameters())
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    drawn = generator_of_batches(5)
    for _ in range(3):
        order = torch.rand(3, 14, generator=drawn, dtype=torch.float32).argsort(dim=1)[1]
        for batch in order.split(7):
            adam.zero_grad()
            F.cross_entropy(net(inputs[batch]), targets[batch]).backward()
            adam.step()
    torch.testing.assert_close(
        parameters_to_vector(net.parameters()).detach(), weights[1], rtol=1e-6, atol=1e-6
    )
    assert not torch.allclose(start[0], start[1])


def generator_of_batches(seed):
    from lib.randomness import stream

    return stream("training batches", seed)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("mixing", lambda case: neg_grad_plus(case, SCHEDULE, mixing=1.5)),
        ("target", lambda case: neg_grad_plus(case, SCHEDULE, mixing=0.5, target=math.nan)),
        ("beta", lambda case: npo(case, SCHEDULE, beta=0.0, mixing=0.5)),
        ("share", lambda case: salun(case, SCHEDULE, share=0.0)),
        ("ascents", lambda case: scrub(case, SCHEDULE, ascents=-1)),
        ("damping", lambda case: newton_step(case, damping=-1.0)),
        ("learning_rate", lambda case: fine_tuning(case, Schedule(-0.1, 3))),
        ("forget_batch", lambda case: fine_tuning(case, Schedule(0.1, 3, 4, 50))),
        (
            "weights",
            lambda case: Population(
                case.model, case.inputs, case.targets, case.forget, torch.zeros(2, 3)
            ),
        ),
        (
            "targets",
            lambda case: Population(case.model, samples()[0], samples()[1] + 9, case.forget),
        ),
        ("population", lambda case: npo(ridge(0.0)[0], SCHEDULE, beta=1.0, mixing=0.5)),
    ],
)
def test_arguments_out_of_range_are_named(name, call):
    with pytest.raises(ValueError, match=name):
        call(population())


def test_weights_that_overflow_are_no_result():
    with pytest.raises(RuntimeError, match="learning_rate"):
        gradient_ascent(ridge(0.0)[0], Schedule(1e100, 9, 4, 2))
