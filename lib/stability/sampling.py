"""Random mini-batches: one scheme, one place for its draws, its law and its noise.

Drawn sample by sample for a batch of independent runs, or group by group where only the number of a
group's samples in the batch matters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy import stats
from torch import Generator, Tensor

Sampling = Literal["bernoulli", "without_replacement", "with_replacement", "reshuffled"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)[:3]  # those with independent batches
RESHUFFLED: Sampling = "reshuffled"


class Scheme(NamedTuple):
    """How a mini-batch of (expected) size B is drawn from a set of n samples.

    noise(ω², n, B): v_i and s_c of a set of weight ω (book, lem-sampling); counts, group_counts and
    law: as `draw_counts`, `draw_group_counts` and `count_distribution`.
    """

    noise: Callable[[float, int, int], tuple[float, float]]
    counts: Callable[[Tensor, Tensor, Generator], Tensor]
    group_counts: Callable[[np.ndarray, int, int, tuple[int, ...], np.random.Generator], np.ndarray]
    law: Callable[[int, int, int], np.ndarray]


def _bernoulli_counts(members: Tensor, size: Tensor, generator: Generator) -> Tensor:
    return (_keys(members, generator) * members.sum(1, keepdim=True) < size[:, None]) & members


def _different_counts(members: Tensor, size: Tensor, generator: Generator) -> Tensor:
    keys = torch.where(members, _keys(members, generator), 2.0)
    last = size.long()[:, None] - 1  # the `size` smallest keys are in
    return keys <= keys.sort(1).values.gather(1, last)


def _repeated_counts(members: Tensor, size: Tensor, generator: Generator) -> Tensor:
    largest = int(size.max())
    drawn = torch.multinomial(members.double().cpu(), largest, True, generator=generator)
    counted = (torch.arange(largest, device="cpu") < size.cpu()[:, None]).double()
    counts = torch.zeros_like(members, dtype=torch.float64, device="cpu")
    counts.scatter_add_(1, drawn, counted)
    return counts.to(members.device)


def _keys(members: Tensor, generator: Generator) -> Tensor:
    """A uniform number for every sample of every run, drawn on the CPU where the generator is."""
    keys = torch.rand(members.shape, generator=generator, dtype=torch.float64, device="cpu")
    return keys.to(members.device)


def _different_noise(square: float, n: int, batch: int) -> tuple[float, float]:
    scale = square * (n - batch) / (batch * (n - 1)) if n > 1 else 0.0
    return scale / n, scale


def _different_group_counts(
    group: np.ndarray, n: int, batch: int, shape: tuple[int, ...], generator: np.random.Generator
) -> np.ndarray:
    # "marginals" costs one draw per group, "count" one per sample of the batch or its complement.
    few = 4 * len(group) < min(batch, n - batch)
    method: Literal["marginals", "count"] = "marginals" if few else "count"
    return generator.multivariate_hypergeometric(_with_rest(group, n), batch, shape, method)


def _with_rest(group: np.ndarray, n: int) -> np.ndarray:
    """The groups and, last, the samples that are in none of them."""
    return np.append(group, n - int(group.sum()))


_SCHEMES: dict[str, Scheme] = {
    "bernoulli": Scheme(
        noise=lambda square, n, batch: (square / n * (1 / batch - 1 / n), 0.0),
        counts=_bernoulli_counts,
        group_counts=lambda group, n, batch, shape, generator: generator.binomial(
            group, batch / n, size=(*shape, len(group))
        ),
        law=lambda group, n, batch: stats.binom.pmf(np.arange(group + 1), group, batch / n),
    ),
    "without_replacement": Scheme(
        noise=_different_noise,
        counts=_different_counts,
        group_counts=_different_group_counts,
        law=lambda group, n, batch: stats.hypergeom.pmf(np.arange(group + 1), n, group, batch),
    ),
    "with_replacement": Scheme(
        noise=lambda square, n, batch: (square / (batch * n), square / batch),
        counts=_repeated_counts,
        group_counts=lambda group, n, batch, shape, generator: generator.multinomial(
            batch, _with_rest(group, n) / n, size=shape
        ),
        law=lambda group, n, batch: stats.binom.pmf(np.arange(batch + 1), batch, group / n),
    ),
}


def scheme_of(sampling: str) -> Scheme:
    """The scheme of that name; ValueError for any other name."""
    if sampling not in _SCHEMES:
        raise ValueError(f"sampling must be one of {SAMPLINGS}, got {sampling!r}")
    return _SCHEMES[sampling]


def draw_counts(members: Tensor, size: Tensor, sampling: str, generator: Generator) -> Tensor:
    """How often each sample enters this step's mini-batch, (b, n), in the generator's randomness.

    members (b, n) bool: the samples to draw from; size (b,): mini-batch size per run. With n_b
    members, "bernoulli" takes each with probability size/n_b, "without_replacement" takes exactly
    `size` different ones, "with_replacement" draws `size` times.
    """
    return scheme_of(sampling).counts(members, size, generator)


def epoch_counts(members: Tensor, size: Tensor, generator: Generator) -> Callable[[], Tensor]:
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
            keys = torch.where(members, _keys(members, generator), 2.0)
            ranks.copy_(torch.where(over, keys.argsort(1).argsort(1), ranks))
            position.masked_fill_(over, 0)
        batch = (ranks >= position) & (ranks < position + sizes) & members
        position.add_(sizes)
        return batch

    return following


@lru_cache(maxsize=8192)
def count_distribution(group: int, n: int, batch: int, sampling: Sampling) -> np.ndarray:
    """P(M = m), m = 0 … group (0 … batch with replacement): how many of a group a batch holds.

    group of n samples, a batch of `batch` ≤ n. Kept for later calls, hence read-only: maps ask for
    the same law in every cell of a row.
    """
    pmf = scheme_of(sampling).law(group, n, batch)
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
    counts = scheme_of(sampling).group_counts(group, n, batch, shape, generator)
    return counts[..., : len(group)]
