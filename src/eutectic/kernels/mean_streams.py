"""The mean of task vectors as a stream: what spectral methods do with a tensor that is left out of the spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eutectic.kernels.streams import Bits, Block, Stream, StreamJob
from eutectic.kernels.sums import one_a_model
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    from eutectic.kernels import fused
else:
    fused = LazyModule("eutectic.kernels.fused")


class TaskMean(Stream):
    """θ₀ + λ Σ wᵢ τᵢ / K over the K models whose weight is not zero, as `matrices.Tasks.mean`."""

    def __init__(self, jobs: Sequence[StreamJob], *, scaled: bool = True) -> None:
        """Without `scaled` the method's λ is for its matrices alone."""
        self._weights = [tuple(one_a_model(job.parameters["weight"], job.models)) for job in jobs]
        self._scale = [float(job.parameters["lambda_"]) if scaled else 1.0 for job in jobs]

    def combine(self, block: Block, out: Bits) -> None:
        pairs = [(row, w) for row, w in zip(block.models, self._weights[block.job], strict=True) if w]
        if not pairs:
            fused.convert(block.base, out)
            return
        rows, weights = (tuple(part) for part in zip(*pairs, strict=True))
        scale = self._scale[block.job]
        fused.combine_deltas(block.base, rows, weights, float(len(rows)), scale, (), (), False, 0.0, out)
