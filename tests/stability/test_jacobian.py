"""Streamed Gram matrices, sketches and products against autograd, one row at a time."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lib.stability.curvature import Curvature
from lib.stability.jacobian import jacobian_vector, loss_jacobian, output_gram
from lib.stability.modules import per_sample
from lib.stability.rows import RowSource


def layers():
    """One of each layer with rows of its own, groups, strides, and an activation in place."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, stride=2, groups=2, dilation=2, bias=False),
        nn.BatchNorm2d(6),
        nn.Flatten(2),
        nn.Conv1d(6, 4, 2, padding=1),
        nn.Linear(5, 5),
        nn.LayerNorm([4, 5]),
        nn.Flatten(),
        nn.Linear(20, 3),
    ).eval()


def made(n=20):
    torch.manual_seed(0)
    model = layers()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model, torch.randn(n, 1, 8, 8)


def brute_rows(model, inputs):
    parameters = list(model.parameters())
    rows = []
    for x in inputs:
        for output in model(x[None])[0]:
            gradient = torch.autograd.grad(output, parameters, retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in gradient]))
    return torch.stack(rows)


def test_every_layer_has_rows_of_its_own():
    model, inputs = made()
    source = RowSource.of(per_sample(model, inputs), inputs)
    assert source.layered == {*source.net.trained}
    assert source.crossed == {"model.10.weight", "model.10.bias"}


@pytest.mark.parametrize("trained", [None, 12])
@pytest.mark.parametrize("chunk_size", [None, 1, 5])
def test_the_gram_matrix_of_the_outputs_is_autograds(trained, chunk_size):
    model, inputs = made()
    J = brute_rows(model, inputs)
    got = output_gram(model, inputs, trained=trained, chunk_size=chunk_size, dtype=torch.float64)
    torch.testing.assert_close(got.outputs, model(inputs).detach())
    torch.testing.assert_close(got.gram, J @ J[: 3 * (trained or 20)].T, rtol=1e-11, atol=1e-11)
    assert got.error == 0


def test_a_norm_of_each_token_adds_the_tokens_rows_up():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5), nn.Flatten(), nn.Linear(20, 3)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    inputs = torch.randn(6, 4, 5)
    J = brute_rows(model, inputs)
    got = output_gram(model, inputs, dtype=torch.float64)
    torch.testing.assert_close(got.gram, J @ J.T, rtol=1e-11, atol=1e-11)


def test_a_float32_model_has_its_rows_in_float32_and_the_sum_in_the_type_asked_for():
    model, inputs = made()
    J = brute_rows(model, inputs)
    for dtype in (torch.float32, torch.float64):
        K = output_gram(model.float(), inputs.float(), dtype=dtype).gram
        assert K.dtype == dtype
        assert torch.linalg.norm(K.double() - J @ J.T) < 1e-6 * torch.linalg.norm(J @ J.T)


@pytest.mark.long
def test_a_sketch_says_its_error_and_averages_to_the_gram_matrix():
    model, inputs = made(10)
    J = brute_rows(model, inputs)
    exact = J @ J.T

    def drawn(seed):
        return output_gram(model, inputs, seed=seed, sketch=64, dtype=torch.float64, chunk_size=3)

    draws = [drawn(seed) for seed in range(40)]
    errors = [float(torch.linalg.norm(d.gram - exact) / torch.linalg.norm(exact)) for d in draws]
    reported = [d.error for d in draws]
    assert np.mean(reported) == pytest.approx(np.mean(errors), rel=0.2)  # 8 of the 10 samples
    mean = torch.stack([d.gram for d in draws]).mean(dim=0)
    assert torch.linalg.norm(mean - exact) < 2 * np.mean(errors) / 40**0.5 * torch.linalg.norm(
        exact
    )
    assert torch.equal(drawn(3).gram, draws[3].gram)


def test_the_jacobian_times_a_vector_is_autograds():
    model, inputs = made()
    w = torch.randn(sum(p.numel() for p in model.parameters()))
    expected = (brute_rows(model, inputs) @ w).view(20, 3)
    for chunk_size in (None, 7):
        got = jacobian_vector(model, inputs, w, chunk_size=chunk_size)
        torch.testing.assert_close(got, expected)


class LastStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(2, 3, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0][:, -1]


def test_layers_without_forward_mode_are_differentiated_twice():
    model, inputs = LastStep(), torch.randn(4, 5, 2)
    w = torch.randn(sum(p.numel() for p in model.parameters()))
    expected = (brute_rows(model, inputs) @ w).view(4, 3)
    torch.testing.assert_close(jacobian_vector(model, inputs, w), expected)


def test_fewer_parameters_than_rows_give_the_same_curvature_as_the_gram_matrix():
    torch.manual_seed(1)
    model, inputs, targets = nn.Linear(3, 4), torch.randn(30, 3), torch.arange(30) % 4
    curvature = Curvature.from_model(model, inputs, targets, [0, 3], "cross_entropy")
    rows = loss_jacobian(model, inputs, targets, "cross_entropy").flatten(0, 1)
    assert curvature.factors.shape == (30, 12, 4)  # the softmax does not see a common shift
    torch.testing.assert_close(curvature.gram, rows @ rows.T)


