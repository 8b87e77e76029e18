"""A plan from a part and its run on everything, on few samples."""

import pytest
import torch

from lib.experiments import plan_samples
from lib.store.tables import parse, serialise
from lib.unlearning.images import fashion_mnist


def test_an_image_is_forgotten_in_all_of_its_views():
    images, classes, forget = plan_samples._views(3)
    assert images.shape == (12000, 1, 28, 28)
    rows = torch.arange(12000).view(4, 3000)
    assert all(torch.equal(forget[row], forget[:3000]) for row in rows)
    assert set(classes[forget].tolist()) == {3}
    own = fashion_mnist()[0][:3000]
    assert torch.equal(images[rows[0]], own)
    assert torch.equal(images[rows[1]][5, 0, :, 3], own[5, 0, :, 24])
    assert torch.equal(images[rows[2]][5, 0, :, 3:20], own[5, 0, :, 5:22])
    assert torch.equal(images[rows[3]][5, 0, :, 5:22], own[5, 0, :, 3:20])


@pytest.mark.long
def test_a_comparison_has_the_prediction_and_the_run(monkeypatch):
    views = plan_samples._views(3)
    few = torch.arange(12000) % 20 == 0
    monkeypatch.setattr(plan_samples, "_views", lambda seed: tuple(part[few] for part in views))
    monkeypatch.setattr(plan_samples, "FLOOR", 0.9)
    monkeypatch.setattr(plan_samples, "WATCHED", 50)
    table = plan_samples.compare(120, 3)
    assert len(table) == 1
    row = table.loc[0]
    assert (row["samples"], row["planned_on"]) == (600, 120)
    assert row["verdict"].startswith("recommended")
    assert row["steps_low"] <= row["steps_expected"] <= row["steps_high"]
    assert row["forgotten"] == int(views[2][few].sum())
    assert row["retain_accuracy"] == pytest.approx(row["predicted_accuracy"], abs=0.1)
    assert row["steps_whole"] == row["steps"]  # all of the forget set is in the plan
    text, types = serialise(table)
    assert len(parse(text, types)) == 1
