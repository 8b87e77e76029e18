"""One point of a sweep: run the notebook with papermill, and take its numbers as one row."""

from __future__ import annotations

import json
import os
import re
import site
import tempfile
import time
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

import papermill
from papermill.exceptions import PapermillExecutionError, strip_color

from lib.store import code as code_version
from lib.store.claims import Scalar, claims_in, literal
from lib.store.results import this_device

# One thread per kernel: points are run side by side, and one thread gives the same bits everywhere.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}
TEXT = "text/plain"
# NumPy writes np.float64(0.1), np.True_ and np.float64(inf).
NUMPY = re.compile(r"^(?:np|numpy)\.(?:\w+\((.*)\)|(True|False)_)$")


class CodeChanged(RuntimeError):
    """`lib` is not what the sweep was planned with."""


def run_point(
    name: str,
    notebook: str,
    code: str,
    given: dict[str, Any],
    folder: str,
    output: str | None = None,
) -> dict[str, Any]:
    """Run a notebook with some parameters, here and now, in a kernel of its own.

    Args:
        name: of the notebook, for its temporary copy.
        notebook: its text (JSON).
        code: the hash it had when the sweep was planned, `lib` included.
        given: parameters for papermill.
        folder: the kernel's working directory, where it exists on this machine.
        output: where papermill keeps the executed notebook, if anywhere; any address it knows.

    Returns:
        `row` (name to scalar) or `failure` (cell, source, error, traceback), `seconds`, `device`.

    Raises:
        CodeChanged: this machine's `lib` is another than the sweep was planned with, or changed
            while the point ran.
    """
    _require_code(notebook, code)
    _set_environment()
    begin = time.perf_counter()
    outcome = _executed(name, notebook, given, folder, output)
    seconds = time.perf_counter() - begin
    _require_code(notebook, code)
    return {**outcome, "seconds": seconds, "device": f"{this_device()}, one thread"}


def _executed(
    name: str, notebook: str, given: dict[str, Any], folder: str, output: str | None
) -> dict[str, Any]:
    options: dict[str, Any] = {"progress_bar": False, "request_save_on_cell_execute": False}
    options["extra_arguments"] = ["--log-level=CRITICAL"]  # failures are recorded, not printed
    if Path(folder).is_dir():  # not so on a cluster's worker without the sweep's file system
        options["resources"] = {"metadata": {"path": folder}}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, f"{name}.ipynb")
        path.write_text(notebook, "utf-8")
        try:
            done = _started(str(path), output, given, options)
            return {"row": glued_scalars(done)}
        except PapermillExecutionError as error:
            return {"failure": _cell_failure(error, json.loads(notebook), bool(given))}
        except Exception as error:  # a kernel that died, an output that cannot be written
            return {"failure": failure(type(error).__name__, str(error))}


def _started(path: str, output: str | None, given: dict[str, Any], options: dict[str, Any]) -> Any:
    """papermill's run; once more if the kernel never came up: two may have chosen one port."""
    try:
        return papermill.execute_notebook(path, output, given, **options)
    except RuntimeError as error:
        if "before replying" not in str(error):
            raise
        return papermill.execute_notebook(path, output, given, **options)


def glued_scalars(notebook: Any) -> dict[str, Scalar]:
    """Numbers, bools and strings of an executed notebook, by name.

    Those of its claims (`lib.book.claim`), to the last bit, and those it glued (`myst_nb.glue`),
    with the digits that were shown. Values of another kind, such as tables, are left out.

    Raises:
        ValueError: there is none, or one name has two values.
    """
    row: dict[str, Scalar] = {}
    for claim in claims_in(notebook):
        for name, value in claim.numbers.items():
            if isinstance(value, Scalar):
                _add(row, name, value, exact=True)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            label = output.get("metadata", {}).get("scrapbook")
            text = label and output["data"].get(label.get("mime_prefix", "") + TEXT)
            value = literal(NUMPY.sub(r"\1\2", text)) if text else None
            if value is not None:
                _add(row, label["name"], value, exact=False)
    if not row:
        raise ValueError(
            "the notebook claimed or glued no number, bool or string: nothing to store"
        )
    return row


def _add(row: dict[str, Scalar], name: str, value: Scalar, exact: bool) -> None:
    known = row.setdefault(name, value)
    same = type(known) is type(value) and (known == value or repr(known) == repr(value))
    if not same and (exact or not _rounds_to(known, value)):
        raise ValueError(f"the notebook has two values of {name!r}: {known!r} and {value!r}")


def _rounds_to(known: Scalar, shown: Scalar) -> bool:
    """Whether a number is what another shows, to the latter's last digit."""
    if not isinstance(known, float) or not isinstance(shown, int | float):
        return False
    digit = Decimal(repr(shown)).as_tuple().exponent
    return isinstance(digit, int) and abs(known - shown) <= 0.5001 * 10.0**digit


def failure(error: str, message: str) -> dict[str, Any]:
    """A failure that is no cell's own."""
    return {"cell": None, "source": "", "error": error, "message": message, "traceback": ""}


def _cell_failure(
    error: PapermillExecutionError, notebook: dict[str, Any], injected: bool
) -> dict[str, Any]:
    """A cell's failure; the cell is counted from 0 as the notebook has it, not papermill's copy."""
    tags = [cell["metadata"].get("tags", []) for cell in notebook["cells"]]
    places = [place for place, tag in enumerate(tags) if "parameters" in tag]
    added = injected and not any("injected-parameters" in tag for tag in tags)
    return {
        "cell": error.cell_index - (added and error.cell_index > places[0]),
        "source": error.source,
        "error": error.ename,
        "message": error.evalue,
        "traceback": strip_color("\n".join(error.traceback)),
    }


def _set_environment() -> None:
    """What kernels inherit: one thread, and the same `lib` as here, however it was found."""
    os.environ.update(ENVIRONMENT)
    root, before = str(code_version.ROOT), os.environ.get("PYTHONPATH", "")
    if root not in site.getsitepackages() and root not in before.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, before]))


def _require_code(notebook: str, code: str) -> None:
    found = code_version.hash_of([_code(notebook)])
    if found != code:
        raise CodeChanged(
            f"lib in {code_version.ROOT} gives the notebook the code hash {found}, not {code} as "
            "when the sweep was planned: lib differs on this machine, or changed since"
        )


@lru_cache(maxsize=4)
def _code(notebook: str) -> str:
    return code_version.notebook_code(json.loads(notebook))
