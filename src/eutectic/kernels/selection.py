"""blocks of deltas -> each model's exact k-th largest magnitude, in constant memory and any order of blocks.

The bit patterns of non-negative floats order like their values, so the k-th largest is found by counting patterns: the
top 16 bits of each, then 16 more among those in the right bin, until none are left. For float32 one pass is usually
enough: a sample of blocks guesses the two bins around the k-th largest, and one pass over everything counts exactly the
patterns in them and those beyond. If the guess was wrong, the two passes are made after all. The result is the same.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.digests import BLOCK
from eutectic.kernels.streams import Block
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    from eutectic.kernels import fused
else:
    fused = LazyModule("eutectic.kernels.fused")

BINS = 1 << 16
# One block in this many is sampled for the guess.
SAMPLE = 16


class Selection:
    """The k-th largest |x - base| of each model.

    Args:
        ranks: k of each model, from 1; 0 for a group without entries.
        numel: entries in all.
        wide: whether the working floats are float64.

    `pending`, `wants`, `reduce` and `fold` are as in `Stream`. Afterwards `threshold (K,)` is the value, and `rank` how
    many entries equal to it belong to the k largest.
    """

    def __init__(self, ranks: list[int], numel: int, wide: bool) -> None:
        self._wanted = ranks
        self._word: type[Any] = np.uint64 if wide else np.uint32
        self._value: type[Any] = np.float64 if wide else np.float32
        self._levels = 4 if wide else 2
        # Where there are few blocks, sampling one would cost about the pass that it can save.
        self._stage = "sample" if not wide and numel > 4 * BLOCK else "level"
        self._numel = numel
        self._restart()
        self.threshold: NDArray[Any] = np.zeros(len(ranks), self._value)

    def _restart(self) -> None:
        self.rank = list(self._wanted)
        self._prefix = [0] * len(self.rank)
        self._level = 0
        # Counts are integers, one array a thread: their sum does not depend on who counted what.
        self._own: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def want(self, ranks: list[int]) -> None:
        """Changes k, where it is known only after a first count: before the `fold` of that count."""
        self._wanted = ranks
        if self._level == 0:
            self.rank = list(ranks)

    @property
    def pending(self) -> bool:
        """True until `threshold` and `rank` are known."""
        return self._stage != "done"

    def wants(self, index: int) -> bool:
        """All blocks, but one in `SAMPLE` for the guess."""
        return self._stage != "sample" or index % SAMPLE == 0

    def reduce(self, block: Block) -> None:
        """Counts one block."""
        counts, beyond = self._tallies()
        words = np.empty(fused.TILE, self._word)
        scratch = (words, words.view(self._value))
        if self._stage == "window":
            low = np.array([p << 16 for p in self._prefix], np.uint32)
            fused.histogram_window(block.base, block.models, *scratch, low, counts, beyond)
        elif self._level == 0:
            beyond += len(block.base)
            fused.histogram_top(block.base, block.models, *scratch, counts)
        else:
            shift = 16 * (self._levels - 1 - self._level)
            mask = np.array([(1 << 16 * self._levels - 1) - (1 << shift + 16)], self._word)
            prefix = np.array([p << shift + 16 for p in self._prefix], self._word)
            fused.histogram_below(block.base, block.models, *scratch, mask, prefix, shift, counts)

    def _tallies(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        own = self._own.get(threading.get_ident())
        if own is None:
            width = 2 * BINS if self._stage == "window" else BINS
            own = (np.zeros((len(self.rank), width), np.int64), np.zeros(len(self.rank), np.int64))
            self._own[threading.get_ident()] = own
        return own

    def fold(self) -> None:
        """Ends the present count and says what to count next."""
        counts = sum((own[0] for own in self._own.values()), np.int64(0))
        beyond = sum((own[1] for own in self._own.values()), np.zeros(len(self.rank), np.int64))
        self._own = {}
        if self._stage == "sample":
            self._guess(counts, beyond)
        elif self._stage == "window":
            self._look_in_window(counts, beyond)
        else:
            self._refine(counts)

    def _guess(self, counts: Any, sampled: NDArray[np.int64]) -> None:
        """Two neighbouring bins around where the sample has its k-th largest."""
        for model, rank in enumerate(self._wanted):
            from_top = np.cumsum(counts[model][::-1])
            near = max(1, round(rank * int(sampled[model]) / self._numel))
            place = min(int(np.searchsorted(from_top, near)), BINS - 1)
            inside = near - (int(from_top[place - 1]) if place else 0)
            top = BINS - 1 - place
            upper = 2 * inside < int(counts[model][top])
            self._prefix[model] = min(max(top - (0 if upper else 1), 0), BINS // 2 - 2)
        self._stage = "window"

    def _look_in_window(self, counts: Any, beyond: NDArray[np.int64]) -> None:
        found = []
        for model, rank in enumerate(self._wanted):
            left = rank - int(beyond[model])
            from_top = np.cumsum(counts[model][::-1])
            if not 0 < left <= int(from_top[-1]):
                self._restart()
                self._stage = "level"
                return
            place = int(np.searchsorted(from_top, left))
            self.rank[model] = left - (int(from_top[place - 1]) if place else 0)
            found.append((self._prefix[model] << 16) + 2 * BINS - 1 - place)
        self._finish(found)

    def _refine(self, counts: Any) -> None:
        """Picks the bin that holds the k-th largest; `rank` becomes its rank within the bin."""
        for model, rank in enumerate(self.rank):
            if rank:
                from_top = np.cumsum(counts[model][::-1])
                place = int(np.searchsorted(from_top, rank))
                self.rank[model] -= int(from_top[place - 1]) if place else 0
                self._prefix[model] = self._prefix[model] << 16 | (BINS - 1 - place)
        self._level += 1
        if self._level == self._levels:
            self._finish(self._prefix)

    def _finish(self, patterns: list[int]) -> None:
        self.threshold = np.array(patterns, self._word).view(self._value)
        self._stage = "done"
