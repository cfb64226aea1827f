"""The consensus methods in passes over blocks of stored bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.consensus import uniqueness_factor
from eutectic.kernels.streams import Bits, Block, Stream, StreamJob
from eutectic.kernels.sums import one_a_model
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    from eutectic.kernels import fused_consensus
else:
    fused_consensus = LazyModule("eutectic.kernels.fused_consensus")


class EntryByEntry(Stream):
    """A method that needs no reductions: `kernel` computes any block from the job's parameters."""

    def __init__(self, jobs: Sequence[StreamJob], kernel: Callable[[StreamJob, Block, Bits], None]) -> None:
        self._jobs = jobs
        self._kernel = kernel

    def combine(self, block: Block, out: Bits) -> None:
        self._kernel(self._jobs[block.job], block, out)


def strongest(job: StreamJob, block: Block, out: Bits) -> None:
    """The delta of largest magnitude."""
    fused_consensus.combine_extremes(block.base, block.models, False, float(job.parameters["lambda_"]), out)


def elected(job: StreamJob, block: Block, out: Bits) -> None:
    """The delta of largest magnitude among those with the sign of the sum."""
    fused_consensus.combine_extremes(block.base, block.models, True, float(job.parameters["lambda_"]), out)


def agreed(job: StreamJob, block: Block, out: Bits) -> None:
    """The sum of the deltas where it serves enough of them."""
    given = job.parameters
    levels, wanted = tuple(one_a_model(given["tall_lambda"], job.models)), int(given["k"])
    fused_consensus.combine_agreed(block.base, block.models, levels, wanted, float(given["lambda_"]), out)


def changed(job: StreamJob, block: Block, out: Bits) -> None:
    """The mean over the models that changed an entry."""
    _combine_positions(job, block, (1.0,) * job.models, out)


def _combine_positions(job: StreamJob, block: Block, factors: tuple[float, ...], out: Bits) -> None:
    epsilon = block.floats(job.parameters["epsilon"])
    fused_consensus.combine_positions(block.base, block.models, epsilon, factors, out)


class Positions(Stream):
    """Counts each model's shared and unique entries, then takes means, times a factor where a model is alone.

    Counts are taken over the whole group: one tensor, or all under `scope: model`.
    """

    def __init__(self, jobs: Sequence[StreamJob]) -> None:
        self._jobs = jobs
        self._counts: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._factors: list[tuple[float, ...]] = []

    @property
    def pending(self) -> bool:
        return not self._factors

    def reduce(self, block: Block) -> None:
        job = self._jobs[block.job]
        counts = np.zeros((job.models, 2), np.int64)
        fused_consensus.count_positions(block.base, block.models, block.floats(job.parameters["epsilon"]), counts)
        self._counts[block.job, block.index] = counts

    def fold(self) -> None:
        totals = sum(self._counts.values(), np.zeros((self._jobs[0].models, 2), np.int64)).tolist()
        self._counts.clear()
        for job in self._jobs:
            r, alpha = float(job.parameters["r"]), float(job.parameters["alpha"])
            self._factors.append(tuple(uniqueness_factor(every - alone, alone, r, alpha) for every, alone in totals))

    def combine(self, block: Block, out: Bits) -> None:
        _combine_positions(self._jobs[block.job], block, self._factors[block.job], out)
