"""A plan as a JSON file: everything but the samples, which are handed over again to run it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lib.stability.modules import Forward
from lib.unlearning.paths import LossPath
from lib.unlearning.planning import Plan, Recommendation, RetainEdge
from lib.unlearning.task import Data, Task
from lib.unlearning.validity import Validity

TABLES = ("table", "samples", "curves")
PARTS: dict[str, type] = {
    "data": Data,
    "recommended": Recommendation,
    "retain_edge": RetainEdge,
    "validity": Validity,
}
PLAIN = ("target", "verdict", "floor", "steps", "guard", "real_runs", "speed")


def write(plan: Plan, path: str | Path) -> Path:
    """Write a plan whole or not at all; its path. Numbers to the last bit, NaN as JSON's readers
    of Python write it; a checksum comes first. The samples are not in it, but a hash of the targets
    and of what is forgotten is."""
    state: dict[str, Any] = {name: getattr(plan, name) for name in PLAIN}
    state |= {name: _columns(getattr(plan, name)) for name in TABLES}
    state |= {"notes": list(plan.notes), "monitored": plan.monitored.tolist()}
    for name in ("start", "verified"):
        state[name] = _path(getattr(plan, name))
    for name in PARTS:
        part = getattr(plan, name)
        state[name] = None if part is None else asdict(part)
    text = json.dumps(state)
    whole = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest()})
    beside = Path(f"{path}.part")
    beside.write_text(f"{whole}\n{text}\n", encoding="utf-8")
    os.replace(beside, path)
    return Path(path)


def load_plan(
    path: str | Path,
    model: nn.Module | None = None,
    dataset: Any = None,
    forget: Tensor | Sequence[int] | np.ndarray | None = None,
    *,
    holdout: Any = None,
    forward: Forward | None = None,
    device: torch.device | str | None = None,
) -> Plan:
    """The plan that `Plan.save` wrote: its rule, its tables and its report.

    Args:
        path: of the file.
        model, dataset, forget, holdout, forward, device: as handed to `plan`. With them the plan
            runs, without them `run` raises a RuntimeError.

    Raises:
        ValueError: naming the file, if it is damaged or no plan; or naming dataset, where targets
            or forget set are not those that the plan was made for.
        FileNotFoundError: there is no file.
    """
    raw = Path(path).read_bytes()
    try:
        plan = _read(raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no plan, or damaged: {error}") from None
    if model is None:
        return plan
    task = Task.of(
        model,
        dataset,
        forget,
        holdout,
        plan.data.loss,
        forward=forward,
        parameters=plan.data.names,
        device=device,
    )
    if task.data() != plan.data:
        raise ValueError(
            f"dataset, forget and holdout must be those that {path} was made for, {plan.data}, got "
            f"{task.data()}"
        )
    return replace(plan, task=task)


def _read(raw: bytes) -> Plan:
    """A plan without its samples."""
    head, text = raw.decode("utf-8").splitlines()
    if json.loads(head)["sha256"] != hashlib.sha256(text.encode()).hexdigest():
        raise ValueError("its checksum is that of another text")
    state = json.loads(text)
    state |= {name: pd.DataFrame(state[name]) for name in TABLES}
    state |= {name: _path_of(state[name]) for name in ("start", "verified")}
    for name, kind in PARTS.items():
        part = state[name]
        if part is not None:  # JSON knows lists only
            part = {key: tuple(v) if isinstance(v, list) else v for key, v in part.items()}
            state[name] = kind(**part)
    state |= {"notes": tuple(state["notes"]), "monitored": _tensor(state["monitored"])}
    return Plan(**state, task=None)


def _columns(table: pd.DataFrame) -> dict[str, list[Any]]:
    return {str(name): table[name].tolist() for name in table}


def _path(path: LossPath | None) -> dict[str, list[float]] | None:
    if path is None:
        return None
    return {field.name: getattr(path, field.name)[:, 0].tolist() for field in fields(LossPath)}


def _path_of(columns: dict[str, list[float]] | None) -> LossPath | None:
    if columns is None:
        return None
    return LossPath(**{k: _tensor(v, torch.float64)[:, None] for k, v in columns.items()})


def _tensor(values: list[Any], dtype: torch.dtype | None = None) -> torch.Tensor:
    """On the CPU, whatever the default device is."""
    return torch.tensor(values, dtype=dtype, device="cpu")
