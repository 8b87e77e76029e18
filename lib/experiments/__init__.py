"""What the chapters measure: escapes, heat maps, resistance, benign overfitting."""

from lib.experiments.benign_overfitting import (
    BenignSetting,
    ErrorMap,
    contour,
    error_map,
    first_below,
    fit_boundary,
    test_error_map,
)
from lib.experiments.escape import (
    Escape,
    HessianTest,
    count_escapes,
    escape_bound,
    escapes_allowed,
)
from lib.experiments.heat_maps import heat_map
from lib.experiments.hessian_tests import (
    EscapeMap,
    SharedAxis,
    escape_map,
    sister_setting,
    smallest_stable_group,
    stable_group_row,
    threshold_exponent,
    threshold_order,
)
from lib.experiments.resistance_runs import (
    Experiment,
    PerSample,
    Resistance,
    curvatures,
    per_sample,
    resistance,
    steps_to_amplify,
)
from lib.experiments.settings import Criterion, Setting, trained_networks
from lib.experiments.summary import MapGrid, disagreements, frontier, missed_cells

__all__ = [
    "BenignSetting",
    "Criterion",
    "ErrorMap",
    "Escape",
    "EscapeMap",
    "Experiment",
    "HessianTest",
    "MapGrid",
    "PerSample",
    "Resistance",
    "Setting",
    "SharedAxis",
    "contour",
    "count_escapes",
    "curvatures",
    "disagreements",
    "error_map",
    "escape_bound",
    "escape_map",
    "escapes_allowed",
    "first_below",
    "fit_boundary",
    "frontier",
    "heat_map",
    "missed_cells",
    "per_sample",
    "resistance",
    "sister_setting",
    "smallest_stable_group",
    "stable_group_row",
    "steps_to_amplify",
    "test_error_map",
    "threshold_exponent",
    "threshold_order",
    "trained_networks",
]
