"""Δ -> one delta by sign consensus: elect a sign an entry, then average those who agree with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eutectic.kernels.sums import negligible, weighted_sum
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


def elect_sign(deltas: Tensor, weights: Sequence[float]) -> Tensor:
    """+1 or -1 an entry: the sign of Σ wᵢ δᵢ, an exact zero counting as +1. `(K, *shape)` → float64 `(*shape)`."""
    ones = torch.ones(deltas.shape[1:], dtype=torch.float64, device=deltas.device)
    return torch.where(weighted_sum(deltas, weights) >= 0, ones, -ones)


def disjoint_sum(deltas: Tensor, sign: Tensor, weights: Sequence[float], normalize: bool = True) -> Tensor:
    """Σ wᵢ δᵢ over the models whose weighted delta has the elected sign; divided by the sum of their weights.

    An entry with no agreeing model is zero. Zero deltas never take part. Returns float64 `(*shape)`.
    """
    total = torch.zeros_like(sign)
    share = torch.zeros_like(sign)
    for delta, weight in zip(deltas, weights, strict=True):
        part = delta.double() * weight
        agrees = part * sign > 0
        total += torch.where(agrees, part, torch.zeros_like(part))
        share += agrees.double() * weight
    if not normalize:
        return total
    # Weights of both signs can cancel; the sum then stands undivided, as in mergekit.
    return total / torch.where(share.abs() <= negligible(weights), torch.ones_like(share), share)
