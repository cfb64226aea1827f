"""Δ -> sparser Δ: entries kept at random, the more likely the larger they are in their row; DELLA's MagPrune."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.random import Rng, random_words
from eutectic.kernels.streams import Bits, Block, StreamJob
from eutectic.kernels.sums import factors_for_kernels, one_a_model
from eutectic.kernels.task_vectors import TaskVectors
from eutectic.kernels.trim import match_l1
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eutectic.kernels import fused_ranked, fused_ranks
else:
    torch = LazyModule("torch")
    fused_ranked = LazyModule("eutectic.kernels.fused_ranked")
    fused_ranks = LazyModule("eutectic.kernels.fused_ranks")

Rescale = bool | Literal["l1"]
# Probabilities are whole parts of this, so that 1 / p is exactly what makes the drop unbiased.
PARTS = 1 << 16
# Entries that are ranked at a time, if rows are shorter.
RANKED = 1 << 17
# Entries of the longest rows of which all pairs are compared.
PAIRED = 32
# Widths that a row of 16-bit floats is cut into, at least and at most; eight times as many where they are too coarse.
COARSE, FINE = 1 << 8, 1 << 12
# Where more than one entry in so many would have to be listed, rows are sorted.
FEW_IN = 16


def width_of(density: float, epsilon: float) -> float:
    """Half the width of the window of probabilities: what of `epsilon` fits between 0 and 1 around the density."""
    return min(epsilon, density, 1.0 - density)


def keep_bounds(length: int, density: float, epsilon: float) -> NDArray[np.uint32]:
    """The probability, in `PARTS`, of keeping an entry of a row, `(2 · length,)`, by its place from 1 on.

    The place is how many of the row are smaller + how many are not larger: 1 for the smallest, 2 · length - 1 for the
    largest, where no others are equal. From `density - epsilon` to `density + epsilon` in equal steps; a window that
    does not fit between 0 and 1 is narrowed around the density until it does. All of a row of equal entries have the
    density itself.
    """
    width = width_of(density, epsilon)
    places = np.maximum(np.arange(2 * length, dtype=np.float64) - 1, 0)
    steps = places / (2 * length - 2) if length > 1 else np.full(2, 0.5)
    return np.rint(((density - width) + 2.0 * width * steps) * PARTS).astype(np.uint32)


@lru_cache(maxsize=32)
def _inverse(length: int, density: float, epsilon: float, wide: bool) -> NDArray[Any]:
    """1 / p by place, infinite where p is zero; and one that is read for the empty bins behind a row's largest."""
    floats: type[Any] = np.float64 if wide else np.float32
    bounds = np.append(keep_bounds(length, density, epsilon), PARTS)
    with np.errstate(divide="ignore"):
        inverse: NDArray[Any] = floats(PARTS) / bounds.astype(floats)
    inverse.flags.writeable = False
    return inverse


def row_length(shape: Sequence[int]) -> int:
    """Entries that are ranked together: those along the last axis; one for a scalar or an empty tensor."""
    return max(int(shape[-1]), 1) if shape else 1


def keep_by_rank(
    deltas: Tensor, density: float | Sequence[float], epsilon: float | Sequence[float], rescale: Rescale, rng: Rng
) -> Tensor:
    """Keeps entries with the probability that their rank in the row has (`keep_bounds`), `(K, *shape)` in and out.

    `rescale` true divides by the probability, `l1` restores each model's L1 norm. Equal magnitudes share the mean of
    their ranks, and so one probability.
    """
    shares = one_a_model(density, len(deltas)), one_a_model(epsilon, len(deltas))
    kept = []
    for model, (delta, share, window) in enumerate(zip(deltas, *shares, strict=True)):
        rows = delta.reshape(-1, row_length(delta.shape))
        # By their bits, in which NaN is the largest.
        sizes = rows.abs().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[delta.itemsize])
        rising = sizes.sort(dim=-1).values
        place = torch.searchsorted(rising, sizes) + torch.searchsorted(rising, sizes, right=True)
        bounds = torch.from_numpy(keep_bounds(rows.shape[1], share, window).astype(np.int64)).to(delta.device)
        bound = bounds[place]
        words = random_words(delta.numel(), rng.key(model), delta.device).reshape(rows.shape)
        value = rows * (PARTS / bound.to(delta.dtype)) if rescale is True else rows
        kept.append(torch.where(words >> 16 < bound, value, torch.zeros_like(rows)).reshape(delta.shape))
    thin = torch.stack(kept)
    return match_l1(thin, deltas) if rescale == "l1" else thin


