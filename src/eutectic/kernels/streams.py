"""A method as passes over blocks of stored bits: reductions over a whole tensor (or model), then one combination.

A stream belongs to a *group* of jobs that share their reductions: one tensor, or every tensor under `scope: model`.
While a stream is `pending`, the engine calls `reduce` for every block that it `wants`, in any order from any thread,
and then `fold` once; after that, `combine` for every block. No result depends on the order of the calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.layers import Layer
from eutectic.kernels.sums import divisor, for_kernels, one_a_model
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    from eutectic.kernels import fused
else:
    fused = LazyModule("eutectic.kernels.fused")

Bits = NDArray[Any]


@dataclass(frozen=True, slots=True)
class StreamJob:
    """What a stream knows of one tensor: its size, how many models it has (the base not counted), bound parameters.

    `shape` is None where a stream does not care. `beside` has the shapes of what is read besides the models' tensors:
    the statistics of each, then the other parts of their layers; `layer` says how these go together.
    """

    numel: int
    models: int
    parameters: dict[str, Any]
    shape: tuple[int, ...] | None = None
    beside: tuple[tuple[int, ...], ...] = ()
    layer: Layer | None = None


@dataclass(slots=True)
class Block:
    """Entries `first : first + n` of every input of one job; deltas have the base in row 0.

    `bits (M, n)` holds float32, float64, or 16-bit floats as integers (see `bits.STORED`). For a method that works by
    rows `around (M, before + n + after)` has the same entries within the whole rows that they lie in. `beside` has the
    stored bits of what is read besides: the same entries of a tensor of the same shape, else all of it. `cache` is for
    what the merges of a sweep, which see the same block one after the other, need make only once.
    """

    job: int
    index: int
    first: int
    bits: Bits
    around: Bits | None = None
    before: int = 0
    beside: tuple[Bits, ...] = ()
    cache: dict[Any, Any] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[Bits, ...]:
        """A row a model."""
        return tuple(self.bits)

    @property
    def base(self) -> Bits:
        """The base's row."""
        base: Bits = self.bits[0]
        return base

    @property
    def models(self) -> tuple[Bits, ...]:
        """The rows without the base's."""
        return tuple(self.bits[1:])

    @property
    def floats(self) -> type[Any]:
        """The type of the working floats."""
        return np.float64 if self.bits.dtype == np.float64 else np.float32

    @property
    def whole_rows(self) -> Bits:
        """Entries of every input in the whole rows that it touches, for a method that works by rows."""
        return self.bits if self.around is None else self.around

    def every(self, step: int) -> Block:
        """Each `step`-th entry of it, from the first on."""
        return replace(self, bits=np.ascontiguousarray(self.bits[:, ::step]))

    def pieces(self, length: int, most: int) -> Iterator[tuple[Bits, slice, int]]:
        """Cuts it into whole rows of `length`, `most` entries at a time, or one row if that is longer.

        Each piece is the entries of every input in these rows, which of the block's entries are among them, and how
        many others come before those.
        """
        step = length * max(1, most // length)
        for first in range(0, self.whole_rows.shape[1], step):
            rows = self.whole_rows[:, first : first + step]
            start = first - self.before
            low, high = max(start, 0), min(start + rows.shape[1], len(self.base))
            yield rows, slice(low, high), low - start


class Stream(ABC):
    """The protocol of the module's docstring."""

    @property
    def pending(self) -> bool:
        """True while another reduction is needed before `combine`."""
        return False

    def wants(self, index: int) -> bool:
        """Whether the present reduction needs block number `index` of each job."""
        return True

    def reduce(self, block: Block) -> None:
        """Takes one block into the present reduction. Called once for each wanted block, from any thread."""
        raise AssertionError("this stream has no reductions")

    def fold(self) -> None:
        """Ends the present reduction, after every wanted block."""
        raise AssertionError("this stream has no reductions")

    @property
    def affinity(self) -> str:
        """Streams of one affinity put the same into a block's cache, and are asked one after the other."""
        return ""

    def shares(self, other: Stream) -> bool:
        """Whether this stream's reductions give what those of `other`, for the same jobs, give."""
        return False

    def take(self, other: Stream) -> None:
        """Takes over the results of the reductions of `other`, which `shares` them."""
        raise AssertionError("this stream shares nothing")

    @abstractmethod
    def combine(self, block: Block, out: Bits) -> None:
        """Writes the result's stored bits to `out (n,)`."""


class WeightedSum(Stream):
    """Σ wᵢ θᵢ / divisor."""

    def __init__(self, jobs: Sequence[StreamJob]) -> None:
        self._bound = []
        for job in jobs:
            shares = one_a_model(job.parameters["weight"], job.models)
            self._bound.append((tuple(shares), for_kernels(divisor(shares, job.parameters["normalize"]))))

    def combine(self, block: Block, out: Bits) -> None:
        shares, by = self._bound[block.job]
        fused.combine_weights(block.rows, shares, by, out)
