"""Results on disk: a tidy table as CSV, and beside it a JSON sidecar that says how it came about.

A result exists if and only if its sidecar does. The sidecar holds checksums of the table and of
itself, so a truncated or edited file is found out and never read as if it were whole. Writing needs
POSIX file locks (Linux, macOS); reading works everywhere. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from stat import S_ISREG
from typing import Any

import pandas as pd

from lib.store.code import code_hash as code_hash
from lib.store.files import replace_files
from lib.store.tables import parse, serialise

LIBRARIES = ("unlearning-stability", "numpy", "scipy", "torch", "pandas")
FAILED = ".failed.json"
# What a sidecar holds besides its own checksum, with the types it may have.
FIELDS: dict[str, tuple[type, ...]] = {
    "parameters": (dict,),
    "code": (str,),
    "seed": (int, type(None)),
    "device": (str,),
    "seconds": (float, int),
    "finished": (str,),
    "versions": (dict,),
    "columns": (dict,),
    "table_sha256": (str,),
}


class MissingResult(ValueError, FileNotFoundError):
    """No such result is stored."""


class DamagedResult(ValueError):
    """A stored file is not what was written: truncated, edited, or half replaced."""


class StaleResult(ValueError):
    """A stored result is whole, but of other code or other parameters than asked for."""


@dataclass(frozen=True)
class Provenance:
    """How a result came about; `seconds` of wall time, `finished` an ISO time in UTC.

    One that is not stored but was computed just now has no `finished`.
    """

    parameters: dict[str, Any]
    code: str
    versions: dict[str, str]
    device: str
    seconds: float
    seed: int | None
    finished: str | None

    @property
    def stamp(self) -> str:
        """When and on what, for a caption: `2026-03-01, AMD EPYC, 2 cores, 130 s`."""
        return f"{(self.finished or 'now')[:10]}, {self.device}, {self.seconds:.0f} s"


@dataclass(frozen=True)
class Result:
    """A tidy table and its provenance."""

    table: pd.DataFrame
    provenance: Provenance


def save(
    stem: Path,
    table: pd.DataFrame,
    *,
    parameters: dict[str, Any],
    code: str,
    seconds: float,
    device: str | None = None,
    seed: int | None = None,
    versions: dict[str, str] | None = None,
) -> Path:
    """Write `stem.csv` and `stem.json`, atomically, and return the latter's path.

    Killed at any moment, this leaves the old result, the new one or none, never a mixture; likewise
    two writers at once. Both files are on the disk, not in its cache, when it returns.

    Args:
        stem: the path without suffix; its folder is created.
        table: columns of float64 (NaN and ±inf included), int64, bool or str, named by strings;
            the index must be 0, 1, 2, …
        parameters: JSON values (numbers, strings, bools, None, lists, dictionaries).
        code: from `code_hash`.
        seconds: wall time that computing took.
        device: in words; by default this machine's processor.
        seed: if there is one.
        versions: of the libraries where it was computed; by default those of this process.

    Raises:
        ValueError: a table or parameters that would not come back as they are.
        OSError: the disk refuses; what was stored before is still there.
    """
    stem = Path(stem)
    text, types = serialise(table)
    content = {
        "parameters": _plain(parameters),
        "code": code,
        "seed": seed,
        "device": device or this_device(),
        "seconds": float(seconds),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _plain(versions or this_software()),
        "columns": types,
        "table_sha256": hashlib.sha256(text).hexdigest(),
    }
    content["sha256"] = _checksum(content)
    sidecar = json.dumps(content, indent=1, allow_nan=False).encode() + b"\n"
    replace_files({_beside(stem, ".csv"): text, _sidecar(stem): sidecar})
    return _sidecar(stem)


def read(
    stem: Path, *, parameters: dict[str, Any] | None = None, code: str | None = None
) -> Result:
    """The result stored at `stem`, checked.

    Args:
        stem: as given to `save`.
        parameters: if given, the result must have exactly these.
        code: if given, the `code_hash` it must have.

    Raises:
        MissingResult: there is none.
        DamagedResult: a checksum does not match, or a file is missing or no longer parses.
        StaleResult: other parameters or other code; the message names the differences.
    """
    result = _read_pair(Path(stem))
    if parameters is not None:
        _require_parameters(stem, result.provenance.parameters, _plain(parameters))
    if code is not None and result.provenance.code != code:
        raise StaleResult(
            f"{_sidecar(Path(stem))}: computed by other code, "
            f"code hash {result.provenance.code} != {code}: run `make sweep`"
        )
    return result


def _read_pair(stem: Path) -> Result:
    path = _sidecar(stem)
    while True:
        try:
            text = _bytes(path)
        except FileNotFoundError:
            raise MissingResult(f"{path}: no such result; run `make sweep`") from None
        try:
            return _checked(stem, text)
        except DamagedResult:
            # A writer may have replaced the table in between; then the sidecar has changed too.
            with suppress(FileNotFoundError):
                if _bytes(path) == text:
                    raise


def _bytes(path: Path) -> bytes:
    """A regular file's content: opening another, such as a pipe, may never return."""
    try:
        if not S_ISREG(path.stat().st_mode):
            raise DamagedResult(f"{path}: no regular file")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedResult(f"{path}: cannot be read, {error.strerror}") from None


