"""The plan of an unlearning run: its target, its choice, its rule, and that it changes nothing."""

import copy
import dataclasses
import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from lib.unlearning import load_plan, plan
from lib.unlearning.choice import best, limit, step_range
from lib.unlearning.paths import draw_batches
from lib.unlearning.report import html

QUICK: dict[str, Any] = {
    "seeds": 2,
    "steps": 40,
    "mixing": (0.2, 0.4),
    "target": 0.6,
    "retain_floor": 0.9,
}


def data():
    """Digits 0 to 2, 90 samples of them to train on and 60 held out."""
    pixels, classes = load_digits(n_class=3, return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))[:150]
    x, y = torch.as_tensor(pixels[order]).float() / 16, torch.as_tensor(classes[order]).long()
    return (x[:90], y[:90]), (x[90:], y[90:])


DATASET, HOLDOUT = data()
FORGET = list(range(12))


def trained(without=(), epochs=60):
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    model.float()  # whatever the default type is
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float32) / 8)
    kept = [i for i in range(90) if i not in without]
    x, y = DATASET[0][kept], DATASET[1][kept]
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture(scope="module")
def planned(model):
    return plan(model, DATASET, FORGET, holdout=HOLDOUT, **QUICK)


def loss_of(model, indices):
    with torch.no_grad():
        out = model(DATASET[0][indices])
    return float(torch.nn.functional.cross_entropy(out, DATASET[1][indices]))


def test_the_recommended_run_ends_at_the_target_above_the_floor(model, planned):
    assert planned.verdict == "recommended"
    for seed in (100, 101, 102):
        mine = copy.deepcopy(model)
        outcome = planned.run(mine, seed=seed)
        assert outcome.reached
        assert loss_of(mine, FORGET) == pytest.approx(outcome.forget_loss, rel=1e-5)
        assert 0.6 <= outcome.forget_loss <= 0.66
        assert outcome.retain_accuracy >= planned.floor
        low, _, high = planned.recommended.steps
        assert low <= outcome.steps <= high <= 2.5 * low


