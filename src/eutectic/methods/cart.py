"""CART: low-rank task vectors, taken from the average of the models instead of from the base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from eutectic.kernels.matrices import Tasks, by_matrix, left_out, low_rank, singular
from eutectic.kernels.trim import kept_count
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, Range, method

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eutectic.kernels import mean_streams
else:
    torch = LazyModule("torch")
    mean_streams = LazyModule("eutectic.kernels.mean_streams")


@method(paper="arXiv:2412.12153", family="spectral", base="required", scratch=30)
def cart(
    deltas: Tensor,
    *,
    weight: PerModel = 1.0,
    rank: Annotated[float, Range("(0, 1]")] = 0.08,
    lambda_: float = 1.0,
    spectral: bool = True,
) -> Tensor:
    """Adds to the average of the models what is strongest in each one's difference from it.

    **What it does.** Choi et al. 2024 (CART). With μ the mean of the task vectors, θ = θ₀ + μ + λ Σ SVDₖ(τᵢ - μ), where
    SVDₖ keeps the first k singular directions. The centred task vectors add up to zero, so all of the second term is
    in the truncation: at full rank it vanishes. Tensors that are no matrix get the mean.

    **When to use it.** Several specialists of one base, where the plain average is already decent.

    **Parameters.** `rank`: k as a share of min(m, n), at least one direction. `lambda`: scale of what is added to the
    average; 0 leaves the average. `weight`: scale of a model's task vector; a model of weight 0 is left out and not
    counted. `spectral`: `false` averages a tensor instead; what a matrix is, and how to leave out embedding and head,
    the page of `tsv_m` says.

    **Differs from the paper.** Weights are an extension. `rank` 0.08 and `lambda` 1 are starting points; tune both on
    held-out data.

    **Differs from mergekit.** mergekit does not have it.

    **Cost.** K eigendecompositions of the smaller side of a matrix, in float64, as in `tsv_m`. A sweep over `lambda`
    computes them once.
    """
    return _add(_centred(deltas, weight=weight, rank=rank, spectral=spectral), lambda_=lambda_)


@cart.prepare
def _centred(deltas: Tensor, *, weight: PerModel, rank: float, spectral: bool) -> Tensor:
    return by_matrix(deltas, weight, spectral, lambda tasks: _split(tasks, rank), _unsplit)


@cart.complete
def _add(parts: Tensor, *, lambda_: float) -> Tensor:
    return parts[0] + parts[1] * lambda_


def _split(tasks: Tasks, rank: float) -> Tensor:
    mean = tasks.mean()
    added = torch.zeros_like(mean)
    for task in tasks:
        added += low_rank(singular(task - mean, kept_count(rank, min(tasks.shape))))
    return torch.stack([mean, added])


def _unsplit(tasks: Tasks) -> Tensor:
    mean = tasks.mean()
    return torch.stack([mean, torch.zeros_like(mean)])


def _stream(jobs):  # type: ignore[no-untyped-def]
    return mean_streams.TaskMean(jobs, scaled=False)


cart.stream(_stream, when=left_out)
