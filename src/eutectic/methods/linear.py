"""Weighted average of models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eutectic.kernels.sums import one_a_model, weighted_mean
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import streams
else:
    streams = LazyModule("eutectic.kernels.streams")


@method(
    paper="arXiv:2203.05482",
    family="averages",
    base="ignored",
    elementwise=True,
    accepted={"int8_mask": "no sign masks are made"},
)
def linear(weights: Tensor, *, weight: PerModel = 1.0, normalize: bool = True) -> Tensor:
    """Weighted average of the models' weights; the uniform model soup when all weights are equal.

    **What it does.** θ = Σ wᵢ θᵢ / Σ wᵢ, or without `normalize` θ = Σ wᵢ θᵢ, accumulated in float64.

    **When to use it.** Fine-tunes of one base, or checkpoints of one training run. It never looks at the base: for
    interpolation towards a base (WiSE-FT) list the base as a model. Weights may be negative or above one.

    **Parameters.** `weight`: coefficient of a model. `normalize`: divide by the sum of the weights.

    **Differs from the paper.** Wortsman et al. 2022 (Model soups, §2) average with equal weights; those are the
    default, any weights may be given. The greedy soup needs evaluations and is not this method.

    **Differs from mergekit.** A `base_model` that is not listed under `models` is not averaged in. Weights that sum to
    zero are refused under `normalize` (mergekit writes NaN). `weight` has a default, 1.

    **Cost.** One pass: reads every model once; time is bound by memory bandwidth.
    """
    shares = one_a_model(weight, len(weights))
    return weighted_mean(weights, shares, normalize)


@linear.stream
def _stream(jobs):  # type: ignore[no-untyped-def]
    return streams.WeightedSum(jobs)
