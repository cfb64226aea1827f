"""Δ -> one delta by what the task vectors agree on: extremes, entries that serve several, shared and unique ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eutectic.kernels.exponential import LEAST, exp, tanh
from eutectic.kernels.sums import weighted_sum
from eutectic.kernels.trim import are_largest, kept_count
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# Scores are ranked in working floats, times this: at most 1, they fill the range of float32.
RANKED = 2.0**127
# Entries whose scores are computed at a time: the dozens of temporaries stay in a cache.
_AT_A_TIME = 1 << 16


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


def shares_of_best(deltas: Tensor, density: float) -> Tensor:
    """Each task vector's share of every entry, `(K, *shape)` → float64 `(K, *shape)`; they sum to one or are all zero.

    Scores are `scores_of`; of each model the share `density` of the highest stays, divided by the highest.
    """
    total, count = total_of(deltas), kept_count(density, deltas[0].numel())
    kept = torch.stack([_kept_scores(delta, total, len(deltas), count) for delta in deltas])
    share = total_of(kept)
    return kept / torch.where(share == 0, torch.ones_like(share), share)


def _kept_scores(delta: Tensor, total: Tensor, models: int, count: int) -> Tensor:
    if not delta.numel():
        return torch.zeros_like(total)
    scores = scores_of(delta, total, models)
    highest = scores.amax()
    kept = are_largest((scores * RANKED).to(delta.dtype), count)
    return torch.where(kept, scores / torch.where(highest == 0, torch.ones_like(highest), highest), 0.0)


def scores_of(delta: Tensor, total: Tensor, models: int) -> Tensor:
    """exp(K (n² - 1)) · tanh(δ Σδ) of one model, float64, n being |δ| over its largest; zero if δ Σδ is not positive.

    The constant exp(-K) cancels in the division by the highest score, and keeps exp from overflowing. What is infinite
    or NaN scores zero.
    """
    top = torch.where(delta.isfinite(), delta.abs(), 0.0).amax().double()
    top = torch.where(top == 0, torch.ones_like(top), top)
    own, sums = delta.reshape(-1), total.reshape(-1)
    step = _AT_A_TIME if delta.device.type == "cpu" else delta.numel()
    parts = [slice(first, first + step) for first in range(0, delta.numel(), step)]
    return torch.cat([_scores(own[part], sums[part], top, models) for part in parts]).reshape(delta.shape)


def _scores(delta: Tensor, total: Tensor, top: Tensor, models: int) -> Tensor:
    own = delta.double()
    size, product = own.abs(), own * total
    counts = (size <= top) & (product > 0)
    part = torch.where(counts, size, 0.0) * (1.0 / top)
    grown = exp(((part * part - 1.0) * models).clamp(min=LEAST))
    return torch.where(counts, grown * tanh(torch.where(counts, product, 0.0)), 0.0)
