"""A method as passes over blocks of stored bits: reductions over a whole tensor (or model), then one combination.

A stream belongs to a *group* of jobs that share their reductions: one tensor, or every tensor under `scope: model`.
The engine calls `reduce(step, …)` for every block in any order from any thread, then `fold(step)` once, for each of
the `steps`; then `combine` for every block. Nothing depends on the order of the calls.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.random import Rng, keep_threshold, uint32_key
from eutectic.kernels.sphere import slerp_coefficients
from eutectic.kernels.sums import divisor, negligible, one_a_model
from eutectic.kernels.trim import kept_count
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    from eutectic.kernels import fused
else:
    fused = LazyModule("eutectic.kernels.fused")

Bits = NDArray[Any]


@dataclass(frozen=True, slots=True)
class StreamJob:
    """What a stream knows of one tensor: its size, how many models it has (the base not counted), bound parameters."""

    numel: int
    models: int
    parameters: dict[str, Any]


@dataclass(slots=True)
class Block:
    """Entries `first : first + n` of every input of one job, `bits (M, n)`; deltas have the base in row 0.

    `kind` is `bits.BF16`, `FP16` or `PLAIN`; plain bits are float32 or float64 arrays. `floats` is an empty array of
    the working precision.
    """

    job: int
    index: int
    first: int
    bits: Bits
    kind: int
    floats: Bits = field(default_factory=lambda: np.empty(0, np.float32))


class Stream(ABC):
    """The protocol of the module's docstring. `steps` is how many reductions come before the combination."""

    steps: int = 0

    def reduce(self, step: int, block: Block) -> None:
        """Takes one block into reduction `step`. Called once a block, from any thread."""
        raise AssertionError("this stream has no reductions")

    def fold(self, step: int) -> None:
        """Ends reduction `step`, after every block."""
        raise AssertionError("this stream has no reductions")

    @abstractmethod
    def combine(self, block: Block, out: Bits, kind: int) -> None:
        """Writes the result's stored bits to `out (n,)`."""


class WeightedSum(Stream):
    """Σ wᵢ θᵢ / divisor."""

    def __init__(self, jobs: Sequence[StreamJob]) -> None:
        self._bound = []
        for job in jobs:
            shares = one_a_model(job.parameters["weight"], job.models)
            self._bound.append((np.array(shares), divisor(shares, job.parameters["normalize"])))

    def combine(self, block: Block, out: Bits, kind: int) -> None:
        shares, by = self._bound[block.job]
        fused.combine_weights(block.bits, block.kind, block.floats, shares, by, out, kind)


class Slerp(Stream):
    """Three inner products a tensor, then a weighted sum."""

    steps = 1

    def __init__(self, jobs: Sequence[StreamJob]) -> None:
        self._t = [job.parameters["t"] for job in jobs]
        self._parts: dict[tuple[int, int], NDArray[np.float64]] = {}
        self._coefficients: list[NDArray[np.float64]] = []

    def reduce(self, step: int, block: Block) -> None:
        self._parts[block.job, block.index] = fused.inner_products(block.bits, block.kind, block.floats)

    def fold(self, step: int) -> None:
        totals = [np.zeros(3) for _ in self._t]
        for job, index in sorted(self._parts):
            totals[job] = totals[job] + self._parts[job, index]
        self._parts.clear()
        for (aa, ab, bb), t in zip(totals, self._t, strict=True):
            self._coefficients.append(np.array(slerp_coefficients(float(aa), float(ab), float(bb), t)))

    def combine(self, block: Block, out: Bits, kind: int) -> None:
        coefficients = self._coefficients[block.job]
        fused.combine_weights(block.bits, block.kind, block.floats, coefficients, 1.0, out, kind)


@dataclass(slots=True)
class _Task:
    """One job of the task-vector family, its parameters as the arrays that kernels take."""

    weights: NDArray[np.float64]
    divisor: float
    scale: float
    normalize: bool
    densities: list[float]
    keys: NDArray[np.uint32]
    keep: NDArray[np.uint64]
    factor: NDArray[np.float64]


