"""Fisher-weighted average: every entry weighted by how much each model's predictions depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from eutectic.kernels.sums import one_a_model, weighted_mean, weighted_sum
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, PerModelOrGlobal, Range, method

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eutectic.kernels import statistics_streams
else:
    torch = LazyModule("torch")
    statistics_streams = LazyModule("eutectic.kernels.statistics_streams")


@method(paper="arXiv:2111.09832", family="statistics", base="ignored", statistics="fisher")
def fisher(
    weights: Tensor,
    fishers: Tensor | Sequence[Tensor] | None,
    *,
    weight: Annotated[PerModel, Range("[0, inf)")] = 1.0,
    floor: Annotated[float, Range("[0, 1]")] = 1e-6,
    norm: Annotated[PerModelOrGlobal, Range("(0, inf)")] = 1.0,
) -> Tensor:
    """Average of the models in which each entry is weighted by its Fisher information.

    **What it does.** θ = Σ wᵢFᵢθᵢ / Σ wᵢFᵢ, entry by entry, where Fᵢ is the diagonal of the Fisher information of model
    i on its own data: how much its predictions change with that entry. It is the mode of the product of the models'
    Laplace posteriors. Where Σ wᵢFᵢ is at most `floor` times Σ wᵢ mean(Fᵢ), over the tensor, nobody has a say and the
    entry is the mean Σ wᵢθᵢ / Σ wᵢ. Tensors without a Fisher (buffers) are averaged, and the plan says so.

    **When to use it.** Fine-tunes of one base with some data of each task, a few hundred examples, measured by
    `eutectic collect fisher`. On published tables it is better than the average and worse than `regmean`. A head of
    another label set is left out with `leave_out`.

    **Parameters.** `weight`: coefficient of a model, from 0 on. `norm`: what a model's Fisher is divided by. A
    confident model has a small Fisher and loses every vote; `global` divides by the L2 norm over the whole model, as
    the authors' code does, but then one tensor with a large Fisher decides the scale. Compare both, or tune `weight`.
    `floor`: see above.

    **Differs from the paper.** Matena & Raffel 2022 give the formula without a floor; their code raises the Fisher of
    the first model to 10⁻⁶, whatever the scale of the others. There each Fisher is divided by its norm and coefficients
    are searched; here both are left to the recipe.

    **Differs from mergekit.** It does not have this method.

    **Cost.** One pass over models and statistics, at the speed of the disk; where a tensor does not fit what is held
    between passes, they are read twice, once for the mean of the Fisher. In float32 a Fisher has twice the bytes of a
    model in bfloat16.
    """
    shares = one_a_model(weight, len(weights))
    mean = weighted_mean(weights, shares)
    if fishers is None:
        return mean
    assert norm != "global", "refused"
    scales = [share / by for share, by in zip(shares, one_a_model(norm, len(weights)), strict=True)]
    level = floor * sum(scale * float(one.double().mean()) for scale, one in zip(scales, fishers, strict=True))
    importance = weighted_sum(fishers, scales)
    moment = weighted_sum((one.double() * model.double() for one, model in zip(fishers, weights, strict=True)), scales)
    return torch.where(importance > level, moment / importance, mean)


@fisher.refuses
def _refusal(parameters: dict[str, Any], models: int) -> str | None:
    if not any(one_a_model(parameters["weight"], models)):
        return "every model has the weight 0"
    if "global" in (parameters["norm"] if isinstance(parameters["norm"], list | tuple) else [parameters["norm"]]):
        return "`norm: global` stands in recipes, where the statistics of the whole model are known; give numbers"
    return None


@fisher.stream
def _stream(jobs):  # type: ignore[no-untyped-def]
    return statistics_streams.FisherMean(jobs)
