"""Correlations of units -> the orders and signs in which those that go together correlate most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eutectic.alignment.assignment import assign
from eutectic.alignment.features import View
from eutectic.checkpoint.symmetry import Symmetries
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# Groups that are seen only as products of each other depend on each other; a few rounds settle them.
_ROUNDS = 20


class Correlated:
    """Groups that are seen together, or move along with each other, and what their units correlate with.

    Attributes:
        orders: group → its order; the identity at first.
        signs: group whose units may change their sign → (n,) float64 of ±1 for B's units in their new places.
    """

    def __init__(self, symmetries: Symmetries, correlations: Mapping[View, Tensor]) -> None:
        """Takes the correlations of A's units with B's, (units, units) float64, of each view."""
        self._groups = symmetries.groups
        self._seen = correlations
        names = dict.fromkeys(name for view in correlations for name in view.groups)
        for name in list(names):
            while (parent := self._groups[name].within) is not None:
                names[parent], name = None, parent
        self.orders = {name: torch.arange(self._groups[name].size) for name in names}
        signed = [name for name in names if self._groups[name].scale in ("sign", "any")]
        self.signs = {name: torch.ones(self._groups[name].size, dtype=torch.float64) for name in signed}

    def solve(self) -> None:
        """Finds the orders and signs that bring the largest correlations together: exactly, one group after another."""
        rounds = _ROUNDS if any(len(view.groups) > 1 for view in self._seen) else 1
        for _ in range(rounds):
            before = self.value()
            for name in self.orders:
                if self._groups[name].within is None:
                    total, inner = self._best(name)
                    self._place(name, assign(total), inner)
            if self.value() <= before:
                break

    def value(self) -> float:
        """Σ of the correlations that are brought together, over units and views."""
        total = 0.0
        for view, correlation in self._seen.items():
            columns, signs = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.float64)
            for name in view.groups:
                order = self.orders[name]
                columns = (columns[:, None] * len(order) + order).reshape(-1)
                sign = self.signs.get(name, torch.ones(len(order), dtype=torch.float64))
                signs = (signs[:, None] * sign).reshape(-1)
            total += float((signs * correlation[torch.arange(len(columns)), columns]).sum())
        return total

    def _similarity(self, name: str) -> Tensor:
        """Σ over views of the correlations of a group's units, other groups in the orders and signs that they have."""
        size = self._groups[name].size
        total = torch.zeros((size, size), dtype=torch.float64)
        for view, correlation in self._seen.items():
            if name not in view.groups:
                continue
            count = len(view.groups)
            apart = correlation.reshape([self._groups[group].size for group in view.groups] * 2)
            for place, other in enumerate(view.groups):
                if other != name:
                    apart = apart.index_select(count + place, self.orders[other])
                    if (signs := self.signs.get(other)) is not None:
                        apart = apart * signs.reshape(-1, *[1] * (count - place - 1))
            right = [count + place if group == name else place for place, group in enumerate(view.groups)]
            own = view.groups.index(name)
            total += torch.einsum(apart, [*range(count), *right], [own, count + own])
        return total

    def _best(self, name: str) -> tuple[Tensor, dict[str, Any]]:
        """What each unit gains in each place, with the best order of those within it; and these orders."""
        total = self._similarity(name)
        total = total.abs() if name in self.signs else total
        inner: dict[str, Any] = {}
        for child in self.orders:
            if self._groups[child].within != name:
                continue
            gains, further = self._best(child)
            count = self._groups[child].size // len(total)
            blocks = gains.reshape(len(total), count, len(total), count).transpose(1, 2)
            orders = torch.stack([torch.stack([assign(block) for block in row]) for row in blocks])
            total = total + blocks.gather(-1, orders[..., None]).sum((-1, -2))
            inner[child] = orders, further
        return total, inner

    def _place(self, name: str, order: Tensor, inner: dict[str, Any]) -> None:
        self.orders[name] = order
        if name in self.signs:
            matched = self._similarity(name).gather(1, order[:, None])[:, 0]
            self.signs[name] = torch.where(matched < 0, -1.0, 1.0).double()
        for child, (orders, further) in inner.items():
            within = orders[torch.arange(len(order)), order]
            self._place(child, (order[:, None] * within.shape[1] + within).reshape(-1), further)
