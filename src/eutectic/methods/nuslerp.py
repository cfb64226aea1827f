"""Spherical interpolation between two models by weight, of the weights or of the task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eutectic.kernels.gram import combined, combined_along
from eutectic.kernels.sphere import Gram, slerp_coefficients
from eutectic.kernels.sums import cancelled, divisor, one_a_model
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import gram_streams
else:
    gram_streams = LazyModule("eutectic.kernels.gram_streams")


def _coefficients(gram: Gram, weight: list[float]) -> tuple[float, float]:
    t = weight[1] / divisor(weight, True)
    return slerp_coefficients(gram[0][0], gram[0][1], gram[1][1], t)


@method(
    paper="arXiv:2403.13257",
    also=("doi:10.1145/325165.325242",),
    family="geometry",
    base="optional",
    models=(2, 2),
    accepted={"int8_mask": "no sign masks are made"},
)
def nuslerp(
    weights: Tensor, *, weight: PerModel = 1.0, nuslerp_flatten: bool = True, nuslerp_row_wise: bool = False
) -> Tensor:
    """Interpolates between two models, or between their task vectors, along the great circle by weight.

    **What it does.** slerp(t; a, b) with t = w₂ / (w₁ + w₂), by mergekit's definition (Goddard et al. 2024; Shoemake
    1985). With `base_model`, θ = θ₀ + slerp(t; τ₁, τ₂). A tensor is one vector, or without `nuslerp_flatten` each of
    its columns or rows is one, with an angle of its own.

    **When to use it.** With a base: task vectors of two fine-tunes are far from parallel, so here, unlike between their
    weights, the arc and the line part: the merged task vector keeps its length where an average would shrink it.
    Without a base it is `slerp` between two equals.

    **Parameters.** `weight`: share of a model; negative ones extrapolate. `nuslerp_flatten`: false takes vectors within
    a matrix. `nuslerp_row_wise`: those vectors are rows (the last axis), otherwise columns (the last axis but one). A
    tensor of one axis stays one vector.

    **Differs from the paper.** There is no paper of its own; in Shoemake's terms it is `slerp` with `norm: raw`.

    **Differs from mergekit.** `nuslerp_row_wise: true` takes rows and `false` columns, as mergekit documents it; its
    code does the opposite, so swap the value to have its numbers. Columns of stacked matrices are those of each
    matrix, where mergekit takes the first axis. A vector of norm zero (a tensor that one fine-tune left alone) and
    nearly antipodal ones (cosΩ < -0.9995) are interpolated linearly; mergekit takes an angle of 90° for the former, and
    the latter grow without bound. Weights that sum to zero are refused (mergekit takes t = 0.5). `weight` has a
    default, 1.

    **Cost.** Two passes over a tensor (inner products, then the combination), the second from memory. Without
    `nuslerp_flatten`, whole tensors in plain torch.
    """
    shares = one_a_model(weight, len(weights))
    if nuslerp_flatten:
        return combined(weights, lambda gram: _coefficients(gram, shares))
    return combined_along(weights, lambda gram: _coefficients(gram, shares), -1 if nuslerp_row_wise else -2)


def _stream(jobs):  # type: ignore[no-untyped-def]
    return gram_streams.GramCombination(jobs, _rule)


def _rule(gram: Gram, given: dict[str, Any]) -> tuple[float, float]:
    return _coefficients(gram, one_a_model(given["weight"], 2))


nuslerp.stream(_stream, when=lambda given: bool(given["nuslerp_flatten"]))


@nuslerp.refuses
def _refused(given: dict[str, Any], models: int) -> str | None:
    zero = cancelled(one_a_model(given["weight"], models))
    return "the weights sum to zero" if zero else None
