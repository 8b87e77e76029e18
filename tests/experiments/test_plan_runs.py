"""Scores of plans by hand, and one small case held against real runs."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from lib.experiments import networks, plan_runs
from lib.experiments.plan_runs import scores
from lib.store.tables import parse, serialise


def rows(**changes):
    """Four cases: good; overshot; nothing found by anyone; nothing found where the grid has some.

    Of the two compared, the second lost two points of retain accuracy with 0.4 to one error.
    """
    none = [np.nan, np.nan]
    plan = {
        "learning_rate": [0.1, 0.1, *none], "reached": [True, True, False, False],
        "forget_loss": [1.05, 1.2, 0.1, 0.1], "retain_accuracy": [0.99, 0.99, 1.0, 1.0],
        "steps": [10, 20, 0, 0], "steps_low": [8, 8, *none], "steps_high": [12, 12, *none],
        "trusted": [1.0, 1.0, 0.0, 1.0], "found": [1, 1, 0, 0],
    }  # fmt: skip
    grid = {
        "learning_rate": 0.1, "reached": [True, True, False, True], "found": [5, 3, 0, 2],
        "retain_gap": [0.01, -0.02, 0.0, 0.0], "retain_error": [0.004] * 4,
        "test_gap": [-0.004, -0.02, 0.0, 0.0], "test_error": [0.0, 0.02, 0.0, 0.0],
    }  # fmt: skip
    table = pd.concat(
        [
            pd.DataFrame(part | {"seed": range(4)}).assign(method=method)
            for method, part in (("plan", plan | changes), ("grid", grid))
        ]
    )
    return table.assign(family="mlp", forget_set="random", target=1.0, floor=0.98)


def test_scores_by_hand():
    found = scores(rows())
    assert (found.cases, found.recommended, found.missed, found.compared) == (4, 2, 1, 2)
    assert (found.good, found.inside, found.trusted) == (0.5, 0.5, 0.75)
    assert (found.retain, found.test) == (0.5, 1.0)
    below = scores(rows(retain_accuracy=[0.9, 0.99, 1.0, 1.0]))
    assert below.good == 0


@pytest.fixture
def tiny(monkeypatch):
    """A digits network of few samples and epochs, and few real runs."""
    family = networks.Family(networks._mlp, "digits", trained=80, watched=40, epochs=25)
    monkeypatch.setitem(networks.FAMILIES, "mlp", family)
    for name, value in {
        "BATCHES": (16, 4), "STEPS": 40, "MIXINGS": (0.2, 0.5), "SHARES": np.array([0.05, 0.3]),
        "DRAWS": 1, "FLOOR": 0.9, "TESTED": 200,
    }.items():  # fmt: skip
        monkeypatch.setattr(plan_runs, name, value)


@pytest.mark.usefixtures("tiny")
def test_a_case_is_judged_on_what_no_network_saw_and_its_runs_end_at_the_target():
    case = plan_runs.Case.of("mlp", "random", 3)
    assert len(case.retrained) == 5
    assert case.retrained[:3].tolist() == case.problem.retrained.tolist()
    known = {tuple(x.flatten().tolist()) for x in case.problem.inputs}
    assert not any(tuple(x.flatten().tolist()) in known for x in case.tested[0])
    before = copy.deepcopy(case.problem.model.state_dict())
    ended = case.run(0.5, 0.3)
    assert all(torch.equal(v, before[k]) for k, v in case.problem.model.state_dict().items())
    assert ended.row["reached"]
    assert ended.row["forget_loss"] >= case.problem.target * (1 - 1e-5)
    assert len(ended.retain) == 72
    assert float(ended.tested.double().mean()) == ended.row["test_accuracy"]
    few = case.task.run(
        case.problem.model,
        plan_runs.AscentDescent(0.5, 16, 4, sampling="reshuffled"),
        0.3,
        steps=int(ended.row["steps"]),
        seed=103,
    )
    assert float(few.forget_loss[-1, 0]) == pytest.approx(ended.row["forget_loss"], rel=1e-5)
    assert float(few.retain_accuracy[-1, 0]) == pytest.approx(ended.row["retain_accuracy"])


@pytest.mark.usefixtures("tiny")
@pytest.mark.long
def test_a_comparison_has_a_row_a_method_with_paired_differences():
    table = plan_runs.compare("mlp", "random", 3)
    text, types = serialise(table)
    pd.testing.assert_frame_equal(parse(text, types), table, check_dtype=False)
    table = table.set_index("method")
    assert len(table.loc["plan", "printed"].splitlines()) == 10
    assert list(table.index) == ["plan", "grid", "default", "random", "log_grid"]
    assert table["runs"].tolist()[1:] == [4, 1, 1, 10]
    others = table.drop(index="plan")
    for name in ("retain", "test"):
        apart = table.loc["plan", f"{name}_accuracy"] - others[f"{name}_accuracy"]
        np.testing.assert_allclose(others[f"{name}_gap"], apart, atol=1e-12)
    assert table["seconds"].gt(0).all()
    assert table.loc["log_grid", "seconds"] > table.loc["default", "seconds"]  # which is one of it
    assert scores(table.reset_index()).cases == 1


def test_thirty_cases():
    assert len(set(plan_runs.CASES)) == len(plan_runs.CASES) == 30