def test_a_run_is_sgd_stopped_by_the_rule(model, planned):
    mine, own = copy.deepcopy(model), copy.deepcopy(model)
    outcome = planned.run(mine, seed=7)
    chosen = planned.recommended
    forget = torch.zeros(90, dtype=torch.bool)
    forget[FORGET] = True
    retain = (~forget).nonzero()[:, 0]
    taken = 0
    for batch in draw_batches(chosen.algorithm, forget, steps=200, seed=7):
        own.zero_grad()
        signed = torch.where(batch.ascends, -chosen.mixing, 1 - chosen.mixing) * batch.share
        out = own(DATASET[0][batch.samples])
        each = torch.nn.functional.cross_entropy(out, DATASET[1][batch.samples], reduction="none")
        (signed * each).sum().backward()
        with torch.no_grad():
            for p in own.parameters():
                p -= chosen.learning_rate * p.grad
        taken += 1
        if planned.stop_when(loss_of(own, FORGET), loss_of(own, retain)):
            break
    assert taken == outcome.steps
    for p, q in zip(mine.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_a_last_step_that_overshoots_is_shortened(model):
    coarse = {**QUICK, "verify": 0, "learning_rates": 3.0, "mixing": 0.4, "retain_floor": 0.5}
    found = plan(model, DATASET, FORGET, holdout=HOLDOUT, **coarse)
    shortened = 0
    for seed in range(4):
        outcome = found.run(copy.deepcopy(model), seed=seed)
        assert 0.6 <= outcome.forget_loss <= 0.66
        shortened += outcome.last_step < 1
    assert shortened


def test_planning_changes_neither_model_nor_random_state_and_repeats_itself(model, planned):
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    again = plan(model, DATASET, FORGET, holdout=HOLDOUT, **QUICK)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    pd.testing.assert_frame_equal(again.table, planned.table, check_exact=True)
    pd.testing.assert_frame_equal(again.samples, planned.samples, check_exact=True)
    assert again.recommended == planned.recommended


def test_a_setting_is_feasible_if_it_is_with_every_draw_of_batches(model):
    given = QUICK | {"seeds": 4, "verify": 0, "retain_floor": 0.97, "target": 0.4}
    table = plan(model, DATASET, FORGET, holdout=HOLDOUT, **given).table
    rates = table["learning_rate"].unique().tolist()
    alone = [
        plan(
            model,
            DATASET,
            FORGET,
            holdout=HOLDOUT,
            **given | {"seeds": 1, "seed": seed, "learning_rates": rates},
        ).table.set_index(["mixing", "learning_rate"])
        for seed in range(4)
    ]
    at = list(zip(table["mixing"], table["learning_rate"], strict=True))
    each = np.stack([one.loc[at, "feasible"].to_numpy() for one in alone])
    coarse = np.stack([one.loc[at, "coarse"].to_numpy() for one in alone])
    assert (coarse[0] & ~each[0]).any()  # such a setting may be recommended, too
    assert 0 < each.all(axis=0).sum() < (each[0] | coarse[0]).sum() < len(table)
    assert np.array_equal(table["feasible"], each.all(axis=0))
    assert np.array_equal(table["draws"], np.where(each[0] | coarse[0], 4, 1))


def test_it_says_so_in_ten_lines(planned):
    text = str(planned).splitlines()
    assert len(text) == 10
    assert f"{planned.recommended.learning_rate:.4g}" in str(planned)


def test_the_rule_stops_at_target_guard_and_overflow(planned):
    assert planned.stop_when(0.6, 0.0)
    assert not planned.stop_when(0.59, planned.guard)
    assert planned.stop_when(0.0, planned.guard * 1.01)
    assert planned.stop_when(0.0, float("nan"))


def test_data_may_come_in_any_form(model, planned):
    few: dict[str, Any] = {**QUICK, "verify": 0, "seeds": 1, "learning_rates": 0.3, "mixing": 0.3}
    tables = [
        plan(model, dataset, forget, holdout=holdout, **few).table
        for dataset, forget, holdout in (
            (DATASET, FORGET, HOLDOUT),
            (TensorDataset(*DATASET), np.arange(90) < 12, TensorDataset(*HOLDOUT)),
            ((DATASET[0].numpy(), DATASET[1].numpy()), np.arange(12), HOLDOUT),
        )
    ]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)
    forward: dict[str, Any] = {"forward": lambda m, x: m(x["pixels"])}
    dicts = plan(
        model,
        ({"pixels": DATASET[0]}, DATASET[1]),
        FORGET,
        holdout=({"pixels": HOLDOUT[0]}, HOLDOUT[1]),
        **few,
        **forward,
    )
    pd.testing.assert_frame_equal(dicts.table, tables[0])


def test_target_of_a_retrained_model_and_of_the_holdout(model):
    other = trained(without=FORGET)
    few: dict[str, Any] = {**QUICK, "verify": 0, "seeds": 1, "learning_rates": 0.01, "mixing": 0.1}
    few.pop("target")
    found = plan(model, DATASET, FORGET, holdout=HOLDOUT, target=other, **few)
    assert found.target == pytest.approx(loss_of(other, FORGET), rel=1e-5)
    with torch.no_grad():
        held = torch.nn.functional.cross_entropy(model(HOLDOUT[0]), HOLDOUT[1])
    found = plan(model, DATASET, FORGET, holdout=HOLDOUT, **few)
    assert found.target == pytest.approx(float(held), rel=1e-5)


def test_holdout_is_no_target_for_a_class(model):
    ones = (DATASET[1] == 1).nonzero()[:, 0]
    with pytest.raises(ValueError, match='retrained model, got "holdout"'):
        plan(model, DATASET, ones, holdout=HOLDOUT)


