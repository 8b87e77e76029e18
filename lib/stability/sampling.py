"""Random mini-batches for a batch of independent runs."""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from lib.stability.algorithm import Sampling


def draw_counts(members: Tensor, size: Tensor, sampling: str, generator: torch.Generator) -> Tensor:
    """How often each sample enters this step's mini-batch, (b, n), in the generator's randomness.

    members (b, n) bool: the samples to draw from; size (b,): mini-batch size per run. With n_b
    members, "bernoulli" takes each with probability size/n_b, "without_replacement" takes exactly
    `size` different ones, "with_replacement" draws `size` times.
    """
    if sampling == "with_replacement":
        return _multinomial_counts(members, size, generator)
    keys = torch.rand(members.shape, generator=generator, dtype=torch.float64).to(members.device)
    if sampling == "bernoulli":
        return (keys * members.sum(1, keepdim=True) < size[:, None]) & members
    if sampling == "without_replacement":
        keys = torch.where(members, keys, 2.0)
        last = size.long()[:, None] - 1  # the `size` smallest keys are in
        return keys <= keys.sort(1).values.gather(1, last)
    raise ValueError(
        "sampling must be 'bernoulli', 'without_replacement' or 'with_replacement', "
        f"got {sampling!r}"
    )


def epoch_counts(members: Tensor, size: Tensor, generator: torch.Generator) -> Callable[[], Tensor]:
    """A data loader's batches: each call gives the next step's counts (b, n), as `draw_counts`.

    Every run goes through its members in a random order, `size` (b,) at a time, and shuffles again
    when fewer than that are left (PyTorch's `DataLoader` with shuffle and drop_last).
    """
    sizes, counts = size.long()[:, None], members.sum(1, keepdim=True)
    ranks = torch.zeros(members.shape, dtype=torch.long, device=members.device)
    position = counts.clone()

    def following() -> Tensor:
        over = position + sizes > counts
        if bool(over.any()):
            keys = torch.rand(members.shape, generator=generator, dtype=torch.float64)
            shuffled = torch.where(members, keys.to(members.device), 2.0).argsort(1).argsort(1)
            ranks.copy_(torch.where(over, shuffled, ranks))
            position.masked_fill_(over, 0)
        batch = (ranks >= position) & (ranks < position + sizes) & members
        position.add_(sizes)
        return batch

    return following


def _multinomial_counts(members: Tensor, size: Tensor, generator: torch.Generator) -> Tensor:
    largest = int(size.max())
    drawn = torch.multinomial(members.double().cpu(), largest, True, generator=generator)
    counted = (torch.arange(largest) < size.cpu()[:, None]).double()
    counts = torch.zeros(members.shape, dtype=torch.float64).scatter_add_(1, drawn, counted)
    return counts.to(members.device)


@lru_cache(maxsize=8192)
def count_distribution(group: int, n: int, batch: int, sampling: Sampling) -> np.ndarray:
    """P(M = m), m = 0 … group (0 … batch with replacement): how many of a group a batch holds.

    group of n samples, a batch of `batch` ≤ n. Kept for later calls, hence read-only: maps ask for
    the same law in every cell of a row.
    """
    if sampling == "with_replacement":
        pmf = stats.binom.pmf(np.arange(batch + 1), batch, group / n)
    elif sampling == "bernoulli":
        pmf = stats.binom.pmf(np.arange(group + 1), group, batch / n)
    else:
        pmf = stats.hypergeom.pmf(np.arange(group + 1), n, group, batch)
    pmf.setflags(write=False)
    return pmf


def draw_group_counts(
    group: np.ndarray,
    n: int,
    batch: int,
    sampling: Sampling,
    shape: tuple[int, ...],
    generator: np.random.Generator,
) -> np.ndarray:
    """Joint draws of how many samples of each group, of a set of n, a batch holds; (*shape, q).

    Multivariate hypergeometric without replacement within a batch, multinomial with replacement,
    independent binomials under Bernoulli sampling.
    """
    rest = n - int(group.sum())
    if sampling == "bernoulli":
        return generator.binomial(group, batch / n, size=(*shape, len(group)))
    if sampling == "with_replacement":
        return generator.multinomial(batch, np.append(group, rest) / n, size=shape)[..., :-1]
    # "marginals" costs one draw per group, "count" one per sample of the batch or its complement.
    few = 4 * len(group) < min(batch, n - batch)
    method: Literal["marginals", "count"] = "marginals" if few else "count"
    colours = np.append(group, rest)
    return generator.multivariate_hypergeometric(colours, batch, size=shape, method=method)[
        ..., :-1
    ]
