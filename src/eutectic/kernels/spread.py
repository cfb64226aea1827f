"""Δ -> the entries on which the models are most apart, and the energy of each model there: the parts of SCE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic.kernels.cuts import Cut, least_kept
from eutectic.kernels.streams import Bits, Block, Stream, StreamJob
from eutectic.kernels.trim import are_largest, kept_count
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eutectic.kernels import fused, fused_sparse
else:
    torch = LazyModule("torch")
    fused = LazyModule("eutectic.kernels.fused")
    fused_sparse = LazyModule("eutectic.kernels.fused_sparse")


def spread(deltas: Tensor) -> Tensor:
    """√Σ(δᵢ - mean)² an entry, `(K, *shape)` → `(*shape)`: orders like the variance, and does not underflow.

    Computed in float64 from the distances to the first delta, so that it is exactly zero where all are equal.
    """
    lead = deltas[0].double()
    shift, squares = torch.zeros_like(lead), torch.zeros_like(lead)
    for delta in deltas:
        apart = delta.double() - lead
        shift = shift + apart
        squares = squares + apart * apart
    return (squares - shift * shift / len(deltas)).sqrt().to(deltas.dtype)


def keep_most_spread(deltas: Tensor, share: float) -> Tensor:
    """Zeroes all but the `selected_count` entries of largest `spread`, of equals the first by flat index."""
    if share == 1.0 or deltas[0].numel() == 0:
        return deltas
    differing = int((deltas != deltas[:1]).any(0).sum())
    # Infinite deltas are apart by NaN, which is larger than nothing.
    apart = spread(deltas).nan_to_num(nan=torch.inf, posinf=torch.inf)
    chosen = are_largest(apart, selected_count(share, differing, deltas[0].numel()))
    return torch.where(chosen, deltas, torch.zeros_like(deltas))


def selected_count(share: float, differing: int, numel: int) -> int:
    """How many entries a share of those that differ between the models is; all, where none differ."""
    return kept_count(share, differing) if differing else numel


def energies(deltas: Tensor) -> list[float]:
    """Σ δ² of each model, in float64."""
    return [float(delta.double().square().sum()) for delta in deltas]


def energy_shares(squares: Sequence[float]) -> list[float]:
    """Each model's part of the energy of all; equal parts where there is none."""
    total = sum(squares)
    return [square / total for square in squares] if total else [1.0 / len(squares)] * len(squares)


@dataclass(slots=True)
class _Spreads(Block):
    """A block whose entries are ranked by how far the models are apart, in place of each model's magnitudes."""

    @property
    def models(self) -> tuple[Any, ...]:
        return (tuple(self.bits[1:]),)


class Sce(Stream):
    """Select, calculate, erase. Reductions: the cut by spread, if any; then the energies."""

    def __init__(self, jobs: Sequence[StreamJob]) -> None:
        (self._job,) = jobs
        self._share = float(self._job.parameters["select_topk"])
        numel = self._job.numel
        wide = bool(self._job.parameters.get("wide", False))
        # The rank is known when the entries that differ have been counted, in the passes that find the threshold.
        self._cut = Cut([numel], [numel], wide) if self._share < 1.0 and numel else None
        self._differing: dict[int, tuple[int, int]] = {}
        self._energies: dict[int, NDArray[np.float64]] = {}
        self._weights: tuple[float, ...] = ()

    @property
    def pending(self) -> bool:
        return not self._weights

    @property
    def _cutting(self) -> Cut | None:
        return self._cut if self._cut and self._cut.pending else None

    def wants(self, index: int) -> bool:
        return self._cutting.wants(index) if self._cutting else True

    def reduce(self, block: Block) -> None:
        if cut := self._cutting:
            if cut.selecting and block.index not in self._differing:
                count = fused_sparse.count_differing(block.base, block.models)
                self._differing[block.index] = (count, len(block.base))
            cut.reduce(_spreads(block))
            return
        sums = np.zeros(self._job.models)
        for start, stop, level in self._stretches(block):
            models = tuple(row[start:stop] for row in block.models)
            fused_sparse.energies(block.base[start:stop], models, level, sums)
        self._energies[block.index] = sums

    def fold(self) -> None:
        if cut := self._cutting:
            if cut.selecting:
                counts = np.array(list(self._differing.values())).sum(axis=0)
                seen, numel = int(counts[1]), self._job.numel
                # From a sample while there is no more; it only serves to guess where the threshold lies.
                differing = int(counts[0]) if seen == numel else max(1, round(int(counts[0]) * numel / seen))
                cut.want([selected_count(self._share, differing, numel)])
            cut.fold()
            return
        total = np.zeros(self._job.models)
        for index in sorted(self._energies):
            total = total + self._energies[index]
        self._weights = tuple(energy_shares(total.tolist()))

    def shares(self, other: Stream) -> bool:
        return isinstance(other, Sce) and self._share == other._share

    def take(self, other: Stream) -> None:
        assert isinstance(other, Sce)
        self._cut, self._weights = other._cut, other._weights

    def combine(self, block: Block, out: Bits) -> None:
        if not np.isfinite(self._weights).all():
            # No delta agrees with a share that is NaN, and the tensor would be the base without a word.
            fused.convert(np.full(len(out), np.nan, block.floats), out)
            return
        for start, stop, level in self._stretches(block):
            models = tuple(row[start:stop] for row in block.models)
            fused_sparse.combine_selected(block.base[start:stop], models, self._weights, level, out[start:stop])

    def _stretches(self, block: Block) -> list[tuple[int, int, Any]]:
        """Ranges of a block, each with the least spread that is selected; None selects all."""
        if self._cut is None:
            return [(0, len(block.base), None)]
        spreads = _spreads(block)
        ends = self._cut.ends(spreads)
        places = sorted({0, len(block.base), int(ends[0])})
        return [(start, stop, least_kept(self._cut, spreads, ends, stop)[0]) for start, stop in pairwise(places)]


def _spreads(block: Block) -> _Spreads:
    return _Spreads(block.job, block.index, block.first, block.bits)
