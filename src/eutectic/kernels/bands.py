"""Δ -> sparser Δ: of each row the largest magnitudes after a few outliers; breadcrumbs by rows, in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.ranked import row_length
from eutectic.kernels.streams import Bits, Block, StreamJob
from eutectic.kernels.sums import factors_for_kernels, one_a_model
from eutectic.kernels.task_vectors import TaskVectors
from eutectic.kernels.trim import kept_count, outlier_count
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    from eutectic.kernels import fused, fused_bands
else:
    fused = LazyModule("eutectic.kernels.fused")
    fused_bands = LazyModule("eutectic.kernels.fused_bands")

# Entries that are ranked at a time, if rows are shorter: the words of several models stay in a cache.
RANKED = 1 << 16


class BandsOfRows(TaskVectors):
    """θ₀ + λ · consensus(rescale(band of each row of τ)). Reductions: the norms, where L1 norms are matched.

    Blocks have whole rows around them.
    """

    def __init__(self, jobs: Sequence[StreamJob], *, elect: bool = False) -> None:
        super().__init__(jobs, elect=elect)
        (job,), (task,) = jobs, self._tasks
        self._length = row_length(job.shape or ())
        gammas = one_a_model(job.parameters["gamma"], job.models)
        kept = [kept_count(density, self._length) for density in task.densities]
        removed = [outlier_count(gamma, self._length, stay) for gamma, stay in zip(gammas, kept, strict=True)]
        # How many of a row are among the largest, up to the last that stays and the last that does not.
        self._ranks = [(stay + out, out) for stay, out in zip(kept, removed, strict=True)]
        self._norms_due = bool(job.parameters["rescale"])

    def combine(self, block: Block, out: Bits) -> None:
        task = self._tasks[block.job]
        factor = factors_for_kernels(block.floats(value) for value in task.factor)
        shared = (task.weights, task.divisor, task.scale, factor)
        for part, band in self._bands(block):
            models = tuple(row[part] for row in block.models)
            ending = (task.normalize, task.tiny, out[part])
            fused_bands.combine_bands(block.base[part], models, *shared, *band, *ending)

    def _add_norms(self, block: Block, sums: NDArray[np.float64]) -> None:
        for part, band in self._bands(block):
            models = tuple(row[part] for row in block.models)
            fused_bands.band_sums(block.base[part], models, *band, sums)

    def _bands(self, block: Block) -> Iterator[tuple[slice, tuple[Any, ...]]]:
        """Ranges of the block, each with what the kernels take of its rows; valid until the next range."""
        for around, part, skipped in block.pieces(self._length, RANKED):
            sizes = np.empty((len(self._ranks), around.shape[1]), block.floats)
            fused.all_scores(around[0], tuple(around[1:]), sizes)
            words = sizes.view(np.int64 if sizes.itemsize == 8 else np.int32)
            infinite = np.array(np.inf, block.floats).view(words.dtype)
            np.minimum(words, infinite + 1, out=words)
            levels = np.empty((*words.shape[:1], words.shape[1] // self._length, 2), words.dtype)
            ends = np.empty(levels.shape, np.int64)
            for model, ranks in enumerate(self._ranks):
                _cut(words[model], self._length, ranks, levels[model], ends[model])
            yield part, (words, skipped, self._length, levels, ends)


def _cut(words: NDArray[Any], length: int, ranks: tuple[int, int], levels: NDArray[Any], ends: NDArray[Any]) -> None:
    """Writes the levels of each row of `words`, `(R, 2)`, and where those equal to them end; see `between`."""
    last, outliers = ranks
    rows = words.reshape(-1, length)
    # What no entry is below, and what none is equal to.
    levels[:, 0], levels[:, 1] = -1, np.iinfo(words.dtype).max
    ends[:] = 0
    if last < length:
        # One after the other: numpy has no vector instructions for two places at once.
        rows = np.partition(rows, length - last, axis=1)[:, length - last :]
        levels[:, 0] = rows[:, 0]
        fused_bands.row_ends(words, length, levels[:, 0], last, ends[:, 0])
    if outliers:
        levels[:, 1] = np.partition(rows, last - outliers, axis=1)[:, last - outliers]
        fused_bands.row_ends(words, length, levels[:, 1], outliers, ends[:, 1])
