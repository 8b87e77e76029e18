"""Forgettability in closed form, for one sample at a time."""

from torch import Tensor


def single_forgettability(coherence_matrix: Tensor) -> Tensor:
    """α_j = χ_j/(1 + χ_j), χ_j = mean_{i≠j} S_ij² / S_jj², sample j alone to be forgotten; (n,).

    Above this mixing, ascent on j and descent on all others diverge at every learning rate; small
    means forgettable. `lib.stability.forgettability` at each one-sample forget set.
    """
    squares = coherence_matrix.square()
    own = squares.diagonal()
    others = (squares.sum(0) - own) / (len(own) - 1)
    return others / (others + own)