class Della(TaskVectors):
    """θ₀ + λ · consensus(rescale(keep by rank(τ))). Reductions: the norms, where L1 norms are matched.

    Blocks have whole rows around them.
    """

    def __init__(self, jobs: Sequence[StreamJob], *, elect: bool) -> None:
        super().__init__(jobs, elect=elect)
        (job,), (task,) = jobs, self._tasks
        self._length = row_length(job.shape or ())
        self._windows = list(zip(task.densities, one_a_model(job.parameters["epsilon"], job.models), strict=True))
        self._divides = job.parameters["rescale"] is True
        self._norms_due = bool(job.parameters["rescale"] == "l1")

    def combine(self, block: Block, out: Bits) -> None:
        task = self._tasks[block.job]
        factor = factors_for_kernels(block.floats(value) for value in task.factor)
        shared = (task.weights, task.divisor, task.scale, factor)
        for part, drop in self._ranked(block):
            models, ending = tuple(row[part] for row in block.models), (task.normalize, task.tiny, out[part])
            fused_ranked.combine_ranked(block.base[part], models, *shared, *drop, *ending)

    def _add_norms(self, block: Block, sums: NDArray[np.float64]) -> None:
        for part, drop in self._ranked(block):
            models = tuple(row[part] for row in block.models)
            fused_ranked.ranked_sums(block.base[part], models, *drop, sums)

    def _ranked(self, block: Block) -> Iterator[tuple[slice, tuple[Any, ...]]]:
        """Ranges of the block, each with what the kernels take to drop by; valid until the next range."""
        keys = self._tasks[block.job].keys
        inverse = np.empty((len(self._windows), 0), block.floats)
        for rows, part, skipped in block.pieces(self._length, RANKED):
            if inverse.shape[1] < rows.shape[1]:
                inverse = np.empty((len(self._windows), rows.shape[1]), block.floats)
            for row, window, out in zip(rows[1:], self._windows, inverse, strict=True):
                by_place = _inverse(self._length, *window, out.itemsize == 8)
                _look_up(rows[0], row, self._length, by_place, out[: len(row)])
            yield part, (inverse, skipped, block.first + part.start, keys, self._divides)


def _look_up(base: Bits, row: Bits, length: int, inverse: NDArray[Any], out: NDArray[Any]) -> None:
    """Writes `inverse` of each entry's place in its row of `length` to `out (n,)`."""
    if length <= PAIRED:
        size = np.empty(length, out.dtype)
        words = size.view(np.int64 if out.itemsize == 8 else np.int32)
        fused_ranks.rank_by_pairs(base, row, words, size, inverse, out)
    elif out.itemsize == 8:
        with np.errstate(invalid="ignore"):
            sizes = np.abs(row - base).view(np.uint64)
        for first in range(0, len(row), length):
            own = sizes[first : first + length]
            rising = np.sort(own)
            place = np.searchsorted(rising, own, "left") + np.searchsorted(rising, own, "right")
            out[first : first + length] = inverse[place]
    else:
        _look_up_binned(base, row, length, inverse.view(np.uint32), out.view(np.uint32))


def _look_up_binned(base: Bits, row: Bits, length: int, inverse: NDArray[np.uint32], out: NDArray[np.uint32]) -> None:
    """As `_look_up`, of floats as the words that they are stored as."""
    bits = (length - 1).bit_length()
    keys, few = np.empty(len(row) + 1, np.uint64), len(row) // FEW_IN
    found = len(row)
    if row.itemsize == 2:
        widths = min(max(1 << (length.bit_length() - 2), COARSE), FINE)
        pairs = np.empty(8 * widths, np.uint32 if length < 1 << 16 else np.uint64)
        counts = pairs.view(np.uint16 if length < 1 << 16 else np.uint32)
        found = fused_ranks.rank_by_counts(base, row, length, bits, widths, counts, pairs, few, inverse, out, keys)
    if found > few:
        ranked = _sorted_bins(base, row, length, bits)
        found = fused_ranks.rank_by_sorting(base, row, length, bits, ranked, inverse, out, keys)
    if found:
        keys[:found].sort()
        fused_ranks.settle(keys[:found], length, bits, inverse, out)


def _sorted_bins(base: Bits, row: Bits, length: int, bits: int) -> NDArray[Any]:
    """For each row how many widths its entries have, rising, above `bits` of the index."""
    short = bits <= 14
    ranked: NDArray[Any] = np.empty(len(row), np.uint32 if short else np.uint64)
    # As many as there is room for; more than 2²⁴, or 2²⁹ in a longer key, are none that float32 tells apart.
    fused_ranks.binned(base, row, length, bits, 1 << (min(32 - bits, 24) if short else 29), ranked)
    # Long keys are no NaN as floats, which order like them, and numpy sorts those a fifth faster.
    (ranked if short else ranked.view(np.float64)).reshape(-1, length).sort(axis=1)
    return ranked
