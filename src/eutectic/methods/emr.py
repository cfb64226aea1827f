"""EMR-Merging's unified task vector: elected signs with the largest magnitude that has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eutectic.kernels.consensus import extreme, total_of
from eutectic.lazy import LazyModule
from eutectic.methods.registry import method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import consensus_streams
else:
    consensus_streams = LazyModule("eutectic.kernels.consensus_streams")


@method(paper="arXiv:2405.17461", family="task vectors", base="required", elementwise=True)
def emr(deltas: Tensor, *, lambda_: float = 1.0) -> Tensor:
    """Elects a sign for each entry, then takes the largest magnitude among the task vectors that have it.

    **What it does.** The *elect* step of Huang et al. 2024 (EMR-Merging): γ = sgn Σ τᵢ, and the unified task vector is
    τ = γ · max |τᵢ| over those with sign γ. θ = θ₀ + λ τ.

    **When to use it.** As the shared part of an EMR merge, whose masks and rescalers your own code applies for each
    task. **As one model for all tasks it is not what the paper reports:** its numbers need a mask and a scale a task at
    inference, and the unified vector alone is longer than any of its parts. As a plain merge prefer `ties`, or lower
    `lambda`.

    **Parameters.** `lambda`: scale of the whole, an extension; the paper has none.

    **Differs from the paper.** Masks (τᵢ ⊙ τ > 0) and rescalers (Σ|τᵢ| / Σ|maskᵢ ⊙ τ|) are neither made nor applied.
    Where the sum is exactly zero the entry stays as in the base, as the paper's sgn says; the authors' code takes the
    largest negative change.

    **Differs from mergekit.** mergekit does not have it.

    **Cost.** One pass over the base and every model; time is bound by memory bandwidth.
    """
    return extreme(deltas, total_of(deltas)) * lambda_


@emr.stream
def _stream(jobs):  # type: ignore[no-untyped-def]
    return consensus_streams.EntryByEntry(jobs, consensus_streams.elected)