def test_nothing_to_do(model):
    found = plan(model, DATASET, FORGET, holdout=HOLDOUT, target=1e-6)
    assert found.recommended is None
    assert found.verdict == "nothing to do"
    assert len(str(found).splitlines()) == 10
    before = copy.deepcopy(model.state_dict())
    assert found.run(model).steps == 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_none_is_recommended_with_a_reason(model):
    few: dict[str, Any] = {"seeds": 1, "verify": 1, "holdout": HOLDOUT}
    found = plan(model, DATASET, FORGET, target=5.0, steps=2, learning_rates=1e-4, **few)
    assert found.recommended is None
    assert found.verdict.startswith("budget")
    assert found.real_runs == 4
    assert len(str(found).splitlines()) == 10
    with pytest.raises(RuntimeError, match="budget"):
        found.run(model)


def test_subsampling_keeps_the_forget_set_and_says_so(model):
    few: dict[str, Any] = {**QUICK, "verify": 0, "seeds": 1, "mixing": 0.3}
    found = plan(model, DATASET, FORGET, holdout=HOLDOUT, max_samples=40, **few)
    assert "planned on 40 of 90 samples, 12 of 12 to forget" in str(found)
    assert sorted(found.samples["index"]) == FORGET
    with torch.no_grad():
        out = model(DATASET[0][FORGET])
    own = torch.nn.functional.cross_entropy(out, DATASET[1][FORGET], reduction="none")
    np.testing.assert_allclose(found.samples["initial_loss"], own, rtol=1e-4, atol=1e-6)
    outcome = found.run(copy.deepcopy(model), seed=3)
    assert outcome.reached
    few["max_samples"] = 10
    assert "5 of 12 to forget" in str(plan(model, DATASET, FORGET, holdout=HOLDOUT, **few))


def test_self_influence_is_that_of_the_gradient(model, planned):
    for _, row in planned.samples.head(3).iterrows():
        model.zero_grad()
        j = int(row["index"])
        out = model(DATASET[0][j : j + 1])
        loss = torch.nn.functional.cross_entropy(out, DATASET[1][j : j + 1])
        slope = torch.autograd.grad(loss, list(model.parameters()))
        own = sum(float(g.square().sum()) for g in slope)
        assert row["self_influence"] == pytest.approx(own, rel=1e-3)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("mixing", 1.0),
        ("mixing", ()),
        ("retain_floor", 0.0),
        ("steps", 0),
        ("seeds", 0),
        ("verify", -1),
        ("learning_rates", -1.0),
        ("target", "test"),
        ("target", -1.0),
        ("batch", (1000, 1)),
        ("batch", (8, 4, 2)),
        ("steps", 2001),
        ("verify", 11),
        ("seed", -1),
        ("device", "meta"),
        ("target", math.nan),
        ("target", torch.nn.Linear(2, 3)),
        ("mixing", [0.1] * 84),
        ("holdout", (HOLDOUT[0] * math.nan, HOLDOUT[1])),
        ("holdout", (HOLDOUT[0][:, :-1], HOLDOUT[1])),
        ("holdout", (HOLDOUT[0], HOLDOUT[1] + 1)),
        ("holdout", (HOLDOUT[0], None)),
        ("holdout", (HOLDOUT[0], HOLDOUT[1][:-1])),
        ("holdout", ({"pixels": HOLDOUT[0]}, HOLDOUT[1])),
        ("max_samples", 1),
        ("loss", "hinge"),
        ("forget", [900]),
    ],
)
def test_bad_arguments_are_named(model, argument, value):
    options: dict[str, Any] = {"forget": FORGET, "holdout": HOLDOUT, **QUICK, argument: value}
    with pytest.raises(ValueError, match=argument):
        plan(model, DATASET, **options)


def test_steps_times_seeds_are_bounded(model):
    with pytest.raises(ValueError, match="steps, seeds and verify must have a product of at most"):
        plan(model, DATASET, FORGET, holdout=HOLDOUT, steps=2000, seeds=6)


