"""The published heat map at a tenth of its grid; run on two cores."""

import torch

from lib.experiments.benign_overfitting import error_map


def test_every_tenth_row_of_the_published_map(benchmark):
    """10 of its 100 dimensions, all 100 norms, 10 repeats: 10,000 runs, a tenth of the map."""
    torch.set_num_threads(2)
    norms = [0.1 * k for k in range(100)]
    dims = list(range(145, 1100, 100))
    benchmark.pedantic(error_map, args=(norms, dims), rounds=1)
