"""The running sum of a soup: a candidate with one ingredient more reads that ingredient alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic import dtypes
from eutectic.checkpoint import Source
from eutectic.kernels.bits import STORED
from eutectic.kernels.digests import BLOCK
from eutectic.lazy import LazyModule
from eutectic.plan import Job, Plan
from eutectic.run.merged import MergedSource

if TYPE_CHECKING:
    from eutectic.kernels import fused_running
else:
    fused_running = LazyModule("eutectic.kernels.fused_running")

Bits = NDArray[Any]
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
        # Sum, smallest and largest exponent.
        self._parts: dict[str, tuple[Bits, Bits, Bits]] = {}
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
        for name in self._parts.keys() - self._names:
            del self._parts[name]
        for job in plan.jobs:
            if job.name in self._names:
                self._extend(plan, job, newest)
        self.count += 1

    def _extend(self, plan: Plan, job: Job, newest: Source) -> None:
        if self.count == 0:
            numel = job.spec.numel
            self._parts[job.name] = (np.empty(numel), np.empty(numel, np.uint8), np.empty(numel, np.uint8))
        for start in range(0, job.spec.numel, BLOCK):
            stop = min(start + BLOCK, job.spec.numel)
            row, precision = _row(plan, job, newest, start, stop)
            fused_running.extend(row, self.count == 0, *(part[start:stop] for part in self._parts[job.name]))
            self._precision[job.name] = max(self._precision.get(job.name, 0), precision)

    def holds(self, name: str) -> bool:
        """Whether there is a sum of that tensor."""
        return name in self._parts

    def mean_with(self, name: str, row: Bits, precision: int, start: int, out: Bits) -> bool:
        """Writes the mean of the sum and one ingredient more, rounded as `linear` does; False if it may not be exact.

        Args:
            name: of the tensor.
            row: entries of the ingredient.
            precision: bits of its numbers.
            start: number of the first of these entries.
            out: takes the stored bits.
        """
        count = self.count + 1
        parts = (part[start : start + len(row)] for part in self._parts[name])
        reach = fused_running.mean_with(row, *parts, float(count), out)
        # |Σ| < count · 2^(high + 1), and every partial sum is a multiple of 2^(low - precision + 1).
        room = 53 - max(precision, self._precision.get(name, 0)) - (count - 1).bit_length()
        return int(reach) <= room


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
        self._count = total.count
        names = _summable(plan)
        self._summed = {job.name: job for job in plan.jobs if job.name in names and total.holds(job.name)}

    def read_into(self, name: str, start: int, stop: int, out: memoryview) -> None:
        """See `Source.read_into`."""
        itemsize = dtypes.itemsize(self.specs[name].dtype)
        for first in range(start, stop, BLOCK):
            last = min(first + BLOCK, stop)
            part = out[(first - start) * itemsize : (last - start) * itemsize]
            # Once the sum has gone on without it, a candidate reads all of its inputs.
            job = self._summed.get(name) if self._total.count == self._count else None
            if job is None or not self._from_sum(job, first, last, part):
                super().read_into(name, first, last, part)

    def _from_sum(self, job: Job, start: int, stop: int, out: memoryview) -> bool:
        row, precision = _row(self.plan, job, self._newest, start, stop)
        stored: Bits = np.empty(stop - start, STORED[job.spec.dtype])
        if not self._total.mean_with(job.name, row, precision, start, stored):
            return False
        out[:] = stored.view(np.uint8).data
        return True


def _summable(plan: Plan) -> set[str]:
    """The tensors that are averaged in float32; sums of float64 would have no room to be exact in."""
    pairs = zip(plan.jobs, plan.working, strict=True)
    return {job.name for job, work in pairs if job.action == "merge" and work == "float32"}


def _row(plan: Plan, job: Job, wanted: Source, start: int, stop: int) -> tuple[Bits, int]:
    """Entries of one input as stored, and the precision of its numbers in bits."""
    number, name = next((i, name) for i, name in job.inputs if plan.inputs[i].source is wanted)
    dtype = plan.inputs[number].specs[name].dtype
    row: Bits = np.empty(stop - start, STORED[dtype])
    wanted.read_into(name, start, stop, row.view(np.uint8).data)
    return row, _PRECISION[dtype]
