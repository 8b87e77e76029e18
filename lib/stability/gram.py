"""Gram matrices of Jacobian rows that never stand in memory all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lib.checks import require_count
from lib.randomness import stream
from lib.stability.modules import count, part
from lib.stability.rows import Cotangents, RowSource, Use

# From a range of samples, the cotangents of those samples.
Seeds = Callable[[slice], Cotangents]

# Bytes of rows kept, and of rows and signals being made, where chunk_size is not given.
_BUDGET = 2**30
# Entries of a panel of rows that is converted to the Gram matrix's type at a time.
_PANEL = 2**23


class RowStream:
    """Rows of all samples, made a few samples at a time, and their inner products.

    Args:
        source: makes the rows.
        x: inputs of N samples.
        seeds: the cotangents of each range of samples.
        chunk: samples whose rows are kept at a time; None for what fits into 1 GiB.
        sketch: width of a CountSketch of the rows of layers that are not crossed; None for none.
        seed: of the sketch.
    """

    def __init__(
        self,
        source: RowSource,
        x: Any,
        seeds: Seeds,
        chunk: int | None = None,
        sketch: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("chunk_size", chunk), ("sketch", sketch)):
            if value is not None:
                require_count(name, value, 1)
        self.source, self.x, self.seeds, self.chunk = source, x, seeds, chunk
        self.n, self.rank = count(x), source.rank
        trained = source.net.trained
        self.dense = {k: v.numel() for k, v in trained.items() if k not in source.crossed}
        self.dtype = source.net.dtype
        self.sketch = None if sketch is None else CountSketch.of(self.dense, sketch, seed)
        self.outputs: list[Tensor] = []
        self.uses: list[list[Use]] = []

    def together(self) -> Tensor:
        """All rows, (N·r, p), those of crossed layers among them, in the module's precision."""
        sizes = {k: v.numel() for k, v in self.source.net.trained.items()}
        return self._stacked(0, self.n, sizes, crossed=False, first=True)

    def outputs_and_gram(self, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Outputs (N, T·V) and R R[:columns·r]ᵀ, (N·r, columns·r), in `dtype`."""
        with torch.no_grad():
            if self.sketch or not self.dense:
                rows = self._stacked(0, self.n, self.dense, first=True)
                gram = _product(rows, rows[: columns * self.rank], dtype)
            else:
                gram = self._streamed(columns, dtype)
            self._add_crossed(gram, columns)
            return torch.cat(self.outputs).flatten(1), gram

    def _streamed(self, columns: int, dtype: torch.dtype) -> Tensor:
        """One block of rows is kept while all later ones pass by it."""
        r, per_sample = self.rank, self.rank * self.dtype.itemsize * sum(self.dense.values())
        keep = self.chunk or max(1, _BUDGET // per_sample)
        gram = torch.zeros(self.n * r, columns * r, dtype=dtype, device=self.source.net.device)
        for start in range(0, columns, keep):
            stop = min(start + keep, columns)
            left, a = self._stacked(start, stop, self.dense, first=not start), _rows(start, stop, r)
            block = _product(left, left, dtype)
            gram[a, a] = (block + block.T) / 2
            for low, high in [*self._steps(stop, columns), *self._steps(columns, self.n)]:
                right, b = self._made(low, high, self.dense, first=not start), _rows(low, high, r)
                gram[b, a] = _product(right, left, dtype)
                del right  # not beside the rows that come next
                if high <= columns:
                    gram[a, b] = gram[b, a].T
            del left
        return gram

    def _stacked(
        self, start: int, stop: int, sizes: dict[str, int], *, first: bool, crossed: bool = True
    ) -> Tensor:
        made = (
            self._made(*ends, sizes, first=first, crossed=crossed)
            for ends in self._steps(start, stop)
        )
        out: Tensor | None = None
        at = 0
        for rows in made:
            if len(rows) == (stop - start) * self.rank:
                return rows
            if out is None:
                out = rows.new_empty((stop - start) * self.rank, rows.shape[1])
            out[at : at + len(rows)] = rows
            at += len(rows)
        assert out is not None
        return out

    def _steps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Ranges of samples whose rows and signals fit into the budget."""
        whole = {k for k in self.dense if not self.sketch or k not in self.source.layered}
        rows = sum(self.dense[k] for k in whole)
        per_sample = self.rank * self.dtype.itemsize * (rows + 2 * self.source.signal)
        step = self.chunk or max(1, _BUDGET // (per_sample + 1))
        return ((i, min(i + step, stop)) for i in range(start, stop, step))

    def _made(
        self, start: int, stop: int, sizes: dict[str, int], *, first: bool, crossed: bool = True
    ) -> Tensor:
        """Rows of these samples, ((stop − start)·r, p or k); outputs and uses kept if `first`."""
        chosen = slice(start, stop)
        out, uses, pieces = self.source.blocks(part(self.x, chosen), self.seeds(chosen), crossed)
        if first:
            self.outputs.append(out)
            self.uses.append(uses)
        width = self.sketch.width if self.sketch else sum(sizes.values())
        new = out.new_zeros if self.sketch else out.new_empty
        rows = new(stop - start, self.rank, width, dtype=self.dtype)
        ends = dict(zip(sizes, accumulate(sizes.values()), strict=True))
        for name, b, r, piece in pieces:
            if self.sketch:
                self.sketch.add(rows[b, r], name, piece)
            else:
                rows[b, r, ends[name] - sizes[name] : ends[name]] = piece
        return rows.flatten(0, 1)

    def _add_crossed(self, gram: Tensor, columns: int) -> None:
        """Adds (aᵢ·aⱼ + 1)(sᵢ·sⱼ) for each crossed layer, its bias the 1; in place, by blocks."""
        r = self.rank
        for calls in zip(*self.uses, strict=True):
            crossed = {k for k, name in calls[0].names.items() if name in self.source.crossed}
            a = torch.cat([use.input for use in calls]).to(gram.dtype)
            s = torch.cat([use.signals for use in calls]).flatten(0, 1).to(gram.dtype)
            step = max(1, _PANEL // (columns * r * r))
            for low in range(0, self.n, step):
                high = min(low + step, self.n)
                inner = a[low:high] @ a[:columns].T if "weight" in crossed else 0 * gram[:1, :1]
                inner = inner + ("bias" in crossed)
                block = (s[low * r : high * r] @ s[: columns * r].T).view(-1, r, columns, r)
                gram[_rows(low, high, r)] += (block * inner[:, None, :, None]).view(-1, columns * r)


@dataclass(frozen=True)
class CountSketch:
    """Random signs and cyclic shifts that add a row of p numbers up into `width` of them.

    Each stretch of `width` neighbours moves by a random shift of its own, so two numbers meet with
    probability ≤ 1/width; the signs make ⟨Sx, Sy⟩ = ⟨x, y⟩ in the mean, with a variance of at most
    that of a CountSketch by independent hashes, 2‖x‖²‖y‖²/width.
    """

    width: int
    signs: dict[str, Tensor]
    shifts: dict[str, list[int]]

    @classmethod
    def of(cls, sizes: dict[str, int], width: int, seed: int) -> CountSketch:
        """For rows that consist of parts of these sizes."""
        generator = stream("count sketch", seed)
        signs, shifts = {}, {}
        for name, size in sizes.items():
            draw = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8, device="cpu")
            signs[name] = 2 * draw - 1
            stretches = (-(-size // width),)
            moved = torch.randint(0, width, stretches, generator=generator, device="cpu")
            shifts[name] = moved.tolist()
        return cls(width, signs, shifts)

    def add(self, out: Tensor, name: str, rows: Tensor) -> None:
        """Adds the sketch of one part of the rows, (…, size), to `out`, (…, width)."""
        signs = self.signs[name].to(rows)
        for k, shift in enumerate(self.shifts[name]):
            at = k * self.width
            piece, sign = rows[..., at : at + self.width], signs[at : at + self.width]
            size = piece.shape[-1]
            ahead = min(size, self.width - shift)
            out[..., shift : shift + ahead].addcmul_(piece[..., :ahead], sign[:ahead])
            if ahead < size:
                out[..., : size - ahead].addcmul_(piece[..., ahead:], sign[ahead:])


def _rows(start: int, stop: int, rank: int) -> slice:
    return slice(start * rank, stop * rank)


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """left @ rightᵀ in the wider of the rows' type and `dtype`, a panel of columns at a time."""
    wide = torch.promote_types(left.dtype, dtype)
    if left.dtype == wide:
        return (left @ right.T).to(dtype)
    out = torch.zeros(len(left), len(right), dtype=wide, device=left.device)
    width = max(1, _PANEL // (len(left) + len(right)))
    for at in range(0, left.shape[1], width):
        panel = slice(at, at + width)
        out.addmm_(left[:, panel].to(wide), right[:, panel].to(wide).T)
    return out
