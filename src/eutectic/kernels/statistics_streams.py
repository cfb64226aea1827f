"""Averages by statistics as streams: every entry weighted by its own Fisher, and the mean where nobody has a say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eutectic.kernels.streams import Bits, Block, Stream, StreamJob
from eutectic.kernels.sums import divisor, one_a_model
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    from eutectic.kernels import fused, fused_statistics
else:
    fused = LazyModule("eutectic.kernels.fused")
    fused_statistics = LazyModule("eutectic.kernels.fused_statistics")


class Mean(Stream):
    """Σ wᵢ θᵢ / Σ wᵢ, of tensors that have no statistics or are not to be merged with them."""

    def __init__(self, jobs: Sequence[StreamJob]) -> None:
        self._weights = [tuple(one_a_model(job.parameters["weight"], job.models)) for job in jobs]

    def combine(self, block: Block, out: Bits) -> None:
        weights = self._weights[block.job]
        fused.combine_weights(block.rows, weights, divisor(weights, True), out)


class FisherMean(Mean):
    """Σ sᵢ Fᵢ θᵢ / Σ sᵢ Fᵢ with sᵢ = wᵢ / normᵢ, and the mean where the divisor is below the floor.

    The floor needs the means of the Fᵢ: one reduction. Without a floor there is none.
    """

    def __init__(self, jobs: Sequence[StreamJob]) -> None:
        super().__init__(jobs)
        self._jobs = jobs
        norms = [one_a_model(job.parameters["norm"], job.models) for job in jobs]
        self._scales = [
            tuple(w / n for w, n in zip(*pair, strict=True)) for pair in zip(self._weights, norms, strict=True)
        ]
        self._levels = [0.0] * len(jobs)
        self._parts: dict[tuple[int, int], list[float]] = {}
        self._due = any(job.beside and job.parameters["floor"] for job in jobs)
        self._totals: list[list[float]] = []

    @property
    def pending(self) -> bool:
        return self._due

    def reduce(self, block: Block) -> None:
        self._parts[block.job, block.index] = [float(fused_statistics.total_of(row)) for row in block.beside]

    def fold(self) -> None:
        totals = [[0.0] * job.models for job in self._jobs]
        for job, index in sorted(self._parts):
            found = self._parts[job, index]
            totals[job] = [total + part for total, part in zip(totals[job], found, strict=False)]
        self._parts.clear()
        self._decide(totals)

    def shares(self, other: Stream) -> bool:
        # The means depend on no parameter.
        return isinstance(other, FisherMean) and self._due and other._due

    def take(self, other: Stream) -> None:
        assert isinstance(other, FisherMean)
        self._decide(other._totals)

    def _decide(self, totals: list[list[float]]) -> None:
        self._totals, self._due = totals, False
        for number, (job, scales) in enumerate(zip(self._jobs, self._scales, strict=True)):
            means = (total / max(job.numel, 1) for total in totals[number])
            self._levels[number] = job.parameters["floor"] * sum(s * m for s, m in zip(scales, means, strict=True))

    def combine(self, block: Block, out: Bits) -> None:
        if not block.beside:
            super().combine(block, out)
            return
        weights, scales = self._weights[block.job], self._scales[block.job]
        level = self._levels[block.job]
        fused_statistics.weigh_entries(block.rows, block.beside, weights, scales, divisor(weights, True), level, out)
