"""What the chapters measure, on laws in closed form and on real networks.

Rooms: `escape` and `hessian_tests` (sampled runs against three frontiers), `released` (the test of
the authors' code), `settings` (networks, updates, criteria), `predictions`, `heat_maps` and
`summary` (the CNN's maps), `resistance_runs` (how long it resists), `benign_overfitting` (a
published map).
"""

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
    threshold_order,
)
from lib.experiments.released import (
    released_family,
    released_hessian_prediction,
    released_hessian_test,
    released_map,
)
from lib.experiments.resistance_runs import (
    PerSample,
    Resistance,
    curvatures,
    per_sample,
    resistance,
    steepest_mean_steps,
)
from lib.experiments.settings import Cell, Criterion, Network, Update, trained_networks
from lib.experiments.summary import (
    MapGrid,
    disagreements,
    missed_cells,
    negative_curvature,
)

__all__ = [
    "BenignSetting",
    "Cell",
    "Criterion",
    "ErrorMap",
    "Escape",
    "EscapeMap",
    "HessianTest",
    "MapGrid",
    "Network",
    "PerSample",
    "Resistance",
    "SharedAxis",
    "Update",
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
    "heat_map",
    "missed_cells",
    "negative_curvature",
    "per_sample",
    "released_family",
    "released_hessian_prediction",
    "released_hessian_test",
    "released_map",
    "resistance",
    "sister_setting",
    "smallest_stable_group",
    "stable_group_row",
    "steepest_mean_steps",
    "test_error_map",
    "threshold_order",
    "trained_networks",
]
