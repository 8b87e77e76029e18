from typing import Any

import pytest
import torch

from lib.stability.algorithm import AscentDescent
from lib.unlearning.ascent_descent import unlearn


def small_run(model=None, **change):
    generator = torch.Generator().manual_seed(0)
    model = model or torch.nn.Linear(3, 1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    arguments: dict[str, Any] = {
        "inputs": torch.randn(6, 3, generator=generator),
        "targets": torch.randn(6, generator=generator),
        "forget": torch.arange(6) >= 4,
        "start": torch.randn(2, 4, generator=generator),
        "steps": 3,
    } | change
    return unlearn(
        model,
        algorithm=AscentDescent(0.2, 2, 1),
        learning_rate=0.05,
        seed=1,
        **arguments,
    )


def test_targets_in_a_column_are_the_same_targets():
    targets = torch.linspace(-1, 1, 6)
    flat, column = small_run(targets=targets), small_run(targets=targets[:, None])
    for name in ("distance", "forget_loss", "retain_loss"):
        assert torch.equal(getattr(flat, name), getattr(column, name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.zeros(5)}, "targets must have shape"),
        ({"targets": torch.zeros(1, 6)}, "targets must have shape"),
        ({"forget": torch.tensor([0, 0, 0, 0, 1, 1])}, "forget must be bool"),
        ({"forget": torch.arange(5) >= 4}, "forget must be bool"),
        ({"start": torch.zeros(4)}, "start must be finite of shape"),
        ({"start": torch.zeros(2, 3)}, "start must be finite of shape"),
        ({"start": torch.full((2, 4), torch.nan)}, "start must be finite of shape"),
        ({"start": torch.zeros(0, 4)}, "start's number of runs"),
        ({"targets": torch.full((6,), torch.nan)}, "targets must be finite"),
        (
            {"inputs": torch.full((6, 3), torch.nan, dtype=torch.float64)},
            "model must give finite outputs on the inputs",
        ),
        ({"steps": 3001}, "steps must be an integer of at most 3000"),
    ],
)
def test_unlearn_refuses_bad_input_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        small_run(**change)


def test_the_buffers_of_a_model_stay_and_shape_its_outputs():
    norm = torch.nn.BatchNorm1d(3, affine=False)
    norm.running_mean = torch.ones(3)
    model = torch.nn.Sequential(norm, torch.nn.Linear(3, 1)).eval()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    run = small_run(model)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert not torch.equal(run.forget_loss, small_run().forget_loss)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (torch.nn.Dropout(), r"model must be in eval mode, got 0 \(Dropout\)"),
        (torch.nn.BatchNorm1d(3, affine=False), r"model must be in eval mode, got 0 \(BatchNorm1d"),
    ],
)
def test_unlearn_refuses_a_model_left_in_training_mode(layer, message):
    with pytest.raises(ValueError, match=message):
        small_run(torch.nn.Sequential(layer, torch.nn.Linear(3, 1)))


def test_unlearn_refuses_more_outputs_than_one():
    with pytest.raises(ValueError, match="model must give one output a sample"):
        small_run(torch.nn.Linear(3, 2), start=torch.zeros(2, 8))
