"""What used to be silently wrong, or to end in an error without a name, is refused by name."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from lib import cnn, experiments, stability
from lib.checks import LARGEST_SEED, require_mask, require_seed
from lib.stability import AscentDescent, Curvature
from tests.support import calls
from tests.support.calls import F64, curvature, data, mask, rule, update

NARROW = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", NARROW)
def test_half_precision_is_refused_wherever_tensors_enter(dtype):
    whole, rows = curvature(), calls.gaussian_rows()
    hessians = rows[:, :, None] * rows[:, None]
    with pytest.raises(ValueError, match=r"^gram must be .* float32 or float64"):
        Curvature.from_gram(whole.gram.to(dtype), whole.forget)
    with pytest.raises(ValueError, match=r"^hessians must be .* float32 or float64"):
        Curvature.from_hessians(hessians.to(dtype), mask())
    with pytest.raises(ValueError, match=r"^factors must be .* float32 or float64"):
        Curvature(whole.factors.to(dtype), whole.forget)
    with pytest.raises(ValueError, match=r"^directions must be .* float32 or float64"):
        stability.directional_coherence(whole, torch.ones(5, dtype=dtype))
    with pytest.raises(ValueError, match=r"^patches must be .* float32 or float64"):
        data().to(dtype)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 2.5),
        ("batch_size", True),
        ("tolerance", math.nan),
        ("steps", True),
        ("learning_rate", True),
        ("seed", 2**63),
        ("device", "nowhere"),
        ("device", "meta"),
    ],
)
def test_fit_refuses_what_it_once_took(name, value):
    good = {"filters": 2, "learning_rate": 0.1, "steps": 2, "init_scale": 0.1}
    with pytest.raises(ValueError, match=f"^{name} must be"):
        cnn.fit([data()], **good | {name: value})


@pytest.mark.parametrize("scale", [1e-150, 1e-121, 1e121, 1e150])
def test_curvature_of_extreme_scale_is_refused(scale):
    whole, rows = curvature(), calls.gaussian_rows()
    with pytest.raises(ValueError, match="gram must have a largest entry in"):
        Curvature.from_gram(whole.gram / whole.gram.max() * scale, whole.forget)
    with pytest.raises(ValueError, match="factors must have a largest entry in"):
        Curvature(whole.factors / whole.factors.abs().max() * scale**0.5, whole.forget)
    hessians = rows[:, :, None] * rows[:, None]
    with pytest.raises(ValueError, match=r"hessians.* must have a largest entry in"):
        Curvature.from_hessians(hessians / hessians.max() * scale, mask())


@pytest.mark.parametrize("sampling", stability.SAMPLINGS)
@pytest.mark.parametrize("scale", [2.0**-320, 2.0**-100, 2.0**100, 2.0**320])
def test_statements_are_equivariant_at_every_scale_that_is_taken(scale, sampling):
    """At H·s and λ·s every rate is the one at H and λ over s, every ρ at η/s the same."""
    one, damped = curvature(), rule(damping=0.1, sampling=sampling)
    other = Curvature.from_gram(one.gram * scale, one.forget)
    scaled = rule(damping=0.1 * scale, sampling=sampling)
    for rate in (stability.critical_learning_rate, stability.three_axis_bound):
        assert rate(other, scaled) * scale == pytest.approx(rate(one, damped), rel=1e-9)
    low, high = stability.learning_rate_bounds(other, scaled)
    wanted = stability.learning_rate_bounds(one, damped)
    assert (low * scale, high * scale) == pytest.approx(wanted, rel=1e-6)
    growth = stability.growth_factor(other, scaled, 3 / scale)
    assert growth == pytest.approx(stability.growth_factor(one, damped, 3.0), rel=1e-9)
    found = stability.coherence(other)
    assert vars(found) == pytest.approx(vars(stability.coherence(one)), rel=1e-9)


def test_a_rate_whose_step_leaves_float64_is_refused():
    with pytest.raises(ValueError, match="learning_rate must keep one step inside float64's range"):
        stability.growth_factor(**update(learning_rate=1e80))


def test_the_window_of_a_saturated_softmax_is_refused_with_its_curvature():
    """At a logit gap of 40 the curvature is e^{−40}: the window would open at 10¹⁶."""
    p = math.exp(-40.0)
    saturated = Curvature.from_gram(p * curvature().gram, curvature().forget)
    with pytest.raises(ValueError, match=r"curvature must have .* got at most \d.*e-18"):
        stability.unlearning_window(saturated, rule(), steps=50, amplification=10.0)


def test_steps_to_amplify_do_not_run_away_near_the_critical_rate():
    edge = stability.critical_learning_rate(curvature(), rule())
    with pytest.raises(ValueError, match=r"learning_rate must amplify within 100000 steps, .* at"):
        stability.steps_to_amplify(**update(learning_rate=edge * (1 + 1e-9), amplification=10.0))


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, None, "1", np.float64(1), 10**30])
def test_seeds_out_of_range_are_refused_alike(seed):
    for draw in (
        lambda: require_seed(seed),
        lambda: stability.gaussian_curvature(4, 2, 5, seed=seed),
        lambda: stability.simulate(**update(steps=2, runs=2, seed=seed)),
        lambda: data(seed),
        lambda: cnn.fit([data()], filters=2, learning_rate=0.1, steps=1, init_scale=0.1, seed=seed),
        lambda: cnn.ascent_descent(**calls.run(seed=seed)),
        lambda: experiments.count_escapes(
            [calls.setting().test()], experiments.Escape(), seed=seed
        ),
    ):
        with pytest.raises(ValueError, match=r"^seed must be an integer"):
            draw()
    assert require_seed(np.uint64(LARGEST_SEED)) == LARGEST_SEED  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "forget",
    [
        mask(),
        mask().numpy(),
        mask().tolist(),
        [4, 5],
        (5, 4),
        np.array([4, 5]),
        torch.tensor([5, 4]),
    ],
    ids=repr,
)
def test_a_forget_set_is_a_mask_or_indices_of_any_kind(forget):
    found = require_mask(forget, 6)
    assert found.dtype == torch.bool
    assert torch.equal(found, mask())
    gram = calls.gaussian_rows() @ calls.gaussian_rows().T
    assert torch.equal(Curvature.from_gram(gram, forget).forget, mask())
    expected = cnn.ascent_descent(**calls.run())
    assert torch.equal(cnn.ascent_descent(**calls.run(forget=forget)).moves, expected.moves)


@pytest.mark.parametrize(
    "forget",
    [
        *([], [6], [-1], [4, 4], [True] * 6, [False] * 6, [True] * 5, [0.5], None, "4", [[4]]),
        {4: 5},
        torch.tensor([4.0]),
        mask().to("meta"),
        range(6),
        [10**30],
        torch.ones(6, dtype=torch.int64),
    ],
    ids=repr,
)
def test_other_forget_sets_are_refused(forget):
    with pytest.raises(ValueError, match=r"^forget must"):
        require_mask(forget, 6)


@pytest.mark.parametrize("name", ["mixing", "damping", "momentum", "retain_batch", "sampling"])
@pytest.mark.parametrize("value", [True, None, "x", math.nan, -1, 10**400, torch.ones(2), 1j, []])
def test_an_update_refuses_what_is_no_number(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        AscentDescent(**{"mixing": 0.1, "retain_batch": 2, "forget_batch": 1} | {name: value})


def test_overflow_of_paths_reads_infinite():
    wild = update(learning_rate=1e40, steps=20)
    assert stability.mean_square_path(**wild)[-1] == math.inf
    assert (stability.simulate(**wild, runs=3, seed=0)[-1] == math.inf).all()


def test_reprs_are_short():
    window = stability.unlearning_window(curvature(), rule(), steps=50, amplification=10.0)
    assert repr(curvature()) == "Curvature(8 retain + 3 forget samples of rank ≤ 1, q = 5, cpu)"
    assert repr(window).startswith("Window(")
    assert len(repr(window)) < 80


def test_a_single_precision_rate_computes_in_double():
    rate = np.float32(1e-30)  # whose square is none in single precision
    single = stability.growth_factor(**update(learning_rate=rate))
    assert single == stability.growth_factor(**update(learning_rate=float(rate)))
    number: Any = torch.tensor(0.1, dtype=F64)
    assert AscentDescent(number, 2, 1).mixing == 0.1
