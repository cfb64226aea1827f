"""The family of task arithmetic, TIES and DARE as one stream: sparsifier × consensus × scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.random import Rng, bound_of, keep_threshold, uint32_key
from eutectic.kernels.selection import Selection
from eutectic.kernels.streams import Bits, Block, Stream, StreamJob
from eutectic.kernels.sums import divisor, negligible, one_a_model
from eutectic.kernels.trim import kept_count
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    from eutectic.kernels import fused
else:
    fused = LazyModule("eutectic.kernels.fused")


@dataclass(slots=True)
class _Task:
    """One job's parameters as the kernels take them."""

    weights: tuple[float, ...]
    divisor: float | None
    scale: float
    normalize: bool
    tiny: float
    densities: list[float]
    keys: NDArray[np.uint32]
    keep: tuple[Any, ...]
    bound: tuple[Any, ...]
    factor: list[float]


class TaskVectors(Stream):
    """θ₀ + λ · consensus(rescale(sparsify(τ))).

    `sparsifier` is `none`, `trim` (keep exactly the k largest, of equals the first) or `drop` (keep at random); `elect`
    is the sign election. Reductions: a trim's thresholds, then how many entries equal to the threshold each block has;
    then, where L1 norms are matched, the norms.
    """

    def __init__(
        self, jobs: Sequence[StreamJob], *, sparsifier: Literal["none", "trim", "drop"] = "none", elect: bool = False
    ) -> None:
        self._jobs = jobs
        self._tasks = [_task(job, elect) for job in jobs]
        self._models = jobs[0].models
        dense = all(share == 1.0 for task in self._tasks for share in task.densities)
        self._trims = sparsifier == "trim" and not dense
        self._drops = sparsifier == "drop" and not dense
        rescale = jobs[0].parameters.get("rescale", False)
        self._norms_due = (rescale == "l1" or (rescale is True and self._trims)) and (self._trims or self._drops)
        if rescale is True and self._drops:
            for task in self._tasks:
                task.factor = [1.0 / density for density in task.densities]
        numel = sum(job.numel for job in jobs)
        ranks = [kept_count(share, numel) if numel else 0 for share in self._tasks[0].densities]
        wide = any(job.parameters.get("wide", False) for job in jobs)
        self._selection = Selection(ranks, numel, wide) if self._trims else None
        self._shares_due = self._trims
        self._equal: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._budget: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._sums: dict[tuple[int, int], NDArray[np.float64]] = {}

    @property
    def pending(self) -> bool:
        return self._selecting or self._shares_due or self._norms_due

    @property
    def _selecting(self) -> bool:
        return self._selection is not None and self._selection.pending

    def wants(self, index: int) -> bool:
        return self._selection.wants(index) if self._selection and self._selection.pending else True

    def reduce(self, block: Block) -> None:
        place = (block.job, block.index)
        if self._selection and self._selection.pending:
            self._selection.reduce(block)
        elif self._shares_due:
            equal = np.zeros(self._models, np.int64)
            scratch = np.empty(fused.TILE, block.floats)
            fused.count_equal(block.base, block.models, scratch, self._threshold(block), equal)
            self._equal[place] = equal
        else:
            sums = np.zeros((self._models, 2))
            if self._trims:
                fused.trimmed_sums(block.base, block.models, self._threshold(block), sums)
            else:
                task = self._tasks[block.job]
                fused.dropped_sums(block.base, block.models, block.first, task.keys, task.keep, task.bound, sums)
            self._sums[place] = sums

    def _threshold(self, block: Block) -> NDArray[Any]:
        assert self._selection is not None
        return self._selection.threshold.astype(block.floats)

    def fold(self) -> None:
        if self._selection and self._selection.pending:
            self._selection.fold()
        elif self._shares_due:
            self._share_out()
        else:
            self._match_norms()

    def _share_out(self) -> None:
        """How many entries equal to the threshold each block keeps: the first, by job and index."""
        assert self._selection is not None
        left = np.array(self._selection.rank, np.int64)
        for place in sorted(self._equal):
            self._budget[place] = np.minimum(left, self._equal[place])
            left = left - self._budget[place]
        self._shares_due = False

    def _match_norms(self) -> None:
        totals = [np.zeros((self._models, 2)) for _ in self._jobs]
        for job, index in sorted(self._sums):
            totals[job] = totals[job] + self._sums[job, index]
        for (job, _), budget in self._budget.items():
            assert self._selection is not None
            totals[job][:, 1] += budget * self._selection.threshold
        for task, total in zip(self._tasks, totals, strict=True):
            task.factor = [float(full / kept) if kept else 1.0 for full, kept in total]
        self._sums.clear()
        self._norms_due = False

    def combine(self, block: Block, out: Bits) -> None:
        task = self._tasks[block.job]
        factor = tuple(block.floats(value) for value in task.factor)
        zero = (block.floats(0),) * self._models
        shared = (task.weights, task.divisor, task.scale)
        if self._drops:
            fused.combine_dropped(
                block.base,
                block.models,
                *shared,
                zero,
                factor,
                task.keys,
                task.keep,
                task.bound,
                block.first,
                task.normalize,
                task.tiny,
                out,
            )
        elif not self._trims:
            fused.combine_deltas(block.base, block.models, *shared, zero, factor, task.normalize, task.tiny, out)
        else:
            for start, stop, level in self._stretches(block):
                models = tuple(row[start:stop] for row in block.models)
                base, part = block.base[start:stop], out[start:stop]
                fused.combine_deltas(base, models, *shared, level, factor, task.normalize, task.tiny, part)

    def _stretches(self, block: Block) -> list[tuple[int, int, tuple[Any, ...]]]:
        """Ranges of a block, each with the level that keeps the right entries.

        In a block that keeps all entries equal to the threshold the level is the threshold, in one that keeps none the
        next larger float; in the one where the last is kept it changes after that entry.
        """
        place = (block.job, block.index)
        threshold = self._threshold(block)
        beyond = np.nextafter(threshold, block.floats(np.inf))
        ends = np.zeros(self._models, np.int64)
        for model, (budget, equal) in enumerate(zip(self._budget[place], self._equal[place], strict=True)):
            if budget == equal:
                ends[model] = len(block.base)
            elif budget:
                ends[model] = fused.after_equal(block.base, block.models[model], threshold[model], budget)
        cuts = sorted({0, len(block.base), *(int(end) for end in ends)})
        return [(start, stop, tuple(np.where(ends >= stop, threshold, beyond))) for start, stop in pairwise(cuts)]


def _task(job: StreamJob, elect: bool) -> _Task:
    given = job.parameters
    shares = one_a_model(given["weight"], job.models)
    densities = one_a_model(given.get("density", 1.0), job.models)
    rng: Rng = given.get("rng", Rng())
    keys = [uint32_key(rng.key(model)) for model in range(job.models)]
    keep = [keep_threshold(share) for share in densities]
    normalize = bool(given["normalize"])
    return _Task(
        weights=tuple(shares),
        # Under an election the divisor is the weight of those who agree, entry by entry.
        divisor=None if elect else divisor(shares, normalize),
        scale=float(given["lambda_"]),
        normalize=normalize,
        tiny=negligible(shares),
        densities=densities,
        keys=np.stack(keys) if keys else np.zeros((0, 4), np.uint32),
        keep=tuple(np.uint64(share) for share in keep),
        bound=tuple(np.uint32(bound_of(share)) for share in keep),
        factor=[1.0] * job.models,
    )