def test_a_run_below_the_floor_gives_way_to_one_on_other_batches(model):
    """Dumb reference: each seed's batches in turn, from the model as it was."""
    few: dict[str, Any] = {**QUICK, "verify": 0, "learning_rates": 1.0, "mixing": 0.4}
    found = plan(model, DATASET, FORGET, holdout=HOLDOUT, **few)
    task = found.task
    alone = {}
    for seed in range(12):
        mine = copy.deepcopy(model)
        lenient = dataclasses.replace(found, floor=0.0)  # one run, shortened only if it overshoots
        alone[seed] = lenient.run(mine, seed=seed).retain_accuracy
    floor = float(np.median(list(alone.values()))) + 1e-6
    strict = dataclasses.replace(found, floor=floor)
    assert task is not None
    tries = set()
    for seed in range(7):
        mine = copy.deepcopy(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = strict.run(mine, seed=seed)
        first = [k for k in range(5) if alone[seed + k] >= floor]
        state = task.state(mine)
        assert float(state.retain_accuracy[0, 0]) == outcome.retain_accuracy
        assert float(state.forget_loss[0, 0]) == pytest.approx(outcome.forget_loss)
        assert outcome.reached
        if first:  # a shortened last step can save an earlier one
            assert outcome.tries <= first[0] + 1
        if outcome.retain_accuracy < floor:
            assert outcome.tries == 5
        tries.add(outcome.tries)
    assert len(tries) > 1


def test_a_run_that_keeps_no_floor_says_so(model, planned):
    hopeless = dataclasses.replace(planned, floor=1.1)
    mine = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="floor 1.1"):
        outcome = hopeless.run(mine, seed=7)
    assert outcome.tries == 5
    assert outcome.reached
    kept = [hopeless._attempt(model, seed)[0].retain_accuracy for seed in range(7, 12)]
    assert outcome.retain_accuracy == max(kept)


@pytest.mark.parametrize(
    "dataset",
    [
        (DATASET[0].to("meta"), DATASET[1]),
        (DATASET[0].to_sparse(), DATASET[1]),
        (DATASET[0][:, :-1], DATASET[1]),
        (DATASET[0], DATASET[1].double()),
        (DATASET[0], "word"),
        "word",
    ],
)
def test_a_dataset_that_is_none_is_named(model, dataset):
    with pytest.raises(ValueError, match="dataset"):
        plan(model, dataset, FORGET, holdout=HOLDOUT, **QUICK)


def test_a_model_whose_losses_are_not_finite_is_no_model_with_nothing_to_do(model):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[0].bias[0] = math.nan
    with pytest.raises(ValueError, match="model must"):
        plan(broken, DATASET, FORGET, holdout=HOLDOUT, **QUICK)


def test_tokens_are_refused_at_the_door():
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5)).eval()
    tokens = torch.randint(5, (20, 6), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="one row a token"):
        plan(model, (tokens, tokens), [0], holdout=(tokens, tokens), target=1.0)


def test_too_large_a_kernel_names_what_fits():
    model = torch.nn.Linear(2, 1000).eval()
    x, y = torch.randn(600, 2, generator=torch.Generator().manual_seed(0)), torch.arange(600)
    with pytest.raises(ValueError, match="max_samples must be at most") as caught:
        plan(model, (x, y), [0], holdout=(x[:10], y[:10]), target=100.0)
    fits = int(str(caught.value).split("at most ")[1].split()[0])
    assert 4 * fits * (fits + 10) * 1e6 <= 6 * 2**30 < 4 * (fits + 1) * (fits + 11) * 1e6


def rows(**columns):
    base: dict[str, Any] = {
        "mixing": 0.1, "share_of_edge": 0.1, "steps_low": 5.0, "steps_expected": 6.0,
        "steps_high": 7.0, "forget_loss": 1.0, "retain_accuracy": 0.98, "holdout_accuracy": 0.9,
        "retain_least": 0.98, "overshoot": 1.02, "last_step": 1.02, "rising": True,
        "feasible": True, "coarse": False,
    }  # fmt: skip
    return pd.DataFrame(
        {**{k: [v] * len(next(iter(columns.values()))) for k, v in base.items()}, **columns}
    )


