"""Independent random streams from one seed."""

import zlib

import numpy as np
import torch

from lib.checks import require_seed


def stream(
    purpose: str, seed: int, part: int = 0, device: torch.device | str | None = None
) -> torch.Generator:
    """A generator of its own for each purpose, seed and part; on the CPU unless told otherwise.

    Data drawn with seed 3 and weights drawn with seed 3 must not share their random numbers: with
    one generator per seed the first filter would point along the signal.
    """
    state = seed_sequence(purpose, seed, part).generate_state(1, np.uint64)[0]
    return torch.Generator(device or "cpu").manual_seed(int(state) >> 1)


def seed_sequence(purpose: str, seed: int, part: int = 0) -> np.random.SeedSequence:
    """The entropy behind `stream`, for NumPy's generators; ValueError unless seed ≥ 0."""
    require_seed(seed)
    return np.random.SeedSequence((zlib.crc32(purpose.encode()), int(seed), part))
