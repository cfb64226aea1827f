"""blocks of deltas -> each model's exact k-th largest magnitude, in constant memory and any order of blocks.

The bit patterns of non-negative floats order like their values, so the k-th largest is found by counting patterns: the
top 16 bits of each, then 16 more among those in the right bin, until none are left.

For float32 one pass is usually enough. A sample says between which two patterns the k-th largest lies; one pass over
everything counts those beyond and keeps those between, of which the k-th largest is then picked. The few patterns that
are frequent there, as deltas of 16-bit floats are quantised, are counted and not kept. Where still too many lie between
to be kept, a count in equal steps narrows it down first. If the sample misled, the counts by 16 bits are made after
all. Of few entries all are kept, and there is no sample. The result is the same.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
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
# Blocks to sample from, at least, where there are that many.
SAMPLED = 4
# Smaller groups are kept whole; of the others some `AIM` entries are sampled, one in `MOST` of the smallest and one in
# `LEAST` of large ones, up to `KEPT`.
SMALLEST, AIM, MOST, LEAST = 1 << 17, 1 << 15, 32, 384
# Standard deviations of a sample's rank that are allowed for on either side.
DEVIATIONS = 3
# Frequent patterns that are counted and not kept, at most.
HEAVY = 4
# Patterns a model that are kept: twice as many take as much memory as its counts.
KEPT = 1 << 18
LAST = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class _Near:
    """What one block has near a model's k-th largest.

    How many lie beyond the window, how many equal each of the frequent patterns, how many others lie within the window,
    and these, if they are kept.
    """

    beyond: int
    heavy: NDArray[np.int64]
    others: int
    patterns: NDArray[np.int32]


class Selection:
    """The k-th largest |x - base| of each model.

    Args:
        ranks: k of each model, from 1; 0 for a group without entries.
        sizes: entries of each job.
        wide: whether the working floats are float64.

    `pending`, `wants`, `reduce` and `fold` are as in `Stream`. Afterwards `threshold (K,)` is the value, and `rank` how
    many entries equal to it belong to the k largest. `equal` is how many each block has, by job and index, or None
    where that was not found on the way.
    """

    def __init__(self, ranks: list[int], sizes: Sequence[int], wide: bool) -> None:
        self._wanted = ranks
        self._word: type[Any] = np.uint64 if wide else np.uint32
        self._value: type[Any] = np.float64 if wide else np.float32
        self._levels = 4 if wide else 2
        self._sizes = sizes
        self._numel = sum(sizes)
        self._stage = "level" if wide or not self._numel else "sample" if self._numel > SMALLEST else "near"
        self._one_in = max(MOST, min(self._numel // AIM, LEAST), self._numel // KEPT)
        self._block_step = max(1, self._numel // BLOCK // SAMPLED)
        self._restart()
        self._near: dict[tuple[int, int], list[_Near]] = {}
        self._kept = [0] * len(ranks)
        self._samples: dict[tuple[int, int], list[NDArray[np.int32]]] = {}
        self._low, self._high = [0] * len(ranks), [LAST] * len(ranks)
        self._heavy: list[NDArray[np.int32]] = [np.empty(0, np.int32) for _ in ranks]
        self.threshold: NDArray[Any] = np.zeros(len(ranks), self._value)
        self.equal: dict[tuple[int, int], NDArray[np.int64]] | None = None

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
        """All blocks, but only some of many for the sample."""
        return self._stage != "sample" or index % self._block_step == 0

    @property
    def floor(self) -> NDArray[Any]:
        """What the present pass need not tell from zero: all that is smaller, of each model."""
        low = self._low if self._stage in ("near", "narrow") else [0] * len(self._low)
        return np.array(low, self._word).view(self._value)

    def reduce(self, block: Block) -> None:
        """Counts one block."""
        if self._stage == "sample":
            self._samples[block.job, block.index] = self._sampled(block)
            return
        words = np.empty(fused.TILE, self._word)
        scratch = (words, words.view(self._value))
        if self._stage == "near":
            self._near[block.job, block.index] = self._look_near(block, *scratch)
            return
        counts, beyond = self._tallies()
        if self._stage == "narrow":
            windows = (np.array(self._low, np.uint32), np.array(self._shifts(), np.uint32))
            fused.histogram_window(block.base, block.models, *scratch, *windows, counts, beyond)
        elif self._level == 0:
            fused.histogram_top(block.base, block.models, *scratch, counts)
        else:
            shift = 16 * (self._levels - 1 - self._level)
            mask = np.array([(1 << 16 * self._levels - 1) - (1 << shift + 16)], self._word)
            prefix = np.array([p << shift + 16 for p in self._prefix], self._word)
            fused.histogram_below(block.base, block.models, *scratch, mask, prefix, shift, counts)

    def _sampled(self, block: Block) -> list[NDArray[np.int32]]:
        """Patterns of a part of the block, as large as the part of its job that the block stands for.

        One array for ranks of one row that follow each other.
        """
        stands_for = min(self._block_step * BLOCK, self._sizes[block.job] - block.first)
        # Odd, so that rows of even length are not always met in the same columns.
        step = max(1, len(block.base) * self._one_in // stands_for) | 1
        thin = block.every(step)
        models, found = thin.models, []
        for model, row in enumerate(models):
            if not model or row is not models[model - 1]:
                out = np.empty((1, len(thin.base)), self._value)
                fused.all_scores(thin.base, (row,), out)
            found.append(out[0].view(np.int32))
        return found

    def _look_near(self, block: Block, words: NDArray[Any], size: NDArray[Any]) -> list[_Near]:
        found: list[_Near] = []
        signed, models = words.view(np.int32), block.models
        inside = np.empty(len(block.base) + 1, np.int32)
        for model, row in enumerate(models):
            if model and row is models[model - 1] and self._same_window(model, model - 1):
                # Neighbouring ranks of one model.
                self._kept[model] += len(found[-1].patterns)
                found.append(found[-1])
                continue
            window = (np.int32(self._low[model]), np.int32(self._high[model]))
            equal = np.zeros(len(self._heavy[model]), np.int64)
            beyond, others = fused.count_near(block.base, row, signed, size, *window, self._heavy[model], equal, inside)
            # Counted even if they are not kept, where the sample has promised fewer.
            kept = inside[: others if self._kept[model] <= KEPT else 0].copy()
            self._kept[model] += len(kept)
            found.append(_Near(beyond, equal, others, kept))
        return found

    def _same_window(self, one: int, other: int) -> bool:
        bounds = self._low[one] == self._low[other] and self._high[one] == self._high[other]
        return bounds and np.array_equal(self._heavy[one], self._heavy[other])

    def _tallies(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        own = self._own.get(threading.get_ident())
        if own is None:
            width = 2 * BINS if self._stage == "narrow" else BINS
            own = (np.zeros((len(self.rank), width), np.int64), np.zeros(len(self.rank), np.int64))
            self._own[threading.get_ident()] = own
        return own

    def fold(self) -> None:
        """Ends the present pass and says what to count next."""
        if self._stage == "sample":
            self._guess()
        elif self._stage == "near":
            self._pick()
        else:
            counts = sum((own[0] for own in self._own.values()), np.int64(0))
            beyond = sum((own[1] for own in self._own.values()), np.zeros(len(self.rank), np.int64))
            self._own = {}
            if self._stage == "narrow":
                self._narrow(counts, beyond)
            else:
                self._refine(counts)

    def _guess(self) -> None:
        """The patterns between which the sample says that the k-th largest lies."""
        fits, previous = True, None
        sample = np.empty(0, np.int32)
        for model, rank in enumerate(self._wanted):
            parts = [found[model] for found in self._samples.values()]
            if parts[0] is not previous:
                sample, previous = np.sort(np.concatenate(parts)), parts[0]
            size, share = len(sample), rank / self._numel
            off = DEVIATIONS * math.sqrt(size * share * (1 - share)) + 1
            # Places in rising order; the largest of all where the k-th may be larger than any of the sample.
            low, high = (math.floor(size * (1 - share) - off), math.ceil(size * (1 - share) + off))
            self._low[model] = int(sample[low]) if low >= 0 else 0
            self._high[model] = int(sample[high]) if high < size else LAST
            first = np.searchsorted(sample, self._low[model])
            window = sample[first : np.searchsorted(sample, self._high[model], side="right")]
            self._heavy[model], others = _frequent(window, KEPT * size / self._numel)
            fits = fits and others * self._numel <= KEPT * size
        self._samples.clear()
        self._stage = "near" if fits else "narrow"

    def _shifts(self) -> list[int]:
        """How many bits to leave out so that the patterns of each window fall into the bins."""
        return [
            max(0, (high - low).bit_length() - (2 * BINS).bit_length() + 1)
            for low, high in zip(self._low, self._high, strict=True)
        ]

    def _narrow(self, counts: Any, beyond: NDArray[np.int64]) -> None:
        """The bin that holds the k-th largest becomes the window."""
        fits = True
        for model, (rank, shift) in enumerate(zip(self._wanted, self._shifts(), strict=True)):
            left = rank - int(beyond[model])
            from_top = np.cumsum(counts[model][::-1])
            if not 0 < left <= int(from_top[-1]):
                self._count_all()
                return
            place = 2 * BINS - 1 - int(np.searchsorted(from_top, left))
            self._low[model] += place << shift
            self._high[model] = self._low[model] + (1 << shift) - 1
            self._heavy[model] = np.array([] if shift else [self._low[model]], np.int32)
            fits = fits and (not shift or int(counts[model][place]) <= KEPT)
        self._stage = "near" if fits else "narrow"

    def _pick(self) -> None:
        """Of those near, the k-th largest; and how many equal ones each block has."""
        near, self._near, self._kept = self._near, {}, [0] * len(self.rank)
        patterns, equal = [], []
        for model, rank in enumerate(self._wanted):
            blocks = [found[model] for found in near.values()]
            inside = np.concatenate([block.patterns for block in blocks])
            if len(inside) < sum(block.others for block in blocks):
                self._stage = "narrow"
                return
            left = rank - sum(block.beyond for block in blocks)
            heavy = np.array([block.heavy for block in blocks])
            picked = _kth(left, inside, self._heavy[model], heavy.sum(axis=0))
            if picked is None:
                self._count_all()
                return
            pattern, self.rank[model] = picked
            patterns.append(pattern)
            whose = np.repeat(np.arange(len(blocks)), [len(block.patterns) for block in blocks])
            kept = np.bincount(whose[inside == pattern], minlength=len(blocks))
            equal.append(kept + heavy[:, self._heavy[model] == pattern].sum(axis=1))
        self.equal = dict(zip(near, np.stack(equal, axis=1), strict=True))
        self._finish(patterns)

    def _count_all(self) -> None:
        """The sample misled: starts again without one."""
        self._restart()
        self._stage = "level"

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


def _frequent(window: NDArray[np.int32], many: float) -> tuple[NDArray[np.int32], int]:
    """Up to `HEAVY` patterns of which a window has a large part of `many`, and how many others it has."""
    patterns, counts = np.unique(window, return_counts=True)
    chosen = np.argsort(counts)[-HEAVY:]
    chosen = chosen[counts[chosen] > many / (4 * HEAVY)]
    # A window of one pattern has nothing to keep, be it rare.
    chosen = chosen if len(patterns) > 1 else np.arange(len(patterns))
    return patterns[chosen].astype(np.int32), int(counts.sum() - counts[chosen].sum())


def _kth(
    left: int, inside: NDArray[np.int32], heavy: NDArray[np.int32], counts: NDArray[np.int64]
) -> tuple[int, int] | None:
    """The `left`-th largest of `inside` and of `heavy[H]` with their `counts[H]`, and its rank among those equal to it.

    None if there are not so many, or none are asked for.
    """
    if not 0 < left <= len(inside) + int(np.sum(counts)):
        return None
    for place in np.argsort(heavy)[::-1]:
        pattern, count = int(heavy[place]), int(counts[place])
        larger = int(np.count_nonzero(inside > pattern))
        if left <= larger:
            break
        if left <= larger + count:
            return pattern, left - larger
        # Those equal to it are out of the way, as if it had none.
        left -= count
    pattern = int(np.partition(inside, len(inside) - left)[len(inside) - left])
    return pattern, left - int(np.count_nonzero(inside > pattern))
