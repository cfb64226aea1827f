"""Δ -> sparser Δ: exactly the k largest magnitudes of each model stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from eutectic.kernels.sums import one_a_model
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


def kept_count(density: float, numel: int) -> int:
    """How many of `numel` entries a density keeps: ⌊density · numel⌋, at least one, computed without rounding error.

    The density is taken as the decimal that was written, so 0.29 of 100 is 29 (in binary floating point it is 28).
    """
    return min(numel, max(1, math.floor(Fraction(repr(float(density))) * numel)))


def keep_largest(deltas: Tensor, density: float | Sequence[float]) -> Tensor:
    """Zeroes all but the `kept_count` largest magnitudes of each model, `(K, *shape)` → `(K, *shape)`.

    Of entries equal to the smallest kept magnitude, the first by flat (row-major) index stay: a fine-tune stored in
    bfloat16 has huge groups of equal deltas, and a rule such as "≥ the k-th" would keep far more than asked.
    """
    kept = [
        _keep(delta, kept_count(share, delta.numel()))
        for delta, share in zip(deltas, one_a_model(density, len(deltas)), strict=True)
    ]
    return torch.stack(kept) if kept else deltas


def _keep(delta: Tensor, count: int) -> Tensor:
    flat = delta.reshape(-1)
    if count >= flat.numel():
        return delta
    magnitude = flat.abs()
    threshold = torch.topk(magnitude, count, sorted=True).values[-1]
    above = magnitude > threshold
    level = magnitude == threshold
    first = level.cumsum(0) <= count - above.sum()
    return torch.where(above | (level & first), flat, torch.zeros_like(flat)).reshape(delta.shape)


def match_l1(sparse: Tensor, dense: Tensor) -> Tensor:
    """Scales each sparse delta so that its L1 norm is the dense one's; one that kept nothing stays zero."""
    scaled = []
    for thin, full in zip(sparse, dense, strict=True):
        kept = float(thin.double().abs().sum())
        scaled.append(thin * torch.tensor(float(full.double().abs().sum()) / kept, dtype=thin.dtype) if kept else thin)
    return torch.stack(scaled) if scaled else sparse
