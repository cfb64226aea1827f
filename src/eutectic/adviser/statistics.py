"""blocks of stored bits -> sums, tensor by tensor, in bounded memory and with the same bits for any number of threads.

A tensor is one thread's work: its blocks are read and summed in order, so no sum depends on who made it. What is kept
between the two passes over a tensor (the second counts its largest changes, once their threshold is known) is bounded;
of larger tensors the second pass reads again.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic import dtypes
from eutectic.adviser.model import Matched
from eutectic.adviser.sums import Sums
from eutectic.checkpoint import Source
from eutectic.kernels import effective_rank
from eutectic.kernels.bits import STORED
from eutectic.kernels.digests import BLOCK
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    from eutectic.kernels import fused, fused_compare
else:
    fused = LazyModule("eutectic.kernels.fused")
    fused_compare = LazyModule("eutectic.kernels.fused_compare")

# The largest changes of a tensor are those of at least the magnitude of the one at this share, counted from the top;
# magnitudes are compared by their upper 16 bits (eight significant ones), and all that are equal there belong to them:
# fine-tunes stored in bfloat16 have too many equal changes for any exact share.
TOP = 0.01
# One block in this many is sampled, and at least the first, to find the base.
SAMPLE = 8
# Bytes that a worker keeps of a tensor between its two passes.
HELD = 64 << 20
_BINS = 1 << 16


@dataclass(frozen=True, slots=True)
class Measured:
    """Sums over one tensor, or None and the rows whose values are not finite (or have squares beyond float64)."""

    sums: Sums | None
    broken: tuple[int, ...] = ()


def measure(
    sources: Sequence[Source],
    tensors: Sequence[Matched],
    *,
    threads: int,
    sample: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Measured]:
    """Sums over each tensor of `tensors`, in their order; the first source is the origin.

    Args:
        sources: two or more.
        tensors: what all of them have.
        threads: workers.
        sample: estimate norms and cosines, and nothing else, from some blocks of each tensor.
        progress: called with the bytes of each block that was read, from any thread.

    Raises `CheckpointError` where a tensor cannot be read.
    """
    tell = progress or (lambda nbytes: None)
    found: dict[int, Measured] = {}

    def work(number: int, stop: threading.Event) -> None:
        found[number] = _Tensor(sources, tensors[number], stop, tell).measure(sample)

    # The largest first, so that no worker is left with one of them at the end.
    order = sorted(range(len(tensors)), key=lambda number: (-tensors[number].numel, number))
    _in_threads(order, work, threads)
    return [found[number] for number in range(len(tensors))]


def _in_threads(order: Sequence[int], work: Callable[[int, threading.Event], None], threads: int) -> None:
    """Does `work` for every number on several threads. What the first to fail raised is raised."""
    left, lock, stop = list(reversed(order)), threading.Lock(), threading.Event()
    failures: list[BaseException] = []

    def loop() -> None:
        try:
            while not stop.is_set():
                with lock:
                    if not left:
                        return
                    number = left.pop()
                work(number, stop)
        except BaseException as error:
            failures.append(error)
            stop.set()

    workers = [threading.Thread(target=loop, name=f"compare-{i}", daemon=True) for i in range(threads)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            # In slices, so that the main thread still sees Ctrl-C.
            while worker.is_alive():
                worker.join(0.2)
    except BaseException:
        stop.set()
        for worker in workers:
            worker.join()
        raise
    if failures:
        raise failures[0]


class _Tensor:
    """One tensor of every model, read in blocks of whole rows where it is a matrix."""

    def __init__(
        self, sources: Sequence[Source], tensor: Matched, stop: threading.Event, tell: Callable[[int], None]
    ) -> None:
        self._sources, self._tensor, self._stop, self._tell = sources, tensor, stop, tell
        self._models = len(sources) - 1
        columns = tensor.shape[-1] if len(tensor.shape) == 2 else 0
        self._matrix = 1 < columns <= BLOCK and tensor.shape[0] > 1
        self._step = BLOCK - BLOCK % columns if self._matrix else BLOCK
        kinds = set(tensor.dtypes)
        self._dtype = STORED[kinds.pop()] if len(kinds) == 1 else np.float32
        self._dtype = np.float64 if kinds and "float64" in tensor.dtypes else self._dtype

    def measure(self, sample: bool) -> Measured:
        """Both passes, or with `sample` the first over some blocks."""
        sums = Sums.zeros(self._models)
        sums.tensors = 1
        counts = np.zeros((self._models, _BINS), np.int64)
        sketches = self._sketches() if self._matrix and not sample else None
        held: list[NDArray[Any]] = []
        room = HELD
        for bits in self._blocks(SAMPLE if sample else 1):
            sums.entries += bits.shape[1]
            fused_compare.pair_sums(bits, sums.own, sums.pairs, sums.signs, sums.sizes, sums.changed, counts)
            if sketches is not None:
                self._sketch(bits, *sketches)
            room -= bits.nbytes
            held = [*held, bits] if room >= 0 else []
            self._tell(bits.nbytes)
        if broken := self._broken(sums):
            return Measured(None, broken)
        sums.untouched += sums.changed == 0
        if sample:
            # As if the rest were like the sample: large tensors count as much as they will.
            sums.own *= self._tensor.numel / max(sums.entries, 1)
            sums.pairs *= self._tensor.numel / max(sums.entries, 1)
        else:
            self._count_largest(sums, counts, held if room >= 0 else None)
            self._rank(sums, sketches)
        return Measured(sums)

    def _blocks(self, every: int = 1) -> Iterator[NDArray[Any]]:
        """Blocks of stored bits, a row a model, one in `every`; ends early when the work is stopped."""
        for first in range(0, self._tensor.numel, self._step * every):
            if self._stop.is_set():
                return
            last = min(first + self._step, self._tensor.numel)
            bits: NDArray[Any] = np.empty((len(self._sources), last - first), self._dtype)
            for row, source, stored, dtype in zip(
                bits, self._sources, self._tensor.stored, self._tensor.dtypes, strict=True
            ):
                direct = STORED[dtype] == self._dtype
                raw = row if direct else np.empty(last - first, STORED[dtype])
                source.read_into(stored, first, last, raw.view(np.uint8).data)
                if not direct:
                    fused.convert(raw, row)
            yield bits

    def _broken(self, sums: Sums) -> tuple[int, ...]:
        """Rows that are not finite; all of them, if only a difference is not."""
        rows = tuple(int(row) for row in np.flatnonzero(~np.isfinite(sums.own)))
        return rows or (() if np.isfinite(sums.pairs).all() else tuple(range(len(self._sources))))

    def _count_largest(self, sums: Sums, counts: NDArray[np.int64], held: list[NDArray[Any]] | None) -> None:
        """The second pass: which of each model's largest changes are also another's."""
        wanted = math.ceil(TOP * self._tensor.numel)
        from_top = np.cumsum(counts[:, ::-1], axis=1)
        bins = _BINS - 1 - np.argmax(from_top >= wanted, axis=1)
        level = (bins.astype(np.uint32) << np.uint32(16)).view(np.float32)
        for bits in self._blocks() if held is None else held:
            fused_compare.shared_top(bits, level, sums.shared)
        size = np.diag(sums.shared).astype(np.float64)
        sums.chance += np.outer(size, size) / max(self._tensor.numel, 1)

    def _sketches(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
        columns = self._tensor.shape[1]
        probes = effective_rank.signs(columns, fused_compare.PROBES)
        return probes, np.empty_like(probes), np.zeros((self._models, *probes.shape))

    def _sketch(
        self, bits: NDArray[Any], probes: NDArray[np.float32], part: NDArray[np.float32], whole: NDArray[np.float64]
    ) -> None:
        for model in range(self._models):
            part[:] = 0
            fused_compare.sketch(bits[0], bits[model + 1], probes, part)
            whole[model] += part

    def _rank(self, sums: Sums, sketches: tuple[Any, Any, NDArray[np.float64]] | None) -> None:
        if sketches is None:
            return
        probes, _, whole = sketches
        side = min(self._tensor.shape)
        for model in range(self._models):
            square = float(sums.pairs[0, model, model])
            rank = effective_rank.participation(whole[model], probes, square, side)
            if rank is not None:
                sums.ranks[:, model] += rank / side * self._tensor.numel, self._tensor.numel


def bytes_of(tensors: Sequence[Matched]) -> int:
    """What `measure` tells its progress of, in all."""
    return sum(tensor.numel * _row_bytes(tensor) for tensor in tensors)


def _row_bytes(tensor: Matched) -> int:
    """Bytes an entry of all models in a block."""
    kinds = set(tensor.dtypes)
    each = dtypes.itemsize(tensor.dtypes[0]) if len(kinds) == 1 else 8 if "float64" in kinds else 4
    return each * len(tensor.dtypes)
