"""Sums of task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eutectic.kernels.sums import one_a_model, weighted_mean
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import task_vectors
else:
    task_vectors = LazyModule("eutectic.kernels.task_vectors")

ACCEPTED = {"int8_mask": "sign masks take no memory here"}


@method(
    paper="arXiv:2212.04089",
    family="task vectors",
    example={"lambda": 0.4},
    base="required",
    elementwise=True,
    accepted={
        **ACCEPTED,
        "density": "task arithmetic does not sparsify; use ties, dare_linear or dare_ties",
        "rescale": "nothing is dropped, so nothing is rescaled",
    },
)
def task_arithmetic(deltas: Tensor, *, weight: PerModel = 1.0, normalize: bool = False, lambda_: float = 1.0) -> Tensor:
    """Adds weighted task vectors to the base; negative weights subtract a skill.

    **What it does.** θ = θ₀ + λ Σ wᵢ τᵢ with τᵢ = θᵢ - θ₀ (Ilharco et al. 2023, §2), divided by Σ wᵢ under
    `normalize`. Negation is one model with a negative weight; the analogy "A is to B as C is to D" is weights -1 (A),
    1 (B), 1 (C).

    **When to use it.** The most robust choice for several fine-tunes of one base. With K models of weight 1 the sum
    grows with K: start near λ = 1/K to 0.5 and try a few values on held-out data.

    **Parameters.** `weight`: coefficient of a task vector. `normalize`: divide by the sum of weights. `lambda`: scale
    of the whole.

    **Differs from the paper.** The paper has one λ for all; `weight` gives each model its own. A tensor that a model
    lacks is an error, where the reference code drops it.

    **Differs from mergekit.** Float32 throughout, rounded once (mergekit computes in the checkpoint's dtype). Weights
    that sum to zero are refused under `normalize`. `weight` has a default, 1.

    **Cost.** One pass over the base and every model; time is bound by memory bandwidth.
    """
    shares = one_a_model(weight, len(deltas))
    return weighted_mean(deltas, shares, normalize) * lambda_


@task_arithmetic.stream
def _stream(jobs):  # type: ignore[no-untyped-def]
    return task_vectors.TaskVectors(jobs)
