"""Δ -> sparser Δ: exactly the k largest magnitudes of each model stay, or those that follow the largest outliers."""

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
    return torch.where(are_largest(delta.abs(), count), delta, torch.zeros_like(delta))


def are_largest(magnitude: Tensor, count: int) -> Tensor:
    """Which entries are the `count` largest of `(*shape)`, of equals the first by flat index; booleans."""
    flat = magnitude.reshape(-1)
    if count >= flat.numel():
        return torch.ones_like(magnitude, dtype=torch.bool)
    threshold = torch.topk(flat, count, sorted=True).values[-1]
    above = flat > threshold
    level = flat == threshold
    first = level.cumsum(0) <= count - above.sum()
    return (above | (level & first)).reshape(magnitude.shape)


def outlier_count(gamma: float, numel: int, kept: int) -> int:
    """How many outliers a share `gamma` removes: ⌊gamma · numel⌋, computed like `kept_count`, at most the rest."""
    return min(numel - kept, math.floor(Fraction(repr(float(gamma))) * numel))


def keep_band_of_rows(deltas: Tensor, density: float | Sequence[float], gamma: float | Sequence[float]) -> Tensor:
    """As `keep_band`, each row (along the last axis) by itself; what has no rows is one."""
    kept = []
    width = deltas.shape[-1] if deltas.dim() > 1 else 1
    shares = zip(deltas, one_a_model(density, len(deltas)), one_a_model(gamma, len(deltas)), strict=True)
    for delta, share, outliers in shares if width else ():
        count = kept_count(share, width)
        removed = outlier_count(outliers, width, count)
        order = delta.reshape(-1, width).abs().argsort(dim=1, descending=True, stable=True)
        chosen = torch.zeros_like(order, dtype=torch.bool)
        chosen.scatter_(1, order[:, removed : removed + count], True)
        kept.append(torch.where(chosen.reshape(delta.shape), delta, torch.zeros_like(delta)))
    return torch.stack(kept) if kept else deltas


def keep_band(deltas: Tensor, density: float | Sequence[float], gamma: float | Sequence[float]) -> Tensor:
    """Zeroes the `outlier_count` largest magnitudes of each model, and all but the `kept_count` next ones.

    Ties are broken as in `keep_largest`: of equals, the first by flat index count as the larger.
    """
    shares = zip(deltas, one_a_model(density, len(deltas)), one_a_model(gamma, len(deltas)), strict=True)
    banded = []
    for delta, share, outliers in shares:
        kept = kept_count(share, delta.numel())
        removed = outlier_count(outliers, delta.numel(), kept)
        band = _keep(delta, kept + removed)
        banded.append(torch.where(_keep(delta, removed) == 0, band, torch.zeros_like(band)) if removed else band)
    return torch.stack(banded) if banded else deltas


def match_l1(sparse: Tensor, dense: Tensor) -> Tensor:
    """Scales each sparse delta so that its L1 norm is the dense one's; one that kept nothing stays zero."""
    scaled = []
    for thin, full in zip(sparse, dense, strict=True):
        kept = float(thin.double().abs().sum())
        scaled.append(thin * torch.tensor(float(full.double().abs().sum()) / kept, dtype=thin.dtype) if kept else thin)
    return torch.stack(scaled) if scaled else sparse
