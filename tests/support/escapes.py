"""Commuting families step by step: the reference for escapes drawn from laws of counts."""

import numpy as np

from lib.experiments.escape import HessianTest
from lib.experiments.hessian_tests import threshold_order
from lib.stability.exponents import axis_laws, axis_multipliers, moment_exponent


def squared_norms(
    test: HessianTest, retain_counts: np.ndarray, forget_counts: np.ndarray
) -> np.ndarray:
    """‖δ_k‖²/‖δ_0‖², k = 0 … K, of runs with given counts; (K, runs, q) → (K+1, runs)."""
    X = axis_multipliers(
        test.family, test.algorithm, test.learning_rate, retain_counts, forget_counts
    )
    start = np.ones((1, *X.shape[1:]))
    return np.concatenate([start, np.cumprod(X, axis=0) ** 2]).mean(axis=2)


def threshold_exponent(test: HessianTest, threshold: float) -> float:
    """Growth of the moment of order `threshold_order`, `moment_exponent`."""
    laws = axis_laws(test.family, test.algorithm, test.learning_rate)
    return moment_exponent(laws, threshold_order(test, threshold))
