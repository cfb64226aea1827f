"""Which units of several models become one: merge and unmerge matrices (ZipIt!, §4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


@dataclass(frozen=True, eq=False)
class Partition:
    """The units of a group, of K models with n units each, in n sets: each set is one unit of the merged model.

    Attributes:
        into: (K, n) int64; unit u of model k goes into merged unit `into[k, u]`. No merged unit is without one.
    """

    into: Tensor

    @classmethod
    def standing(cls, models: int, units: int) -> Self:
        """Unit u of every model becomes unit u: an average of models as they stand."""
        return cls(torch.arange(units).repeat(models, 1))

    @cached_property
    def counts(self) -> Tensor:
        """(K, n) int64: how many units of model k are in each merged unit."""
        found = torch.zeros_like(self.into)
        return found.scatter_add_(1, self.into, torch.ones_like(self.into))

    @property
    def folded(self) -> tuple[int, ...]:
        """How many dimensions each model loses: units that share a merged unit with another one of their own model."""
        return tuple((self.counts - 1).clamp(min=0).sum(1).tolist())

    @property
    def merge(self) -> Tensor:
        """M, (n, K·n) float64: a merged unit is the mean of those that go into it."""
        return self.unmerge.T / self.counts.sum(0)[:, None]

    @property
    def unmerge(self) -> Tensor:
        """U, (K·n, n) float64: a unit of a model is a copy of the one it went into. M U = I."""
        return torch.nn.functional.one_hot(self.into.reshape(-1), self.into.shape[1]).double()

    def closeness(self, similarity: Tensor) -> float:
        """Mean similarity, of a (K·n, K·n) matrix, of the pairs of units that went into the same one."""
        joint = self.into.reshape(-1)
        together = (joint[:, None] == joint).fill_diagonal_(False)
        return float(similarity.cpu()[together].mean())
