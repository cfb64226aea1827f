"""KnOTS: express all task vectors in one basis, merge their coordinates, go back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from eutectic.kernels.matrices import join, left_out, range_of, split
from eutectic.kernels.signs import disjoint_sum, elect_sign
from eutectic.kernels.sums import one_a_model, weighted_mean
from eutectic.kernels.trim import keep_largest
from eutectic.lazy import LazyModule
from eutectic.methods.registry import PerModel, Range, method

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from eutectic.kernels import task_vectors
else:
    torch = LazyModule("torch")
    task_vectors = LazyModule("eutectic.kernels.task_vectors")


@method(paper="arXiv:2410.19735", also=("arXiv:2306.01708",), family="spectral", base="required", scratch=60)
def knots(
    deltas: Tensor,
    *,
    weight: PerModel = 1.0,
    density: Annotated[PerModel, Range("(0, 1]")] = 0.2,
    consensus: Literal["ties", "linear"] = "ties",
    normalize: bool = True,
    lambda_: float = 1.0,
    spectral: bool = True,
) -> Tensor:
    """Rotates all task vectors into the singular basis they share and merges them there by TIES.

    **What it does.** Stoica et al. 2024 (KnOTS). [τ₁ … τ_K] = UΣ[V₁ … V_K]ᵀ; the coordinates ΣVᵢᵀ = Uᵀτᵢ are trimmed to
    the share `density`, a sign is elected for each, and those who agree are averaged (TIES). θ = θ₀ + λ U(merged).
    Tensors that are no matrix are merged by TIES as they are.

    **When to use it.** LoRA fine-tunes, whose task vectors agree far less entry by entry than in the basis they share.

    **Parameters.** `consensus`: `ties`, or `linear` for the weighted mean of the coordinates; since U is a rotation
    that is the weighted mean of the task vectors, and serves as the baseline. `density`: share of a model's coordinates
    kept by `ties`. `weight`: share of a model in vote and mean; a model of weight 0 is left out of the basis too.
    `normalize`, `lambda` as in `ties`. `spectral`: `false` merges a tensor entry by entry; what a matrix is, and how to
    leave out embedding and head, the page of `tsv_m` says.

    **Differs from the paper.** The paper tunes `density` and λ (0.2 and 0.6 for ViT, 1 and 0.5 for Llama-3-8B); the
    defaults are those of `ties`. Weights are an extension. Singular values below 2⁻²² of the largest are dropped, where
    the authors' code drops those below 1e-5 whatever the size of the deltas. Of each singular vector the largest entry
    is positive, so that the election of exact ties does not depend on a library's choice of sign.

    **Differs from mergekit.** mergekit does not have it. FusionBench has the authors' code, with its bound of 1e-5.

    **Mind what was stored.** The basis has every direction that rounding θ₀ + τ to the checkpoint's dtype left in τ,
    and `density` counts those coordinates too: for LoRA fine-tunes that were merged into a 16-bit base take a smaller
    one.

    **Cost.** One eigendecomposition of side min(m, K n), in float64: about 0.2 s for 1024 and 1.2 s for 2048 on one
    core, and two products with it. Deltas come as full matrices, so there is no shortcut for LoRA factors. A sweep over
    `density`, `consensus` and `lambda` computes it once.
    """
    return _merged(
        _bases(deltas, weight=weight, spectral=spectral),
        weight=weight,
        density=density,
        consensus=consensus,
        normalize=normalize,
        lambda_=lambda_,
    )


# The task vectors, and the basis of each of their matrices (None where there is none).
Factors = tuple["Tensor", "list[Tensor] | None"]


@knots.prepare
def _bases(deltas: Tensor, *, weight: PerModel, spectral: bool) -> Factors:
    shares = one_a_model(weight, len(deltas))
    matrices = split(deltas, _present(shares)) if spectral and any(shares) else None
    return deltas, None if matrices is None else [range_of(tasks) for tasks in matrices]


@knots.complete
def _merged(
    factors: Factors, *, weight: PerModel, density: PerModel, consensus: str, normalize: bool, lambda_: float
) -> Tensor:
    deltas, bases = factors
    shares, densities = one_a_model(weight, len(deltas)), one_a_model(density, len(deltas))
    if bases is None:
        return _agree(deltas, shares, densities, consensus, normalize) * lambda_
    densities = [one for one, share in zip(densities, shares, strict=True) if share]
    merged = []
    for basis, tasks in zip(bases, split(deltas, _present(shares)) or [], strict=True):
        coordinates = torch.stack([basis.T @ task for task in tasks])
        merged.append(basis @ _agree(coordinates, [s for s in shares if s], densities, consensus, normalize))
    return join(merged, deltas.shape[1:]) * lambda_


def _present(shares: list[float]) -> list[float]:
    """Weights that leave out whom the shares leave out, and scale nobody."""
    return [1.0 if share else 0.0 for share in shares]


def _agree(deltas: Tensor, shares: list[float], densities: list[float], consensus: str, normalize: bool) -> Tensor:
    if consensus == "linear":
        return weighted_mean(deltas, shares, normalize)
    trimmed = keep_largest(deltas, densities)
    return disjoint_sum(trimmed, elect_sign(trimmed, shares), shares, normalize)


def _stream(jobs):  # type: ignore[no-untyped-def]
    ties = jobs[0].parameters["consensus"] == "ties"
    return task_vectors.TaskVectors(jobs, sparsifier="trim" if ties else "none", elect=ties)


knots.stream(_stream, when=left_out)