def test_samples_come_from_tensors_datasets_and_loaders_and_forget_sets_as_masks_or_indices():
    model, inputs = made(6)
    y = torch.arange(6) % 3
    pairs = TensorDataset(inputs, y)
    mask = torch.arange(6) < 2
    state = torch.random.get_rng_state()
    sources: list[Any] = [
        (inputs, y),
        (pairs, None),
        (DataLoader(pairs, batch_size=4), None),
        (pairs, y),
    ]
    forgets = [mask, mask.numpy(), [0, 1], np.array([1, 0]), torch.tensor([0, 1])]
    expected = Curvature.from_model(model, inputs, y, mask, "cross_entropy")
    for x, t in sources:
        got = Curvature.from_model(model, x, t, mask, "cross_entropy")
        assert torch.equal(got.gram, expected.gram)
    for forget in forgets:
        got = Curvature.from_model(model, inputs, y, forget, "cross_entropy")
        assert torch.equal(got.forget, mask)
    assert torch.equal(state, torch.random.get_rng_state())


def test_parameters_are_chosen_by_name_prefix_object_or_function():
    model, inputs = made(4)
    last = [model[10].weight, model[10].bias]
    choices: list[Any] = ["10", ["10.weight", "10.bias"], last, lambda name: name.startswith("10.")]
    rows = brute_rows(model, inputs)[:, -63:]
    for chosen in choices:
        got = loss_jacobian(model, inputs, torch.zeros(4, 3), "squared", parameters=chosen)
        torch.testing.assert_close(got.flatten(0, 1), rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "squared"}, "targets must be real floating-point values"),
        ({"loss": "squared", "targets": torch.zeros(6, 7)}, r"of shape \(6, 3\)"),
        ({"loss": "squared", "targets": torch.full((6, 3), torch.nan)}, "targets must be finite"),
        ({"targets": torch.full((6,), -100)}, r"targets must be class numbers in \[0, 3\)"),
        ({"targets": torch.zeros(6)}, "targets must be class numbers"),
        ({"targets": None}, "targets must be given"),
        ({"targets": 3.0}, "targets must be"),
        ({"loss": "logistic"}, "targets must be ±1"),
        ({"loss": []}, "loss must be one of"),
        ({"forget": [0, 0]}, "forget must be bool of shape"),
        ({"forget": [0, 6]}, "forget must be bool of shape"),
        ({"forget": "all"}, "forget must be"),
        ({"forget": None}, "forget must be"),
        ({"parameters": ["11"]}, "parameters must name"),
        ({"parameters": []}, "parameters must select"),
        ({"parameters": 3}, "parameters must be"),
        ({"inputs": None}, "inputs must be tensors"),
        ({"inputs": torch.zeros(6, 5)}, "model must take the inputs"),
        ({"model": "net"}, "model must be a torch.nn.Module"),
        ({"forward": 3}, "forward must be"),
    ],
)
def test_bad_input_is_refused_by_name(change, message):
    model, inputs = made(6)
    valid: dict[str, Any] = {
        "model": model,
        "inputs": inputs,
        "targets": torch.arange(6) % 3,
        "forget": [0, 1],
    }
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=message):
        Curvature.from_model(**(valid | {"loss": "cross_entropy"} | change))
    assert torch.equal(state, torch.random.get_rng_state())


def test_where_tensors_are_made_by_default_changes_nothing():
    model, inputs = made(6)
    recurrent, series = LastStep(), torch.randn(6, 5, 2)
    y = torch.arange(6) % 3

    def everything():
        return [
            *(
                Curvature.from_model(m, x, y, [0, 1], "cross_entropy").gram
                for m, x in ((model, inputs), (recurrent, series))
            ),
            output_gram(model, inputs, sketch=16).gram,
        ]

    expected = everything()
    torch.set_default_device("meta")
    try:
        got = everything()
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_loader_that_shuffles_is_refused():
    model, inputs = made(6)
    loader = DataLoader(TensorDataset(inputs, torch.arange(6) % 3), shuffle=True)
    with pytest.raises(ValueError, match="inputs must be a DataLoader with shuffle=False"):
        Curvature.from_model(model, loader, None, [0, 1], "cross_entropy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trained": 7}, r"trained must be in \[1, 6\]"),
        ({"trained": 0}, "trained must be an integer"),
        ({"sketch": 0}, "sketch must be an integer"),
        ({"chunk_size": 0}, "chunk_size must be an integer"),
        ({"dtype": torch.float16}, "dtype must be"),
    ],
)
def test_output_gram_refuses_bad_input_by_name(change, message):
    model, inputs = made(6)
    with pytest.raises(ValueError, match=message):
        output_gram(model, inputs, **change)


def test_a_vector_of_another_length_is_refused():
    model, inputs = made(6)
    with pytest.raises(ValueError, match="vector must be finite of shape"):
        jacobian_vector(model, inputs, torch.zeros(3))
