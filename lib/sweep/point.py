"""One point of a sweep: run the notebook with papermill, and take its numbers as one row."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, papermill_engines
from papermill.exceptions import PapermillExecutionError, strip_color

from lib.store import code as code_version
from lib.store.claims import GLUED, Scalar, claims_in, literal
from lib.store.results import this_device, this_software
from lib.sweep.points import planned_code

# One thread per kernel: points are run side by side, and one thread gives the same bits everywhere.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}
TEXT = "text/plain"
# The first cell of each run: glued numbers travel to the last bit.
KEEP = "from lib.store.claims import keep_glued\n\nkeep_glued()"
MOST_OUTPUT = 10_000_000  # characters that a notebook may put out
TEMPORARY = "unlearning-sweep-"  # and the number of the process that owns it
# NumPy writes np.float64(0.1), np.True_ and np.float64(inf).
NUMPY = re.compile(r"^(?:np|numpy)\.(?:\w+\((.*)\)|(True|False)_)$")


class CodeChanged(RuntimeError):
    """`lib`, a library or a file that the notebook reads is not what the sweep was planned with."""


@lru_cache(maxsize=1)
def software() -> dict[str, str]:
    """Versions of the libraries here, and the hash of the code that runs points."""
    return {**this_software(), "runner": code_version.hash_of([], [Path(__file__).resolve()])}


def attested(call: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a call gave, and the software of the machine that it ran on."""
    return {**call(*arguments), "software": software()}


def require_same(found: dict[str, str]) -> None:
    """Refuse a machine whose libraries, or code that runs points, are others than here.

    Raises:
        CodeChanged: naming them.
    """
    here = software()
    names = {*found, *here} - {"unlearning-stability"}  # the code hash says more than its version
    others = [
        f"{name} {found.get(name, 'none')} instead of {here.get(name, 'none')}"
        for name in sorted(names)
        if found.get(name) != here.get(name)
    ]
    if others:
        raise CodeChanged(f"a worker has {', '.join(others)}")


class TooMuchOutput(RuntimeError):
    """A notebook put out more than `MOST_OUTPUT` characters."""


def run_point(
    name: str,
    notebook: str,
    code: str,
    given: dict[str, Any],
    folder: str,
    output: str | None = None,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Run a notebook with some parameters, here and now, in a kernel of its own.

    Args:
        name: of the notebook, for its temporary copy.
        notebook: its text (JSON).
        code: the hash it had when the sweep was planned, `lib` included.
        given: parameters for papermill.
        folder: the kernel's working directory, where it exists on this machine.
        output: where papermill keeps the executed notebook, if anywhere; any address it knows.
        timeout: seconds that its cells may take together.

    Returns:
        `row` (name to scalar) or `failure` (cell, source, error, traceback), `seconds`, `device`.

    Raises:
        CodeChanged: this machine's `lib` is another than the sweep was planned with, or changed
            while the point ran.
    """
    _require_code(notebook, code)
    _set_environment()
    begin = time.perf_counter()
    outcome = _executed(name, notebook, given, folder, output, timeout)
    seconds = time.perf_counter() - begin
    _require_code(notebook, code)
    return {**outcome, "seconds": seconds, "device": f"{this_device()}, one thread"}


def _executed(
    name: str,
    notebook: str,
    given: dict[str, Any],
    folder: str,
    output: str | None,
    timeout: float | None,
) -> dict[str, Any]:
    options: dict[str, Any] = {"progress_bar": False, "request_save_on_cell_execute": False}
    if timeout is not None:
        end = time.monotonic() + timeout
        options["timeout_func"] = lambda cell: max(end - time.monotonic(), 0.01)
    options["extra_arguments"] = ["--log-level=CRITICAL"]  # failures are recorded, not printed
    if Path(folder).is_dir():  # not so on a cluster's worker without the sweep's file system
        options["resources"] = {"metadata": {"path": folder}}
    with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}{os.getpid()}-") as temporary:
        path = Path(temporary, f"{name}.ipynb")
        path.write_text(_keeping(notebook), "utf-8")
        try:
            done = _started(str(path), output, given, options)
            return {"row": glued_scalars(done)}
        except PapermillExecutionError as error:
            return {"failure": _cell_failure(error, json.loads(notebook), bool(given))}
        except CellTimeoutError:
            message = f"its cells took more than {timeout:g} s (--timeout)"
            return {"failure": failure("TimeoutError", message)}
        except Exception as error:  # a kernel that died, an output that cannot be written
            return {"failure": failure(type(error).__name__, str(error))}


def _keeping(notebook: str) -> str:
    """A notebook with the cell `KEEP` before all others."""
    node = nbformat.reads(notebook, as_version=4)
    node.cells.insert(0, nbformat.v4.new_code_cell(KEEP, id="keep-glued"))
    if node.nbformat_minor < 5:  # cells had no names yet
        del node.cells[0]["id"]
    return nbformat.writes(node)


class _Client(PapermillNotebookClient):
    """Runs cells, and ends the kernel of a notebook that puts out too much."""

    room = MOST_OUTPUT

    def process_message(self, msg: dict[str, Any], *where: Any, **more: Any) -> Any:
        self.room -= len(str(msg["content"]))
        if self.room < 0 and self.task_poll_for_reply is not None:
            self.task_poll_for_reply.cancel()
        return super().process_message(msg, *where, **more)

    def papermill_execute_cells(self) -> None:
        try:
            super().papermill_execute_cells()
        except DeadKernelError:
            if self.room >= 0:
                raise
            raise TooMuchOutput(f"more than {MOST_OUTPUT:,} characters of output") from None


class _Engine(Engine):
    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
        """Papermill's own engine, but for the client."""
        wanted = ("extra_arguments", "resources", "timeout_func")
        kept = {name: options[name] for name in wanted if name in options}
        return _Client(nb_man, kernel_name=kernel_name, **kept).execute()


papermill_engines.register("lib.sweep", _Engine)


def remove_dead_folders() -> None:
    """Remove temporary folders of points whose processes were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        with suppress(ValueError, PermissionError):
            try:
                os.kill(int(path.name.removeprefix(TEMPORARY).partition("-")[0]), 0)
            except ProcessLookupError:
                shutil.rmtree(path, ignore_errors=True)


def _started(path: str, output: str | None, given: dict[str, Any], options: dict[str, Any]) -> Any:
    """papermill's run; once more if the kernel never came up: two may have chosen one port."""
    options = {"engine_name": "lib.sweep", **options}
    try:
        return papermill.execute_notebook(path, output, given, **options)
    except RuntimeError as error:
        if "before replying" not in str(error):
            raise
        return papermill.execute_notebook(path, output, given, **options)


def glued_scalars(notebook: Any) -> dict[str, Scalar]:
    """Numbers, bools and strings of an executed notebook, by name.

    Those of its claims (`lib.book.claim`) and those it glued (`myst_nb.glue`), to the last bit; for
    lack of that (`keep_glued`), with the digits that were shown. Values of another kind, such as
    tables, are left out.

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
            metadata = output.get("metadata", {})
            label, kept = metadata.get("scrapbook"), metadata.get(GLUED)
            text = label and output["data"].get(label.get("mime_prefix", "") + TEXT)
            value = literal(kept or NUMPY.sub(r"\1\2", text)) if text else None
            if value is not None:
                _add(row, label["name"], value, exact=kept is not None)
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
    index = error.cell_index - 1  # `KEEP` stands first
    return {
        "cell": index - (added and index > places[0]),
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
    return planned_code(json.loads(notebook))
