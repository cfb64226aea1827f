"""One model, scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eutectic.kernels.sums import one_a_model, weighted_sum
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import gram_streams
else:
    gram_streams = LazyModule("eutectic.kernels.gram_streams")


@method(
    paper="arXiv:2403.13257",
    family="averages",
    base="ignored",
    models=(1, 1),
    elementwise=True,
    accepted={"int8_mask": "no sign masks are made"},
)
def passthrough(weights: Tensor, *, scale: PerModel = 1.0) -> Tensor:
    """Passes one model on, tensors scaled where asked.

    **What it does.** θ = s θ₁.

    **When to use it.** To convert a model's dtype or file layout, or to scale some of its tensors: a `scale` of 0 for
    the output projections of a layer (`filter: o_proj`, `filter: down_proj`) takes that layer out of the computation.

    **Parameters.** `scale`: a factor; filters give it to some tensors only. At 1 every bit is copied.

    **Differs from the paper.** It is mergekit's method (Goddard et al. 2024), where it serves to stack layers.

    **Differs from mergekit.** The product is computed in float64 and rounded once (mergekit: in the checkpoint's
    dtype). Stacking layers by `slices` is not part of this method.

    **Cost.** One pass: the time of a copy.
    """
    return weighted_sum(weights, one_a_model(scale, 1))


@passthrough.stream
def _stream(jobs):  # type: ignore[no-untyped-def]
    return gram_streams.Combination(jobs, lambda job: one_a_model(job.parameters["scale"], 1))
