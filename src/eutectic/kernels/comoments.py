"""Rows, as they come, of one or two samples -> means, variances, covariances and correlations in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# A variance that is less than this part of the mean square is the rounding of a constant in float32.
CONSTANT = 1e-12


class Moments:
    """Mean and variance of each column of rows that come in pieces.

    Sums are of deviations from the mean of the first piece, so that a mean far from zero costs no digits; products are
    of the rows' own precision (float32 at least), sums over pieces float64.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        """Nothing yet, of `size` columns; sums are on the device."""
        self.count = 0
        self._origin: Tensor = torch.zeros(size, device=device)
        self._first = torch.zeros(size, dtype=torch.float64, device=device)
        self._second = torch.zeros_like(self._first)

    def add(self, rows: Tensor) -> Tensor:
        """Adds (r, n) rows; returns them as deviations from the point about which sums are taken."""
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if not self.count and len(rows):
            self._origin = rows.mean(0)
        rows = rows - self._origin
        self._first += rows.sum(0, dtype=torch.float64)
        self._second += (rows * rows).sum(0, dtype=torch.float64)
        self.count += len(rows)
        return rows

    @property
    def offset(self) -> Tensor:
        """(n,) float64: the mean less the point about which sums are taken."""
        return self._first / max(1, self.count)

    @property
    def mean(self) -> Tensor:
        """(n,) float64."""
        return self._origin.double() + self.offset

    @property
    def variance(self) -> Tensor:
        """(n,) float64, of the population; 0 for a constant but for its rounding, infinite where squares overflow."""
        found = (self._second / max(1, self.count) - self.offset**2).clamp(min=0)
        constant = found.isfinite() & (found <= CONSTANT * (found + self.mean**2))
        return found.masked_fill(constant, 0.0)


class Comoments:
    """Moments of two samples whose rows belong together, and the covariance of each column with each.

    Attributes:
        left: of the first sample, of n columns.
        right: of the second, of m columns.
    """

    def __init__(self, left: int, right: int, device: torch.device | str = "cpu") -> None:
        """Nothing yet, of so many columns; sums are on the device."""
        self.left, self.right = Moments(left, device), Moments(right, device)
        self._products = torch.zeros((left, right), dtype=torch.float64, device=device)

    def add(self, left: Tensor, right: Tensor) -> None:
        """Adds (r, n) and (r, m) rows."""
        x, y = self.left.add(left), self.right.add(right)
        kind = torch.promote_types(x.dtype, y.dtype)
        self._products += x.to(kind).mT @ y.to(kind)

    @property
    def covariance(self) -> Tensor:
        """(n, m) float64, of the population."""
        return self._products / max(1, self.left.count) - torch.outer(self.left.offset, self.right.offset)

    @property
    def correlation(self) -> Tensor:
        """(n, m) float64, Pearson's, between −1 and 1; 0 for a column that is constant."""
        x, y = self.left.variance.sqrt(), self.right.variance.sqrt()
        scale = torch.outer(x, y)
        return torch.where(scale > 0, self.covariance / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0).clamp(
            -1, 1
        )
