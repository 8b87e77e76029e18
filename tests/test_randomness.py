import pytest
import torch

from lib.cnn.data import signal_noise
from lib.cnn.network import gaussian_weights
from lib.randomness import stream


def draw(*arguments):
    return torch.randn(2000, generator=stream(*arguments))


def test_equal_arguments_give_equal_numbers():
    assert torch.equal(draw("data", 3), draw("data", 3, 0))


def test_purposes_seeds_and_parts_give_unrelated_numbers():
    draws = [draw("a", 0), draw("b", 0), draw("a", 1), draw("a", 0, 1)]
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(4)
    assert float(correlations.abs().max()) < 5 / 2000**0.5


def test_data_and_weights_of_one_seed_are_unrelated():
    signal = signal_noise(3, 2000, 1.0, seed=4).signal
    first_filter = gaussian_weights(2, 2000, 1.0, seed=4)[0, 0]
    cosine = signal @ first_filter / (signal.norm() * first_filter.norm())
    assert abs(float(cosine)) < 5 / 2000**0.5


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_bad_seed_is_named(seed):
    with pytest.raises(ValueError, match="seed must be an integer >= 0"):
        stream("data", seed)
