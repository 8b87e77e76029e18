from typing import Any

import pytest
import torch
from torch import nn

from lib.stability.algorithm import AscentDescent
from lib.stability.curvature import Curvature
from lib.stability.dynamics import growth_factor
from lib.stability.jacobian import loss_jacobian
from tests.support.dense import random_instance

FORGET = torch.tensor([True, False, False])


def dense_products(hessians):
    return torch.einsum("iab,jba->ij", hessians, hessians)


@pytest.mark.parametrize(("rank", "p"), [(1, 9), (1, 4), (3, 7)])
def test_from_hessians_keeps_every_trace_product(rank, p):
    hessians, forget = random_instance(4, 3, p, rank)
    curvature = Curvature.from_hessians(hessians, forget)
    recovered = curvature.factors @ curvature.factors.transpose(1, 2)
    torch.testing.assert_close(
        dense_products(recovered), dense_products(hessians), rtol=1e-11, atol=0
    )
    assert curvature.factors.shape == (7, min(p, 7 * rank), rank)


def test_from_gram_reproduces_the_gram_matrix_and_drops_its_kernel():
    roots = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    gram = roots @ roots.T
    curvature = Curvature.from_gram(gram, torch.arange(6) < 2)
    assert curvature.factors.shape == (6, 4, 1)
    torch.testing.assert_close(curvature.gram, gram, rtol=1e-12, atol=1e-12)


def test_from_gram_is_sample_major_at_higher_rank():
    hessians, forget = random_instance(3, 2, 12, rank=2)
    by_hessian = Curvature.from_hessians(hessians, forget)
    by_gram = Curvature.from_gram(by_hessian.gram, forget, rank=2)
    mean = by_gram.retain_hessian
    torch.testing.assert_close(
        torch.linalg.eigvalsh(mean), torch.linalg.eigvalsh(by_hessian.retain_hessian)
    )


@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (torch.eye(3)[:2], "gram must be a real"),
        (torch.eye(4), "gram must be a real"),
        (torch.full((3, 3), torch.nan, dtype=torch.float64), "gram must be finite"),
        (torch.zeros(3, 3, dtype=torch.float64), "gram must not be zero"),
        (
            torch.eye(3)
            .double()
            .index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(0.5).double()),
            "gram must be symmetric",
        ),
        (torch.diag(torch.tensor([1.0, 1.0, -0.1], dtype=torch.float64)), "positive semi-definite"),
        (-torch.eye(3).double(), "positive semi-definite"),
    ],
)
def test_from_gram_refuses_what_is_no_gram_matrix(gram, message):
    with pytest.raises(ValueError, match=message):
        Curvature.from_gram(gram, FORGET)


@pytest.mark.parametrize("marks", [[False] * 3, [True] * 3])
def test_empty_sets_are_refused(marks):
    with pytest.raises(ValueError, match="forget must mark at least one"):
        Curvature.from_gram(torch.eye(3), torch.tensor(marks))


def test_other_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="forget must be bool"):
        Curvature.from_gram(torch.eye(3), torch.tensor([1, 0, 0]))
    with pytest.raises(ValueError, match="rank must be an integer"):
        Curvature.from_gram(torch.eye(3), FORGET, rank=0)
    with pytest.raises(ValueError, match="factors must span"):
        Curvature(torch.randn(3, 5, 1), FORGET)
    with pytest.raises(ValueError, match="factors must be finite"):
        Curvature(torch.full((3, 1, 1), torch.inf), FORGET)
    with pytest.raises(ValueError, match=r"hessians\[1\] must be positive semi-definite"):
        Curvature.from_hessians(torch.stack([torch.eye(2), -torch.eye(2), torch.eye(2)]), FORGET)
    with pytest.raises(ValueError, match="hessians must not all be zero"):
        Curvature.from_hessians(torch.zeros(3, 2, 2), FORGET)
    for shape in ((3, 2, 4), (3, 0, 0)):
        with pytest.raises(ValueError, match="hessians must have shape"):
            Curvature.from_hessians(torch.ones(shape), FORGET)


@pytest.mark.parametrize("scale", [1e-120, 1e120])
def test_the_largest_curvature_may_stand_at_either_end_of_its_range(scale):
    builds: list[Any] = [Curvature.from_gram, Curvature.from_hessians]
    for build, dense in zip(builds, (torch.eye(3), torch.eye(3).expand(3, 3, 3)), strict=True):
        assert float(build(scale * dense, FORGET).gram.max()) == pytest.approx(scale)
        with pytest.raises(ValueError, match=r"must have a largest entry in \[1e-120, 1e\+120\]"):
            build(scale ** (1 + 1e-4) * dense, FORGET)


class Tiny(nn.Module):
    """One hidden layer; small enough for autograd's full Hessian."""

    def __init__(self, outputs, activation):
        super().__init__()
        self.inner = nn.Linear(3, 4)
        self.outer = nn.Linear(4, outputs)
        self.activation = activation

    def forward(self, x):
        return self.outer(self.activation(self.inner(x)))


