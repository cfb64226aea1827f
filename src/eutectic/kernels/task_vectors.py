"""The family of task arithmetic, TIES, breadcrumbs and DARE as one stream: sparsifier × consensus × scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.cuts import Cut, least_kept, most_left
from eutectic.kernels.random import Rng, bound_of, keep_threshold, uint32_key
from eutectic.kernels.streams import Bits, Block, Stream, StreamJob
from eutectic.kernels.sums import divisor, factors_for_kernels, for_kernels, negligible, one_a_model
from eutectic.kernels.trim import kept_count, outlier_count
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    from eutectic.kernels import fused
else:
    fused = LazyModule("eutectic.kernels.fused")


@dataclass(slots=True)
class _Task:
    """One job's parameters as the kernels take them."""

    weights: tuple[float, ...]
    divisor: float | tuple[()] | None
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

    `sparsifier` is `none`, `trim` (keep exactly the k largest, of equals the first), `band` (the k largest after those
    that `gamma` removes) or `drop` (keep at random); `elect` is the sign election. Reductions: the cuts; then, where L1
    norms are matched, the norms.
    """

    def __init__(
        self,
        jobs: Sequence[StreamJob],
        *,
        sparsifier: Literal["none", "trim", "band", "drop"] = "none",
        elect: bool = False,
    ) -> None:
        self._jobs = jobs
        self._tasks = [_task(job, elect) for job in jobs]
        self._models = jobs[0].models
        dense = all(share == 1.0 for task in self._tasks for share in task.densities)
        self._drops = sparsifier == "drop" and not dense
        self._cuts = _cuts(jobs, self._tasks[0].densities) if sparsifier in ("trim", "band") and not dense else []
        rescale = jobs[0].parameters.get("rescale", False)
        self._norms_due = bool(rescale == "l1" and self._drops) or bool(rescale and self._cuts)
        if rescale is True and self._drops:
            for task in self._tasks:
                task.factor = [1.0 / density for density in task.densities]
        self._sums: dict[tuple[int, int], NDArray[np.float64]] = {}

    @property
    def pending(self) -> bool:
        return bool(self._cutting) or self._norms_due

    @property
    def _cutting(self) -> list[Cut]:
        return [cut for cut in self._cuts if cut.pending]

    def wants(self, index: int) -> bool:
        cutting = self._cutting
        return any(cut.wants(index) for cut in cutting) if cutting else True

    def reduce(self, block: Block) -> None:
        if cutting := self._cutting:
            for cut in cutting:
                if cut.wants(block.index):
                    cut.reduce(block)
            return
        sums = np.zeros((self._models, 2))
        self._add_norms(block, sums)
        self._sums[block.job, block.index] = sums

    def _add_norms(self, block: Block, sums: NDArray[np.float64]) -> None:
        """Adds to `sums (K, 2)` the L1 norms of a block: of all entries, and of those that stay."""
        if self._drops:
            task = self._tasks[block.job]
            fused.dropped_sums(block.base, block.models, block.first, task.keys, task.keep, task.bound, sums)
        else:
            for start, stop, level in self._stretches(block):
                models = tuple(row[start:stop] for row in block.models)
                fused.kept_sums(block.base[start:stop], models, level, sums)

    def fold(self) -> None:
        if cutting := self._cutting:
            for cut in cutting:
                cut.fold()
        else:
            self._match_norms()

    def _match_norms(self) -> None:
        totals = [np.zeros((self._models, 2)) for _ in self._jobs]
        for job, index in sorted(self._sums):
            totals[job] = totals[job] + self._sums[job, index]
        for task, total in zip(self._tasks, totals, strict=True):
            task.factor = [float(full) / float(kept) if kept else 1.0 for full, kept in total]
        self._sums.clear()
        self._norms_due = False

    def shares(self, other: Stream) -> bool:
        if not self.pending or not isinstance(other, TaskVectors) or self._drops != other._drops:
            return False
        deciding = ("scope", "density", "gamma", "epsilon", "rescale", "rng")
        pairs = zip(self._jobs, other._jobs, strict=True)
        return all(a.parameters.get(name) == b.parameters.get(name) for a, b in pairs for name in deciding)

    def take(self, other: Stream) -> None:
        assert isinstance(other, TaskVectors)
        self._cuts, self._norms_due = other._cuts, False
        for task, theirs in zip(self._tasks, other._tasks, strict=True):
            task.factor = theirs.factor

    def combine(self, block: Block, out: Bits) -> None:
        task = self._tasks[block.job]
        factor = factors_for_kernels(block.floats(value) for value in task.factor)
        shared = (task.weights, task.divisor, task.scale)
        if self._drops:
            fused.combine_dropped(
                block.base,
                block.models,
                *shared,
                factor,
                task.keys,
                task.keep,
                task.bound,
                block.first,
                task.normalize,
                task.tiny,
                out,
            )
        elif not self._cuts:
            fused.combine_deltas(block.base, block.models, *shared, (), factor, task.normalize, task.tiny, out)
        else:
            for start, stop, level in self._stretches(block):
                models = tuple(row[start:stop] for row in block.models)
                base, part = block.base[start:stop], out[start:stop]
                fused.combine_deltas(base, models, *shared, level, factor, task.normalize, task.tiny, part)

    def _stretches(self, block: Block) -> list[tuple[int, int, tuple[Any, ...]]]:
        """Ranges of a block, each with the levels that keep the right entries of it.

        Levels change after the last entry equal to a threshold that belongs to the larger ones, so in few blocks.
        """
        ends = [cut.ends(block) for cut in self._cuts]
        places = sorted({0, len(block.base), *(int(end) for of_cut in ends for end in of_cut)})
        found = []
        for start, stop in pairwise(places):
            level = tuple(least_kept(self._cuts[0], block, ends[0], stop))
            if len(self._cuts) > 1:
                level = tuple(zip(level, most_left(self._cuts[1], block, ends[1], stop), strict=True))
            found.append((start, stop, level))
        return found


def _cuts(jobs: Sequence[StreamJob], densities: list[float]) -> list[Cut]:
    """Where the entries that stay end, and, if outliers are removed, where those end."""
    sizes, parameters = [job.numel for job in jobs], jobs[0].parameters
    numel = sum(sizes)
    wide = any(job.parameters.get("wide", False) for job in jobs)
    shares = one_a_model(parameters.get("gamma", 0.0), jobs[0].models)
    kept = [kept_count(density, numel) for density in densities]
    removed = [outlier_count(gamma, numel, stay) for gamma, stay in zip(shares, kept, strict=True)]
    cuts = [Cut([stay + out for stay, out in zip(kept, removed, strict=True)], sizes, wide)]
    return [*cuts, Cut(removed, sizes, wide)] if any(removed) else cuts


def _task(job: StreamJob, elect: bool) -> _Task:
    given = job.parameters
    shares = one_a_model(given["weight"], job.models)
    densities = one_a_model(given.get("density", 1.0), job.models)
    rng: Rng = given.get("rng", Rng())
    keys = [uint32_key(rng.key(model)) for model in range(job.models)]
    keep = [keep_threshold(share) for share in densities]
    normalize = bool(given["normalize"])
    return _Task(
        weights=factors_for_kernels(shares),
        # Under an election the divisor is the weight of those who agree, entry by entry.
        divisor=None if elect else for_kernels(divisor(shares, normalize)),
        scale=float(given["lambda_"]),
        normalize=normalize,
        tiny=negligible(shares),
        densities=densities,
        keys=np.stack(keys) if keys else np.zeros((0, 4), np.uint32),
        keep=tuple(np.uint64(share) for share in keep),
        bound=tuple(np.uint32(bound_of(share)) for share in keep),
        factor=[1.0] * job.models,
    )
