"""Unlearning any torch model: the real update, and what can be said of it before it runs.

The tangent model (`tangent`: the network linearised, the loss exact; `calibration`, `validity`,
`certificates`) beside the real run (`network_run`; both record `paths`); `ascent_descent` measures
growth against the exact theory from where `interpolation` trains a model to; `methods` are the
field's, run on a `population` of networks at once, and `yardsticks` say how far from a retrained
model an unlearned one is; `images` holds real data. `planning` puts these together: a learning rate
and a stopping rule for any model before it is touched (`task`, `search`, `choice`, `report`,
`saved`; `command` from a shell).
"""

from lib.unlearning.ascent_descent import Growth, ModuleRuns, measure_growth, unlearn
from lib.unlearning.calibration import Probe, calibrate
from lib.unlearning.certificates import Containment, containment, fastest_rise, retain_sharpness
from lib.unlearning.images import Digits, digits, fashion_mnist
from lib.unlearning.interpolation import interpolate
from lib.unlearning.methods import (
    distillation,
    fine_tuning,
    gradient_ascent,
    neg_grad_plus,
    newton_step,
    npo,
    retrain,
    salun,
    scrub,
)
from lib.unlearning.network_run import NetworkPath, run_network
from lib.unlearning.paths import LossPath
from lib.unlearning.planning import Outcome, Plan, plan
from lib.unlearning.population import Population, Schedule, train
from lib.unlearning.saved import load_plan
from lib.unlearning.tangent import TangentModel, TangentPath, follow, follow_weights
from lib.unlearning.validity import Validity, validate
from lib.unlearning.yardsticks import (
    Accuracies,
    accuracy_gap,
    klom,
    klom_floor,
    margins,
    membership_score,
    output_gap,
    tug_of_war,
    tug_of_war_mia,
    u_lira,
    weight_gap,
)

__all__ = [
    "Accuracies",
    "Containment",
    "Digits",
    "Growth",
    "LossPath",
    "ModuleRuns",
    "NetworkPath",
    "Outcome",
    "Plan",
    "Population",
    "Probe",
    "Schedule",
    "TangentModel",
    "TangentPath",
    "Validity",
    "accuracy_gap",
    "calibrate",
    "containment",
    "digits",
    "distillation",
    "fashion_mnist",
    "fastest_rise",
    "fine_tuning",
    "follow",
    "follow_weights",
    "gradient_ascent",
    "interpolate",
    "klom",
    "klom_floor",
    "load_plan",
    "margins",
    "measure_growth",
    "membership_score",
    "neg_grad_plus",
    "newton_step",
    "npo",
    "output_gap",
    "plan",
    "retain_sharpness",
    "retrain",
    "run_network",
    "salun",
    "scrub",
    "train",
    "tug_of_war",
    "tug_of_war_mia",
    "u_lira",
    "unlearn",
    "validate",
    "weight_gap",
]
