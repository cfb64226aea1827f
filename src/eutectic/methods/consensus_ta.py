"""Consensus task arithmetic: a sum of task vectors without the entries that matter to one task only, or to none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from eutectic.kernels.consensus import total_of, users
from eutectic.kernels.sums import one_a_model
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, Range, method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import consensus_streams
else:
    consensus_streams = LazyModule("eutectic.kernels.consensus_streams")


@method(
    paper="arXiv:2405.07813",
    family="task vectors",
    base="required",
    models=(2, None),
    elementwise=True,
)
def consensus_ta(
    deltas: Tensor,
    *,
    tall_lambda: Annotated[PerModel, Range("[0, inf)")] = 0.4,
    k: Annotated[int, Range("[0, inf)")] = 2,
    lambda_: float = 1.0,
) -> Tensor:
    """Adds task vectors, but only at entries that matter to at least `k` of the tasks.

    **What it does.** Wang et al. 2024 (TALL-masks). With τ = Σ τᵢ, an entry matters to task i where
    |τᵢ| > λᵢ |τ - τᵢ|: the task's own change outweighs what the others add. θ = θ₀ + λ m ⊙ τ, where
    m keeps entries that matter to at least `k` tasks. `k` = 2 drops the "selfish" entries of a single task and the
    "catastrophic" ones of none, `k` = 1 only the latter; `k` = 0 is task arithmetic.

    **When to use it.** Many specialists of one base, where plain task arithmetic suffers from entries that one task
    pulls alone. In the published tables it gains 1 to 5 points over task arithmetic on 8 to 20 vision tasks. With two
    models and `k` = 2 little but common changes is left: prefer another method there.

    **Parameters.** `tall_lambda`: strictness of a task's mask, larger keeps fewer entries. What all K models change
    alike matters to none of them once λ (K - 1) ≥ 1, at 0.4 from four models on: for models that agree take a smaller
    value. `k`: how many tasks an entry must matter to, at most the number of models. `lambda`: scale of the whole; with
    K models, values from 1/K to 0.5 are the usual start, chosen on held-out data.

    **Differs from the paper.** The paper chooses λᵢ for each task on validation data out of 0.2, 0.3, … 0.6; the
    default is the middle of that range. Where both sides are equal the paper's ≥ counts the entry and its authors' code
    does not; this is the code's rule. Only the sum is masked: Consensus TIES is not offered. The masks by themselves,
    which restore single tasks, are not written.

    **Differs from mergekit.** mergekit does not have it.

    **Cost.** One pass over the base and every model; time is bound by memory bandwidth.
    """
    total = total_of(deltas)
    kept = users(deltas, total, one_a_model(tall_lambda, len(deltas))) >= k
    return total * kept * lambda_


@consensus_ta.refuses
def _refused(parameters: dict[str, Any], models: int) -> str | None:
    """More tasks than there are can never agree, and nothing would be merged."""
    return f"k: {parameters['k']} of {models} models can never agree" if parameters["k"] > models else None


@consensus_ta.stream
def _stream(jobs):  # type: ignore[no-untyped-def]
    return consensus_streams.EntryByEntry(jobs, consensus_streams.agreed)
