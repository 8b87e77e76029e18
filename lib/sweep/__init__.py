"""papermill over many parameters, from one cell to a cluster.

`breaks`: Ctrl-C. `command`: the command line. `points`: what to compute. `point`: one run of the
notebook. `pools`: where runs happen. `runner`: the loop, which a kill cannot harm.
"""

from lib.sweep.breaks import INTERRUPTED
from lib.sweep.command import main
from lib.sweep.points import Plan, Point, Space, make_plan
from lib.sweep.pools import ClusterPool, LocalPool, Pool
from lib.sweep.runner import Summary, run

__all__ = [
    "INTERRUPTED",
    "ClusterPool",
    "LocalPool",
    "Plan",
    "Point",
    "Pool",
    "Space",
    "Summary",
    "main",
    "make_plan",
    "run",
]
