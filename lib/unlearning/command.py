"""`unlearning-plan my_module:setup`: a plan from the shell, with a report as one HTML file."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lib

EXAMPLE = """\
example, as it runs in an empty folder:

  cat > my_module.py <<'END'
  import torch
  from sklearn.datasets import load_digits

  def setup():
      pixels, classes = load_digits(n_class=4, return_X_y=True)
      x, y = torch.tensor(pixels).float() / 16, torch.tensor(classes)
      torch.manual_seed(0)
      model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
      optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
      for _ in range(100):
          optimiser.zero_grad()
          torch.nn.functional.cross_entropy(model(x[:300]), y[:300]).backward()
          optimiser.step()
      return {
          "model": model.eval(), "dataset": (x[:300], y[:300]),
          "forget": range(30), "holdout": (x[300:600], y[300:600]),
      }
  END
  unlearning-plan my_module:setup --target holdout --out report.html
"""
OPTIONS: tuple[tuple[str, type, str], ...] = (
    ("steps", int, "budget of a run"),
    ("seeds", int, "draws of batches each setting is tried on"),
    ("verify", int, "real runs on a copy"),
    ("seed", int, "of all draws"),
    ("retain-floor", float, "share of the model's own retain accuracy to keep"),
    ("max-samples", int, "samples above which a random part is planned on"),
    ("device", str, "where to compute"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan what `setup` describes; 0 if a run is recommended or none is needed, 1 if none is found.

    Args:
        arguments: of the command line; the process's own by default.

    Raises:
        SystemExit: with a message, for wrong arguments or a setup that cannot be used.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.out is not None and (given.out.is_dir() or not given.out.absolute().parent.is_dir()):
        parser.error(f"--out must be a file in a folder that exists, got {given.out}")
    described = _described(parser, given.setup)
    names = ("target", *(name.replace("-", "_") for name, _, _ in OPTIONS))
    chosen = {name: getattr(given, name) for name in names}
    described |= {name: value for name, value in chosen.items() if value is not None}
    from lib.unlearning.planning import plan

    try:
        found = plan(**described)
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    print(found)
    if given.out is not None:
        print(f"report        {found.to_html(given.out)}")
    return 0 if found.recommended or found.verdict == "nothing to do" else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unlearning-plan",
        description="Plan an unlearning run: learning rate, mixing, steps and a stopping rule.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "setup", help="module:function, which returns the arguments of lib.unlearning.plan as dict"
    )
    parser.add_argument("--target", type=_target, help='a forget loss, or "holdout"')
    parser.add_argument("--out", type=Path, help="HTML file for the report")
    for name, kind, text in OPTIONS:
        parser.add_argument(f"--{name}", type=kind, help=text)
    return parser


def _target(text: str) -> float | str:
    """ "holdout", or a number."""
    return text if text == "holdout" else float(text)


def _described(parser: argparse.ArgumentParser, where: str) -> dict[str, Any]:
    """What the user's function returns; it is looked for in the working directory first."""
    module_name, _, name = where.partition(":")
    if not (name and all(part.isidentifier() for part in module_name.split("."))):
        parser.error(f"setup must be module:function, got {where!r}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, name)
        if not callable(function):
            parser.error(f"{where} must be a function, got {type(function).__name__}")
        described = function()
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "lib" and _own_lib():
            parser.error(_clash(error))
        parser.error(f"cannot import {module_name}: {error}")
    except AttributeError as error:
        parser.error(f"cannot call {where}: {error}")
    if not isinstance(described, dict):
        parser.error(f"{where} must return a dict, got {type(described).__name__}")
    return dict(described)


def _own_lib() -> bool:
    """Whether the working directory has a `lib` that is not this package."""
    here, ours = Path.cwd() / "lib", Path(lib.__file__).parent
    folder = here.is_dir() and here.resolve() != ours.resolve()
    return folder or here.with_suffix(".py").is_file()


def _clash(error: ImportError) -> str:
    ours = Path(lib.__file__).parent
    return (
        f"{error}: `lib` is this package, {ours}, and your own {Path.cwd() / 'lib'} has the same "
        f"name. Rename yours, or let the setup module import it under another name (put the folder "
        f"itself on sys.path, and import its modules without `lib.`)"
    )


if __name__ == "__main__":
    sys.exit(main())
