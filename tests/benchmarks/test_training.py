"""Speed of the coefficient engine, side by side with plain autograd descent; run on two cores.

The speed-up and the share of the machine's matrix-product peak stand in `extra_info`, and are
printed with -s. Engine, autograd and peak are timed in turn, round after round, and the medians of
their ratios reported, so that a busy machine slows all three alike.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lib.cnn.coefficients import PatchSpan
from lib.cnn.data import signal_noise
from lib.cnn.descent import Descent, chunks
from lib.cnn.network import TwoLayerCNN
from lib.cnn.training import fit, fit_to_interpolation

SAMPLES, FILTERS, DIM, CELLS, STEPS = 60, 10, 2000, 2000, 1000


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def autograd_steps(network, data, steps):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (network(data.patches) - data.labels).square().mean()).backward()
        optimizer.step()


def coefficient_steps(span, steps):
    rates = torch.full((len(span),), 0.5, dtype=torch.float64)
    descent = Descent("squared", steps, 0.0, span.labels.shape[1], 0)
    for part in chunks(span):
        descent.run(span[part], rates[part], part.start)


def test_2000_cells_against_autograd(benchmark):
    """1000 steps of 2,000 cells at d = 2000, n = 60, 10 filters, Gram matrices and starts included.

    Against 1000 autograd steps of one cell. 100 data sets, each trained 20 times over, keep the
    memory small; nothing is shared between the cells.
    """
    datasets = [signal_noise(SAMPLES, DIM, 0.5, seed=seed) for seed in range(100)]
    cells = datasets * (CELLS // len(datasets))
    network = TwoLayerCNN.random(FILTERS, DIM, 0.01)
    square = torch.randn(1500, 1500, dtype=torch.float64)
    options: dict[str, Any] = {"filters": FILTERS, "learning_rate": 0.5, "init_scale": 0.01}
    fit(datasets[:64], steps=3, **options), autograd_steps(network, datasets[0], 3)
    rounds = []
    for _ in range(3):
        peak = 2 * 1500**3 / statistics.median(seconds(lambda: square @ square) for _ in range(9))
        setup = seconds(lambda: PatchSpan.from_datasets(datasets, FILTERS, 0.01, 0)) / len(datasets)
        engine = seconds(lambda: fit(cells, steps=STEPS, **options)) / CELLS
        autograd = seconds(lambda: autograd_steps(network, datasets[0], STEPS))
        rounds.append((engine, setup, autograd, peak))
    products = 2 * 2 * FILTERS * (SAMPLES + 2) ** 2 * STEPS
    median = statistics.median
    figures = {
        "engine, ms per trained cell": 1e3 * median(e for e, _, _, _ in rounds),
        "of these setup (Gram matrix and start), ms": 1e3 * median(s for _, s, _, _ in rounds),
        "autograd, ms per trained cell": 1e3 * median(a for _, _, a, _ in rounds),
        "speed-up per trained cell": median(a / e for e, _, a, _ in rounds),
        "share of the matrix-product peak": median(products / e / p for e, _, _, p in rounds),
    }
    ratio = figures["speed-up per trained cell"]
    benchmark.extra_info.update(figures, peer="autograd descent on the weights", ratio=ratio)
    print(*(f"{name}: {value:.4g}" for name, value in figures.items()), sep="\n")
    benchmark.pedantic(fit, args=(datasets,), kwargs={"steps": STEPS, **options}, rounds=3)


@pytest.mark.parametrize("dim", [10**3, 10**6])
def test_a_step_is_free_of_the_dimension(benchmark, dim):
    """1,000 steps of one cell, after its Gram matrix is built."""
    span = PatchSpan.from_datasets([signal_noise(8, dim, 0.5)], FILTERS, 0.01 / math.sqrt(dim), 0)
    benchmark.pedantic(coefficient_steps, args=(span, 1000), rounds=5)


def test_100_cells_to_interpolation(benchmark):
    """n = 60, SNR 0.05 to 5, squared loss ≤ 1e-20."""
    snrs = torch.logspace(math.log10(0.05), math.log10(5), 100).tolist()
    datasets = [signal_noise(SAMPLES, 400, snr, seed=seed) for seed, snr in enumerate(snrs)]
    options = {"filters": FILTERS, "init_scale": 0.01}
    trained = benchmark.pedantic(fit_to_interpolation, args=(datasets,), kwargs=options, rounds=3)
    assert float(trained.losses.max()) <= 1e-20
