"""Real images that ship with a package."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.checks import require_count, require_seed


@dataclass(frozen=True)
class Digits:
    """Handwritten digits with one bit to learn.

    images (n, 64) in [0, 1]; labels (n,) +1 for even digits, −1 for odd; digits (n,) 0 … 9;
    forget (n,) bool, True for the last n_forget samples.
    """

    images: Tensor
    labels: Tensor
    digits: Tensor
    forget: Tensor


def digits(n_retain: int, n_forget: int, *, seed: int = 0) -> Digits:
    """A random draw, without replacement, from scikit-learn's bundled 8 × 8 digits (1,797 images).

    Args:
        n_retain, n_forget: sizes of the two sets, each ≥ 1, together ≤ 1,797.
        seed: of the draw.

    Raises:
        ValueError: naming the size that is out of range.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998).
    """
    require_count("n_retain", n_retain, 1)
    require_count("n_forget", n_forget, 1)
    require_seed(seed)
    state = random.getstate()  # a package that may come with the import draws from it
    from sklearn.datasets import load_digits  # slow to import, and needed here alone

    random.setstate(state)
    images, numbers = load_digits(return_X_y=True)
    n = n_retain + n_forget
    if n > len(numbers):
        raise ValueError(f"n_retain + n_forget must be at most {len(numbers)}, got {n}")
    # No `stream`: published examples name their seeds.
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(numbers), generator=generator, device="cpu")[:n]
    drawn = torch.from_numpy(numbers)[chosen]
    return Digits(
        images=torch.from_numpy(images)[chosen] / 16,
        labels=1.0 - 2.0 * (drawn % 2).double(),
        digits=drawn,
        forget=torch.arange(n, device="cpu") >= n_retain,
    )


FASHION = 3000, 1000  # images of the subset that ships with this package: training, test


def fashion_mnist() -> tuple[Tensor, Tensor]:
    """Fashion-MNIST's first 3,000 training and first 1,000 test images, in this order.

    Returns:
        images (4000, 1, 28, 28) float32 in [0, 1] and classes (4000,) 0 … 9.

    Source: Xiao, Rasul and Vollgraf (arXiv 1708.07747), MIT licence, © 2017 Zalando SE; its text
    stands beside the file.
    """
    with np.load(Path(__file__).with_name("fashion.npz"), allow_pickle=False) as held:
        images, classes = torch.from_numpy(held["images"]), torch.from_numpy(held["labels"])
    return images[:, None].float() / 255, classes.long()
