"""Weighted sums as streams: with coefficients known beforehand, or from the inner products of the whole tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.sphere import Gram
from eutectic.kernels.streams import Bits, Block, Stream, StreamJob
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    from eutectic.kernels import fused, fused_geometry
else:
    fused = LazyModule("eutectic.kernels.fused")
    fused_geometry = LazyModule("eutectic.kernels.fused_geometry")


class Combination(Stream):
    """Σ cₖ xₖ, or with a base θ₀ + Σ cₖ δₖ. Whether there is one shows in the number of rows."""

    def __init__(self, jobs: Sequence[StreamJob], rule: Callable[[StreamJob], Sequence[float]]) -> None:
        """`rule` gives the coefficients of a job."""
        self._jobs = jobs
        self._coefficients = [tuple(map(float, rule(job))) for job in jobs]

    def combine(self, block: Block, out: Bits) -> None:
        shares = self._coefficients[block.job]
        if shares == (1.0,) and len(block.rows) == 1 and block.bits.dtype == out.dtype:
            out[:] = block.bits[0]
        elif len(block.rows) == len(shares):
            fused.combine_weights(block.rows, shares, (), out)
        else:
            fused.combine_deltas(block.base, block.models, shares, (), 1.0, (), (), False, 0.0, out)


class GramCombination(Combination):
    """The same with coefficients from the Gram matrix of the models (of the deltas, with a base): one reduction."""

    def __init__(self, jobs: Sequence[StreamJob], rule: Callable[[Gram, dict[str, Any]], Sequence[float]]) -> None:
        """`rule(gram, parameters)` gives the coefficients of a job."""
        super().__init__(jobs, lambda job: ())
        self._rule = rule
        self._parts: dict[tuple[int, int], NDArray[np.float64]] = {}
        self._totals: list[NDArray[np.float64]] = []
        self._pending = True

    @property
    def pending(self) -> bool:
        return self._pending

    def reduce(self, block: Block) -> None:
        models = self._jobs[block.job].models
        found = np.zeros((models, models))
        if len(block.rows) == models:
            fused_geometry.gram_of_weights(block.rows, found)
        else:
            fused_geometry.gram_of_deltas(block.base, block.models, found)
        self._parts[block.job, block.index] = found

    def fold(self) -> None:
        totals = [np.zeros((job.models, job.models)) for job in self._jobs]
        for job, index in sorted(self._parts):
            totals[job] = totals[job] + self._parts[job, index]
        self._parts.clear()
        self._decide(totals)

    def shares(self, other: Stream) -> bool:
        # The inner products depend on no parameter.
        return isinstance(other, GramCombination)

    def take(self, other: Stream) -> None:
        assert isinstance(other, GramCombination)
        self._decide(other._totals)

    def _decide(self, totals: list[NDArray[np.float64]]) -> None:
        self._totals, self._pending = totals, False
        self._coefficients = [
            tuple(map(float, self._rule(total.tolist(), job.parameters)))
            for total, job in zip(totals, self._jobs, strict=True)
        ]


class NearSwap(Stream):
    """Moves the first model towards the second, each entry by at most t."""

    def __init__(self, jobs: Sequence[StreamJob]) -> None:
        self._t = [float(job.parameters["t"]) for job in jobs]

    def combine(self, block: Block, out: Bits) -> None:
        fused_geometry.near_swap(*block.rows, self._t[block.job], out)