class TaskVectors(Stream):
    """θ₀ + λ · consensus(rescale(sparsify(τ))): the family of task arithmetic, TIES and DARE as one table.

    `sparsifier` is `none`, `trim` (keep the largest) or `drop` (keep at random); `elect` is the sign consensus.
    A trim finds each model's k-th largest magnitude exactly, 16 bits of its pattern at a time, then how many entries
    equal to it each block may keep, so that exactly k stay: the first by index.
    """

    def __init__(
        self, jobs: Sequence[StreamJob], *, sparsifier: Literal["none", "trim", "drop"] = "none", elect: bool = False
    ) -> None:
        self._jobs = jobs
        self._elect = elect
        self._tasks = [self._task(job, elect) for job in jobs]
        self._models = jobs[0].models
        self._sums: dict[tuple[int, int], NDArray[np.float64]] = {}
        self._equal: dict[tuple[int, int], NDArray[np.int64]] = {}
        dense = all(share == 1.0 for task in self._tasks for share in task.densities)
        self._trims = sparsifier == "trim" and not dense
        self._drops = sparsifier == "drop" and not dense
        rescale = jobs[0].parameters.get("rescale", False)
        self._l1 = rescale == "l1" or (rescale is True and sparsifier == "trim")
        self._l1 = self._l1 and (self._trims or self._drops)
        self._dividing = rescale is True and self._drops
        if self._dividing:
            for task in self._tasks:
                task.factor = np.array(task.densities)
        # The width of the pattern is known with the first block; steps are counted for float32 and float64 alike.
        self._wide = any(job.parameters.get("wide", False) for job in jobs)
        self._levels = (4 if self._wide else 2) if self._trims else 0
        self.steps = self._levels + (1 if self._trims else 0) + (1 if self._l1 else 0)
        if self._trims:
            total = sum(job.numel for job in jobs)
            self._rank = [kept_count(share, total) if total else 0 for share in self._tasks[0].densities]
            self._prefix = [0] * self._models
            # One histogram a thread: integers, so that their sum does not depend on who counted what.
            self._counts: dict[int, NDArray[np.int64]] = {}
            self._budgets: dict[tuple[int, int], NDArray[np.int64]] = {}
            self._threshold: NDArray[Any] = np.zeros(self._models)

    @staticmethod
    def _task(job: StreamJob, elect: bool) -> _Task:
        given = job.parameters
        shares = one_a_model(given["weight"], job.models)
        densities = one_a_model(given.get("density", 1.0), job.models)
        rng: Rng = given.get("rng", Rng())
        keys = [uint32_key(rng.key(model)) for model in range(job.models)]
        normalize = bool(given["normalize"])
        return _Task(
            weights=np.array(shares),
            # Under an election the divisor is the weight of those who agree, entry by entry.
            divisor=1.0 if elect else divisor(shares, normalize),
            scale=float(given["lambda_"]),
            normalize=normalize,
            densities=densities,
            keys=np.stack(keys) if keys else np.zeros((0, 4), np.uint32),
            keep=np.array([keep_threshold(share) for share in densities], np.uint64),
            factor=np.ones(job.models),
        )

    def reduce(self, step: int, block: Block) -> None:
        floats = block.floats
        if step < self._levels:
            counts = self._own_counts()
            word = np.uint64 if self._wide else np.uint32
            if step == 0:
                fused.histogram_top(block.bits, block.kind, floats, np.empty(0, word), counts)
            else:
                shift = 16 * (self._levels - 1 - step)
                mask = np.array([(1 << 16 * self._levels - 1) - (1 << shift + 16)], word)
                prefix = np.array([p << (shift + 16) for p in self._prefix], word)
                fused.histogram_below(block.bits, block.kind, floats, mask, prefix, shift, counts)
        elif self._trims and step == self._levels:
            equal = np.zeros(self._models, np.int64)
            fused.count_equal(block.bits, block.kind, floats, self._threshold.astype(floats.dtype), equal)
            self._equal[block.job, block.index] = equal
        else:
            sums = np.zeros((self._models, 2))
            task = self._tasks[block.job]
            if self._trims:
                threshold = self._threshold.astype(floats.dtype)
                fused.trimmed_sums(block.bits, block.kind, floats, threshold, sums)
            else:
                fused.dropped_sums(block.bits, block.kind, floats, block.first, task.keys, task.keep, sums)
            self._sums[block.job, block.index] = sums

    def _own_counts(self) -> NDArray[np.int64]:
        own = self._counts.get(threading.get_ident())
        if own is None:
            own = self._counts[threading.get_ident()] = np.zeros((self._models, 1 << 16), np.int64)
        return own

    def fold(self, step: int) -> None:
        if step < self._levels:
            self._refine(step)
        elif self._trims and step == self._levels:
            self._share_out()
        else:
            self._match_l1()

    def _refine(self, step: int) -> None:
        """Picks the bin that holds the k-th largest; `_rank` becomes its rank within the bin."""
        counts = sum(self._counts.values(), np.zeros((self._models, 1 << 16), np.int64))
        self._counts.clear()
        for model in range(self._models):
            from_top = np.cumsum(counts[model][::-1])
            place = int(np.searchsorted(from_top, self._rank[model])) if self._rank[model] else 0
            self._rank[model] -= int(from_top[place - 1]) if place else 0
            self._prefix[model] = self._prefix[model] << 16 | (0xFFFF - place)
        if step == self._levels - 1:
            word, value = (np.uint64, np.float64) if self._wide else (np.uint32, np.float32)
            self._threshold = np.array(self._prefix, word).view(value)

    def _share_out(self) -> None:
        """How many entries equal to the threshold each block keeps: the first `_rank` in order."""
        left = np.array(self._rank, np.int64)
        for place in sorted(self._equal):
            self._budgets[place] = np.minimum(left, self._equal[place])
            left = left - self._budgets[place]
        self._equal.clear()

    def _match_l1(self) -> None:
        totals = [np.zeros((self._models, 2)) for _ in self._jobs]
        for job, index in sorted(self._sums):
            totals[job] = totals[job] + self._sums[job, index]
        for place, budget in self._budgets.items() if self._trims else ():
            totals[place[0]][:, 1] += budget * self._threshold
        for task, total in zip(self._tasks, totals, strict=True):
            kept = total[:, 1] != 0
            task.factor = np.where(kept, total[:, 0] / np.where(kept, total[:, 1], 1.0), 1.0)
        self._sums.clear()

    def combine(self, block: Block, out: Bits, kind: int) -> None:
        task = self._tasks[block.job]
        dtype = block.floats.dtype
        budget = np.zeros(self._models, np.int64)
        threshold = np.zeros(self._models, dtype)
        if self._trims:
            budget = self._budgets[block.job, block.index].copy()
            threshold = self._threshold.astype(dtype)
        fused.combine_deltas(
            block.bits,
            block.kind,
            block.floats,
            block.first,
            task.weights,
            task.divisor,
            task.scale,
            fused.TRIM if self._trims else fused.DROP if self._drops else fused.NO_TRIM,
            threshold,
            budget,
            task.keys,
            task.keep,
            task.factor.astype(dtype),
            self._dividing,
            self._elect,
            task.normalize,
            negligible(task.weights.tolist()),
            out,
            kind,
        )
