"""RegMean: the weights whose outputs are nearest to every model's on that model's own inputs, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from eutectic.kernels.least_squares import regression_mean
from eutectic.kernels.sums import one_a_model, weighted_mean
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, Range, method

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eutectic.kernels import statistics_streams
else:
    torch = LazyModule("torch")
    statistics_streams = LazyModule("eutectic.kernels.statistics_streams")


@method(paper="arXiv:2212.09849", family="statistics", base="ignored", statistics="gram", scratch=16)
def regmean(
    weights: Tensor,
    grams: Tensor | Sequence[Tensor] | None,
    *,
    weight: Annotated[PerModel, Range("[0, inf)")] = 1.0,
    alpha: Annotated[float, Range("[0, 1]")] = 0.9,
    ridge: Annotated[float, Range("[0, 1]")] = 1e-6,
    solve: bool = True,
) -> Tensor:
    """Merges each linear layer by least squares: its outputs come nearest to every model's, on that model's inputs.

    **What it does.** W = (Σ WᵢG̃ᵢ)(Σ G̃ᵢ)⁻¹ minimises Σ ‖(W - Wᵢ)Xᵢ‖², where Gᵢ is the mean over tokens of x xᵀ for the
    inputs x of the layer in model i, and G̃ᵢ = wᵢ(αGᵢ + (1-α) diag Gᵢ + ρ tr(Gᵢ)/n). A bias is the weight of one more
    input that is always one, and is solved with its weight. Convolutions are matrices of outputs × (inputs · kernel),
    by group. All else (norms, embeddings, a head that is tied to the embedding) is averaged by the same weights; the
    plan and the manifest say so.

    **When to use it.** Fine-tunes of one base with some inputs of each task, a hundred sequences or so, without labels:
    `eutectic collect gram` measures. On published tables it is ahead of `fisher` and far ahead of the average.
    A head of another label set is left out with `leave_out`.

    **Parameters.** `weight`: of a model, from 0 on. `alpha`: what the off-diagonals are scaled by, 0 for a Fisher-like
    average of columns. The authors take 0.9 for most models and 0.1 for T5 and DeBERTa; where inputs are plenty, 1 may
    be better. `ridge`: ρ; above 1e-2 it draws towards the average. `solve`: `false` averages a tensor instead, by
    filters: an output head over a large vocabulary takes long and may gain little. Not to be swept.

    ```yaml
    parameters:
      solve:
        - filter: lm_head
          value: false
        - value: true
    ```

    **Differs from the paper.** Jin et al. 2023 (equation 2) have no ridge, and average biases, which does not fit
    weights that were solved. Their code counts padding among the inputs; the Gram matrices of `eutectic collect` do
    not. Its Gram matrices are means over tokens, as here, where the formula has sums. Inputs that no model has seen (a
    dead unit, an expert without tokens in every model) keep an average.

    **Differs from mergekit.** It does not have this method.

    **Cost.** One Cholesky factorisation of side n, the inputs of a layer, and K + 1 products of m × n × n, all in
    float64: 2 · 10¹¹ operations for 2048 × 4096 and two models, about ten seconds on a free core. In memory stand the
    weight and the Gram matrix of every model, one layer at a time; `eutectic plan` says how much that is. A bias is
    solved a second time, apart from its weight: twice the arithmetic for layers that have one.
    """
    shares = one_a_model(weight, len(weights))
    if grams is None or not solve:
        return weighted_mean(weights, shares)
    shape = weights.shape[1:]
    layers = weights.reshape(len(weights), -1, *shape[-2:])
    inputs = [gram.reshape(-1, *gram.shape[-2:]) for gram in grams]
    solved = [
        regression_mean(layers[:, number], [gram[number] for gram in inputs], shares, alpha=alpha, ridge=ridge)
        for number in range(layers.shape[1])
    ]
    return torch.stack(solved).reshape(shape)


@regmean.refuses
def _refusal(parameters: Mapping[str, Any], models: int) -> str | None:
    return None if any(one_a_model(parameters["weight"], models)) else "every model has the weight 0"


def _averaged(parameters: Mapping[str, Any]) -> bool:
    return not parameters["solve"]


def _stream(jobs):  # type: ignore[no-untyped-def]
    return statistics_streams.Mean(jobs)


regmean.stream(_stream, when=_averaged)
