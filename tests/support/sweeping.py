"""What the tests of sweeps share: tiny notebooks, a pool without processes, a fake point."""

import json
import os
from concurrent.futures import Future

import nbformat
from nbformat import v4

PARAMETERS = "a = 1.0  # factor\nn = 2  # count\nseed = 0  # of nothing\nmode = 'x'\nflag = False\n"
GLUE = "from myst_nb import glue\nglue('value', a * n + seed, display=False)"


def write_notebook(path, *cells, parameters=PARAMETERS):
    """A notebook with a parameters cell and some code cells."""
    first = v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [first, *(v4.new_code_cell(cell) for cell in cells or [GLUE])]
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    nbformat.write(notebook, path)
    return str(path)


class InlinePool:
    """Runs every point at once, in this process."""

    width = 1

    def submit(self, call, *arguments):
        future: Future = Future()
        try:
            future.set_result(call(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self, kill=False):
        pass


def logging(log, wait=None):
    """A fake point: notes its parameters in a file, a line each, and glues as GLUE does."""

    def execute(name, notebook, code, given, folder, output):
        with open(log, "a") as file:
            file.write(json.dumps(given, sort_keys=True) + "\n")
        if wait:
            wait()
        value = given.get("a", 1.0) * given.get("n", 2) + given.get("seed", 0)
        return {"row": {"value": value}, "seconds": 0.0, "device": "none"}

    return execute


def logged(log):
    """The parameters that were noted, in order."""
    return log.read_text().splitlines() if log.exists() else []


def forked(body):
    """Run `body` in a fork, quicker than a new interpreter; its wait status."""
    return os.waitpid(start(body), 0)[1]


def start(body):
    """Run `body` in a fork, and do not wait; its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            body()
            status = 0
        finally:
            os._exit(status)
    return child
