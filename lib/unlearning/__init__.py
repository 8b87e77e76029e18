"""Unlearning any torch model: the real update, measured against its prediction.

`ascent_descent` runs the update and measures its growth, `interpolation` trains a model to where
the theory starts, `images` holds real data that ships with a package. `plan` finds a learning rate
and a stopping rule for any model before it is touched.
"""

from lib.unlearning.ascent_descent import Growth, ModuleRuns, measure_growth, unlearn
from lib.unlearning.images import Digits, digits
from lib.unlearning.interpolation import interpolate
from lib.unlearning.planning import Outcome, Plan, plan

__all__ = [
    "Digits",
    "Growth",
    "ModuleRuns",
    "Outcome",
    "Plan",
    "digits",
    "interpolate",
    "measure_growth",
    "plan",
    "unlearn",
]
