"""The cases of `your_model` from other seeds: how often a stated range holds takes more of them."""

from __future__ import annotations

from collections.abc import Mapping

from lib.book.your_model import PlanTask
from lib.experiments.plan_runs import SETS

# Chosen before any was run: the families that take seconds, the five seeds that follow.
FAMILIES, SEEDS = ("mlp", "conv", "lora", "head"), (3, 4, 5, 6, 7)


def published() -> Mapping[str, PlanTask]:
    """The stored results' tasks, by name."""
    return {
        f"{family}_{forget_set}": PlanTask(family, forget_set, SEEDS)
        for family in FAMILIES
        for forget_set in SETS
    }
