"""Two models -> how much each entry's change matters, and where it matters much: the parts of Arcee Fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.exponential import LEAST, SMALL, UNREDUCED, exp, expm1, short_series
from eutectic.kernels.ranked import row_length
from eutectic.kernels.selection import Selection
from eutectic.kernels.streams import Bits, Block, Stream, StreamJob
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eutectic.kernels import fused_importance
else:
    torch = LazyModule("torch")
    fused_importance = LazyModule("eutectic.kernels.fused_importance")

# Entries whose softmax is computed at a time: its dozens of float64 temporaries stay in a cache. A GPU has no such.
_AT_A_TIME, _ON_GPU = 1 << 16, 1 << 20
# Sums of a row that are added up side by side.
LANES = 256
# The divergences of shorter rows would take more memory than they save time.
_KEPT_FROM = 64


def divergence(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(softmax(tuned) ‖ softmax(base)) of rows, `(R, 5)` → `(R,)`, from the sums that `row_sums` makes.

    With q ∝ exp(base) and δ the change it is Σ p δ - log Σ q exp(δ). As log1p Σ q (exp(δ) - 1), the logarithm of a
    light fine-tune is not rounded relative to 1, in which a divergence of the order of δ² would drown.
    """
    prior, grown, moved, apart, far = sums.T
    with np.errstate(all="ignore"):
        near = moved / (prior + grown) - np.log1p(grown / prior)
        gap = moved / grown - (np.log(grown) - np.log(prior) + apart)
        found: NDArray[np.float64] = np.maximum(np.where(far == 1.0, gap, near), 0.0)
    return found


def row_sums(base: Tensor, tuned: Tensor) -> Tensor:
    """Five numbers a row of two `(R, n)` in float64, → `(R, 5)`, all sums by `folded`.

    Σ e with e = exp(base - its largest); Σ e (exp(δ) - 1); Σ e exp(δ) δ; how much larger the largest tuned entry is;
    and 0. Where a |δ| is above 1, the fifth is 1 and f = exp(tuned - its largest) is in place of both e exp(δ) and its
    difference from e. Where the base is within `UNREDUCED` of zero and every |δ| within `SMALL`, e = exp(base), and the
    fourth is 0: a shift of either softmax changes nothing.
    """
    delta, top, peak = tuned - base, base.amax(-1, keepdim=True), tuned.amax(-1, keepdim=True)
    apart = delta.abs().amax(-1, keepdim=True)
    light = (base.abs().amax(-1, keepdim=True) <= UNREDUCED) & (apart <= SMALL)
    far = ~(apart <= 1)
    prior = exp((base - torch.where(light, 0.0, top)).clamp(min=LEAST))
    grown = prior * torch.where(light, short_series(delta), expm1(torch.where(far, 0.0, delta)))
    whole = prior + grown
    if bool(far.any()):
        other = exp((tuned - peak).clamp(min=LEAST))
        grown, whole = torch.where(far, other, grown), torch.where(far, other, whole)
    found = [folded(terms) for terms in (prior, grown, whole * delta)]
    return torch.stack([*found, torch.where(light, 0.0, peak - top)[:, 0], far[:, 0].double()], 1)


def folded(terms: Tensor) -> Tensor:
    """Σ of each row, `(R, n)` → `(R,)`, in place: `LANES` sums, of which the upper half is added to the lower one."""
    width = min(terms.shape[1], LANES)
    for start in range(width, terms.shape[1], LANES):
        part = terms[:, start : start + LANES]
        terms[:, : part.shape[1]] += part
    while width > 1:
        half = 1 << (width - 1).bit_length() - 1
        terms[:, : width - half] += terms[:, half:width]
        width = half
    return terms[:, 0]


