"""What curvature, coherence and frontiers must be before any training: random-matrix limits.

`free_difference` is the null model's spectrum, `equivalents` its noise-driven threshold, `spikes`
and `signal` put a signal into it, `samples` draws Gaussian curvature to hold against all of them.
"""

from lib.random_matrix.equivalents import ProportionalLimit, gain_matrix, limiting_learning_rate
from lib.random_matrix.free_difference import (
    FreeDifference,
    critical_mixing,
    edge_scales,
    forget_condition,
    spectral_density,
    spectral_distribution,
    spectrum_edges,
    support,
)
from lib.random_matrix.samples import (
    GaussianEnsemble,
    kolmogorov_distance,
    sample_averaging_error,
    sample_coherence,
    sample_critical_mixing,
    sample_escape_steps,
    sample_learning_rates,
    sample_spectra,
    sample_top_pairs,
)
from lib.random_matrix.signal import (
    ExpectedCoherence,
    averaging_test_error,
    critical_snr,
    detectability,
    expected_coherence,
    noise_floor,
)
from lib.random_matrix.spikes import (
    Outlier,
    escape_steps,
    lowest_eigenvalue,
    own_signal_critical_mixing,
    own_signal_threshold,
    shared_signal_critical_mixing,
    shared_signal_outliers,
    single_set_outlier,
)

__all__ = [
    "ExpectedCoherence",
    "FreeDifference",
    "GaussianEnsemble",
    "Outlier",
    "ProportionalLimit",
    "averaging_test_error",
    "critical_mixing",
    "critical_snr",
    "detectability",
    "edge_scales",
    "escape_steps",
    "expected_coherence",
    "forget_condition",
    "gain_matrix",
    "kolmogorov_distance",
    "limiting_learning_rate",
    "lowest_eigenvalue",
    "noise_floor",
    "own_signal_critical_mixing",
    "own_signal_threshold",
    "sample_averaging_error",
    "sample_coherence",
    "sample_critical_mixing",
    "sample_escape_steps",
    "sample_learning_rates",
    "sample_spectra",
    "sample_top_pairs",
    "shared_signal_critical_mixing",
    "shared_signal_outliers",
    "single_set_outlier",
    "spectral_density",
    "spectral_distribution",
    "spectrum_edges",
    "support",
]
