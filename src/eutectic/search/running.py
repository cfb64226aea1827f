"""The running sum of a soup: a candidate with one ingredient more reads that ingredient alone."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eutectic import dtypes
from eutectic.checkpoint import Source
from eutectic.kernels.bits import STORED
from eutectic.kernels.digests import BLOCK
from eutectic.lazy import LazyModule
from eutectic.plan import Job, Plan
from eutectic.run.merged import MergedSource

fused: Any = LazyModule("eutectic.kernels.fused")

# Bits of the numbers' own precision, the leading one included.
_PRECISION = {"bfloat16": 8, "float16": 11, "float32": 24}
# Of a sum in float64, and the range of exponents an entry has seen.
_BYTES = 10
# The part of the machine's memory that a sum may take.
_SHARE = 4


class RunningSum:
    """Σ θᵢ of the accepted ingredients in float64, and of each entry the range of exponents that went into it.

    An entry's sum is exact, so in any order the same, as long as that range and the number of ingredients leave room
    in the 53 bits of float64. What is not surely exact is for the caller to sum again in the order of the merge.
    """

    def __init__(self, plan: Plan) -> None:
        """The sum of nothing yet, for the tensors that a merge averages in float32."""
        self._names = _summable(plan)
        self._totals: dict[str, NDArray[np.float64]] = {}
        self._low: dict[str, NDArray[np.uint8]] = {}
        self._high: dict[str, NDArray[np.uint8]] = {}
        self._precision: dict[str, int] = {}
        self.count = 0

    @staticmethod
    def fits(plan: Plan) -> bool:
        """Whether the sum of a merge takes no more than a quarter of this machine's memory."""
        entries = sum(job.spec.numel for job in plan.jobs if job.action == "merge")
        return entries * _BYTES * _SHARE <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def add(self, plan: Plan, newest: Source) -> None:
        """Adds an input of a merge, which is read once. Tensors that it made too wide for a sum are given up."""
        self._names &= _summable(plan)
        for name in self._totals.keys() - self._names:
            del self._totals[name], self._low[name], self._high[name]
        for job in plan.jobs:
            if job.name not in self._names:
                continue
            for start in range(0, max(job.spec.numel, 1), BLOCK):
                stop = min(start + BLOCK, job.spec.numel)
                self._extend(job, *_row(plan, job, newest, start, stop), start, stop)
        self.count += 1

    def holds(self, name: str) -> bool:
        """Whether there is a sum of that tensor."""
        return name in self._totals

    def _extend(self, job: Job, row: NDArray[np.float32], precision: int, start: int, stop: int) -> None:
        name = job.name
        low, high = _exponents(row)
        if self.count == 0:
            if start == 0:
                self._totals[name] = np.empty(job.spec.numel)
                self._low[name] = np.empty(job.spec.numel, np.uint8)
                self._high[name] = np.empty(job.spec.numel, np.uint8)
            self._totals[name][start:stop] = row
            self._low[name][start:stop], self._high[name][start:stop] = low, high
        else:
            self._totals[name][start:stop] += row
            np.minimum(self._low[name][start:stop], low, out=self._low[name][start:stop])
            np.maximum(self._high[name][start:stop], high, out=self._high[name][start:stop])
        self._precision[name] = max(self._precision.get(name, 0), precision)

    def mean_with(
        self, name: str, row: NDArray[np.float32], precision: int, start: int, stop: int
    ) -> NDArray[np.float32] | None:
        """The mean of the sum and one ingredient more, rounded as `linear` does; None where it may not be exact."""
        low, high = _exponents(row)
        low = np.minimum(self._low[name][start:stop], low)
        high = np.maximum(self._high[name][start:stop], high)
        count = self.count + 1
        # |Σ| < count · 2^(high + 1), and every partial sum is a multiple of 2^(low - precision + 1).
        room = 53 - max(precision, self._precision[name]) - (count - 1).bit_length()
        if np.any(high.astype(np.int16) - low > room):
            return None
        mean: NDArray[np.float32] = ((self._totals[name][start:stop] + row) / float(count)).astype(np.float32)
        return mean


class RunningMean(MergedSource):
    """The merge `linear` of accepted ingredients and one more, from their running sum. Equal to the merge, bit for bit.

    Its plan is that of the merge, so scores are kept under the merge's name.
    """

    def __init__(self, plan: Plan, label: str, total: RunningSum, newest: Source) -> None:
        """Takes the sum as it is now.

        Args:
            plan: of the merge.
            label: for messages.
            total: the sum of all inputs but one.
            newest: that one.
        """
        super().__init__(plan, label)
        self._total, self._newest = total, newest
        names = _summable(plan)
        self._summed = {job.name: job for job in plan.jobs if job.name in names and total.holds(job.name)}

    def read_into(self, name: str, start: int, stop: int, out: memoryview) -> None:
        """See `Source.read_into`."""
        itemsize = dtypes.itemsize(self.specs[name].dtype)
        for first in range(start, stop, BLOCK):
            last = min(first + BLOCK, stop)
            part = out[(first - start) * itemsize : (last - start) * itemsize]
            mean = None
            if (job := self._summed.get(name)) is not None:
                row, precision = _row(self.plan, job, self._newest, first, last)
                # The merge refuses what is not finite, with a message.
                if np.isfinite(row).all():
                    mean = self._total.mean_with(name, row, precision, first, last)
            if mean is None:
                super().read_into(name, first, last, part)
                continue
            stored: NDArray[Any] = np.empty(len(mean), STORED[self.specs[name].dtype])
            fused.convert(mean, stored)
            part[:] = stored.view(np.uint8).data


def _summable(plan: Plan) -> set[str]:
    """The tensors that are averaged in float32; sums of float64 would have no room to be exact in."""
    pairs = zip(plan.jobs, plan.working, strict=True)
    return {job.name for job, work in pairs if job.action == "merge" and work == "float32"}


def _row(plan: Plan, job: Job, wanted: Source, start: int, stop: int) -> tuple[NDArray[np.float32], int]:
    """Entries of one input in float32, which holds all that narrower dtypes do, and their own precision in bits."""
    number, name = next((i, name) for i, name in job.inputs if plan.inputs[i].source is wanted)
    dtype = plan.inputs[number].specs[name].dtype
    stored: NDArray[Any] = np.empty(stop - start, STORED[dtype])
    wanted.read_into(name, start, stop, stored.view(np.uint8).data)
    row: NDArray[np.float32] = np.empty(stop - start, np.float32)
    fused.convert(stored, row)
    return row, _PRECISION[dtype]


def _exponents(row: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Each entry's exponent, biased, for the lower and the upper end of a range; zero widens neither."""
    found = (row.view(np.uint32) >> np.uint32(23) & np.uint32(0xFF)).astype(np.uint8)
    # Denormals are multiples of what the smallest normal numbers are multiples of.
    found = np.maximum(found, 1)
    zero = row == 0
    return np.where(zero, np.uint8(255), found), np.where(zero, np.uint8(0), found)