def importance(weights: Tensor) -> Tensor:
    """|δ| · divergence of the row, `(2, *shape)` → `(*shape)`, in working floats; the largest where it is NaN."""
    length = row_length(weights.shape[1:])
    pairs = weights.reshape(2, -1, length)
    parts = []
    step = max(1, (_AT_A_TIME if weights.device.type == "cpu" else _ON_GPU) // length)
    for first in range(0, pairs.shape[1], step):
        base, tuned = pairs[:, first : first + step].double()
        found = torch.from_numpy(divergence(row_sums(base, tuned).cpu().numpy())).to(weights.device)
        parts.append(((tuned - base).abs() * found[:, None]).to(weights.dtype))
    largest = torch.finfo(weights.dtype).max
    return torch.cat(parts).nan_to_num(nan=largest, posinf=largest).reshape(weights.shape[1:])


def quartile_places(numel: int) -> list[int]:
    """Between which two entries, in rising order, each quartile lies: six places."""
    places = [quarter * (numel - 1) // 4 for quarter in (1, 2, 3)]
    return [place for low in places for place in (low, min(low + 1, numel - 1))]


def threshold(values: Sequence[float], numel: int, largest: float) -> float:
    """Median + 1.5 · (third - first quartile), from the entries at `quartile_places`; at most `largest`."""
    parts = [quarter * (numel - 1) % 4 / 4 for quarter in (1, 2, 3)]
    pairs = zip(values[::2], values[1::2], parts, strict=True)
    first, median, third = (low + (high - low) * part for low, high, part in pairs)
    return min(median + 1.5 * (third - first), largest)


def not_below(level: float, floats: type[Any]) -> Any:
    """The least of these `floats` that is not below a level."""
    nearest = floats(level)
    return nearest if float(nearest) >= level else np.nextafter(nearest, floats(np.inf))


def are_important(weights: Tensor) -> Tensor:
    """Where the importance is at least the threshold of the tensor, `(2, *shape)` → booleans `(*shape)`."""
    found = importance(weights)
    places = quartile_places(found.numel())
    rising = np.partition(found.reshape(-1).cpu().numpy(), sorted(set(places)))
    level = threshold(rising[places].tolist(), found.numel(), torch.finfo(found.dtype).max)
    return found.double() >= level


@dataclass(slots=True)
class _Ranked(Block):
    """A block as a selection sees it: its changes once for each order statistic."""

    changes: tuple[Any, ...] = ()

    @property
    def models(self) -> tuple[Any, ...]:
        return (fused_importance.Changes(*self.changes),) * 6

    def every(self, step: int) -> Block:
        _, before, length, divergence, largest = self.changes
        # Each entry left is a row of its own.
        rows = (before + np.arange(0, len(self.base), step)) // length
        bits = np.ascontiguousarray(self.bits[:, ::step])
        return replace(self, bits=bits, changes=(bits[1], 0, 1, divergence[rows], largest))


class ArceeFusion(Stream):
    """The tuned entry where its importance is at least the threshold. Reductions: the quartiles of importance."""

    def __init__(self, jobs: Sequence[StreamJob]) -> None:
        (job,) = jobs
        self._numel, self._length = job.numel, row_length(job.shape or ())
        places = quartile_places(job.numel) if job.numel else [0] * 6
        ranks = [job.numel - place for place in places]
        self._selection = Selection(ranks, [job.numel], bool(job.parameters.get("wide", False)))
        self._divergences: dict[int, NDArray[np.float64]] = {}

    @property
    def pending(self) -> bool:
        return self._selection.pending

    def wants(self, index: int) -> bool:
        return self._selection.wants(index)

    def reduce(self, block: Block) -> None:
        changes = self._changes(block)
        self._selection.reduce(_Ranked(block.job, block.index, block.first, block.bits, changes=changes))

    def fold(self) -> None:
        self._selection.fold()

    def shares(self, other: Stream) -> bool:
        return isinstance(other, ArceeFusion)

    def take(self, other: Stream) -> None:
        assert isinstance(other, ArceeFusion)
        self._selection, self._divergences = other._selection, other._divergences

    def combine(self, block: Block, out: Bits) -> None:
        largest = float(np.finfo(block.floats).max)
        level = not_below(threshold(self._selection.threshold.tolist(), self._numel, largest), block.floats)
        fused_importance.combine_important(block.base, fused_importance.Changes(*self._changes(block)), level, out)

    def _changes(self, block: Block) -> tuple[Any, ...]:
        """What `fused_importance.Changes` of the block has."""
        found = self._divergences.get(block.index)
        if found is None:
            around = block.whole_rows
            sums = np.empty((around.shape[1] // self._length, 5))
            fused_importance.row_sums(around[0], around[1], self._length, LANES, sums)
            found = divergence(sums)
            if self._length >= _KEPT_FROM:
                self._divergences[block.index] = found
        return block.rows[1], block.before, self._length, found, block.floats(np.finfo(block.floats).max)
