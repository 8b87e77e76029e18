"""The two-layer ReLU CNN on signal-plus-noise data, trained and unlearned exactly.

Rooms: `data`, `network` (plain autograd), `coefficients` (its inner products), `descent`,
`training` (to the optimum), `memorisation` (what was learned by heart), `updates`,
`runs` and `unlearning`.
"""

from lib.cnn.data import SignalNoise, signal_noise
from lib.cnn.memorisation import (
    BlockModel,
    LeaveOneOut,
    RankCorrelation,
    active_noise_ratio,
    block_model,
    coefficient_path,
    leave_one_out,
    memorised_share,
    noise_mass,
    output_parts,
    predicted_memorised_share,
    rank_correlation,
)
from lib.cnn.network import TwoLayerCNN
from lib.cnn.runs import Until
from lib.cnn.training import Fit, NotInterpolated, fit, fit_to_interpolation
from lib.cnn.unlearning import Paths, Trajectory, ascent_descent, linearised

__all__ = [
    "BlockModel",
    "Fit",
    "LeaveOneOut",
    "NotInterpolated",
    "Paths",
    "RankCorrelation",
    "SignalNoise",
    "Trajectory",
    "TwoLayerCNN",
    "Until",
    "active_noise_ratio",
    "ascent_descent",
    "block_model",
    "coefficient_path",
    "fit",
    "fit_to_interpolation",
    "leave_one_out",
    "linearised",
    "memorised_share",
    "noise_mass",
    "output_parts",
    "predicted_memorised_share",
    "rank_correlation",
    "signal_noise",
]
