"""The field's unlearning methods under the field's yardsticks, on populations of small networks.

Fixed before the first stored run: the methods and their grids (`GRIDS`). Every method has the same
budget: twelve settings, each run on six networks (two for the ResNet, `DEEP`'s methods), of which
the one with the best tug of war against retrained networks is kept; all first-order methods search
one range of learning rates, .001 to .3. Tuning is on other networks, another seed, draw of the data
and forget set than judging. All take 60 steps of batches of 64 retain and 16 forget samples, but
for those that stop by a loss; `plan` makes its own choice, with at most four real runs. A first,
coarser grid (six settings, rates .03 to .3) was looked at on one problem that is not judged, and
widened for all methods alike.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lib.experiments.deletion_cases import (
    JUDGED,
    TUNED,
    Case,
    Data,
    Kind,
    architecture,
    case,
    spare,
)
from lib.unlearning.methods import (
    distillation,
    fine_tuning,
    gradient_ascent,
    neg_grad_plus,
    newton_step,
    npo,
    salun,
    scrub,
)
from lib.unlearning.planning import plan
from lib.unlearning.population import Schedule, losses_of
from lib.unlearning.yardsticks import (
    Accuracies,
    klom,
    margins,
    membership_score,
    output_gap,
    tug_of_war,
    tug_of_war_mia,
    u_lira,
    weight_gap,
)

STEPS, TUNED_ON, LEAST = 60, 6, 100  # LEAST models for KLoM and U-LiRA
GROUPS, STUDENT = 10, 2.262  # of models left out in turn; the 97.5 % point of t with 9 degrees

RATES = tuple(np.geomspace(0.001, 0.3, 6).tolist())
FINE = tuple(np.geomspace(0.001, 0.3, 12).tolist())
Setting = Mapping[str, float]


def crossed(**axes: tuple[float, ...]) -> list[dict[str, float]]:
    """Every combination of the axes' values."""
    rows: list[dict[str, float]] = [{}]
    for name, values in axes.items():
        rows = [row | {name: value} for row in rows for value in values]
    return rows


GRIDS: dict[str, list[dict[str, float]]] = {
    "fine-tuning": crossed(learning_rate=FINE),
    "gradient ascent": crossed(learning_rate=FINE),
    "NegGrad+": crossed(learning_rate=RATES, mixing=(0.1, 0.3)),
    "NegGrad+ to a loss": crossed(learning_rate=RATES, mixing=(0.1, 0.3)),
    "NPO": crossed(learning_rate=RATES, beta=(0.3, 1.0)),
    "SCRUB": crossed(learning_rate=RATES, ascents=(5, 20)),
    "SalUn": crossed(learning_rate=RATES, share=(0.2, 0.5)),
    "distillation": crossed(learning_rate=RATES, mixing=(0.1, 0.3)),
    "Newton step": crossed(damping=FINE),
}
PLANNED: dict[str, Any] = {
    "max_samples": 250,
    "seeds": 1,
    "mixing": (0.1, 0.3),
    "steps": 100,
    "retain_floor": 0.95,
}
ENDS = ("nothing", "retraining")
METHODS = (*GRIDS, "plan")
DEEP = tuple(method for method in GRIDS if method != "Newton step")  # first-order, for the ResNet


def unlearned(at: Case, method: str, setting: Setting, *, seed: int) -> Tensor:
    """Weights (models, p) after one of `METHODS` with a setting of its grid."""
    case, given = at.networks, dict(setting)
    if method == "Newton step":
        return newton_step(case, damping=given["damping"], tolerance=1e-3, most=200)
    schedule = Schedule(given.pop("learning_rate"), STEPS, seed=seed)
    if method == "plan":
        long = replace(schedule, steps=int(given.pop("steps")))
        return neg_grad_plus(case, long, mixing=given["mixing"], target=at.target)
    if method == "SCRUB":
        return scrub(case, schedule, ascents=int(given["ascents"]))
    run: dict[str, Callable[..., Tensor]] = {
        "fine-tuning": fine_tuning,
        "gradient ascent": gradient_ascent,
        "NegGrad+": neg_grad_plus,
        "NegGrad+ to a loss": lambda *a, **k: neg_grad_plus(*a, target=at.target, **k),
        "NPO": lambda *a, **k: npo(*a, mixing=0.3, **k),
        "SalUn": salun,
        "distillation": distillation,
    }
    return run[method](case, schedule, **given)


def tuned(
    at: Case, method: str, grid: list[dict[str, float]], *, seed: int
) -> list[dict[str, float]]:
    """A grid's settings by falling mean tug of war on networks that are not judged."""
    scores = []
    for setting in grid:
        try:
            weights = unlearned(at, method, setting, seed=seed)
            scores.append(float(np.mean(_tugs(at, weights))))
        except RuntimeError:  # it overflowed
            scores.append(-1.0)
    return [grid[k] for k in np.argsort(-np.array(scores), kind="stable")]


