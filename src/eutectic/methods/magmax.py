"""MagMax: the change of largest magnitude at every entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eutectic.kernels.consensus import extreme, strength_vote
from eutectic.lazy import LazyModule
from eutectic.methods.registry import method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import consensus_streams
else:
    consensus_streams = LazyModule("eutectic.kernels.consensus_streams")


@method(paper="arXiv:2407.06322", family="task vectors", base="required", elementwise=True)
def magmax(deltas: Tensor, *, lambda_: float = 0.5) -> Tensor:
    """Takes, at every entry, the task vector that moved it furthest.

    **What it does.** Marczak et al. 2024: τ = τᵢ with i = argmaxᵢ |τᵢ|, entry by entry, and θ = θ₀ + λ τ.

    **When to use it.** Models fine-tuned one after the other on a stream of tasks, for which it was made: each starts
    from the last, and the largest change is the one that lasted. For independent fine-tunes sums and averages have
    mostly been better.

    **Parameters.** `lambda`: scale of the whole, 0.5 as in the authors' scripts.

    **Differs from the paper.** Where two models moved an entry equally far in opposite directions, and none further,
    it stays as in the base; the authors' code takes the model listed last. In bfloat16 such ties are common, and
    neither the order of the models nor a preferred sign should decide them.

    **Differs from mergekit.** mergekit does not have it.

    **Cost.** One pass over the base and every model; time is bound by memory bandwidth.
    """
    return extreme(deltas, strength_vote(deltas)) * lambda_


@magmax.stream
def _stream(jobs):  # type: ignore[no-untyped-def]
    return consensus_streams.EntryByEntry(jobs, consensus_streams.strongest)
