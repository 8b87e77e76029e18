"""Unlearning any torch model: the real update, measured against its prediction.

`ascent_descent` runs the update and measures its growth, `interpolation` trains a model to where
the theory starts, `images` holds real data that ships with a package.
"""

from lib.unlearning.ascent_descent import Growth, ModuleRuns, measure_growth, unlearn
from lib.unlearning.images import Digits, digits
from lib.unlearning.interpolation import interpolate

__all__ = [
    "Digits",
    "Growth",
    "ModuleRuns",
    "digits",
    "interpolate",
    "measure_growth",
    "unlearn",
]
