"""Results on disk: what comes back, what is refused, and no moment at which a kill does harm."""

import ast
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import store
from lib.store import code as code_version
from lib.store import files as atomic_files
from lib.store import results
from lib.store.tables import parse, serialise
from tests.support.sweeping import forked

TABLE = pd.DataFrame({"x": [0.1, math.nan, -math.inf], "n": [1, 2, 3], "word": ["a", "", "1.0"]})
KNOWN: dict[str, Any] = {
    "parameters": {"snr": 0.1, "mode": "quick"},
    "code": "c0de",
    "seconds": 1.5,
}


def save(stem, table=TABLE, **changed):
    return store.save(stem, table, **{**KNOWN, **changed})


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(),
            st.integers(-(2**63), 2**63 - 1),
            st.booleans(),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),
        ),
        max_size=4,
    )
)
def test_any_table_of_the_four_types_comes_back(rows):
    columns: dict[str, Any] = {"f": "float64", "i": "int64", "b": "bool", "s": "str"}
    table = pd.DataFrame(rows, columns=[*columns]).astype(columns)
    back = parse(*serialise(table))
    pd.testing.assert_frame_equal(back, table, check_exact=True)
    signs = np.signbit(back["f"]) == np.signbit(table["f"])
    assert (signs | table["f"].isna()).all()


def test_what_was_saved_is_read_with_its_provenance(tmp_path):
    path = save(tmp_path / "new" / "point", seed=7, device="abacus")
    assert path == tmp_path / "new" / "point.json"
    result = store.read(tmp_path / "new" / "point", parameters=KNOWN["parameters"], code="c0de")
    pd.testing.assert_frame_equal(result.table, TABLE.astype({"word": "str"}), check_exact=True)
    known = result.provenance
    assert (known.parameters, known.seed, known.device) == (KNOWN["parameters"], 7, "abacus")
    assert {"python", "numpy", "torch"} <= {*known.versions}
    assert known.finished is not None
    assert known.finished.endswith("+00:00")
    assert known.stamp == f"{known.finished[:10]}, abacus, 2 s"
    assert {p.name for p in path.parent.iterdir()} == {"point.csv", "point.json"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"z": [1 + 2j]}), "'z'"),
        (pd.DataFrame({"word": ["a", None]}), "'word'"),
        (pd.DataFrame({"f": np.ones(2, dtype=np.float32)}), "'f'"),
        (pd.DataFrame({0: [1.0]}), "distinct strings"),
        (pd.DataFrame(), "at least one"),
        (pd.DataFrame({"x": [1.0]}, index=[5]), "index"),
    ],
)
def test_tables_that_would_not_come_back_are_refused(tmp_path, table, message):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "point", table)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("value", [math.nan, math.inf, [1, math.nan], {1}, np.int64(3), object()])
def test_parameters_that_are_not_json_are_refused_by_name(tmp_path, value):
    with pytest.raises(ValueError, match="'rate'"):
        save(tmp_path / "point", parameters={"rate": value})


def test_missing_result(tmp_path):
    with pytest.raises(store.MissingResult, match=r"point\.json"):
        store.read(tmp_path / "point")
    with pytest.raises(FileNotFoundError):
        store.read(tmp_path / "point")
    with pytest.raises(store.MissingResult, match="no results"):
        store.load(tmp_path)


def test_every_truncation_and_every_changed_byte_is_found(tmp_path):
    stem = tmp_path / "point"
    save(stem)
    for suffix in (".csv", ".json"):
        path = stem.with_suffix(suffix)
        whole = path.read_bytes()
        end = len(whole.rstrip()) if suffix == ".json" else len(whole)
        for length in range(0, end, 7):
            path.write_bytes(whole[:length])
            with pytest.raises(store.DamagedResult, match=f"point{suffix}"):
                store.read(stem)
            edited = bytearray(whole)
            edited[length] ^= 1
            path.write_bytes(edited)
            # White space between JSON's values is the one thing an edit may change unharmed.
            harmless = suffix == ".json" and bytes(edited).split() == whole.split()
            if not harmless:
                with pytest.raises(store.DamagedResult, match=f"point{suffix}"):
                    store.read(stem)
        path.write_bytes(whole)
    store.read(stem)
    stem.with_suffix(".csv").unlink()
    with pytest.raises(store.DamagedResult, match="missing"):
        store.read(stem)


