"""The mean direction of several models, or of their task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eutectic.kernels.gram import combined
from eutectic.kernels.sphere import mean_direction
from eutectic.kernels.sums import cancelled, one_a_model
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import gram_streams
else:
    gram_streams = LazyModule("eutectic.kernels.gram_streams")


@method(
    paper="arXiv:2403.13257",
    family="geometry",
    base="optional",
    neutral={"normalize_weights": True},
    accepted={
        "eps": "no norm is padded: tensors without a direction are told by a norm of exactly zero",
        "int8_mask": "no sign masks are made",
    },
)
def multislerp(weights: Tensor, *, weight: PerModel = 1.0, normalize_weights: bool = True) -> Tensor:
    """Averages the directions of several models, or of their task vectors, and their norms apart.

    **What it does.** θ = Σ wᵢ‖θᵢ‖ · m/‖m‖ with m = Σ wᵢ θᵢ/‖θᵢ‖, a tensor at a time; with `base_model` the same of the
    task vectors, added to the base. mergekit's definition (Goddard et al. 2024) projects the directions uᵢ onto the
    tangent space at m/‖m‖, adds them up there and goes back by the exponential map; but Σ wᵢ (uᵢ - ⟨uᵢ, m̂⟩ m̂) =
    m - ⟨m, m̂⟩ m̂ = 0, so the point reached is m̂ itself. That closed form is what is computed.

    **When to use it.** Several task vectors that are far from parallel, where an average would shrink them. For light
    fine-tunes without a base it is `linear`. `karcher` is the mean along the sphere; the two part at third order in
    the angles.

    **Parameters.** `weight`: share of a model. `normalize_weights`: divide by the sum of the weights; without it the
    norm grows with them.

    **Differs from the paper.** There is no paper of its own.

    **Differs from mergekit.** A tensor that no fine-tune touched gives the base (mergekit stops with an error from
    three models on). Where the directions cancel, ‖m‖ at most 1e-4 Σ|wᵢ|, the result is Σ wᵢ θᵢ for any number of
    models (mergekit: for two, below 1e-8). Without `normalize_weights` a single model is scaled by its weight. Weights
    that sum to zero are refused under `normalize_weights`. No `eps` is added to norms. Inner products in float64.
    `weight` has a default, 1.

    **Cost.** Two passes over a tensor (inner products of every pair, then the combination), the second from memory.
    """
    shares = one_a_model(weight, len(weights))
    return combined(weights, lambda gram: mean_direction(gram, shares, normalize_weights))


@multislerp.stream
def _stream(jobs):  # type: ignore[no-untyped-def]
    return gram_streams.GramCombination(
        jobs,
        lambda gram, given: mean_direction(gram, one_a_model(given["weight"], len(gram)), given["normalize_weights"]),
    )


@multislerp.refuses
def _refused(given: dict[str, Any], models: int) -> str | None:
    zero = given["normalize_weights"] and cancelled(one_a_model(given["weight"], models))
    return "the weights sum to zero" if zero else None
