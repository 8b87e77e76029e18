"""The two guarantees, against minimisers, Hessians and hostile batches."""

import pytest
import torch

from lib.stability import AscentDescent
from lib.unlearning.certificates import containment, fastest_rise, retain_sharpness
from lib.unlearning.tangent import TangentModel, follow


def problem(seed, loss="cross_entropy", n=12, c=3, width=4):
    """A softmax head's tangent model with its Jacobian: exact, and its curvature is known."""
    g = torch.Generator().manual_seed(seed)
    c = c if loss == "cross_entropy" else 1
    x = torch.randn(n, width, generator=g, dtype=torch.float64)
    eye = torch.eye(c, dtype=torch.float64)
    J = torch.einsum("nw,ab->nabw", x, eye).reshape(n, c, c * width)
    w = torch.randn(c * width, generator=g, dtype=torch.float64)
    outputs = J @ w
    targets = (
        torch.randint(c, (n,), generator=g)
        if loss == "cross_entropy"
        else torch.randint(2, (n,), generator=g).double() * 2 - 1
    )
    rows = J.flatten(0, 1)
    return TangentModel(outputs, rows @ rows.T, outputs.clone()), J, targets, torch.arange(n) >= 8


def objective(tangent, J, targets, forget, algorithm, loss):
    def value(delta):
        f = tangent.outputs + J @ delta
        if loss == "cross_entropy":
            each = torch.nn.functional.cross_entropy(f, targets, reduction="none")
        elif loss == "logistic":
            each = torch.nn.functional.softplus(-targets * f[:, 0])
        else:
            each = 0.5 * (f[:, 0] - targets).square()
        a = algorithm.mixing
        return (
            (1 - a) * each[~forget].mean()
            - a * each[forget].mean()
            + algorithm.damping / 2 * delta @ delta
        )

    return value


@pytest.mark.parametrize("loss", ["cross_entropy", "logistic", "squared"])
@pytest.mark.parametrize("seed", range(6))
def test_the_objective_is_as_convex_and_smooth_as_certified(loss, seed):
    tangent, J, targets, forget = problem(seed, loss)
    top = containment(tangent, targets, forget, AscentDescent(0.4, 4, 4), loss=loss)
    algorithm = AscentDescent(0.4, 4, 4, damping=-1.05 * top.convexity)
    certified = containment(tangent, targets, forget, algorithm, loss=loss)
    value = objective(tangent, J, targets, forget, algorithm, loss)
    assert certified.convexity == pytest.approx(0.05 * -top.convexity)
    g = torch.Generator().manual_seed(seed + 100)
    for scale in (0.0, 0.3, 1.0, 3.0):
        at = scale * torch.randn(J.shape[2], generator=g, dtype=torch.float64)
        values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(value, at))
        assert values[0] >= certified.convexity - 1e-9
        assert values[-1] <= certified.smoothness + 1e-9
    start = torch.zeros(J.shape[2], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(start), start)
    assert certified.distance * certified.convexity == pytest.approx(float(gradient.norm()))


@pytest.mark.parametrize("seed", range(4))
def test_full_batch_descent_rests_within_the_certified_distance(seed):
    tangent, J, targets, forget = problem(seed)
    bare = containment(tangent, targets, forget, AscentDescent(0.4, 8, 4))
    algorithm = AscentDescent(
        0.4, 8, 4, damping=-1.5 * bare.convexity, sampling="without_replacement"
    )
    certified = containment(tangent, targets, forget, algorithm)
    value = objective(tangent, J, targets, forget, algorithm, "cross_entropy")
    ends = []
    for start in (0.0, 2.0):
        delta = torch.full((J.shape[2],), start, dtype=torch.float64, requires_grad=True)
        for _ in range(1500):
            (gradient,) = torch.autograd.grad(value(delta), delta)
            delta = (delta - 1.9 / certified.smoothness * gradient).detach().requires_grad_()
        ends.append(delta.detach())
    assert float(gradient.norm()) < 1e-10
    torch.testing.assert_close(*ends, rtol=0, atol=1e-8)
    assert 0 < float(ends[0].norm()) <= certified.distance
    path = follow(
        tangent, targets, forget, algorithm, 1.9 / certified.smoothness, steps=1500, seed=0
    )
    each = torch.nn.functional.cross_entropy(
        tangent.outputs + J @ ends[0], targets, reduction="none"
    )
    assert float(path.forget_loss[-1, 0]) == pytest.approx(float(each[forget].mean()), rel=1e-9)


def test_bounded_is_not_kept():
    """Two orthogonal unit samples, α = ½, damping 5 % above the bound: forgotten all the same."""
    eye = torch.eye(2, dtype=torch.float64)
    tangent = TangentModel(torch.tensor([[1.5], [1.5]]).double(), eye, torch.zeros(2, 1).double())
    forget, targets = torch.tensor([False, True]), torch.ones(2, dtype=torch.float64)
    threshold = -containment(
        tangent, targets, forget, AscentDescent(0.5, 1, 1), loss="logistic"
    ).convexity
    algorithm = AscentDescent(0.5, 1, 1, damping=1.05 * threshold, sampling="without_replacement")
    path = follow(tangent, targets, forget, algorithm, 1.0, steps=4000, loss="logistic")
    margin = -torch.log(torch.expm1(path.forget_loss[-1, 0]))
    assert float(margin) == pytest.approx(-1.74, abs=0.01)
    assert float(path.forget_accuracy[-1, 0]) == 0


