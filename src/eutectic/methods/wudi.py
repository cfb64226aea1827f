"""WUDI: the delta nearest to every task vector on that task's own rows, exactly (`wudi`) or filtered (the others)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from eutectic.kernels.least_squares import exponential, landweber, own_rows, participation, share_of
from eutectic.kernels.matrices import Tasks, by_matrix, left_out
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, Range, method

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eutectic.kernels import mean_streams
else:
    torch = LazyModule("torch")
    mean_streams = LazyModule("eutectic.kernels.mean_streams")

FILTERS = {"exponential": exponential, "landweber": landweber}


@method(paper="arXiv:2503.08099", family="spectral", base="required", scratch=48)
def wudi(deltas: Tensor, *, weight: PerModel = 1.0, lambda_: float = 1.0, spectral: bool = True) -> Tensor:
    """Finds the delta that interferes least with every task, by one linear solve.

    **What it does.** Cheng et al. 2025 minimise Σ ‖(τ - τᵢ)τᵢᵀ‖²/‖τᵢ‖² over τ: the rows of a task vector lie in the
    span of the inputs it was trained on and stand for them. Its minimum is τ = D C⁺ with C = Σ τᵢᵀτᵢ/‖τᵢ‖² and
    D = Σ τᵢτᵢᵀτᵢ/‖τᵢ‖², and θ = θ₀ + λ τ. Tensors that are no matrix get λ times the mean.

    **When to use it.** As the exact answer to compare with. It follows the weakest directions all the way and overfits:
    on eight vision tasks `swudi` and `aswudi`, which do not, are three points better.

    **Parameters.** `weight`: scale of a model's task vector (not of its share in C); a model of weight 0 is left out.
    `lambda`: scale of the whole. `spectral`: `false` averages a tensor instead; what a matrix is, and how to leave out
    embedding and head, the page of `tsv_m` says.

    **Differs from the paper.** The paper takes 300 steps of Adam from the sum of the task vectors and stops short of
    the minimum, which is what keeps it from overfitting; here the minimum itself is taken. Weights are an extension.
    Directions whose eigenvalue in C is below 2⁻⁴⁴ of the largest are noise: there the sum of the task vectors stays.

    **Differs from mergekit.** mergekit does not have it. FusionBench takes the paper's steps, and is 0/0 for a model
    without a change, which takes no part here.

    **Cost.** One eigendecomposition of C in float64, of side n, the inputs of the layer (K m if that is less): about
    1.2 s for 2048, ten for 4096, minutes from 11,000 on, on one core. A sweep over `lambda` computes it once.
    """
    return _scale(_exact(deltas, weight=weight, spectral=spectral), lambda_=lambda_)


@method(paper="arXiv:2503.08099", family="spectral", base="required", scratch=48)
def swudi(
    deltas: Tensor,
    *,
    weight: PerModel = 1.0,
    filter: Literal["exponential", "landweber"] = "exponential",
    time: Annotated[float, Range("(0, 1e9]")] = 1300.0,
    rank: Annotated[float, Range("(0, 1]")] = 0.65,
    lambda_: float = 1.0,
    spectral: bool = True,
) -> Tensor:
    """As `wudi`, but starts from the sum of the task vectors and stops early: strong directions first, weak ones never.

    **What it does.** Gradient flow on WUDI's objective from Σ wᵢτᵢ has, at time t, covered the share 1 - exp(-λⱼt) of
    the way along eigenvector j of C. Of n directions the first ⌈`rank` · n⌉ move at all. Published as SWUDI, in code.

    **When to use it.** The best published results without data on eight vision tasks, if `time` and `rank` may be
    tuned; otherwise `aswudi`.

    **Parameters.** `time`: t, whose scale does not depend on the size of the deltas (the eigenvalues of C add up to K).
    `rank`: share of the directions that move. `filter`: `landweber` takes `time` steps of gradient descent, each
    0.9/λ₁ long, instead of the flow. The defaults are those for ViT-B/32; the authors use 300 and 0.85 for Llama,
    without embedding and head. The others as in `wudi`.

    **Differs from the paper.** There is none; the formula is that of the authors' code. Weights are an extension.

    **Differs from mergekit.** mergekit does not have it.

    **Cost.** As `wudi`.
    """
    merged = _stopped(deltas, weight=weight, filter=filter, time=time, rank=rank, spectral=spectral)
    return _scale(merged, lambda_=lambda_)


@method(paper="arXiv:2503.08099", family="spectral", base="required", scratch=48)
def aswudi(deltas: Tensor, *, weight: PerModel = 1.0, lambda_: float = 1.0, spectral: bool = True) -> Tensor:
    """As `wudi`, but solves only along the directions that take part, which are counted and need no tuning.

    **What it does.** Along the first k = ⌈(Σ√λⱼ)² / Σλⱼ⌉ eigenvectors of C the minimum of WUDI's objective is taken
    exactly; elsewhere the sum Σ wᵢτᵢ stays. Published as ASWUDI, in code.

    **When to use it.** Several specialists of one base and no data: within a tenth of a point of the best published
    result on eight vision tasks, without a parameter. For large language models start with a small `lambda`: outside
    those directions the deltas are added, not averaged.

    **Parameters.** As in `wudi`.

    **Differs from the paper.** There is none; the formula is that of the authors' code. Weights are an extension.

    **Differs from mergekit.** mergekit does not have it.

    **Cost.** As `wudi`.
    """
    return _scale(_adaptive(deltas, weight=weight, spectral=spectral), lambda_=lambda_)


@wudi.prepare
def _exact(deltas: Tensor, *, weight: PerModel, spectral: bool) -> Tensor:
    return _solve(deltas, weight, spectral, lambda values, columns: torch.ones_like(values))


@swudi.prepare
def _stopped(deltas: Tensor, *, weight: PerModel, filter: str, time: float, rank: float, spectral: bool) -> Tensor:
    covered = FILTERS[filter]
    return _solve(deltas, weight, spectral, lambda values, columns: covered(values, time)[: share_of(columns, rank)])


@aswudi.prepare
def _adaptive(deltas: Tensor, *, weight: PerModel, spectral: bool) -> Tensor:
    return _solve(deltas, weight, spectral, lambda values, columns: torch.ones_like(values[: participation(values)]))


def _scale(merged: Tensor, *, lambda_: float) -> Tensor:
    return merged * lambda_


wudi.complete(_scale)
swudi.complete(_scale)
aswudi.complete(_scale)


def _solve(
    deltas: Tensor, weight: float | Sequence[float], spectral: bool, shares: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """From the sum of the task vectors towards the minimum, by `shares` of the eigenvalues and the columns."""

    def solution(tasks: Tasks) -> Tensor:
        equations = own_rows(tasks)
        return equations.solution(tasks.total(), shares(equations.values, tasks.shape[1]))

    return by_matrix(deltas, weight, spectral, solution)


def _stream(jobs):  # type: ignore[no-untyped-def]
    return mean_streams.TaskMean(jobs)


wudi.stream(_stream, when=left_out)
swudi.stream(_stream, when=left_out)
aswudi.stream(_stream, when=left_out)
