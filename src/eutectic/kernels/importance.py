"""Two models -> how much each entry's change matters, and where it matters much: the parts of Arcee Fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.exponential import LEAST, exp, expm1
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
    difference from e.
    """
    delta, top, peak = tuned - base, base.amax(-1, keepdim=True), tuned.amax(-1, keepdim=True)
    far = ~(delta.abs().amax(-1, keepdim=True) <= 1)
    prior = exp((base - top).clamp(min=LEAST))
    grown = prior * expm1(torch.where(far, torch.zeros_like(delta), delta))
    whole = prior + grown
    if bool(far.any()):
        apart = exp((tuned - peak).clamp(min=LEAST))
        grown, whole = torch.where(far, apart, grown), torch.where(far, apart, whole)
    found = [folded(terms) for terms in (prior, grown, whole * delta)]
    return torch.stack([*found, (peak - top)[:, 0], far[:, 0].double()], 1)


def folded(terms: Tensor) -> Tensor:
    """Σ of each row, `(R, n)` → `(R,)`; the upper half is added to the lower one, in place, until one is left."""
    width = terms.shape[1]
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


def are_important(weights: Tensor) -> Tensor:
    """Where the importance is at least the threshold of the tensor, `(2, *shape)` → booleans `(*shape)`."""
    found = importance(weights)
    places = quartile_places(found.numel())
    rising = np.partition(found.reshape(-1).cpu().numpy(), sorted(set(places)))
    level = threshold(rising[places].tolist(), found.numel(), torch.finfo(found.dtype).max)
    return found.double() >= level


@dataclass(slots=True)
class _Importances(Block):
    """A block whose second row has importances, one ranking of them for each order statistic."""

    @property
    def models(self) -> tuple[Bits, ...]:
        return (self.bits[1],) * 6


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
        found = np.zeros(block.bits.shape, block.floats)
        fused_importance.importances(*self._rows(block), found[1])
        self._selection.reduce(_Importances(block.job, block.index, block.first, found))

    def fold(self) -> None:
        self._selection.fold()

    def shares(self, other: Stream) -> bool:
        return isinstance(other, ArceeFusion)

    def take(self, other: Stream) -> None:
        assert isinstance(other, ArceeFusion)
        self._selection, self._divergences = other._selection, other._divergences

    def combine(self, block: Block, out: Bits) -> None:
        largest = float(np.finfo(block.floats).max)
        level = threshold(self._selection.threshold.tolist(), self._numel, largest)
        fused_importance.combine_important(*self._rows(block), level, out)

    def _rows(self, block: Block) -> tuple[Any, ...]:
        """Both rows of a block, where its first row of the tensor begins and how long each is, and their divergence."""
        found = self._divergences.get(block.index)
        if found is None:
            around = block.whole_rows
            sums = np.empty((around.shape[1] // self._length, 5))
            fused_importance.row_sums(around[0], around[1], self._length, sums)
            found = divergence(sums)
            if self._length >= _KEPT_FROM:
                self._divergences[block.index] = found
        return (*block.rows, block.before, self._length, found, block.floats(np.finfo(block.floats).max))