def test_an_edited_sidecar_is_found_though_it_is_whole_json(tmp_path):
    path = save(tmp_path / "point")
    content = json.loads(path.read_text())
    content["parameters"]["snr"] = 0.2
    path.write_text(json.dumps(content))
    with pytest.raises(store.DamagedResult, match="edited"):
        store.read(tmp_path / "point", parameters=content["parameters"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"snr": 0.2, "mode": "quick"}, r"snr = 0\.1, wanted 0\.2"),
        ({"snr": 0.1}, r"mode = 'quick', wanted '\(none\)'"),
        ({"snr": 0.1, "mode": "quick", "seed": 1}, r"seed = '\(none\)', wanted 1"),
    ],
)
def test_other_parameters_are_named(tmp_path, parameters, message):
    save(tmp_path / "point")
    with pytest.raises(store.StaleResult, match=message):
        store.read(tmp_path / "point", parameters=parameters)


def test_one_is_one_point_zero_but_not_true(tmp_path):
    save(tmp_path / "point", parameters={"n": 1, "list": [1, 2.0]})
    store.read(tmp_path / "point", parameters={"n": 1.0, "list": (1, 2)})
    for other in ([1], [1, 3], [1, True], 1, [[1, 2]]):
        with pytest.raises(store.StaleResult, match="list = "):
            store.read(tmp_path / "point", parameters={"n": 1, "list": other})
    with pytest.raises(store.StaleResult, match="n = 1, wanted True"):
        store.read(tmp_path / "point", parameters={"n": True, "list": [1, 2]})


def test_other_code_is_named(tmp_path):
    save(tmp_path / "point")
    with pytest.raises(store.StaleResult, match="c0de != f00d: run `make sweep`"):
        store.read(tmp_path / "point", code="f00d")


def test_load_is_one_tidy_table(tmp_path):
    for number, size in enumerate([2, 3]):
        parameters = {"snr": number / 10, "grid": [1, number]}
        table = pd.DataFrame({"x": np.arange(size) * 1.5, "snr": number / 10})
        save(tmp_path / f"{number}", table, parameters=parameters, seed=number)
    (tmp_path / "2.failed.json").write_text("{}")
    table = store.load(tmp_path)
    assert list(table) == ["seed", "snr", "grid", "x"]
    assert list(table["x"]) == [0.0, 1.5, 0.0, 1.5, 3.0]
    assert list(table["grid"]) == [(1, 0)] * 2 + [(1, 1)] * 3


def test_load_sorts_numbers_as_numbers_and_before_words(tmp_path):
    for n in (10, 9.5, "a", -1, 100):
        save(tmp_path / str(n), pd.DataFrame({"x": [0.0]}), parameters={"n": n})
    assert list(store.load(tmp_path)["n"]) == [-1, 9.5, 10, 100, "a"]


def test_load_renames_a_result_that_has_a_parameters_name_and_another_value(tmp_path):
    save(tmp_path / "a", pd.DataFrame({"snr": [0.25]}), parameters={"snr": 0.246})
    table = store.load(tmp_path)
    assert dict(table.iloc[0]) == {"snr": 0.246, "snr_result": 0.25}


def test_load_names_all_damaged_and_does_not_mix_code(tmp_path):
    for name in "abc":
        save(tmp_path / name, code=name)
        if name != "a":
            with pytest.raises(store.StaleResult, match=r"a \(1 results\), b \(1 results\)"):
                store.load(tmp_path)
    assert len(store.load(tmp_path, code="b")) == len(TABLE)
    for name in "ac":
        (tmp_path / f"{name}.csv").write_text("x\n")
    with pytest.raises(store.DamagedResult, match=r"(?s)a\.csv.*c\.csv"):
        store.load(tmp_path)


def signed(stem, **changed):
    """Change a sidecar and sign it again, as a bug or another version of this package would."""
    path = stem.with_name(f"{stem.name}.json")
    content = {**json.loads(path.read_text()), **changed}
    del content["sha256"]
    kept = {name: value for name, value in content.items() if value is not ...}
    kept["sha256"] = results._checksum(kept)
    path.write_text(json.dumps(kept))


TYPES = {"x": "float64", "n": "int64", "word": "str"}