def _checked(stem: Path, text: bytes) -> Result:
    path, table = _sidecar(stem), _beside(stem, ".csv")
    try:
        content = json.loads(text)
        checksum = content.pop("sha256")
        whole = checksum == _checksum(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedResult(f"{path}: not a whole sidecar; run `make sweep`") from None
    if not whole:
        raise DamagedResult(f"{path}: edited since it was written; run `make sweep`")
    if newer := {*content} - {*FIELDS}:
        raise DamagedResult(
            f"{path}: written by a newer version of this package, which has {sorted(newer)} in "
            "addition: update, or run `make sweep`"
        )
    for name, kind in FIELDS.items():
        if type(content.get(name)) not in kind:
            raise DamagedResult(f"{path}: no sidecar of this package, for its {name!r}")
    try:
        rows = _bytes(table)
    except FileNotFoundError:
        raise DamagedResult(f"{table}: missing, though its sidecar is there") from None
    if hashlib.sha256(rows).hexdigest() != content.pop("table_sha256"):
        raise DamagedResult(f"{table}: truncated or edited; run `make sweep`")
    try:
        return Result(parse(rows, content.pop("columns")), Provenance(**content))
    except (ValueError, TypeError, OverflowError) as error:  # types that the table does not have
        raise DamagedResult(f"{table}: not the table its sidecar describes, {error}") from None


def _require_parameters(stem: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    missing = object()
    differences = [
        f"{name} = {stored.get(name, '(none)')!r}, wanted {wanted.get(name, '(none)')!r}"
        for name in sorted({*stored, *wanted})
        if not _equal(stored.get(name, missing), wanted.get(name, missing))
    ]
    if differences:
        raise StaleResult(
            f"{_sidecar(Path(stem))}: other parameters, {'; '.join(differences)}: run `make sweep`"
        )


def results_below(folder: Path) -> list[Path]:
    """Stems of all results below a folder, sorted; hidden files and failed points are none."""
    return sorted(
        path.with_suffix("")
        for path in Path(folder).rglob("*.json")
        if not path.name.startswith(".") and not path.name.endswith(FAILED)
    )


def load(folder: Path, *, code: str | None = None) -> pd.DataFrame:
    """All results below a folder as one tidy table: parameters first, then what was computed.

    Sorted by the parameters. A result's column that has a parameter's name and its values is kept
    once; with other values it is renamed `<name>_result`. A list among the parameters becomes a
    tuple.

    Args:
        folder: where `save` wrote.
        code: if given, only results of this code hash.

    Raises:
        MissingResult: there is no result.
        DamagedResult: naming all that are damaged, and all that stand there twice (of the same
            code, parameters, seed and columns).
        StaleResult: without `code`, results of more than one code hash.
    """
    results, damaged = [], []
    stems: dict[str, Path] = {}
    for stem in results_below(folder):
        try:
            result = read(stem)
        except DamagedResult as error:
            damaged.append(str(error))
            continue
        known = result.provenance
        other = stems.setdefault(
            json.dumps([known.code, known.seed, known.parameters, list(result.table)]), stem
        )
        if other != stem:
            damaged.append(f"{_sidecar(stem)}: the same result as {_sidecar(other)}; remove one")
        results.append(result)
    if damaged:
        raise DamagedResult("\n".join(damaged))
    results = [result for result in results if code in (None, result.provenance.code)]
    if not results:
        raise MissingResult(f"{folder}: no results" + (f" of code {code}" if code else ""))
    hashes = [result.provenance.code for result in results]
    if len(set(hashes)) > 1:
        counts = ", ".join(f"{code} ({hashes.count(code)} results)" for code in sorted({*hashes}))
        raise StaleResult(
            f"{folder}: results of several versions of the code, {counts}: give code="
        )
    return _one_table(sorted(results, key=_order))


def _one_table(results: list[Result]) -> pd.DataFrame:
    names = {name for result in results for name in _parameters(result)}
    clashing = {
        name
        for result in results
        for name in names & {*result.table.columns}
        if any(value != _parameters(result).get(name) for value in result.table[name])
    }
    tables = []
    for result in results:
        computed = result.table.rename(columns={name: f"{name}_result" for name in clashing})
        head = {
            name: [tuple(value) if isinstance(value, list) else value] * len(computed)
            for name, value in _parameters(result).items()
        }
        rest = computed.drop(columns=[*head], errors="ignore")
        tables.append(pd.concat([pd.DataFrame(head, index=rest.index), rest], axis=1))
    return pd.concat(tables, ignore_index=True)


def _order(result: Result) -> list[tuple[str, int, float, str]]:
    """Results in order of their parameters: numbers as numbers, everything else as text."""
    return [
        (name, 0, value, "") if type(value) in (int, float) else (name, 1, 0, json.dumps(value))
        for name, value in _parameters(result).items()
    ]


def _parameters(result: Result) -> dict[str, Any]:
    known = result.provenance
    if known.seed is None or "seed" in known.parameters:
        return known.parameters
    return {"seed": known.seed, **known.parameters}


def _sidecar(stem: Path) -> Path:
    return _beside(stem, ".json")


def _beside(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def _checksum(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters as JSON gives them back; refuses what would not come back, by name."""
    for name, value in parameters.items():
        try:
            if not isinstance(name, str):
                raise TypeError
            json.dumps(value, allow_nan=False)
        except (ValueError, TypeError):
            raise ValueError(
                f"parameter {name!r} must be a JSON value (finite number, string, bool, None, "
                f"list or dictionary of these), got {value!r}"
            ) from None
    return json.loads(json.dumps(parameters))


def _equal(left: Any, right: Any) -> bool:
    """Whether values are the same as parameters: 1 is 1.0, but neither is True."""
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def this_software() -> dict[str, str]:
    """The versions of Python and of the libraries that shape results, as installed here."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def this_device() -> str:
    """The processor's name, as far as the operating system tells it, and its number of cores."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores"
