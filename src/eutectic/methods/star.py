"""STAR: truncate each task vector's spectrum, restore its nuclear norm, average."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from eutectic.kernels.matrices import Tasks, by_matrix, left_out, low_rank, singular
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, Range, method

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eutectic.kernels import mean_streams
else:
    torch = LazyModule("torch")
    mean_streams = LazyModule("eutectic.kernels.mean_streams")


@method(paper="arXiv:2502.10339", family="spectral", base="required", scratch=28)
def star(
    deltas: Tensor,
    *,
    weight: PerModel = 1.0,
    eta: Annotated[float, Range("(0, 1]")] = 0.4,
    lambda_: float = 1.0,
    spectral: bool = True,
) -> Tensor:
    """Keeps the strongest singular directions of each task vector, rescales them, and averages the models.

    **What it does.** Lee et al. 2025 (STAR). Of each τᵢ = UΣVᵀ the fewest singular values stay whose sum reaches the
    share `eta` of Σσ, and are scaled so that their sum is Σσ again. θ = θ₀ + λ (1/K) Σ wᵢ τ̂ᵢ. Tensors that are no
    matrix get λ times the mean.

    **When to use it.** Many fine-tunes of one language model, full or LoRA, without data to tune with.

    **Parameters.** `eta`: share of the nuclear norm that is kept, 0.4 as the authors have it; 1 keeps everything and
    leaves the plain average. `weight`: scale of a model's task vector; a model of weight 0 is left out and not counted.
    `lambda`: scale of the whole. `spectral`: `false` averages a tensor instead; what a matrix is, and how to leave out
    embedding and head, the page of `tsv_m` says.

    **Differs from the paper.** Weights and `lambda` are an extension. Full spectra, where the authors' code draws a
    randomised SVD of LoRA fine-tunes.

    **Differs from mergekit.** mergekit does not have it.

    **Cost.** K eigendecompositions of the smaller side of a matrix, in float64, as in `tsv_m`. A sweep over `weight`
    and `lambda` computes them once.
    """
    return _average(_denoised(deltas, eta=eta, spectral=spectral), weight=weight, lambda_=lambda_)


@star.prepare
def _denoised(deltas: Tensor, *, eta: float, spectral: bool) -> Tensor:
    denoised = torch.empty_like(deltas, dtype=torch.float64)
    for model in range(len(deltas)):
        denoised[model] = by_matrix(deltas[model : model + 1], 1.0, spectral, lambda tasks: _denoise(tasks, eta))
    return denoised


@star.complete
def _average(denoised: Tensor, *, weight: PerModel, lambda_: float) -> Tensor:
    return by_matrix(denoised, weight, False, Tasks.mean) * lambda_


def _denoise(tasks: Tasks, eta: float) -> Tensor:
    factors = singular(tasks.total())
    reached = factors[1].cumsum(0)
    if not len(reached):
        return tasks.total()
    rank = int((reached < eta * reached[-1]).sum()) + 1
    return low_rank(factors, rank) * float(reached[-1] / reached[rank - 1])


def _stream(jobs):  # type: ignore[no-untyped-def]
    return mean_streams.TaskMean(jobs)


star.stream(_stream, when=left_out)
