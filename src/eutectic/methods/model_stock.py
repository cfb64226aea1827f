"""Model Stock: how far to go from the base to the average, from the angle between the fine-tunes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eutectic.kernels.gram import combined, combined_along
from eutectic.kernels.sphere import Gram, stock_ratio
from eutectic.lazy import LazyModule
from eutectic.methods.registry import method

if TYPE_CHECKING:
    from torch import Tensor

    from eutectic.kernels import gram_streams
else:
    gram_streams = LazyModule("eutectic.kernels.gram_streams")


def _coefficients(gram: Gram) -> list[float]:
    return [stock_ratio(gram) / len(gram)] * len(gram)


@method(
    paper="arXiv:2403.19522",
    family="geometry",
    base="required",
    models=(2, None),
    accepted={"int8_mask": "no sign masks are made"},
)
def model_stock(deltas: Tensor, *, filter_wise: bool = False) -> Tensor:
    """Goes from the base towards the average of the fine-tunes, the further the more they agree.

    **What it does.** θ = t θ̄ + (1-t) θ₀ with t = N cosθ / (1 + (N-1) cosθ) (Jang et al. 2024), θ the angle between task
    vectors: an estimate of the point nearest to the fine-tunes' centre on the plane of base and fine-tunes. The
    cosine is the mean over all pairs, t is one value a tensor, or under `filter_wise` one a row.

    **When to use it.** Two or more fine-tunes of one base on the same or related tasks, with nothing to tune. Task
    vectors of unrelated tasks are nearly orthogonal, and then little is left of them: use task arithmetic.

    **Parameters.** `filter_wise`: a ratio for each vector along the last axis; a tensor of one axis is one filter.

    **Differs from the paper.** A negative mean cosine gives t = 0, the base: the formula would step away from every
    model, or blow up near cosθ = -1/(N-1). A task vector of norm zero counts as orthogonal to the others. The paper's
    periodic merging during training is not this method.

    **Differs from mergekit.** The clamp of t. Norms are not padded: mergekit's lower bound of 1e-6 on their product
    pulls small tensors and light fine-tunes back to the base. Float64 inner products (mergekit: the checkpoint's
    dtype).

    **Cost.** Two passes over a tensor (inner products of every pair, then the combination), the second from memory.
    Under `filter_wise`, whole tensors in plain torch.
    """
    return combined_along(deltas, _coefficients) if filter_wise else combined(deltas, _coefficients)


def _stream(jobs):  # type: ignore[no-untyped-def]
    return gram_streams.GramCombination(jobs, lambda gram, given: _coefficients(gram))


model_stock.stream(_stream, when=lambda given: not given["filter_wise"])
