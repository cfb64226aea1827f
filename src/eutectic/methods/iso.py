"""Isotropic merging: make all singular values equal, in the common subspace (`iso_c`) or with task-specific ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from eutectic.kernels.matrices import RESOLVED, Tasks, by_matrix, left_out, nearest_orthonormal, singular
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


@method(paper="arXiv:2502.04959", family="spectral", base="required", scratch=18)
def iso_c(deltas: Tensor, *, weight: PerModel = 1.0, lambda_: float = 1.0, spectral: bool = True) -> Tensor:
    """Adds the task vectors and makes all singular values of the sum equal.

    **What it does.** Marczak et al. 2025 (Iso-C). With Σ wᵢτᵢ = UΣVᵀ a matrix becomes θ₀ + λ σ̄ UVᵀ, where
    σ̄ is the mean singular value. Tensors that are no matrix get λ times the mean.

    **When to use it.** True specialists of one base, of which a plain sum serves only the strongest; good published
    results for LoRA fine-tunes too, whose factors were kept apart. The authors choose λ on held-out data, and
    values around 1.5 did well. On fleets of generic LLM fine-tunes it has done harm where task arithmetic did not;
    compare both.

    **Parameters.** `weight`: scale of a model's task vector; a model of weight 0 is left out and not counted. `lambda`:
    scale of the whole. `spectral`: `false` averages a tensor instead; what a matrix is, and how to leave out embedding
    and head, the page of `tsv_m` says.

    **Differs from the paper.** Weights are an extension. The mean is over the r singular values above 2⁻²² of the
    largest, and only those directions are levelled. The authors' code takes min(m, n) of both: where the sum has a
    lower rank it fills up with arbitrary directions and divides by their number.

    **Differs from mergekit.** mergekit does not have it. FusionBench has the authors' code.

    **Mind what was stored.** A fine-tune in a checkpoint is θ₀ + τ rounded to the grid of θ₀, and the rounding noise
    has full rank: of LoRA fine-tunes merged into a 16-bit base, and of small changes in float32, every direction is
    resolved, and levelling lifts the noise with the rest. λ for such models is not that for exact low-rank changes;
    choose it on held-out data, with `norm_guard` as a cap.

    **Cost.** One eigendecomposition of the smaller side of a matrix, in float64: about 0.2 s for 1024 × 1024 and 2 s
    for 2048 × 8192 on one core. A sweep over `lambda` computes it once.
    """
    return _scale(_common(deltas, weight=weight, spectral=spectral), lambda_=lambda_)


@method(paper="arXiv:2502.04959", family="spectral", base="required", scratch=32)
def iso_cts(
    deltas: Tensor,
    *,
    weight: PerModel = 1.0,
    common_space_fraction: Annotated[float, Range("(0, 1]")] = 0.8,
    lambda_: float = 1.0,
    spectral: bool = True,
) -> Tensor:
    """As `iso_c`, but the weakest directions of the sum make room for the strongest ones of each task.

    **What it does.** Marczak et al. 2025 (Iso-CTS). Of r = min(m, n) directions the first k come from the
    sum Σ wᵢτᵢ; each of K models adds the first (r - k)/K of τᵢ - UₖUₖᵀτᵢ. U and V are made orthonormal, every singular
    value becomes the mean of all that were taken. Tensors that are no matrix get λ times the mean.

    **When to use it.** As `iso_c`, with many models: on eight vision tasks it is the same, on twenty two to three
    points better.

    **Parameters.** `common_space_fraction`: k/r, rounded so that the rest can be divided by K; 0.8 is the authors', and
    0.5 to 0.9 make little difference. `weight`, `lambda`, `spectral` as in `iso_c`.

    **Differs from the paper.** As `iso_c`: directions that are only rounding noise are left out, and so are those of a
    model that the common ones cover.

    **Differs from mergekit.** mergekit does not have it. From FusionBench as `tsv_m`.

    **Cost.** K + 3 eigendecompositions of the smaller side of a matrix, in float64, as in `tsv_m`.
    """
    merged = _specific(deltas, weight=weight, common_space_fraction=common_space_fraction, spectral=spectral)
    return _scale(merged, lambda_=lambda_)


@iso_c.prepare
def _common(deltas: Tensor, *, weight: PerModel, spectral: bool) -> Tensor:
    return by_matrix(deltas, weight, spectral, lambda tasks: _level(*singular(tasks.total())))


@iso_cts.prepare
def _specific(deltas: Tensor, *, weight: PerModel, common_space_fraction: float, spectral: bool) -> Tensor:
    return by_matrix(deltas, weight, spectral, lambda tasks: _merge(tasks, common_space_fraction))


def _scale(merged: Tensor, *, lambda_: float) -> Tensor:
    return merged * lambda_


iso_c.complete(_scale)
iso_cts.complete(_scale)


def _merge(tasks: Tasks, fraction: float) -> Tensor:
    rank = min(tasks.shape)
    own = min(rank // len(tasks), round((rank - kept_count(fraction, rank)) / len(tasks)))
    common = singular(tasks.total(), rank - own * len(tasks))
    found = [common, *(_outside(task, common[0], own) for task in tasks)]
    left, values, right = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
    return _level(nearest_orthonormal(left), values, nearest_orthonormal(right))


def _outside(task: Tensor, basis: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    # What is left of a task that the basis covers is rounding, which must not be levelled up.
    return singular(task - basis @ (basis.T @ task), most, floor=RESOLVED * float(task.norm()))


def _level(left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    return left @ right.T * (float(values.mean()) if len(values) else 0.0)


def _stream(jobs):  # type: ignore[no-untyped-def]
    return mean_streams.TaskMean(jobs)


iso_c.stream(_stream, when=left_out)
iso_cts.stream(_stream, when=left_out)
