"""PCB-Merging in passes over blocks of stored bits: largest deltas, then the cut by score, then the combination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.consensus import RANKED
from eutectic.kernels.cuts import Cut, least_kept
from eutectic.kernels.streams import Bits, Block, Stream, StreamJob
from eutectic.kernels.trim import kept_count
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    from eutectic.kernels import fused, fused_competition
else:
    fused = LazyModule("eutectic.kernels.fused")
    fused_competition = LazyModule("eutectic.kernels.fused_competition")


@dataclass(slots=True)
class _Ranks(Block):
    """A block as a cut sees it: each model as a contender.

    `tops` has each model's largest |δ|, and `highest` will have its highest score of those that were ranked. Scores
    below `floors` rank as zero.
    """

    tops: Sequence[float] = ()
    floors: Sequence[float] = ()
    highest: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @property
    def models(self) -> tuple[Any, ...]:
        rows, scratch = tuple(self.bits[1:]), fused_competition.new_scratch(self.floats(0))
        return tuple(
            fused_competition.Contender(rows, row, top, floor, self.highest[k : k + 1], scratch)
            for k, (row, top, floor) in enumerate(zip(rows, self.tops, self.floors, strict=True))
        )


def scores_of(ranks: NDArray[Any]) -> NDArray[np.float64]:
    """Scores a little below those that rank so, whatever rounding does; zero where ranks are too small to be sure."""
    sure = ranks >= np.finfo(ranks.dtype).tiny
    return np.where(sure, ranks.astype(np.float64) / RANKED * (1 - 2.0**-18), 0.0)


class Competition(Stream):
    """θ₀ + λ Σ βₖ δₖ / Σ βₖ. All is taken over the whole group: one tensor, or all under `scope: model`.

    Reductions: the largest |δ| of each model, then its cut and its highest score.
    """

    def __init__(self, jobs: Sequence[StreamJob]) -> None:
        self._jobs = jobs
        self._density = float(jobs[0].parameters["density"])
        sizes = [job.numel for job in jobs]
        wide = any(job.parameters.get("wide", False) for job in jobs)
        self._cut = Cut([kept_count(self._density, sum(sizes))] * jobs[0].models, sizes, wide)
        self._tops: NDArray[np.float64] | None = None
        self._highest: NDArray[np.float64] = np.ones(jobs[0].models)
        self._found: dict[tuple[int, int], NDArray[np.float64]] = {}

    @property
    def pending(self) -> bool:
        return self._tops is None or self._cut.pending

    def wants(self, index: int) -> bool:
        return True if self._tops is None else self._cut.wants(index)

    def reduce(self, block: Block) -> None:
        if self._tops is None:
            patterns = np.zeros(len(block.models), np.int64 if block.floats is np.float64 else np.int32)
            size = np.empty(fused.TILE, block.floats)
            infinite = np.array(np.inf, block.floats).view(patterns.dtype)[()]
            fused_competition.largest_sizes(
                block.base, block.models, size.view(patterns.dtype), size, infinite, patterns
            )
            self._found[block.job, block.index] = patterns.view(block.floats).astype(np.float64)
            return
        ranks = self._ranks(block, self._cut.floor)
        self._cut.reduce(ranks)
        self._found[block.job, block.index] = ranks.highest

    def fold(self) -> None:
        most: NDArray[np.float64] = np.max(list(self._found.values()), axis=0, initial=0.0)
        # Nothing is divided by a largest that is zero.
        most = np.where(most == 0, 1.0, most)
        if self._tops is None:
            self._tops = most
            self._found.clear()
            return
        # Complete after the last pass, which is over all entries.
        self._highest = most
        self._cut.fold()

    def _ranks(self, block: Block, floor: NDArray[Any]) -> _Ranks:
        assert self._tops is not None
        tops, floors, highest = self._tops.tolist(), scores_of(floor).tolist(), np.zeros(len(self._tops))
        place = (block.job, block.index, block.first)
        return _Ranks(*place, block.bits, tops=tops, floors=floors, highest=highest)

    def shares(self, other: Stream) -> bool:
        return isinstance(other, Competition) and self._density == other._density

    def take(self, other: Stream) -> None:
        assert isinstance(other, Competition)
        self._tops, self._cut, self._highest = other._tops, other._cut, other._highest

    def combine(self, block: Block, out: Bits) -> None:
        scale = float(self._jobs[block.job].parameters["lambda_"])
        threshold = self._cut.threshold(block)
        ranks = self._ranks(block, threshold)
        ends = self._cut.ends(ranks)
        for start, stop in pairwise(sorted({0, len(block.base), *map(int, ends)})):
            level = least_kept(self._cut, ranks, ends, stop)
            models = tuple(row[start:stop] for row in block.models)
            scored = (self._tops, scores_of(threshold), self._highest, level, scale)
            fused_competition.combine_competition(block.base[start:stop], models, *scored, out[start:stop])
