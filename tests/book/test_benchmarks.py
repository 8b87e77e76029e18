"""Benchmarks as stored: what is kept of pytest-benchmark's report, and what is read back."""

import json
import math

import pandas as pd
import pytest

from lib.book import benchmarks

FILE = """
def test_fast(benchmark):
    benchmark.extra_info.update(peer="a loop", ratio=2.5, memory_gb=1.5, more=[1, 2])
    benchmark.pedantic(sum, args=([1, 2],), rounds=3)

def test_alone(benchmark):
    benchmark.pedantic(sum, args=([1, 2],), rounds=2)
"""


def test_what_was_measured_comes_back_with_its_peer_its_machine_and_its_day(tmp_path):
    file = tmp_path / "test_sums.py"
    file.write_text(FILE)
    benchmarks.measure(file, tmp_path / "results")
    table = benchmarks.measured(tmp_path / "results")
    assert list(table["file"]) == ["sums", "sums"]
    assert list(table["test"]) == ["fast", "alone"]
    assert list(table["rounds"]) == [3, 2]
    assert (table["median_s"] > 0).all()
    assert (table["peer"][0], table["ratio"][0]) == ("a loop", 2.5)
    assert (table["peer"][1], math.isnan(table["ratio"][1])) == ("", True)
    assert table["machine"].str.len().min() > 3
    assert table["day"].str.fullmatch(r"\d{4}-\d\d-\d\d").all()
    text = benchmarks.to_markdown(table)
    assert "| sums: fast |" in text
    assert "| 1.5 GB | a loop | 2.5 × |" in text
    sidecar = json.loads((tmp_path / "results" / "sums.json").read_text())
    assert sidecar["code"]


def test_what_was_not_measured_is_said(tmp_path):
    columns = ["file", "machine"]
    for name in ("sums", "long_runs"):
        (tmp_path / f"test_{name}.py").touch()
    table = pd.DataFrame([("sums", "AMD EPYC, 2 cores")], columns=columns)
    text = benchmarks.remarks(table, tmp_path)
    assert text.startswith("Not measured here: long runs; ")
    assert text.endswith("No row is of a GPU: none was at hand.")
    table = pd.DataFrame([("sums", "a"), ("long_runs", "NVIDIA H100")], columns=columns)
    assert benchmarks.remarks(table, tmp_path) == ""
    assert "sums" in benchmarks.remarks(table[:0], tmp_path)


@pytest.mark.long
def test_a_benchmark_that_fails_is_not_stored(tmp_path):
    file = tmp_path / "test_fails.py"
    file.write_text("def test_it(benchmark):\n    benchmark(sum, [1])\n    assert False\n")
    with pytest.raises(RuntimeError, match=r"test_fails.py must pass and have a benchmark, got 1"):
        benchmarks.measure(file, tmp_path / "results")
    assert benchmarks.measured(tmp_path / "results").empty


@pytest.mark.parametrize(("seconds", "text"), [(2.0, "2 s"), (0.0123, "12.3 ms"), (4e-5, "40 µs")])
def test_times_are_in_a_unit_that_reads(seconds, text):
    assert benchmarks._time(seconds) == text