def planned(at: Case, seed: int) -> dict[str, float] | None:
    """What `plan` recommends for the first network, told the target; None if nothing.

    Its held-out samples are none of those that methods are judged on.
    """
    model, kept = architecture(at.data), len(at.forget)
    torch.nn.utils.vector_to_parameters(at.networks.stacked[0], model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of, the verdict says too
        found = plan(
            model,
            (at.inputs[:kept], at.targets[:kept]),
            at.forget,
            holdout=spare(at.data, seed),
            target=at.target,
            sampling="without_replacement",
            **PLANNED,
        )
    best = found.recommended
    if best is None:
        return None
    rate, mixing, steps = best.learning_rate, best.mixing, float(2 * best.steps[2])
    return {"learning_rate": rate, "mixing": mixing, "steps": steps}


def _first(at: Case, method: str, settings: list[Setting], seed: int) -> pd.DataFrame:
    """`judged` of the first setting that overflows on no network; how many did is told."""
    for dropped, setting in enumerate(settings):
        try:
            weights = unlearned(at, method, setting, seed=seed)
        except RuntimeError as error:
            last = error
            continue
        shown = ", ".join(f"{name} {number:.3g}" for name, number in setting.items())
        shown += f" ({dropped} better overflowed)" if dropped else ""
        return judged(at, weights).assign(method=method, setting=shown)
    raise RuntimeError(f"{method} overflows with every setting of its grid") from last


def _accuracies(at: Case, outputs: Tensor) -> list[Accuracies]:
    right = (outputs.argmax(-1) == at.targets).double()
    means = (right[:, members].mean(dim=1).tolist() for members in at.sets())
    return [Accuracies(*three) for three in zip(*means, strict=True)]


def _tugs(at: Case, weights: Tensor) -> list[float]:
    """Tug of war of each network with its retrained partner."""
    found = (_accuracies(at, at.networks.outputs(at.inputs, w)) for w in (weights, at.retrained))
    return [tug_of_war(*pair) for pair in zip(*found, strict=True)]


def _scores(at: Case, outputs: Tensor) -> list[float]:
    """Membership score of each network."""
    sure = outputs.softmax(-1).gather(-1, at.targets.expand(len(outputs), -1)[..., None])[..., 0]
    gone, kept, test = at.sets()
    return [membership_score(row[kept], row[test], row[gone]) for row in sure.double()]


def judged(at: Case, weights: Tensor) -> pd.DataFrame:
    """Every yardstick of some weights against the retrained ones: value, low and high.

    95 % intervals by leaving out each of ten groups of pairs in turn (a bootstrap would put copies
    of a model among those that U-LiRA leaves it out of, and raise KLoM's floor).
    """
    own, other = (at.networks.outputs(at.inputs, w) for w in (weights, at.retrained))
    accuracies, references = _accuracies(at, own), _accuracies(at, other)
    scores, expected = _scores(at, own), _scores(at, other)
    loss = losses_of(own, at.targets.expand(len(own), -1), "cross_entropy")
    sets = dict(zip(("forget", "retain", "test"), at.sets(), strict=True))
    pairs = list(zip(accuracies, references, strict=True))
    each: dict[str, Any] = {
        f"{name} accuracy": [getattr(a, name) for a in accuracies] for name in sets
    }
    each |= {f"{name} loss": loss[:, members].mean(dim=1) for name, members in sets.items()}
    each |= {
        "tug of war": [tug_of_war(*pair) for pair in pairs],
        "tug of war, MIA": [
            tug_of_war_mia(*pair, u, r) for pair, u, r in zip(pairs, scores, expected, strict=True)
        ],
        "membership score": scores,
        "weight gap": weight_gap(weights, at.retrained),
    }
    each |= {f"output gap, {k}": output_gap(own[:, m], other[:, m]) for k, m in sets.items()}
    columns = {name: torch.as_tensor(v, dtype=torch.float64) for name, v in each.items()}
    u, r = margins(own, at.targets), margins(other, at.targets)

    def summary(kept: Tensor) -> dict[str, float]:
        found = {name: float(values[kept].mean()) for name, values in columns.items()}
        if len(u) >= LEAST:
            for name, members in sets.items():
                found[f"KLoM, {name}"] = float(
                    klom(u[kept][:, members], r[kept][:, members]).mean()
                )
            found["U-LiRA, forget"] = float(
                u_lira(u[kept][:, sets["forget"]], r[kept][:, sets["forget"]]).mean()
            )
        return found

    return with_intervals(summary, len(u))


def with_intervals(summary: Callable[[Tensor], dict[str, float]], models: int) -> pd.DataFrame:
    """yardstick, value, low, high: of all models, and of the jackknife over groups of them."""
    everyone = torch.arange(models, device="cpu")
    groups = min(GROUPS, models)
    value = summary(everyone)
    left = pd.DataFrame([summary(everyone[everyone % groups != g]) for g in range(groups)])
    half = STUDENT * left.std(ddof=0) * np.sqrt(groups - 1)
    table = pd.DataFrame({"yardstick": list(value), "value": list(value.values())})
    reach = half[table["yardstick"]].to_numpy()
    return table.assign(low=table["value"] - reach, high=table["value"] + reach)


def table(
    data: Data,
    kind: Kind,
    *,
    models: int = LEAST,
    methods: tuple[str, ...] = METHODS,
    grids: Mapping[str, list[dict[str, float]]] = GRIDS,
    tuned_on: int = TUNED_ON,
    seed: int = 0,
) -> pd.DataFrame:
    """Methods × yardsticks for one kind of forget set.

    Columns: method, setting, yardstick, value, low, high, data, kind, target. The ends of the scale
    come with it: "nothing", the networks as trained, and "retraining", a
    second set of retrained networks. A method without a setting (no plan) has no rows. A setting
    that overflows on a judged network gives way to the next of the tuning, and `setting` says so.
    """
    trial = case(data, kind, seed=seed + 1, models=tuned_on, label=TUNED)
    at = case(data, kind, seed=seed, models=models, label=JUDGED)
    rows = [judged(at, at.networks.stacked).assign(method="nothing", setting="")]
    rows.append(judged(at, at.again).assign(method="retraining", setting=""))
    for method in methods:
        plan_only = method == "plan"
        settings: list[Any] = (
            [planned(at, seed)] if plan_only else tuned(trial, method, grids[method], seed=seed + 1)
        )
        if settings != [None]:
            rows.append(_first(at, method, settings, seed))
    return pd.concat(rows, ignore_index=True).assign(data=data, kind=kind, target=at.target)
