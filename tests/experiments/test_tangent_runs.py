"""Scores of the tangent model's predictions by hand, and one small problem run both ways."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib.experiments import networks, tangent_runs
from lib.experiments.tangent_runs import agreement

SOME_RATES = np.geomspace(0.01, 2, 24)  # those of the small families


def rows(**changes):
    """Four runs: right, three steps late of 10, right but the floor not kept, never there."""
    table = {
        "real_time": [9.5, 9.5, 4.2, np.inf],
        "predicted_time": [9.9, 12.5, 4.4, np.inf],
        "real_retain": [0.97, 0.96, 0.90, 0.99],
        "predicted_retain": [0.97, 0.96, 0.96, 0.99],
        "floor": [0.95] * 4,
        "trusted": [1.0, 1.0, np.nan, 0.0],
    }
    return pd.DataFrame(table | changes)


def test_agreement_by_hand():
    found = agreement(rows())
    assert (found.runs, found.counted, found.checked) == (4, 2, 3)
    assert found.within == 0.5  # 10 for 10, 13 for 10
    assert found.verdict == 0.75  # the third was promised the floor
    assert found.ratio == pytest.approx(np.median([9.5 / 9.9, 9.5 / 12.5]))
    assert found.trusted == pytest.approx(2 / 3)
    assert found.inside == 1.0
    late = agreement(rows(predicted_time=[9.9, 20.0, 4.4, np.inf]))
    assert late.inside == 0.5


def test_ten_per_cent_count_where_they_are_more_than_two_steps():
    assert (
        agreement(
            rows(real_time=[40.0, 40.0, 4.2, np.inf], predicted_time=[44.0, 45.0, 4.4, np.inf])
        ).within
        == 0.5
    )


def test_runs_near_the_floor_and_probes_are_left_out_where_they_decide_nothing():
    near = rows(real_retain=[0.97, 0.96, 0.935, 0.99])
    assert agreement(near).verdict == 0.75
    assert agreement(near).clear == 1.0  # two of four are farther than two points, both are right
    probed = rows(
        calibrated_time=[9.9, 12.5, 4.4, np.inf],
        calibrated_retain=[0.97, 0.96, 0.96, 0.99],
        probe=[True, False, False, False],
    )
    assert agreement(probed, "calibrated").counted == 1
    assert agreement(probed, "calibrated").within == 0.0
    assert agreement(probed).counted == 2


@pytest.fixture
def tiny(monkeypatch):
    """A digits network of a few samples and epochs."""
    family = networks.Family(networks._mlp, "digits", trained=60, watched=20, epochs=15)
    monkeypatch.setitem(networks.FAMILIES, "mlp", family)
    monkeypatch.setattr(tangent_runs, "BATCHES", (16, 4))
    monkeypatch.setattr(tangent_runs, "STEPS", 12)


@pytest.mark.usefixtures("tiny")
def test_a_problem_is_the_same_twice_and_its_sets_are_as_described():
    case, again = (networks.problem("mlp", "random", 3) for _ in range(2))
    assert torch.equal(case.inputs, again.inputs)
    assert torch.equal(case.retrained, again.retrained)
    assert int(case.forget.sum()) == 6
    assert not case.model.training
    some = networks.problem("mlp", "class", 3)
    members = some.targets[:60] == networks.CLASS
    assert bool((members | ~some.forget).all())
    assert int(some.forget.sum()) == round(0.7 * int(members.sum()))
    assert some.target > 0


@pytest.mark.long
@pytest.mark.usefixtures("tiny")
def test_predictions_and_runs_stand_side_by_side():
    table = tangent_runs.compare("mlp", "class", 0)
    mixings, rates = tangent_runs.grid("mlp")
    assert len(table) == len(mixings) * len(rates) == 120
    assert {"predicted_time", "real_time", "trusted", "floor"} <= {*table}
    found = agreement(table)
    assert found.counted
    assert found.ratio == pytest.approx(1, abs=0.1)


@pytest.mark.long
@pytest.mark.usefixtures("tiny")
def test_a_large_family_is_run_the_same_with_fewer_looks_and_its_clock_is_fixed(monkeypatch):
    monkeypatch.setattr(tangent_runs, "STEPS", 30)  # its grid is coarser and ends at the edge
    whole = tangent_runs.compare("mlp", "class", 0)
    monkeypatch.setattr(tangent_runs, "LARGE", ("mlp",))
    monkeypatch.setattr(tangent_runs, "grid", lambda name: ((0.1, 0.2, 0.3, 0.5, 0.7), SOME_RATES))
    table = tangent_runs.compare("mlp", "class", 0)
    columns = ["real_time", "real_retain", "real_watched", "start_retain_accuracy", "floor"]
    pd.testing.assert_frame_equal(table[columns], whole[columns])
    probe = table[table["probe"]].iloc[0]
    assert probe["calibrated_time"] == pytest.approx(probe["real_time"], abs=0.01)
    assert probe["speed"] == pytest.approx(probe["predicted_time"] / probe["real_time"], rel=0.2)


@pytest.mark.long
@pytest.mark.usefixtures("tiny")
def test_frozen_curvature_starts_like_the_network_and_leaves_it(monkeypatch):
    monkeypatch.setattr(
        tangent_runs, "FROZEN", {"mixing": 0.3, "share": 0.2, "steps": 10, "every": 5}
    )
    path = tangent_runs.curvature_path("mlp", "class", 0)
    assert path["network"][0] == pytest.approx(path["tangent"][0], rel=1e-5)
    assert path["frozen"][0] == pytest.approx(path["network"][0], rel=1e-5)
    assert (path["lowest"] < 0).all()
