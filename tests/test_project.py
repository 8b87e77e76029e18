"""The project's own files: workflows, and the lowest versions it says it works with."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Before SciPy 1.17, Lanczos restarts from a hidden state: equal calls, equal numbers, other bits.
UNSTEADY = "tests/stability/test_dynamics.py::test_the_same_call_gives_the_same_bits"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_workflows_are_valid_and_use_first_party_actions_at_a_pinned_major_version():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    command += ["vendor.github-workflows", *map(str, WORKFLOWS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for workflow in WORKFLOWS:
        for action in re.findall(r"uses: (\S+)", workflow.read_text()):
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", action), action


def test_every_command_that_is_named_is_a_target():
    targets = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.M))
    texts = [*WORKFLOWS, ROOT / "README.md", ROOT / ".ci" / "run", ROOT / ".github/CONTRIBUTING.md"]
    for path in texts:
        named = set(re.findall(r"(?:^|`|run: )make ([\w./-]+)", path.read_text(), re.M))
        assert named <= targets, path


# The oldest libraries have no wheels for the newest Python.
if sys.version_info < (3, 13):

    @pytest.mark.slow
    def test_the_theory_works_with_the_lowest_versions(tmp_path):
        """Each lower bound of pyproject.toml installed as it stands, and the theory tested on it.

        PyTorch apart: its old wheels bring 3 GB for GPUs. It and the test tools come from this
        environment, which the new one looks into last.
        """
        python = tmp_path / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
        site = next((tmp_path / "lib").glob("python*/site-packages"))
        needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        lowest = [re.split(r"[,<]", need)[0].replace(">=", "==") for need in needs]
        lowest = [need for need in lowest if not need.startswith("torch")]
        pip = [python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *lowest]
        subprocess.run(pip, check=True)
        (site / "rest.pth").write_text(str(Path(pytest.__file__).parents[1]))
        wings = [f"tests/{wing}" for wing in ("stability", "random_matrix", "cnn", "unlearning")]
        done = subprocess.run(
            [
                python,
                "-m",
                "pytest",
                "-q",
                "-m",
                "not long and not slow",
                *wings,
                "--deselect",
                UNSTEADY,
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
