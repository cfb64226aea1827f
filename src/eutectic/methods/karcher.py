"""The Karcher mean of several models on the sphere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from eutectic.kernels.gram import combined
from eutectic.kernels.sphere import karcher_mean
from eutectic.kernels.sums import cancelled, one_a_model
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, Range, method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import gram_streams
else:
    gram_streams = LazyModule("eutectic.kernels.gram_streams")


@method(
    paper="arXiv:2603.04972",
    family="geometry",
    base="ignored",
    accepted={"int8_mask": "no sign masks are made"},
)
def karcher(
    weights: Tensor,
    *,
    weight: Annotated[PerModel, Range("[0, inf)")] = 1.0,
    max_iter: Annotated[int, Range("[1, 10000]")] = 100,
    tol: Annotated[float, Range("(0, 1)")] = 1e-12,
) -> Tensor:
    """Takes the mean of several models' directions along the sphere, and the mean of their norms.

    **What it does.** θ = Σ wᵢ‖θᵢ‖/Σ wᵢ · y with y = argmin Σ wᵢ angle(y, θᵢ)², a tensor at a time. Found by gradient
    descent, y ← exp_y(Σ wᵢ log_y(uᵢ)) from the mean direction; the iterates stay in the span of the models, so it runs
    on their inner products, and the weights are read for the result alone.

    **When to use it.** Slerp for more than two models, each as much as its weight; at t = ½ and equal norms it is
    slerp. For light fine-tunes of one base it is `linear` to many digits.

    **Parameters.** `weight`: share of a model. `max_iter`: most iterations, 1 to 10000. `tol`: an iteration that moves
    y by less than this angle is the last. Iterations cost microseconds, so both defaults (100 and 1e-12, ours) mean
    "until it stands still".

    **Differs from the paper.** A mean that is not unique, because the directions cancel
    (a mean shorter than 1e-4) or one is opposite to an iterate (cosine below -0.9995), is replaced by the weighted
    mean of the tensors. A tensor of norm zero has no direction and only lowers the norm.

    **Differs from mergekit.** Weights. `max_iter` and `tol` are 10 and 1e-5 there. Inner products in float64 (mergekit:
    in the checkpoint's dtype, so a bfloat16 result is off by 0.3 %). `tol` is no threshold for norms: small tensors
    are merged like large ones. Directions that cancel do not fall to the first model. A `base_model` that is not listed
    under `models` is not averaged in.

    **Cost.** Two passes over a tensor (inner products of every pair, then the combination), the second from memory.
    """
    shares = one_a_model(weight, len(weights))
    return combined(weights, lambda gram: karcher_mean(gram, shares, max_iter, tol))


@karcher.stream
def _stream(jobs):  # type: ignore[no-untyped-def]
    return gram_streams.GramCombination(
        jobs,
        lambda gram, given: karcher_mean(
            gram, one_a_model(given["weight"], len(gram)), int(given["max_iter"]), given["tol"]
        ),
    )


@karcher.refuses
def _refused(given: dict[str, Any], models: int) -> str | None:
    zero = cancelled(one_a_model(given["weight"], models))
    return "the weights sum to zero" if zero else None
