"""(Wᵢ, Gᵢ) -> the W nearest to every model on its own inputs: Σ tr (W - Wᵢ) Gᵢ (W - Wᵢ)ᵀ is least.

The minimum is W = (Σ WᵢGᵢ)(Σ Gᵢ)⁺. Gᵢ is the Gram matrix of a layer's inputs where it was measured; without data the
rows of a task vector stand for the inputs that made them. Where Σ Gᵢ is nearly singular the exact answer follows noise:
measured Grams get a ridge, and a filter stops the others from going all the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from eutectic.kernels.matrices import RESOLVED, Tasks, principal
from eutectic.kernels.sums import weighted_mean
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


@dataclass(frozen=True, slots=True)
class Equations:
    """`moment` Σ WᵢGᵢ (m, n), and the resolved eigenvalues (r, descending) and eigenvectors (n, r) of Σ Gᵢ."""

    moment: Tensor
    values: Tensor
    vectors: Tensor

    def solution(self, start: Tensor, filtered: Tensor) -> Tensor:
        """`start`, moved along eigenvector j by the share `filtered[j]` of the way to the minimum.

        Ones solve exactly; where there is no eigenvector, nothing is known and `start` stays.
        """
        kept = len(filtered)
        vectors, values = self.vectors[:, :kept], self.values[:kept]
        step = (self.moment @ vectors) * (filtered / values) - (start @ vectors) * filtered
        return start + step @ vectors.T


def own_rows(tasks: Tasks) -> Equations:
    """The equations whose Gᵢ is τᵢᵀτᵢ / ‖τᵢ‖², for Wᵢ = τᵢ: each task vector's own rows as its inputs."""
    rows, columns = next(iter(tasks)).shape
    moment = sum(((_cubed(task) / _square(task)) for task in tasks), start=torch.zeros(()))
    if rows * len(tasks) >= columns:
        gram = sum((task.T @ (task / _square(task)) for task in tasks), start=torch.zeros(()))
        return Equations(moment, *principal(gram))
    # Fewer rows in all than columns: the same eigenvalues from a smaller matrix.
    units = torch.cat([task / math.sqrt(_square(task)) for task in tasks])
    values, left = principal(units @ units.T)
    return Equations(moment, values, (units.T @ left) / values.sqrt())


def _square(task: Tensor) -> float:
    """‖τ‖², or 1 for a zero task vector, which then takes no part."""
    return float(task.square().sum()) or 1.0


def _cubed(task: Tensor) -> Tensor:
    """τ τᵀ τ."""
    return (task @ task.T) @ task if task.shape[0] <= task.shape[1] else task @ (task.T @ task)


def exponential(values: Tensor, time: float) -> Tensor:
    """1 - exp(-λt): how far gradient flow has come at time t."""
    return -torch.expm1(-values * time)


def landweber(values: Tensor, steps: float) -> Tensor:
    """1 - (1 - 0.9 λ/λ₁)ˢ: how far gradient descent has come after s steps of 0.9/λ₁."""
    return -torch.expm1(steps * torch.log1p(-0.9 * values / values[:1]))


def participation(values: Tensor) -> int:
    """How many directions take part: ⌈(Σ√λ)² / Σλ⌉, n where all are equal and 1 where one has everything."""
    share = float(values.sqrt().sum() ** 2 / values.sum())
    # A hair less, as of n equal values the sums may be rounded to more than n. Of none, or of NaN, the share is NaN.
    return min(len(values), math.ceil(share * (1 - 1e-12))) if share > 0 else len(values)


def share_of(count: int, share: float) -> int:
    """⌈share · count⌉, with the share taken as the decimal that was written."""
    return math.ceil(Fraction(repr(float(share))) * count)


def regression_mean(
    weights: Sequence[Tensor] | Tensor,
    grams: Sequence[Tensor],
    shares: Sequence[float],
    *,
    alpha: float = 1.0,
    ridge: float = 0.0,
) -> Tensor:
    """(Σ WᵢG̃ᵢ)(Σ G̃ᵢ)⁻¹ in float64, with G̃ᵢ of `regressors`; as the mean W̄ and what Σ (Wᵢ - W̄)G̃ᵢ adds to it.

    So rounding is of the size of the models' differences, and copies of one model give that model. Columns are scaled
    to a unit diagonal, as a few inputs of an LLM are a thousand times the others. Where even then Σ G̃ᵢ is singular to
    float64, the eigenvectors of what was scaled decide, and what they do not span is the mean.
    """
    start = weighted_mean(weights, shares)
    moment, gram = torch.zeros_like(start), torch.zeros_like(grams[0], dtype=torch.float64)
    for weight, one, share in zip(weights, grams, shares, strict=True):
        if share:
            regressor = regressors(one, share, alpha, ridge)
            moment.addmm_(weight.double() - start, regressor)
            gram.add_(regressor)
    diagonal = gram.diagonal().sqrt()
    scale = torch.where(diagonal > 0, 1 / diagonal, torch.ones_like(diagonal))
    gram.mul_(scale).mul_(scale[:, None])
    moment.mul_(scale)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not failed and bool((factor.diagonal() > RESOLVED).all()):
        return start + torch.cholesky_solve(moment.T, factor).T * scale
    values, vectors = principal(gram)
    step = Equations(moment, values, vectors).solution(torch.zeros_like(start), torch.ones_like(values))
    return start + step * scale


def regressors(gram: Tensor, share: float, alpha: float, ridge: float) -> Tensor:
    """`share` · (αG + (1-α) diag G + `ridge` · tr(G)/n · 1), in float64.

    The ridge is on both sides of the quotient that these go into: where the inputs say nothing, the answer is then an
    average and not zero.
    """
    made = gram.to(torch.float64, copy=True)
    diagonal = made.diagonal().clone()
    made.mul_(share * alpha)
    made.diagonal().copy_(share * (diagonal + ridge * diagonal.mean()))
    return made
