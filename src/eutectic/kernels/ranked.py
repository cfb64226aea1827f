"""Δ -> sparser Δ: entries kept at random, the more likely the larger they are in their row; DELLA's MagPrune."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.random import Rng, random_words, uint32_key
from eutectic.kernels.streams import Bits, Block, Stream, StreamJob
from eutectic.kernels.sums import divisor, for_kernels, negligible, one_a_model
from eutectic.kernels.trim import match_l1
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eutectic.kernels import fused_sparse
else:
    torch = LazyModule("torch")
    fused_sparse = LazyModule("eutectic.kernels.fused_sparse")

Rescale = bool | Literal["l1"]
# Probabilities are whole parts of this, so that 1 / p is exactly what makes the drop unbiased.
PARTS = 1 << 16
# Entries that are ranked at a time, if rows are shorter: they stay in the second-level cache.
RANKED = 1 << 16


@lru_cache(maxsize=64)
def keep_bounds(length: int, density: float, epsilon: float) -> NDArray[np.uint32]:
    """The probability, in `PARTS`, of keeping the smallest to the largest entry of a row.

    From `density - epsilon` to `density + epsilon` in equal steps; a window that does not fit between 0 and 1 is
    narrowed around the density until it does. A row of one entry has the density itself.
    """
    width = min(epsilon, density, 1.0 - density)
    steps = np.arange(length, dtype=np.float64) / (length - 1) if length > 1 else np.full(length, 0.5)
    bounds = np.rint(((density - width) + 2.0 * width * steps) * PARTS).astype(np.uint32)
    bounds.flags.writeable = False
    return bounds


def row_length(shape: Sequence[int]) -> int:
    """Entries that are ranked together: those along the last axis; one for a scalar or an empty tensor."""
    return max(int(shape[-1]), 1) if shape else 1


def keep_by_rank(
    deltas: Tensor, density: float | Sequence[float], epsilon: float | Sequence[float], rescale: Rescale, rng: Rng
) -> Tensor:
    """Keeps entries with the probability that their rank in the row has (`keep_bounds`), `(K, *shape)` in and out.

    `rescale` true divides by the probability, `l1` restores each model's L1 norm. Of equal magnitudes the first by
    flat index rank as the larger.
    """
    shares = one_a_model(density, len(deltas)), one_a_model(epsilon, len(deltas))
    kept = []
    for model, (delta, share, window) in enumerate(zip(deltas, *shares, strict=True)):
        rows = delta.reshape(-1, row_length(delta.shape))
        order = torch.argsort(rows.abs(), dim=-1, descending=True, stable=True)
        bounds = torch.from_numpy(keep_bounds(rows.shape[1], share, window).astype(np.int64)).to(delta.device)
        bound = torch.empty_like(order).scatter_(-1, order, bounds.flip(0).expand_as(order))
        words = random_words(delta.numel(), rng.key(model), delta.device).reshape(rows.shape)
        value = rows * (PARTS / bound.to(delta.dtype)) if rescale is True else rows
        kept.append(torch.where(words >> 16 < bound, value, torch.zeros_like(rows)).reshape(delta.shape))
    thin = torch.stack(kept)
    return match_l1(thin, deltas) if rescale == "l1" else thin


class Della(Stream):
    """θ₀ + λ · consensus(rescale(keep by rank(τ))). Reductions: the norms, where L1 norms are matched."""

    def __init__(self, jobs: Sequence[StreamJob], *, elect: bool) -> None:
        (job,) = jobs
        given, models = job.parameters, job.models
        normalize = bool(given["normalize"])
        self._weights = tuple(one_a_model(given["weight"], models))
        # Under an election the divisor is the weight of those who agree, entry by entry.
        self._divisor = None if elect else for_kernels(divisor(self._weights, normalize))
        self._scale = float(given["lambda_"])
        self._ending = (normalize, negligible(self._weights))
        self._length = row_length(job.shape or ())
        windows = zip(one_a_model(given["density"], models), one_a_model(given["epsilon"], models), strict=True)
        self._windows = list(windows)
        rng: Rng = given["rng"]
        self._keys = [uint32_key(rng.key(model)) for model in range(models)]
        self._divides = given["rescale"] is True
        self._norms_due = bool(given["rescale"] == "l1")
        self._factor = [1.0] * models
        self._sums: dict[int, NDArray[np.float64]] = {}

    @property
    def pending(self) -> bool:
        return self._norms_due

    def reduce(self, block: Block) -> None:
        sums = np.zeros((len(self._keys), 2))
        for part, multiples in self._ranked(block):
            models = tuple(row[part] for row in block.models)
            fused_sparse.multiplied_sums(block.base[part], models, multiples, sums)
        self._sums[block.index] = sums

    def fold(self) -> None:
        total = np.zeros((len(self._keys), 2))
        for index in sorted(self._sums):
            total = total + self._sums[index]
        self._factor = [float(full / kept) if kept else 1.0 for full, kept in total]
        self._sums.clear()
        self._norms_due = False

    def shares(self, other: Stream) -> bool:
        if not self.pending or not isinstance(other, Della) or not other.pending:
            return False
        same = all(np.array_equal(a, b) for a, b in zip(self._keys, other._keys, strict=True))
        return same and self._windows == other._windows

    def take(self, other: Stream) -> None:
        assert isinstance(other, Della)
        self._factor, self._norms_due = other._factor, False

    def combine(self, block: Block, out: Bits) -> None:
        factor = tuple(block.floats(value) for value in self._factor)
        level = (block.floats(0),) * len(factor)
        for part, multiples in self._ranked(block):
            models = tuple(row[part] for row in block.models)
            shared = (self._weights, self._divisor, self._scale, level, factor, multiples)
            fused_sparse.combine_multiplied(block.base[part], models, *shared, *self._ending, out[part])

    def _ranked(self, block: Block) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Ranges of the block, each with what its deltas are multiplied by, `(K, n)`: zero where they are dropped."""
        around = block.bits if block.around is None else block.around
        start, own = block.first - block.before, len(block.base)
        step = self._length * max(1, RANKED // self._length)
        for first in range(0, around.shape[1], step):
            rows = tuple(around[:, first : first + step])
            multiples = self._multiples(rows, start + first, block.floats)
            low, high = max(first - block.before, 0), min(first + len(rows[0]) - block.before, own)
            skipped = low - (first - block.before)
            if high - low < len(rows[0]):
                multiples = np.ascontiguousarray(multiples[:, skipped : skipped + high - low])
            yield slice(low, high), multiples

    def _multiples(self, rows: tuple[Bits, ...], first: int, floats: type[Any]) -> NDArray[Any]:
        multiples = np.empty((len(rows) - 1, len(rows[0])), floats)
        for model, (row, window) in enumerate(zip(rows[1:], self._windows, strict=True)):
            ranked = _ranked_rows(rows[0], row, self._length, floats)
            bounds = keep_bounds(self._length, *window)
            fused_sparse.multiples(ranked, bounds, first, self._keys[model], self._divides, multiples[model])
        return multiples


def _ranked_rows(base: Bits, row: Bits, length: int, floats: type[Any]) -> NDArray[Any]:
    """For each row of `length` entries, from the smallest to the largest, in its low 32 bits `length` - 1 - index.

    Of equals the first by index come last.
    """
    if floats is np.float64:
        with np.errstate(invalid="ignore"):
            sizes = np.abs(row - base).reshape(-1, length)
        # By their bits, in which NaN is the largest, as below and in torch.
        falling = np.argsort(~sizes.view(np.uint64), axis=1, kind="stable")
        return (length - 1 - falling[:, ::-1]).astype(np.uint64)
    keys = np.empty(len(row), np.uint64)
    fused_sparse.sortable(base, row, length, keys)
    ranked: NDArray[Any] = keys.reshape(-1, length)
    # As floats, which the keys order like, numpy sorts them a fifth faster.
    ranked.view(np.float64).sort(axis=1)
    return ranked
