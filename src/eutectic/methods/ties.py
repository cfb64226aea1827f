"""TIES: trim, elect sign, merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from eutectic.kernels.signs import disjoint_sum, elect_sign
from eutectic.kernels.sums import one_a_model
from eutectic.kernels.trim import keep_largest, match_l1
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, Range, method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import task_vectors
else:
    task_vectors = LazyModule("eutectic.kernels.task_vectors")


@method(
    paper="arXiv:2306.01708",
    family="task vectors",
    base="required",
    scopes=("tensor", "model"),
    mergekit_defaults={"density": 1.0},
    accepted={"int8_mask": "sign masks take no memory here"},
)
def ties(
    deltas: Tensor,
    *,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range("(0, 1]")] = 0.2,
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Tensor:
    """Trims each task vector to its largest entries, elects a sign for each entry, and averages those who agree.

    **What it does.** Yadav et al. 2023, Algorithm 1. *Trim*: of each τᵢ keep the share `density` of largest magnitude.
    *Elect*: γ = sgn Σ wᵢ τ̂ᵢ. *Merge*: the mean of the entries whose sign is γ, weighted by wᵢ. θ = θ₀ + λ τ.

    **When to use it.** Many fine-tunes of one base whose task vectors interfere. On fleets of generic LLM fine-tunes
    plain task arithmetic has often been safer; compare both.

    **Parameters.** `weight`: share of a model in vote and mean. `density`: share of entries kept. `normalize`: divide
    by the weights of those who agree. `rescale`: scale each trimmed delta to its L1 norm before trimming. `lambda`:
    scale of the whole. In a recipe, `scope: tensor` ranks each tensor by itself and `scope: model` the whole model.

    **Differs from the paper.** The paper ranks the whole model: that is `scope: model` (exact, streamed); the default
    is `tensor`, as tools have it. Weights are an extension: the paper's are all 1. Exactly ⌊density · n⌋ entries (at
    least one) are kept, ties broken by flat index, where the authors' code keeps every entry equal to the threshold. A
    vote that sums to exactly zero elects +, where the authors' code takes the majority sign of the whole model.

    **Differs from mergekit.** `density` defaults to the paper's 0.2 (mergekit: 1, no trimming). Float32 throughout,
    rounded once. Equal magnitudes are broken by index, not by an unstable sort. The density is taken as the decimal
    that is written: 0.29 of 100 entries is 29 (mergekit: 28).

    **Cost.** Two passes over a tensor and a sample (thresholds, the combination), one from the disk while the tensor
    fits the memory bound.
    """
    shares = one_a_model(weight, len(deltas))
    trimmed = keep_largest(deltas, density)
    if rescale:
        trimmed = match_l1(trimmed, deltas)
    return disjoint_sum(trimmed, elect_sign(trimmed, shares), shares, normalize) * lambda_


@ties.stream
def _stream(jobs):  # type: ignore[no-untyped-def]
    return task_vectors.TaskVectors(jobs, sparsifier="trim", elect=True)
