"""Δ -> one delta by what the task vectors agree on: extremes, entries that serve several, shared and unique ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eutectic.kernels.sums import weighted_sum
from eutectic.kernels.trim import keep_largest
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


def total_of(deltas: Tensor) -> Tensor:
    """Σ δᵢ, `(K, *shape)` → float64 `(*shape)`."""
    return weighted_sum(deltas, [1.0] * len(deltas))


def extreme(deltas: Tensor, vote: Tensor) -> Tensor:
    """The largest delta where the vote is positive, the smallest where it is negative, zero where it is zero.

    `(K, *shape)` and `(*shape)` → float64 `(*shape)`.
    """
    chosen = torch.where(vote > 0, deltas.amax(0), deltas.amin(0)).double()
    return torch.where(vote == 0, torch.zeros_like(chosen), chosen)


def strength_vote(deltas: Tensor) -> Tensor:
    """Max + min of the deltas: its sign is that of the largest magnitude, and zero where opposite ones are equal."""
    return deltas.amax(0).double() + deltas.amin(0).double()


def users(deltas: Tensor, total: Tensor, levels: Sequence[float]) -> Tensor:
    """In how many task vectors an entry matters: |δᵢ| > levelᵢ · |total - δᵢ|. Returns int64 `(*shape)`."""
    count = torch.zeros(deltas.shape[1:], dtype=torch.int64, device=deltas.device)
    for delta, level in zip(deltas, levels, strict=True):
        own = delta.double()
        count += own.abs() > (total - own).abs() * level
    return count


def changed(deltas: Tensor, epsilon: float) -> Tensor:
    """Where |δ| is above `epsilon`, rounded to the deltas' dtype."""
    return deltas.abs() > torch.tensor(epsilon, dtype=deltas.dtype, device=deltas.device)


def position_counts(active: Tensor) -> list[tuple[int, int]]:
    """(shared, unique) a model: entries that it changed with others, and that it alone changed."""
    alone = (active & (active.sum(0) == 1)).reshape(len(active), -1).sum(1).tolist()
    every = active.reshape(len(active), -1).sum(1).tolist()
    return [(both - own, own) for both, own in zip(every, alone, strict=True)]


def uniqueness_factor(shared: int, unique: int, r: float, alpha: float) -> float:
    """1 + r · min(shared / unique, alpha); 1 for a model without unique positions, as nothing is scaled by it."""
    return 1.0 + r * min(shared / unique, alpha) if unique else 1.0


def mean_of_changed(deltas: Tensor, active: Tensor, factors: Sequence[float]) -> Tensor:
    """The mean over the models that changed an entry, times `factors[k]` where only model k did. Returns float64."""
    kept = torch.where(active, deltas, torch.zeros_like(deltas))
    holders = active.sum(0)
    shared = total_of(kept) / holders.clamp(min=1)
    return torch.where(holders == 1, weighted_sum(kept, factors), shared)


def competition(deltas: Tensor, density: float) -> Tensor:
    """Each task vector's share of every entry, `(K, *shape)` → float64 `(K, *shape)`; they sum to one or are all zero.

    Scores are exp(K n²) · tanh(δᵢ Σδ), n being |δᵢ| over its largest; of each model the share `density` of the highest
    stays, divided by the highest. A negative score, of an entry against the sum, counts as zero.
    """
    total = total_of(deltas)
    kept = keep_largest(torch.stack([_scores(delta, total, len(deltas)) for delta in deltas]), density)
    for score in kept:
        if score.any():
            score /= score.amax()
    share = kept.sum(0)
    return kept / torch.where(share == 0, torch.ones_like(share), share)


def _scores(delta: Tensor, total: Tensor, models: int) -> Tensor:
    if not delta.any():
        return torch.zeros_like(total)
    own = delta.double()
    # The constant exp(-K) cancels in the division by the highest score, and keeps exp from overflowing.
    size = own.abs()
    intra = (size / size.amax()).square_().sub_(1.0).mul_(models).exp_()
    return intra.mul_((own * total).tanh_()).clamp_(min=0.0)
