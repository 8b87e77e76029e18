import pytest
import torch

from lib.cnn.data import signal_noise
from lib.cnn.network import TwoLayerCNN


def test_forward_is_the_sum_it_says():
    data, network = signal_noise(5, 6, 0.8, seed=1), TwoLayerCNN.random(3, 6, 0.5, seed=2)
    for patches, output in zip(data.patches, network(data.patches), strict=True):
        total = 0.0
        for sign, filters in zip((1, -1), network.weights.detach(), strict=True):
            for weight in filters:
                total += sign * sum(max(float(weight @ patch), 0.0) for patch in patches) / 3
        assert float(output.detach()) == pytest.approx(total, rel=1e-12)


def test_the_seed_and_scale_decide_the_weights():
    network = TwoLayerCNN.random(20, 500, 0.3, seed=2)
    assert torch.equal(network.weights, TwoLayerCNN.random(20, 500, 0.3, seed=2).weights)
    assert float(network.weights.detach().std()) == pytest.approx(0.3, rel=0.02)


def test_bad_shape_is_named():
    with pytest.raises(ValueError, match="weights must have shape"):
        TwoLayerCNN(torch.zeros(3, 2, 4))