@pytest.mark.parametrize("loss", ["cross_entropy", "logistic"])
@pytest.mark.parametrize("seed", range(5))
def test_no_batch_order_beats_the_fastest_rise(loss, seed):
    tangent, _, targets, forget = problem(seed, loss)
    algorithm = AscentDescent(0.5, 2, 2, damping=0.1, sampling="with_replacement")
    rise = fastest_rise(tangent, forget, algorithm, 0.2, loss=loss)
    g = torch.Generator().manual_seed(seed)
    tightest = 0.0
    for trial in range(12):
        if trial < 4:  # the hostile one: a batch of one and the same forget sample
            pairs = [(torch.tensor([0, 0]), torch.tensor([8 + trial] * 2))] * 15
        else:
            pairs = [
                (torch.randint(8, (2,), generator=g), torch.randint(8, 12, (2,), generator=g))
                for _ in range(15)
            ]
        path = follow(tangent, targets, forget, algorithm, 0.2, steps=15, loss=loss, batches=pairs)
        mean_rise = float(rise.mean())
        steps = path.forget_loss[1:, 0] - path.forget_loss[:-1, 0]
        assert float(steps.max()) <= mean_rise + 1e-12
        tightest = max(tightest, float(steps.max()) / mean_rise)
    assert tightest > 0.05


def test_the_fastest_rise_is_a_sample_s_own():
    """One forget sample, so that the mean loss is its own: attained, not beaten."""
    eye = torch.eye(2, dtype=torch.float64)
    tangent = TangentModel(torch.tensor([[0.0], [-30.0]]).double(), eye, torch.zeros(2, 1).double())
    forget, targets = torch.tensor([False, True]), torch.ones(2, dtype=torch.float64)
    algorithm = AscentDescent(0.3, 1, 1, sampling="without_replacement")
    path = follow(tangent, targets, forget, algorithm, 0.5, steps=3, loss="logistic")
    rise = fastest_rise(tangent, forget, algorithm, 0.5, loss="logistic")
    # Already lost by a margin of 30 its slope is 1: the bound's α‖K_jj‖ is attained to 1e-9.
    measured = path.forget_loss[1, 0] - path.forget_loss[0, 0]
    assert float(measured) == pytest.approx(0.5 * 0.3, rel=1e-9)
    assert float(rise[0]) == pytest.approx(0.5 * 0.3, rel=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": "bernoulli"}, "sampling"),
        ({"momentum": 0.5}, "momentum"),
        ({"damping": 20.0}, "learning_rate"),
    ],
)
def test_outside_its_hypotheses_the_rise_is_refused(change, message):
    tangent, _, _, forget = problem(0)
    options = {"sampling": "with_replacement"} | change
    with pytest.raises(ValueError, match=message):
        fastest_rise(tangent, forget, AscentDescent(0.5, 2, 2, **options), 0.2)


def test_a_loss_of_unbounded_slope_is_refused():
    tangent, _, _, forget = problem(0)
    algorithm = AscentDescent(0.5, 2, 2, sampling="with_replacement")
    with pytest.raises(ValueError, match="loss"):
        fastest_rise(tangent, forget, algorithm, 0.2, loss="squared")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": None}, "outputs must be of type Tensor"),
        ({"outputs": torch.zeros(2, 0)}, "outputs must not be empty"),
        ({"kernel": torch.eye(4).to("meta")}, "kernel must be real floating-point numbers"),
        ({"kernel": torch.eye(4).to_sparse()}, "kernel .* got sparse float32"),
        ({"kernel": -torch.eye(4)}, "kernel must have no negative number on its diagonal"),
        ({"kernel": 1e200 * torch.eye(4).double()}, "the largest entry of kernel must be at most"),
    ],
)
def test_a_tangent_model_that_is_none_is_refused(change, message):
    good = {"outputs": torch.zeros(2, 2), "kernel": torch.eye(4), "anchor": torch.zeros(2, 2)}
    with pytest.raises((ValueError, TypeError), match=message):
        TangentModel(**good | change)


def test_class_numbers_that_are_nan_are_refused():
    tangent = TangentModel(torch.zeros(2, 2), torch.eye(4), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="targets must be class numbers"):
        retain_sharpness(tangent, torch.full((2,), torch.nan), [1])


def test_without_slopes_there_is_no_sharpness():
    tangent = TangentModel(torch.zeros(2, 2), torch.zeros(4, 4), torch.zeros(2, 2))
    assert retain_sharpness(tangent, torch.tensor([0, 1]), [1]) == 0
