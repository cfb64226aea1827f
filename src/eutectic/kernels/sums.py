"""stacked tensors -> weighted sums, accumulated in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from eutectic.errors import Problem, RecipeError
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


def one_a_model(value: float | Sequence[float], count: int) -> list[float]:
    """`value` as a list of `count` floats: a scalar is everybody's. Raises `ValueError` for another length.

    A value that is being learned (a tensor with a gradient) stays what it is, and the gradient flows.
    """
    if isinstance(value, int | float):
        return [float(value)] * count
    values = [v if getattr(v, "requires_grad", False) else float(v) for v in value]
    if len(values) != count:
        raise ValueError(f"{len(values)} values for {count} models")
    return values


def weighted_sum(tensors: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wᵢ xᵢ over the first axis, `(K, *shape)` → float64 `(*shape)`, added in the order of the models."""
    parts = (tensor.double() * weight for tensor, weight in zip(tensors, weights, strict=True))
    # From the first part on: 0.0 + -0.0 is 0.0, and copies of one model must give that model bit for bit.
    total: Tensor = next(parts)
    for part in parts:
        total = total + part
    return total


def weighted_mean(tensors: Iterable[Tensor], weights: Sequence[float], normalize: bool = True) -> Tensor:
    """Σ wᵢ xᵢ / Σ wᵢ as float64 `(*shape)`; the sum alone without `normalize`. Raises as `divisor` does."""
    total = weighted_sum(tensors, weights)
    # By a number, a GPU multiplies by the inverse; by a tensor it divides, as a CPU does.
    return total / torch.as_tensor(divisor(weights, normalize), dtype=total.dtype, device=total.device)


# Weights that cancel up to rounding sum to zero: dividing by what is left would blow the result up.
CANCELLED = 1e-12


def negligible(weights: Sequence[float]) -> float:
    """What a sum of some of these weights may be and still count as zero: none but zero where all have one sign."""
    if all(weight >= 0 for weight in weights) or all(weight <= 0 for weight in weights):
        return 0.0
    return CANCELLED * sum(abs(weight) for weight in weights)


def cancelled(weights: Sequence[float]) -> bool:
    """True if the weights sum to zero, up to rounding."""
    return abs(sum(weights)) <= negligible(weights)


def divisor(weights: Sequence[float], normalize: bool) -> float:
    """Σ wᵢ, or 1 without normalisation. Raises `RecipeError` for a sum of zero (up to rounding) or infinity."""
    if not normalize:
        return 1.0
    total = 0.0
    for weight in weights:
        total += weight
    if abs(total) <= negligible(weights):
        raise RecipeError(Problem("R142", "the weights sum to zero, so they cannot be normalised", "weight"))
    if abs(total) == math.inf:
        raise RecipeError(Problem("R142", "the weights sum to infinity, so they cannot be normalised", "weight"))
    return total


def for_kernels(by: float) -> float | tuple[()]:
    """A divisor as compiled kernels take it: `()` for one, as dividing costs them as much as the sum."""
    return () if by == 1.0 else by


def factors_for_kernels(by: Iterable[Any]) -> tuple[Any, ...]:
    """Factors, one a model, as compiled kernels take them: `()` for ones, which they need not multiply by."""
    factors = tuple(by)
    return () if all(factor == 1.0 for factor in factors) else factors
