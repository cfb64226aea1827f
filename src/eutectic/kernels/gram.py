"""stacked tensors -> inner products in float64, and the weighted sums that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from eutectic.kernels.sphere import Gram
from eutectic.kernels.sums import weighted_sum
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# Entries combined at a time: their float64 copies stay in a cache.
_CHUNK = 1 << 16

# From inner products to one coefficient a model.
Rule = Callable[[Gram], Sequence[float]]


def _inner_products(tensors: Tensor) -> Tensor:
    """⟨xⱼ, xₖ⟩ over the last axis, `(K, …, n)` → float64 `(…, K, K)`."""
    count = len(tensors)
    # A pair at a time, so that a product does not depend on which other models there are.
    pairs = {}
    for j in range(count):
        left = tensors[j].double()
        for k in range(j, count):
            pairs[j, k] = (left * tensors[k].double()).sum(-1)
    rows = [torch.stack([pairs[min(j, k), max(j, k)] for k in range(count)], -1) for j in range(count)]
    return torch.stack(rows, -2)


def combined(tensors: Tensor, rule: Rule) -> Tensor:
    """Σ cₖ xₖ, each tensor one vector; `(K, *shape)` → float64 `(*shape)`."""
    gram = _inner_products(tensors.reshape(len(tensors), -1))
    return weighted_sum(tensors, rule(gram.tolist()))


def combined_along(tensors: Tensor, rule: Rule, dim: int = -1) -> Tensor:
    """As `combined`, for each vector along an axis by itself; a tensor of less than two axes is one vector."""
    if tensors.dim() < 3:
        return combined(tensors, rule)
    aligned = tensors.movedim(dim, -1)
    vectors = aligned.flatten(1, -2)
    total = torch.empty(vectors.shape[1:], dtype=torch.float64, device=tensors.device)
    step = max(1, _CHUNK // max(1, vectors.shape[-1]))
    for first in range(0, len(total), step):
        part = vectors[:, first : first + step].double()
        rows = [rule(gram) for gram in _inner_products(part).tolist()]
        coefficients = torch.tensor(rows, dtype=torch.float64, device=tensors.device).T.unsqueeze(-1)
        summed = part[0] * coefficients[0]
        for vector, coefficient in zip(part[1:], coefficients[1:], strict=True):
            summed += vector * coefficient
        total[first : first + step] = summed
    return total.reshape(aligned.shape[1:]).movedim(-1, dim)