def test_the_order_of_preferences():
    assert best(rows(holdout_accuracy=[0.9, 0.92]), 0.9) == 1
    assert best(rows(holdout_accuracy=[0.9, 0.92], feasible=[True, False]), 0.9) == 0
    assert best(rows(last_step=[1.2, 1.04], steps_expected=[3.0, 9.0]), 0.9) == 1
    assert best(rows(retain_least=[0.9, 0.98], steps_expected=[3.0, 9.0]), 0.9) == 1
    assert best(rows(steps_expected=[9.0, 3.0]), 0.9) == 1
    assert best(rows(share_of_edge=[0.9, 0.3]), 0.9) == 1
    assert best(rows(feasible=[False, False], coarse=[False, True]), 0.9) == 1
    assert best(rows(feasible=[False, False]), 0.9) is None


def test_what_limits_is_told_apart():
    lost: dict[str, Any] = {"feasible": [False], "retain_least": [0.5]}
    assert limit(rows(**lost), 1.0, 0.9, 10).startswith("overlap")
    assert limit(rows(**lost, share_of_edge=[0.8]), 1.0, 0.9, 10).startswith("retain edge")
    never: dict[str, Any] = {"feasible": [False], "steps_high": [np.inf]}
    assert limit(rows(**never), 1.0, 0.9, 10).startswith("budget")
    assert limit(rows(**never, rising=[False]), 1.0, 0.9, 10).startswith("balance")


@pytest.mark.parametrize("clock", [1.0, 1.25, 1.5])
def test_the_stated_range_is_at_most_two_and_a_half_wide(clock):
    for low in range(1, 40):
        for high in range(low, 4 * low):
            middle = float((low + high) // 2)
            seen = pd.Series({"steps_low": low, "steps_high": high, "steps_expected": middle})
            first, expected, last = step_range(seen, clock)
            assert 1 <= first <= expected <= last <= 2.5 * first


def test_a_plan_comes_back_from_its_file_to_the_last_bit(planned, model, tmp_path):
    path = planned.save(tmp_path / "plan.json")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    bare = load_plan(path)
    assert str(bare) == str(planned)
    for name in ("table", "samples", "curves"):
        pd.testing.assert_frame_equal(getattr(bare, name), getattr(planned, name), check_exact=True)
    for name in ("recommended", "retain_edge", "validity", "guard", "target", "notes", "data"):
        assert getattr(bare, name) == getattr(planned, name)
    assert bare.verified is not None
    assert torch.equal(bare.verified.forget_loss, planned.verified.forget_loss)
    assert html(bare) == html(planned)
    assert bare.stop_when(0.6, 0.0)
    assert not bare.stop_when(0.59, planned.guard)
    with pytest.raises(RuntimeError, match="load_plan"):
        bare.run(copy.deepcopy(model))
    one, two = copy.deepcopy(model), copy.deepcopy(model)
    again = load_plan(path, model, DATASET, FORGET, holdout=HOLDOUT)
    assert again.run(one, seed=7) == planned.run(two, seed=7)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    with pytest.raises(ValueError, match="must be those that"):
        load_plan(path, model, DATASET, [0, 1], holdout=HOLDOUT)


def test_plans_with_nothing_in_them_come_back(model, tmp_path):
    found = plan(model, DATASET, FORGET, holdout=HOLDOUT, target=1e-6)
    assert str(load_plan(found.save(tmp_path / "plan.json"))) == str(found)


@pytest.mark.parametrize("place", [0, 0.02, 0.3, 0.9])
def test_a_damaged_file_is_named(planned, tmp_path, place):
    path = planned.save(tmp_path / "plan.json")
    raw = bytearray(path.read_bytes())
    raw[int(place * len(raw))] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(ValueError, match=r"plan\.json is no plan, or damaged"):
        load_plan(path)
    path.write_bytes(bytes(raw[: int(place * len(raw))]))
    with pytest.raises(ValueError, match=r"plan\.json is no plan, or damaged"):
        load_plan(path)
