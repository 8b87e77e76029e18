"""The deletion chapter's experiments: what they are made of, each against something plainer."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.utils import vector_to_parameters

from lib.book import deletion
from lib.experiments import deletion_cases, deletion_paths, deletion_runs
from lib.experiments.deletion_cases import Case, architecture
from lib.unlearning.population import Population, Schedule, train
from lib.unlearning.tangent import TangentModel, follow
from lib.unlearning.yardsticks import klom_floor

N, TEST, MODELS, GONE = 100, 20, 3, 20
SCHEDULE = Schedule(0.05, 6, 8, 4, seed=1)


def weights(part, models=MODELS):
    p = sum(w.numel() for w in architecture("digits").parameters())
    generator = torch.Generator().manual_seed(part)
    return 0.3 * torch.randn(models, p, generator=generator, dtype=torch.float32)


@pytest.fixture(scope="module")
def case():
    inputs, targets = (part[: N + TEST] for part in deletion_cases.samples("digits", 0))
    forget = torch.arange(N) < GONE
    networks = Population(architecture("digits"), inputs[:N], targets[:N], forget, weights(0))
    return Case("digits", networks, inputs, targets, weights(1), weights(2), 1.0)


def test_the_tangent_path_is_the_one_that_follow_gives_from_a_kernel(case):
    path = torch.stack(list(deletion_paths.tangents(case, SCHEDULE, 0.3)))
    drawn = list(SCHEDULE.batches(case.forget, MODELS))
    for number in range(MODELS):
        model = architecture("digits")
        vector_to_parameters(case.networks.weights[number], model.parameters())
        tangent = TangentModel.from_model(model, case.inputs, trained=N)
        pairs = [(batch.retain[number], batch.forget[number]) for batch in drawn]
        rule = deletion_paths.AscentDescent(0.3, 8, 4)
        other = follow(
            tangent, case.targets, case.forget, rule, 0.05, steps=6, batches=pairs
        ).forget_loss[:, 0]
        gone = path[:, number, :N][:, case.forget]
        labels = case.targets[:N][case.forget].expand(7, -1)
        loss = deletion_paths.losses_of(gone, labels, "cross_entropy").mean(1)
        torch.testing.assert_close(loss.double(), other, rtol=1e-4, atol=1e-5)


def test_the_network_s_path_ends_where_the_method_does(case):
    *_, last = deletion_paths.networks(case, SCHEDULE, 0.3)
    end = deletion_runs.neg_grad_plus(case.networks, SCHEDULE, mixing=0.3)
    torch.testing.assert_close(last, case.networks.outputs(case.inputs, end))


def test_a_path_that_overflows_has_all_its_steps(case):
    path = list(deletion_paths.networks(case, Schedule(1e30, 6, 8, 4, seed=1), 0.3))
    assert [bool(outputs.isfinite().all()) for outputs in path[:2]] == [True, False]
    assert len(path) == 7
    assert bool(path[-1].isnan().all())


def test_an_approach_finds_the_step_that_is_nearest_by_hand(case):
    """Two steps, of which the second gives the retrained probabilities themselves."""
    goal = torch.randn(N + TEST, 10, generator=torch.Generator().manual_seed(3))
    real = torch.stack([0.1 * goal, goal, -goal])[:, None].expand(-1, MODELS, -1, -1)
    told = real[[0, 2, 1]]
    losses = torch.nn.functional.cross_entropy(goal, case.targets, reduction="none")
    found = deletion_paths._approaches(case, real, told, goal.softmax(-1), 1.1 * losses)
    assert (found["real_time"] == 1).all()
    assert (found["predicted_time"] == 2).all()
    np.testing.assert_allclose(found["nearest"], 0, atol=1e-6)
    apart = ((0.1 * goal).softmax(-1) - goal.softmax(-1)).abs().sum(-1) / 2
    by_hand = (apart[:GONE].mean() + apart[N:].mean()) / 2
    np.testing.assert_allclose(found["start"], float(by_hand), rtol=1e-5)


def test_timing_scores_only_the_runs_that_pass_the_closest_point():
    table = pd.DataFrame(
        {"real_time": [10, 20, 0, 60], "predicted_time": [11, 30, 0, 20],
         "nearest": [1.0, 1.0, 1.0, 1.0], "at_predicted": [1.0, 1.2, 1.0, 1.0],
         "data": "digits", "kind": "class", "model": [0, 1, 2, 3]}
    )  # fmt: skip
    found = deletion_paths.timing(table)
    assert found["passing"] == 2
    assert found["error"] == pytest.approx((0.1 + 0.5) / 2)
    assert (found["low"], found["high"]) == (pytest.approx(0.1), pytest.approx(0.5))
    assert found["agree"] == 0.75
    assert found["cost"] == pytest.approx(1.1)


def test_runs_of_one_network_are_drawn_together():
    """Two networks with four equal runs each: three medians, whatever the number of runs."""
    table = pd.DataFrame({"data": "digits", "kind": "class", "model": [0] * 4 + [1] * 4})
    table["error"] = [0.0] * 4 + [1.0] * 4
    assert deletion_paths.median_interval(table, "error") == (0.0, 1.0)
    apart = table.assign(model=range(8), error=np.linspace(0, 1, 8))
    low, high = deletion_paths.median_interval(apart, "error")
    assert 0 < low < 0.5 < high < 1


def test_what_is_not_looked_at_is_nan_and_the_rest_is_the_same(case):
    gone, _, test = case.sets()
    for walk in (deletion_paths.networks, deletion_paths.tangents):
        whole = torch.stack(list(walk(case, SCHEDULE, 0.3)))
        part = torch.stack(list(walk(case, SCHEDULE, 0.3, gone | test)))
        torch.testing.assert_close(part[:, :, gone | test], whole[:, :, gone | test])
        assert bool(part[:, :, ~(gone | test)].isnan().all())


def test_courses_are_the_means_of_what_approach_summarises(case, monkeypatch):
    wanted = torch.full((N + TEST, 10), 0.1)
    end = deletion_paths.Goal(case, wanted, torch.ones(N + TEST), 0.25)
    monkeypatch.setattr(deletion_paths, "goal", lambda *a, **k: end)
    monkeypatch.setattr(deletion_paths, "STEPS", 8)
    monkeypatch.setattr(deletion_paths, "MIXINGS", (0.3,))
    monkeypatch.setattr(deletion_paths, "RATES", (0.01,))
    rows = deletion_paths.approach("digits", "class", seed=1, mixings=(0.3,), rates=(0.01,))
    found = deletion_paths.courses("digits", "class", seed=1).set_index("step")
    assert [*found.index] == [0, 4, 8]
    assert found.loc[0, "distance"] == pytest.approx(rows["start"].mean())
    assert found.loc[0, "predicted"] == pytest.approx(rows["start"].mean())
    outputs = case.networks.outputs(case.inputs)
    by_hand = [float(torch.nn.functional.cross_entropy(f, case.targets)) for f in outputs]
    sizes = {"forget": GONE, "retain": N - GONE, "test": TEST}
    whole = sum(found.loc[0, name] * size for name, size in sizes.items()) / (N + TEST)
    assert whole == pytest.approx(np.mean(by_hand), rel=1e-5)
    last = deletion_runs.neg_grad_plus(case.networks, Schedule(0.01, 8, seed=1), mixing=0.3)
    gone = float(case.networks.at(last).mean_loss(case.forget).mean())
    assert found.loc[8, "forget"] == pytest.approx(gone, rel=1e-5)


def test_intervals_of_a_mean_are_the_textbook_s():
    values = torch.randn(100, generator=torch.Generator().manual_seed(0)).double()
    found = deletion_runs.with_intervals(lambda kept: {"mean": float(values[kept].mean())}, 100)
    means = values.view(10, 10).mean(dim=0)  # of the groups left out
    reach = 2.262 * float(means.std()) / 10**0.5
    row = found.iloc[0]
    assert row["value"] == pytest.approx(float(values.mean()))
    assert (row["high"] - row["low"]) / 2 == pytest.approx(reach)


def test_yardsticks_call_the_retrained_deleted_and_the_original_not():
    """The null and the anti-null, on normal populations of outputs: the same law, and another."""
    inputs, targets = (part[: N + TEST] for part in deletion_cases.samples("digits", 0))
    forget = torch.arange(N) < GONE
    models = deletion_runs.LEAST
    base = weights(9, 1)
    trained, again, reference = (base + 0.02 * weights(part, models) for part in (10, 11, 12))
    trained = trained + 0.5 * weights(13, 1)
    networks = Population(architecture("digits"), inputs[:N], targets[:N], forget, trained)
    at = Case("digits", networks, inputs, targets, reference, again, 1.0)
    null = deletion_runs.judged(at, again).set_index("yardstick")["value"]
    anti = deletion_runs.judged(at, trained).set_index("yardstick")["value"]
    mean, high = klom_floor(models)
    assert null["KLoM, forget"] < high
    assert abs(null["KLoM, forget"] - mean) < 0.25
    assert abs(null["U-LiRA, forget"] - 0.49) < 0.03
    assert null["tug of war"] > 0.9
    assert anti["KLoM, forget"] > 10 * high
    assert anti["U-LiRA, forget"] > 0.95
    assert anti["output gap, forget"] > 3 * null["output gap, forget"]
    assert anti["tug of war"] < null["tug of war"]


@pytest.fixture(scope="module")
def ends():
    """Every yardstick of networks that are trained: two null populations, and the original."""
    inputs, targets = deletion_cases.samples("digits", 3)
    kept = 200
    forget = (targets[:kept] == 3) & (torch.arange(kept) < 180)
    given: dict[str, Any] = {"models": deletion_runs.LEAST, "epochs": 30, "learning_rate": 0.01}
    x, y, net = inputs[:kept], targets[:kept], architecture("digits")
    trained = train(net, x, y, seed=0, **given)
    three = [train(net, x[~forget], y[~forget], seed=seed, **given) for seed in (1, 2, 3)]
    at = Case(
        "digits", Population(net, x, y, forget, trained), inputs[:500], targets[:500],
        three[0], three[1], 1.0,
    )  # fmt: skip
    return [
        deletion_runs.judged(at, weights).set_index("yardstick")
        for weights in (three[1], three[2], trained)
    ]


ON_NETWORKS = (
    "forget accuracy", "forget loss", "tug of war", "tug of war, MIA", "membership score",
    "output gap, forget", "output gap, test", "KLoM, forget", "KLoM, test", "U-LiRA, forget",
)  # fmt: skip


@pytest.mark.parametrize("name", ON_NETWORKS)
@pytest.mark.long
def test_null_and_anti_null_of_every_yardstick_on_trained_networks(ends, name):
    """Two retrained populations agree to within their intervals; the original is far outside."""
    null, other, anti = (table.loc[name] for table in ends)
    reach = np.hypot(null["high"] - null["value"], other["high"] - other["value"])
    # Two 95 % intervals of 2.262 standard errors: 3.3 of them are passed once in a thousand.
    assert abs(null["value"] - other["value"]) < 1.5 * reach + 0.01
    assert abs(anti["value"] - null["value"]) > 3 * reach


def test_the_weight_gap_of_networks_from_other_starts_tells_nothing(ends):
    """Its null and anti-null are those of one optimum (test_yardsticks); here both are near √2."""
    null, _, anti = (table.loc["weight gap", "value"] for table in ends)
    assert abs(anti / null - 1) < 0.1
    assert null == pytest.approx(2**0.5, rel=0.1)


def test_a_row_can_be_had_with_another_grid():
    own = {"NPO": [{"learning_rate": 0.01, "beta": 2.0}]}
    task = deletion.TableTask("digits", "class", methods=["NPO", "SCRUB"], grids=own)
    methods = task.parameters()["methods"]
    assert methods == {"NPO": own["NPO"], "SCRUB": deletion_runs.GRIDS["SCRUB"]}
    plain = deletion.TableTask("digits", "class").parameters()["methods"]
    assert plain == {name: deletion_runs.GRIDS.get(name, []) for name in deletion_runs.METHODS}


def test_a_setting_that_overflows_is_not_chosen(case):
    grid: Any = [{"learning_rate": 1e30}, {"learning_rate": 0.001}]
    best = deletion_runs.tuned(case, "gradient ascent", grid, seed=0)
    assert best == grid[::-1]
    # On the networks that are judged a tuned setting may overflow all the same.
    found = deletion_runs._first(case, "gradient ascent", grid, seed=0)
    assert set(found["setting"]) == {"learning_rate 0.001 (1 better overflowed)"}
    alone = deletion_runs._first(case, "gradient ascent", grid[1:], seed=0)
    assert set(alone["setting"]) == {"learning_rate 0.001"}
    assert np.array_equal(found["value"], alone["value"], equal_nan=True)
    with pytest.raises(RuntimeError, match="every setting"):
        deletion_runs._first(case, "gradient ascent", grid[:1], seed=0)


def test_every_method_has_the_same_budget():
    assert {len(grid) for grid in deletion_runs.GRIDS.values()} == {12}


@pytest.mark.parametrize("kind", ["random", "class"])
def test_forget_sets_are_what_they_say(kind):
    inputs, targets = deletion_cases.samples("digits", 1)
    forget = deletion_cases.forget_set("digits", kind, 1, 3)
    members = int((targets[:700] == 3).sum())
    if kind == "random":
        assert int(forget.sum()) == 70
    else:
        assert int(forget.sum()) == round(0.7 * members)
        assert bool((targets[:700][forget] == 3).all())
    assert len(inputs) == 1000


@pytest.mark.long
def test_a_memorised_set_is_harder_when_held_out_and_a_table_has_all_rows():
    forget = deletion_cases.forget_set("digits", "memorised", 1, 3)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(7))
    inputs, targets = (part[:700] for part in deletion_cases.samples("digits", 1))
    losses = deletion_cases.held_out_losses("digits", inputs, targets, order, 5)
    assert float(losses[forget].mean()) > 5 * float(losses[~forget].mean())
    grids = {name: grid[:1] for name, grid in deletion_runs.GRIDS.items()}
    found = deletion_runs.table("digits", "random", models=6, grids=grids, seed=1)
    assert {*deletion_runs.GRIDS, *deletion_runs.ENDS} <= {*found["method"]}
    assert not found["value"].isna().any()
    assert "KLoM, forget" not in {*found["yardstick"]}


def test_resistance_and_need_are_apart_on_the_plane():
    found = deletion_paths.plane([0.05, 5.0], 2).groupby("snr").mean()
    noisy, clear = found.loc[0.05], found.loc[5.0]
    assert clear["gap"] < 0.05 < 0.5 < noisy["gap"]
    assert clear["steps"] > 20 * noisy["steps"]
    assert noisy["floor"] < 1e-3


@pytest.mark.parametrize("data", ["digits", "fashion"])
def test_the_holdout_of_plan_is_trained_and_judged_on_by_none(data):
    used, spare = deletion_cases.samples(data, 3)[0], deletion_cases.spare(data, 3)[0]
    both = torch.cat([used, spare]).flatten(1)
    assert len(spare) == deletion_cases.SPARE
    assert len(torch.unique(both, dim=0)) == len(both)
