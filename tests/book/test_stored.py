import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from lib import store
from lib.book import benign_overfitting, deletion, heat_maps
from lib.book import stored as stored_results
from lib.book.benign_overfitting import BenignTask
from lib.book.rounding import rounded
from lib.experiments.benign_overfitting import error_map


@dataclass(frozen=True)
class Doubling:
    """A table of one number, and a file that counts how often it was computed."""

    value: float
    log: str
    cost: float = 1.0

    def parameters(self) -> dict[str, Any]:
        return {"value": self.value}

    def table(self, device: str | None) -> pd.DataFrame:
        with Path(self.log).open("a") as log:
            log.write("x")
        return rounded(pd.DataFrame({"double": [2 * self.value + 1e-9]}))


def test_only_what_is_missing_damaged_or_stale_is_computed(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "results"
    named = {"a": Doubling(1.0, str(log)), "b": Doubling(2.0, str(log))}
    assert stored_results.bring_up_to_date(named, folder, "code") == ["a", "b"]
    assert stored_results.bring_up_to_date(named, folder, "code") == []
    assert log.read_text() == "xx"
    found = stored_results.read(named, folder, "code")
    assert found["b"].table["double"].tolist() == [4.0]  # five digits
    (folder / "a.csv").write_text("double\n3.0\n")
    assert stored_results.bring_up_to_date(named, folder, "code") == ["a"]
    named["b"] = Doubling(5.0, str(log))
    with pytest.raises(store.StaleResult, match="value"):
        stored_results.read(named, folder, "code")
    assert stored_results.bring_up_to_date(named, folder, "code") == ["b"]
    assert stored_results.bring_up_to_date(named, folder, "other code") == ["a", "b"]


def test_what_takes_long_is_computed_when_named_and_shown_where_it_is(tmp_path, monkeypatch):
    log, folder = tmp_path / "log", tmp_path / "deletion"
    one, two = (Doubling(value, str(log)) for value in (1.0, 2.0))
    monkeypatch.setattr(stored_results, "RESULTS", tmp_path)
    monkeypatch.setattr(stored_results, "code_of", lambda chapter: "code")
    monkeypatch.setattr(deletion, "published", lambda: {"one": one})
    monkeypatch.setattr(deletion, "long", lambda: {"two": two})
    stored_results.main(["deletion"])
    assert stored_results.present(deletion) == {}
    stored_results.main(["deletion", "two"])
    assert stored_results.present(deletion)["two"].table["double"].tolist() == [4.0]
    assert {path.stem for path in folder.iterdir()} == {"one", "two"}


def map_of(task):
    """The benign-overfitting chapter's map and its provenance."""
    found = stored_results.stored_or_live(benign_overfitting, "map", task)
    return task.error_map(found.table), found.provenance


def test_the_kou_map_is_read_where_it_is_stored_and_computed_where_not(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_results, "RESULTS", tmp_path)
    task = BenignTask(norm_step=5.0, dim_step=500, repeats=2, seed=3)
    live, _ = map_of(task)
    expected = error_map([0.0, 5.0], [100, 600], repeats=2, seed=3)
    torch.testing.assert_close(live.test_error, expected.test_error, rtol=1e-4, atol=0)
    code = stored_results.code_of(benign_overfitting)
    stored_results.bring_up_to_date({"map": task}, tmp_path / "benign_overfitting", code)
    stored, made = map_of(task)
    assert torch.equal(stored.test_error, live.test_error)
    assert torch.equal(stored.train_loss, live.train_loss)
    assert made.finished is not None
    other, made = map_of(BenignTask(norm_step=5.0, dim_step=500, repeats=2, seed=4))
    assert made.finished is None
    assert not torch.equal(other.train_loss, live.train_loss)


def test_a_stored_kou_map_of_other_code_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_results, "RESULTS", tmp_path)
    task = BenignTask(norm_step=5.0, dim_step=500, repeats=1)
    stored_results.bring_up_to_date({"map": task}, tmp_path / "benign_overfitting", "other code")
    with pytest.raises(store.StaleResult, match="make sweep"):
        map_of(task)


@pytest.mark.parametrize("chapter", [heat_maps, benign_overfitting])
@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("book/{chapter}.py", "rounded(", "(", True),
        ("book/rounding.py", "5g", "6g", True),
        ("cnn/coefficients.py", "min=0", "min=1", True),
        ("book/{chapter}.py", '"""One row per', '"""Another row per', False),
        ("store/results.py", "edited since", "changed since", False),
        ("store/tables.py", "must be distinct", "should be distinct", False),
        ("book/stored.py", "computing live", "computing here", False),
    ],
)
def test_what_shapes_a_table_makes_it_stale_and_nothing_else(
    chapter, file, old, new, stale, tmp_path, monkeypatch
):
    """Edited in a copy of `lib/`, one place at a time."""
    name = chapter.__name__.rpartition(".")[2]
    before = stored_results.code_of(chapter)
    shutil.copytree(stored_results.RESULTS.parents[1] / "lib", tmp_path / "lib")
    monkeypatch.setattr("lib.store.code.ROOT", tmp_path)
    copy = tmp_path / "lib" / "book" / f"{name}.py"
    assert store.code_hash(copy) == before
    edited = tmp_path / "lib" / file.format(chapter=name)
    text = edited.read_text()
    assert old in text
    edited.write_text(text.replace(old, new))
    assert (store.code_hash(copy) != before) == stale


def test_the_command_refuses_names_that_are_no_results(capsys):
    with pytest.raises(SystemExit):
        stored_results.main(["heat_maps", "mixin"])
    assert "names must be among mixing, " in capsys.readouterr().err