def full_hessians(model, inputs, targets, loss):
    parameters = dict(model.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in parameters.values()])

    def value(w, x, y):
        shaped, at = {}, 0
        for name, p in parameters.items():
            shaped[name] = w[at : at + p.numel()].view_as(p)
            at += p.numel()
        out = torch.func.functional_call(model, shaped, (x[None],))[0]
        if loss == "squared":
            return 0.5 * (out - y).square().sum()
        if loss == "logistic":
            return torch.log1p(torch.exp(-y * out[0]))
        return nn.functional.cross_entropy(out[None], y[None])

    return torch.stack(
        [
            torch.autograd.functional.hessian(lambda w, x=x, y=y: value(w, x, y), flat)
            for x, y in zip(inputs, targets, strict=True)
        ]
    )


def made(outputs, activation, n=5):
    torch.manual_seed(3)
    model = Tiny(outputs, activation).double()
    return model, torch.randn(n, 3), torch.arange(n) % 3 == 0


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_from_model_is_the_hessian_where_the_squared_loss_is_interpolated(outputs, chunk_size):
    model, inputs, forget = made(outputs, torch.tanh)
    targets = model(inputs).detach()
    curvature = Curvature.from_model(model, inputs, targets, forget, chunk_size=chunk_size)
    exact = full_hessians(model, inputs, targets, "squared")
    recovered = curvature.factors @ curvature.factors.transpose(1, 2)
    torch.testing.assert_close(
        dense_products(recovered), dense_products(exact), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("loss", ["logistic", "cross_entropy"])
def test_from_model_is_the_hessian_of_a_module_linear_in_its_parameters(loss):
    torch.manual_seed(0)
    outputs = 1 if loss == "logistic" else 3
    model, inputs = nn.Linear(4, outputs).double(), torch.randn(5, 4)
    targets = torch.tensor([1, -1, 1, 1, -1]) if outputs == 1 else torch.tensor([0, 1, 2, 1, 0])
    forget = torch.tensor([False, True, False, True, False])
    curvature = Curvature.from_model(model, inputs, targets, forget, loss=loss)
    exact = full_hessians(model, inputs, targets, loss)
    recovered = curvature.factors @ curvature.factors.transpose(1, 2)
    torch.testing.assert_close(
        dense_products(recovered), dense_products(exact), rtol=1e-9, atol=1e-12
    )


def test_from_model_leaves_frozen_parameters_out():
    model, inputs, _ = made(1, torch.relu)
    model.outer.requires_grad_(False)
    jacobian = loss_jacobian(model, inputs, torch.zeros(5), "squared")
    assert jacobian.shape == (5, 1, 16)
    assert model.inner.weight.grad is None


def test_from_model_refuses_bad_input_by_name():
    model, inputs, forget = made(1, torch.tanh)
    with pytest.raises(ValueError, match="loss must be one of"):
        Curvature.from_model(model, inputs, torch.zeros(5), forget, loss="hinge")
    with pytest.raises(ValueError, match="targets must be ±1"):
        Curvature.from_model(model, inputs, torch.zeros(5), forget, loss="logistic")
    with pytest.raises(ValueError, match="inputs and targets must hold 5"):
        Curvature.from_model(model, inputs[:4], torch.zeros(5), forget)
    with pytest.raises(ValueError, match="chunk_size must be"):
        Curvature.from_model(model, inputs, torch.zeros(5), forget, chunk_size=0)
    dropping = nn.Sequential(nn.Linear(3, 1), nn.Dropout()).double()
    with pytest.raises(ValueError, match=r"eval mode, got 1 \(Dropout\) in training"):
        Curvature.from_model(dropping, inputs, torch.zeros(5), forget)


def test_from_model_in_single_precision_gives_a_double_gram():
    model, inputs, forget = made(1, torch.tanh)
    double = Curvature.from_model(model, inputs, torch.zeros(5), forget)
    single = Curvature.from_model(model.float(), inputs.float(), torch.zeros(5), forget)
    assert single.factors.dtype == torch.float64
    torch.testing.assert_close(single.gram, double.gram, rtol=1e-5, atol=1e-6)


def test_single_precision_and_gradients_are_left_behind():
    factors = torch.randn(3, 2, 1, generator=torch.Generator().manual_seed(0))
    algorithm = AscentDescent(0.1, 1, 1)
    single = Curvature(factors.float(), FORGET)
    assert single.factors.dtype == torch.float64
    tracked = Curvature.from_gram((single.gram).requires_grad_(), FORGET)
    rates = [growth_factor(c, algorithm, 0.1) for c in (single, tracked)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)
    wide = Curvature(torch.randn(3, 5, 2).float().requires_grad_(), FORGET)
    assert growth_factor(wide, algorithm, 0.1) > 0


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex128])
def test_from_hessians_refuses_other_dtypes(dtype):
    with pytest.raises(ValueError, match="hessians must be real floating-point"):
        Curvature.from_hessians(torch.eye(2).to(dtype).repeat(3, 1, 1), FORGET)