@pytest.mark.parametrize(
    "columns",
    [
        {**TYPES, "n": "float64"},
        {**TYPES, "n": "bool"},
        {**TYPES, "n": "str"},
        {**TYPES, "x": "int64"},
        {**TYPES, "word": "float64"},
        {**TYPES, "x": "object"},
        {**TYPES, "n": ["int64"]},
        {"x": "float64", "n": "int64"},
        {**TYPES, "more": "str"},
        {"n": "int64", "x": "float64", "word": "str"},
        [],
    ],
)
def test_column_types_that_are_not_the_tables_are_damage(tmp_path, columns):
    save(tmp_path / "point")
    signed(tmp_path / "point", columns=columns)
    with pytest.raises(store.DamagedResult, match="point"):
        store.read(tmp_path / "point")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": [3]}, r"newer version .*\['shape'\]"),
        ({"format": 2, "code": ...}, "newer version"),
        ({"versions": ...}, "no sidecar of this package, for its 'versions'"),
        ({"parameters": [1]}, "for its 'parameters'"),
        ({"seed": True}, "for its 'seed'"),
        ({"seconds": "long"}, "for its 'seconds'"),
    ],
)
def test_foreign_and_newer_sidecars_are_named_as_such(tmp_path, changed, message):
    save(tmp_path / "point")
    signed(tmp_path / "point", **changed)
    with pytest.raises(store.DamagedResult, match=message):
        store.load(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", '{"sha256": NaN}', "\0", "\udcff"])
def test_other_files_in_the_folder_are_damage_and_no_traceback(tmp_path, text):
    (tmp_path / "notes.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(store.DamagedResult, match=r"notes\.json"):
        store.load(tmp_path)


@pytest.mark.parametrize("end", [".json", ".csv"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "folder"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, end, make):
    save(tmp_path / "point")
    path = tmp_path / f"point{end}"
    path.unlink()
    make(path)
    with pytest.raises(store.DamagedResult, match=f"point{end}: no regular file"):
        store.load(tmp_path)


def test_a_copy_of_a_result_does_not_double_its_rows(tmp_path):
    save(tmp_path / "x")
    for end in (".csv", ".json"):
        shutil.copy(tmp_path / f"x{end}", tmp_path / f"x copy{end}")
    with pytest.raises(store.DamagedResult, match=r"x copy\.json: the same result as .*x\.json"):
        store.load(tmp_path)


# --- kills, full disks, two at once ---------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import pandas as pd
from lib import store

stem, version, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
calls = 0

def killing(call):
    def wrapped(*args, **options):
        global calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)
    return wrapped

def halving(file, text):
    "A write that a kill may find half done."
    global calls
    file.real_write(text[: len(text) // 2]); file.flush()
    killing(int)()
    return file.real_write(text[len(text) // 2 :])

def opening(path, mode):
    import io
    file = killing(io.open)(path, mode)
    class Halving:
        real_write, flush, fileno = file.write, file.flush, file.fileno
        write = halving
        def __enter__(self): return self
        def __exit__(self, *_): file.close()
    return Halving()

from lib.store import files as atomic_files
from lib.store import results
atomic_files.open = opening
for name in ("open", "close", "fsync", "replace", "unlink"):
    setattr(os, name, killing(getattr(os, name)))
for run in range(2):
    store.save(stem, pd.DataFrame({"x": [float(version)] * 50}),
               parameters={"version": version}, code="c", seconds=0.0)
    version += 1
print(calls)
"""


def kill_at(stem, count):
    """Save versions 1 and 2 in a child that kills itself at its `count`-th system call."""

    def body():
        sys.argv = ["", str(stem), "1", str(count)]
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - dies with the child
        exec(compile(KILLED, "killed", "exec"), {"__name__": "killed"})

    return forked(body)


@pytest.mark.long
def test_a_kill_at_every_system_call_leaves_the_old_result_the_new_or_none(tmp_path):
    seen = set()
    for count in range(1, 200):
        stem = tmp_path / str(count) / "point"
        save(stem, pd.DataFrame({"x": [0.0]}), parameters={"version": 0})
        status = kill_at(stem, count)
        try:
            result = store.read(stem)
            version = result.provenance.parameters["version"]
            assert set(result.table["x"]) == {float(version)}
            seen.add(version)
        except store.MissingResult:
            seen.add(None)
        save(stem)
        store.read(stem, parameters=KNOWN["parameters"])
        assert {p.name for p in stem.parent.iterdir()} == {"point.csv", "point.json"}
        if not os.WIFSIGNALED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert not os.WIFSIGNALED(status), "the child was never let through"
    assert count > 20
    assert seen == {None, 0, 1, 2}


@pytest.mark.parametrize("nth", [1, 2])
def test_a_full_disk_leaves_the_old_result_and_no_litter(tmp_path, monkeypatch, nth):
    save(tmp_path / "point")
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == nth:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "point", code="new")
    assert store.read(tmp_path / "point").provenance.code == "c0de"
    assert {p.name for p in tmp_path.iterdir()} == {"point.csv", "point.json"}


@pytest.mark.long
def test_writers_and_readers_of_one_result_at_once(tmp_path):
    stem = tmp_path / "point"

    def write(version):
        for _ in range(20):
            table = pd.DataFrame({"x": np.full(300, float(version))})
            save(stem, table, parameters={"version": version})

    writers = []
    for version in range(4):
        child = os.fork()
        if child == 0:
            write(version)
            os._exit(0)
        writers.append(child)
    whole = 0
    while writers:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done:
            writers.remove(done)
            assert status == 0
        try:
            result = store.read(stem)
        except store.MissingResult:
            continue
        assert set(result.table["x"]) == {float(result.provenance.parameters["version"])}
        whole += 1
    assert whole > 0
    store.read(stem)
    assert {p.name for p in tmp_path.iterdir()} == {"point.csv", "point.json"}


def test_a_lock_is_exclusive_though_its_file_is_removed_on_release(tmp_path):
    path, inside, most = tmp_path / ".lock", [], []

    def work():
        for _ in range(100):
            with atomic_files.locked(path):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert not path.exists()
    with (
        atomic_files.locked(path) as held,
        atomic_files.locked(path, wait=False) as other,
    ):
        assert held
        assert not other


# --- code hash ------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of its own: lib/{a,b,c}.py, where a imports b."""
    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    (tmp_path / "lib").mkdir()
    for name, text in {"__init__": "", "a": "from lib import b\n", "b": "x = 1\n", "c": ""}.items():
        (tmp_path / "lib" / f"{name}.py").write_text(text)
    (tmp_path / "page.py").write_text("from lib.a import b\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "changes"),
    [
        ("lib/b.py", "x = 2\n", True),
        ("lib/b.py", "x = 1.0\n", True),
        ("lib/b.py", "x = True\n", True),
        ("lib/b.py", "def f():\n    pass\nx = 1\n", True),
        ("lib/b.py", '"""Docstring."""\n# comment\nx = (\n    1\n)\n', False),
        ("lib/c.py", "x = 2\n", False),
        ("page.py", "from lib.a import b\ny = 1\n", True),
        ("page.py", "from lib.a import (b)  # comment\n", False),
        ("page.py", "from lib.a import b\nfrom lib import c\n", True),
    ],
)
def test_code_hash_changes_with_what_is_computed(project, name, text, changes):
    before = store.code_hash(project / "page.py")
    (project / name).write_text(text)
    assert (store.code_hash(project / "page.py") != before) == changes


def test_docstrings_of_functions_and_classes_do_not_count(project):
    module = project / "lib" / "b.py"
    module.write_text("class A:\n    'a'\n    def f(self):\n        'b'\n        return 'b'\n")
    before = store.code_hash(module)
    module.write_text("class A:\n    'A'\n    def f(self):\n        'B'\n        return 'b'\n")
    assert store.code_hash(module) == before
    module.write_text("class A:\n    'A'\n    def f(self):\n        'B'\n        return 'c'\n")
    assert store.code_hash(module) != before


def test_page_and_paired_notebook_hash_alike_and_the_address_does_not_count(tmp_path):
    pages = code_version.ROOT / "book"
    page = pages / "coherence.md"
    assert store.code_hash(page) == store.code_hash(page.with_suffix(".ipynb"))
    moved = tmp_path / "coherence.md"
    installs = r"\1%pip install git+https://github.com/someone/fork"
    moved.write_text(re.sub(r"(?m)^( *)raise ModuleNotFoundError.*", installs, page.read_text()))
    assert moved.read_text() != page.read_text()
    assert store.code_hash(moved) == store.code_hash(page)
    moved.write_text(page.read_text().replace("seed = 0", "seed = 1"))
    assert store.code_hash(moved) != store.code_hash(page)


def test_code_hash_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        store.code_hash()
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"a\.txt"):
        store.code_hash(tmp_path / "a.txt")


SYNTAX = """
import math as m
def f(a: int, *b, c=None, **d) -> "float":
    'docstring'
    return {**d, "k": [f"{a!r:>{c}} {b}", -1.5e300, b"\\x00", ..., 1j, None]}
x: int = 1
"""


class EmptyParts(ast.NodeTransformer):
    """What Python 3.12 adds to formatted strings, in whichever version runs."""

    def visit_JoinedStr(self, node):
        self.generic_visit(node)
        node.values.append(ast.Constant(""))
        return node


def test_code_hash_is_the_same_in_every_version_of_python(tmp_path, monkeypatch):
    """The value is fixed here; the test runs wherever the project is tested."""
    (tmp_path / "a.py").write_text(SYNTAX)
    assert store.code_hash(tmp_path / "a.py") == "072450b7e3ef4d39"
    (tmp_path / "b.py").write_text(SYNTAX + "# parsed anew\n")
    parse = ast.parse
    monkeypatch.setattr(ast, "parse", lambda *a, **k: EmptyParts().visit(parse(*a, **k)))
    assert store.code_hash(tmp_path / "b.py") == "072450b7e3ef4d39"


def test_nothing_is_pickled():
    for name in ("__init__", "results", "files", "tables", "code"):
        assert "pickle" not in (Path(store.__file__).parent / f"{name}.py").read_text().replace(
            "Nothing is pickled", ""
        )
