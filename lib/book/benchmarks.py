"""Speed and memory as measured: what pytest-benchmark found, kept for the performance page.

`python -m lib.book.benchmarks [FILES …]`, which `make benchmark` runs, times `tests/benchmarks` and
stores a table a file below `book/results/benchmarks/`, with machine and date. A benchmark that has
a peer names it, and how many times as fast it is, in `benchmark.extra_info` (`peer`, `ratio`); one
that measures its processes tells their processor seconds and peak memory (`processor_s`,
`memory_gb`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lib import store
from lib.book.stored import RESULTS

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "tests" / "benchmarks"
FOLDER = RESULTS / "benchmarks"
ESCAPED = re.compile(r"\\u([0-9a-f]{4})")  # how pytest writes letters that are not ASCII


def reduced(found: dict[str, Any]) -> pd.DataFrame:
    """One row a benchmark of pytest-benchmark's JSON: test, median_s, rounds, peer, ratio,
    processor_s, memory_gb.

    An empty peer and NaN where the benchmark has none.
    """
    rows = [
        {
            "test": one["name"].removeprefix("test_"),
            "median_s": float(one["stats"]["median"]),
            "rounds": int(one["stats"]["rounds"]),
            "peer": str(one["extra_info"].get("peer", "")),
            **{
                name: float(one["extra_info"].get(name, math.nan))
                for name in ("ratio", "processor_s", "memory_gb")
            },
        }
        for one in found["benchmarks"]
    ]
    return pd.DataFrame(rows)


def measure(file: Path, folder: Path = FOLDER) -> pd.DataFrame:
    """Run one file of benchmarks and store what it found.

    Raises:
        RuntimeError: a benchmark of the file fails, or there is none in it.
    """
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        report = Path(place, "found.json")
        command = [sys.executable, "-m", "pytest", str(file), "--override-ini", "addopts=", "-q"]
        # Within another pytest, as in the tests, its variables would switch benchmarks off.
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        command.append(f"--benchmark-json={report}")
        done = subprocess.run(command, cwd=ROOT, env=env, check=False)
        text = report.read_text() if report.exists() else ""
    if done.returncode or not text:
        raise RuntimeError(f"{file.name} must pass and have a benchmark, got {done.returncode}")
    table, seconds = reduced(json.loads(text)), time.perf_counter() - begin
    name = file.stem.removeprefix("test_")
    store.save(
        folder / name, table, parameters={}, code=store.code_hash(file), seconds=seconds
    )  # fmt: skip
    return table


def measured(folder: Path = FOLDER) -> pd.DataFrame:
    """All stored rows, with the file, the machine and the day of each; empty if none are stored."""
    tables = []
    for stem in store.results_below(folder) if folder.is_dir() else []:
        result = store.read(stem)
        day = (result.provenance.finished or "")[:10]
        tables.append(
            result.table.assign(file=stem.name, machine=result.provenance.device, day=day)
        )
    columns = ["file", "test", "median_s", "rounds", "peer", "ratio", "processor_s", "memory_gb"]
    columns += ["machine", "day"]
    return (
        pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
    )


def to_markdown(table: pd.DataFrame) -> str:
    """Rows of `measured` as a Markdown table."""
    head = ["what", "takes", "peak memory", "compared with", "ratio", "measured"]
    lines = [f"| {' | '.join(head)} |", "|:--|--:|--:|:--|--:|:--|"]
    for row in table.itertuples():
        ratio = f"{row.ratio:.3g} ×" if math.isfinite(row.ratio) else ""
        what = f"{row.file}: {row.test}".replace("_", " ")
        what = ESCAPED.sub(lambda found: chr(int(found[1], 16)), what)
        memory = f"{row.memory_gb:.2g} GB" if math.isfinite(row.memory_gb) else ""
        # Other work on the machine counts least in processor seconds.
        own = math.isfinite(row.processor_s)
        takes = f"{_time(row.processor_s)} of processors" if own else _time(row.median_s)
        cells = [what, takes, memory, row.peer, ratio, f"{row.day}, {row.machine}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def remarks(table: pd.DataFrame, files: Path = FILES) -> str:
    """What is not in the table of `measured`: benchmarks that nobody ran here, and a GPU's times.

    Args:
        table: from `measured`.
        files: where the benchmarks are; there are none where a page stands alone, as in Colab.
    """
    names = (path.stem.removeprefix("test_") for path in sorted(files.glob("test_*.py")))
    absent = [name.replace("_", " ") for name in names if name not in {*table["file"]}]
    parts = (
        [f"Not measured here: {', '.join(absent)}; `make benchmark` adds them."] if absent else []
    )
    if not table["machine"].astype(str).str.contains("NVIDIA|AMD Instinct").any():
        parts.append("No row is of a GPU: none was at hand.")
    return " ".join(parts)


def _time(seconds: float) -> str:
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
    unit, size = next((pair for pair in units if seconds >= pair[1]), units[-1])
    return f"{seconds / size:.3g} {unit}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run benchmarks, all or the files named, and store what they find."""
    parser = argparse.ArgumentParser(prog="python -m lib.book.benchmarks", description=main.__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="default: all of tests/benchmarks")
    for file in parser.parse_args(arguments).files or sorted(FILES.glob("test_*.py")):
        print(measure(file.resolve()).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
