"""blocks of deltas -> exactly each model's k largest: a threshold, and which of the entries equal to it belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.selection import Selection
from eutectic.kernels.streams import Block
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    from eutectic.kernels import fused
else:
    fused = LazyModule("eutectic.kernels.fused")


class Cut:
    """Where the k largest magnitudes of each model end; of equals the first by job and index belong to them.

    Args:
        ranks: k of each model; 0 cuts nothing off.
        sizes: entries of each job.
        wide: whether the working floats are float64.

    `pending`, `wants`, `reduce` and `fold` are as in `Stream`: the threshold's passes, then, if these have not said how
    many entries equal to it each block has, one that counts them.
    """

    def __init__(self, ranks: list[int], sizes: Sequence[int], wide: bool) -> None:
        self._nothing = [rank == 0 for rank in ranks]
        self._selection = Selection([max(rank, min(1, sum(sizes))) for rank in ranks], sizes, wide)
        self._counted = False
        self._equal: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._budget: dict[tuple[int, int], NDArray[np.int64]] = {}

    @property
    def pending(self) -> bool:
        """True until `ends` is known."""
        return not self._counted

    def wants(self, index: int) -> bool:
        """Whether the present pass needs block number `index` of each job."""
        return self._selection.wants(index) if self._selection.pending else True

    @property
    def selecting(self) -> bool:
        """True while thresholds are sought, in which time `want` may change k."""
        return self._selection.pending

    def want(self, ranks: list[int]) -> None:
        """See `Selection.want`."""
        self._selection.want(ranks)

    @property
    def floor(self) -> NDArray[Any]:
        """What the present pass need not tell from zero: all that is smaller, of each model."""
        return self._selection.floor if self._selection.pending else self._selection.threshold

    def reduce(self, block: Block) -> None:
        """Takes one block into the present pass."""
        if self._selection.pending:
            self._selection.reduce(block)
            return
        equal = np.zeros(len(self._nothing), np.int64)
        scratch = np.empty(fused.TILE, block.floats)
        fused.count_equal(block.base, block.models, scratch, self.threshold(block), equal)
        self._equal[block.job, block.index] = equal

    def fold(self) -> None:
        """Ends the present pass."""
        if self._selection.pending:
            self._selection.fold()
            if self._selection.equal is None:
                return
            self._equal = self._selection.equal
        left = np.where(self._nothing, 0, self._selection.rank)
        for place in sorted(self._equal):
            self._budget[place] = np.minimum(left, self._equal[place])
            left = left - self._budget[place]
        self._counted = True

    def threshold(self, block: Block) -> NDArray[Any]:
        """Each model's k-th largest magnitude, in the block's working floats."""
        return self._selection.threshold.astype(block.floats)

    def ends(self, block: Block) -> NDArray[np.int64]:
        """For each model, the entry of the block before which those equal to the threshold are among the k largest."""
        ends = np.zeros(len(self._nothing), np.int64)
        place, threshold = (block.job, block.index), self.threshold(block)
        for model, (budget, equal) in enumerate(zip(self._budget[place], self._equal[place], strict=True)):
            if budget == equal:
                ends[model] = len(block.base)
            elif budget:
                scratch = np.empty(fused.TILE, block.floats)
                row = block.models[model]
                ends[model] = fused.after_equal(block.base, row, scratch, threshold[model], budget)
        return ends


def least_kept(cut: Cut, block: Block, ends: NDArray[np.int64], stop: int) -> NDArray[Any]:
    """The least magnitude among the k largest, for entries up to `stop` that no end comes between.

    It is the threshold where entries equal to it belong, and the next larger float where they do not.
    """
    threshold = cut.threshold(block)
    # The next of the largest float is infinity, as it should be.
    with np.errstate(over="ignore"):
        beyond: NDArray[Any] = np.where(ends >= stop, threshold, np.nextafter(threshold, block.floats(np.inf)))
    return beyond


def most_left(cut: Cut, block: Block, ends: NDArray[np.int64], stop: int) -> NDArray[Any]:
    """The largest magnitude that is not among the k largest, for entries up to `stop` that no end comes between."""
    threshold = cut.threshold(block)
    below: NDArray[Any] = np.where(ends >= stop, np.nextafter(threshold, block.floats(-1)), threshold)
    return below
