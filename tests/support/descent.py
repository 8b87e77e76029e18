"""Plain autograd descent on the weights: the reference for everything done on coefficients."""

import torch

from lib.cnn.network import TwoLayerCNN

VALUES = {
    "squared": lambda f, y: 0.5 * (f - y) ** 2,
    "logistic": lambda f, y: torch.log1p(torch.exp(-y * f)),
}


def descend(weights, data, *, rate, sample_weights, loss="squared", damping=0.0, anchor=None):
    """Weights after each step w ← w − rate [Σ_i s_i ∇ℓ_i(w) + damping (w − anchor)]."""
    network = TwoLayerCNN(weights)
    path = [network.weights.detach().clone()]
    for per_sample in sample_weights:
        network.zero_grad()
        (per_sample * VALUES[loss](network(data.patches), data.labels)).sum().backward()
        with torch.no_grad():
            gradient = network.weights.grad
            if damping:
                gradient = gradient + damping * (network.weights - anchor)
            network.weights.sub_(rate * gradient)
        path.append(network.weights.detach().clone())
    return torch.stack(path)


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


def initial_weights(fit):
    """w(0) (b, 2, m, d) of all entries of a fit."""
    return fit.stack(fit.initial_weights_of)


def displacements(start):
    """δ_0 (b, 2, m, d) of all entries of a run's start."""
    return start.fit.stack(start.displacement_of)
