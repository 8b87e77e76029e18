"""Peak memory at n = 500: a few n × n matrices, never p × p or n² × n²."""

import subprocess
import sys
from pathlib import Path

import pytest

# torch's allocations escape tracemalloc, and ru_maxrss survives exec, so that a child would start
# at its parent's size. The kernel's VmHWM is of the fresh process alone. Peaks only ever rise: the
# small call first pays for imports and workspaces.
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

PEAK = """
import re
from pathlib import Path
{setup}
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**10
{small}
before = peak()
{large}
print(peak() - before)
"""

SETUP = """
import torch
from lib.stability.data_coherence import coherence_matrix
from lib.stability.curvature import Curvature
from lib.stability.algorithm import AscentDescent
from lib.stability.dynamics import critical_learning_rate, noise_gain
from lib.stability.thresholds import learning_rate_bounds, three_axis_bound
torch.set_default_dtype(torch.float64)

def everything(n):
    gradients = torch.randn(n, 2 * n, generator=torch.Generator().manual_seed(0))
    curvature = Curvature.from_gram(gradients @ gradients.T / 2, torch.arange(n) >= 3 * n // 4)
    algorithm = AscentDescent(0.1, n // 10, n // 20, damping=1.0)
    coherence_matrix(curvature)
    critical_learning_rate(curvature, algorithm)
    noise_gain(curvature, algorithm, 1e-3)
    learning_rate_bounds(curvature, algorithm)
    three_axis_bound(curvature, algorithm)

def model(n, width):
    net = torch.nn.Sequential(
        torch.nn.Linear(20, width), torch.nn.ReLU(), torch.nn.Linear(width, 1, bias=False)
    )
    x = torch.randn(n, 20)
    Curvature.from_model(net, x, torch.randn(n), torch.arange(n) >= 3 * n // 4, chunk_size=50)
"""


def peak_rise(setup, small, large):
    """MB by which peak memory rises over `large`, once `small` has run, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK.format(setup=setup, small=small, large=large)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.long
@on_linux
def test_everything_at_500_samples_fits_in_a_few_square_matrices():
    square = 500**2 * 8 / 2**20  # MB of one n × n matrix; an n² × n² one would have 62,500 times
    assert peak_rise(SETUP, "everything(20)", "everything(500)") < 150 * square


@pytest.mark.long
@on_linux
def test_curvature_of_a_model_holds_no_matrix_of_parameters_squared():
    p = 22 * 500  # one p × p matrix has 923 MB, all n = 500 Jacobian rows 42 MB
    assert peak_rise(SETUP, "model(20, 5)", "model(500, 500)") < 0.3 * p**2 * 8 / 2**20
