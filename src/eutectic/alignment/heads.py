"""Similarities -> where the units of a family go: assignments, smaller ones inside, and rotations in closed form.

Each head of A with each of B is worth what the two have in common in the best basis, with the best order of the
queries in it. The outer assignment then maximises the objective over order, queries and bases together, where the
usual inner product of whole circuits (OV and QK) maximises something near it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eutectic.alignment import gauges
from eutectic.alignment.assignment import assign
from eutectic.alignment.evidence import Evidence
from eutectic.alignment.gauges import Kind
from eutectic.alignment.places import Family
from eutectic.checkpoint.symmetry import Moves, Symmetries
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# The queries' order and the rotation of their bases are found in turns; the best of these is kept.
_TURNS = 3


def best_step(evidence: Evidence, family: Family, symmetries: Symmetries, *, ordered: bool = True) -> Moves:
    """The best step of a family's groups and gauges together, from where B is.

    Args:
        evidence: of their places.
        family: which.
        symmetries: the table.
        ordered: whether units may change places and signs; if not, only bases are turned.
    """
    names = [name for name in (family.root, *family.inner) if name is not None]
    orders = {name: torch.arange(symmetries.groups[name].size) for name in names}
    scales: dict[str, Tensor] = {}
    if ordered and family.root is not None:
        pairs = _paired(evidence, family, symmetries)
        worth, inner = pairs.best()
        order = _assigned(worth, 1 if family.within is None else symmetries.groups[family.within].size)
        orders[family.root] = order
        for name, within in inner.items():
            orders[name] = _expanded(order, within[torch.arange(len(order)), order])
        scales = {name: _signs(signed, orders[name]) for name, signed in evidence.signed.items()}
    matrices = {name: _turned(of, orders, symmetries, name) for name, of in evidence.crosses.items()}
    return Moves(_followed(orders, symmetries), scales, matrices)


@dataclass
class _Pairs:
    """Each unit of the root of A with each of B: n², and of the g units inside each g² more.

    Attributes:
        base: (n, n), what orders inside and bases do not change.
        inside: inner group → (n, n, g, g).
        kinds: gauge of the root → its kind.
        shared: gauge of the root → cross (n, n, …) of the vectors that the root's units have themselves.
        crosses: gauge of the root → inner group → cross (n, n, g, g, …).
    """

    base: Tensor
    inside: dict[str, Tensor]
    kinds: dict[str, Kind]
    shared: dict[str, Tensor]
    crosses: dict[str, dict[str, Tensor]]

    def best(self) -> tuple[Tensor, dict[str, Tensor]]:
        """What each pair is worth at best, (n, n), and the orders inside that give it, (n, n, g) each."""
        if not self.inside:
            return self._worth({}), {}
        # Where B is now is one of the candidates, so that the best step is never one backwards.
        now = {name: torch.arange(one.shape[-1]).expand(one.shape[:-1]) for name, one in self.inside.items()}
        stay = self._worth(now).where(torch.eye(len(self.base), dtype=torch.bool), -torch.inf)
        worth, found = stay, now
        totals = self.shared
        for _ in range(_TURNS):
            orders = self._orders({name: gauges.best(self.kinds[name], one) for name, one in totals.items()})
            better = (reached := self._worth(orders)) > worth
            worth = torch.where(better, reached, worth)
            found = {name: torch.where(better[..., None], one, found[name]) for name, one in orders.items()}
            totals = self._totals(orders)
        return worth, found

    def _orders(self, rotations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The best orders inside while bases are given."""
        found = {}
        for inner, similarity in self.inside.items():
            for name, rotation in rotations.items():
                if (crossed := self.crosses[name].get(inner)) is not None:
                    similarity = similarity + gauges.given(self.kinds[name], rotation[:, :, None, None], crossed)
            orders = [assign(one) for one in similarity.flatten(0, 1)]
            found[inner] = torch.stack(orders).reshape(similarity.shape[:3])
        return found

    def _totals(self, orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: sum((_matched(of[inner], orders[inner]) for inner in of), start=self.shared[name])
            for name, of in self.crosses.items()
        }

    def _worth(self, orders: Mapping[str, Tensor]) -> Tensor:
        """What each pair is worth with these orders, in the best bases."""
        worth = self.base
        for name, order in orders.items():
            worth = worth + _matched(self.inside[name], order)
        for name, total in self._totals(orders).items():
            worth = worth + gauges.most(self.kinds[name], total)
        return worth


def _paired(evidence: Evidence, family: Family, symmetries: Symmetries) -> _Pairs:
    assert family.root is not None
    n = symmetries.groups[family.root].size
    own = [name for name in evidence.crosses if symmetries.gauges[name].of == family.root]
    kinds: dict[str, Kind] = {name: symmetries.gauges[name].kind for name in own}
    inside = {name: _blocks(_alone(evidence, name, symmetries), n) for name in family.inner}
    shared, crosses = {}, {}
    for name in own:
        of = evidence.crosses[name]
        crosses[name] = {inner: _blocks(of[inner], n) for inner in family.inner if inner in of}
        form = next(iter(of.values())).shape[2:]
        none = torch.zeros(n, n, *form, dtype=next(iter(of.values())).dtype)
        shared[name] = of.get(family.root, none)
    return _Pairs(_alone(evidence, family.root, symmetries, but=own), inside, kinds, shared, crosses)


def _alone(evidence: Evidence, name: str, symmetries: Symmetries, but: list[str] | None = None) -> Tensor:
    """Similarities of a group's units by themselves: those with a sign at their best sign, bases at the best rotation.

    `but` are gauges that are left out, as more than these units decides on them.
    """
    size = symmetries.groups[name].size
    total = torch.zeros(size, size, dtype=torch.float64) if name not in evidence.signed else evidence.signed[name].abs()
    if name in evidence.plain:
        total += evidence.plain[name]
    for gauge, of in evidence.crosses.items():
        if symmetries.gauges[gauge].of == name and gauge not in (but or ()):
            total += gauges.most(symmetries.gauges[gauge].kind, of[name])
    return total


def _blocks(similarity: Tensor, n: int) -> Tensor:
    """(n·g, n·g, …) → (n, n, g, g, …)."""
    return similarity.reshape(n, len(similarity) // n, n, len(similarity) // n, *similarity.shape[2:]).transpose(1, 2)


def _matched(similarity: Tensor, order: Tensor) -> Tensor:
    """Σ_a similarity[i, j, a, order[i, j, a]]: (n, n, g, g, …) and (n, n, g) → (n, n, …)."""
    n, g = similarity.shape[0], similarity.shape[2]
    i, j, a = torch.meshgrid(torch.arange(n), torch.arange(n), torch.arange(g), indexing="ij")
    return similarity[i, j, a, order].sum(2)


def _assigned(similarity: Tensor, parts: int) -> Tensor:
    """The best order; with `parts` > 1, of those that keep the units of each part together."""
    size = len(similarity) // parts
    blocks = [similarity[at : at + size, at : at + size] for at in range(0, len(similarity), size)]
    return torch.cat([number * size + assign(block) for number, block in enumerate(blocks)])


def _expanded(order: Tensor, within: Tensor) -> Tensor:
    """The order of units inside others: (n,) and (n, g) → (n·g,)."""
    return (order[:, None] * within.shape[1] + within).flatten()


def _followed(orders: dict[str, Tensor], symmetries: Symmetries) -> dict[str, Tensor]:
    """Orders with those of all that lies deeper within: it goes along as it is."""
    found = dict(orders)
    while True:
        deeper = [one for one, group in symmetries.groups.items() if group.within in found and one not in found]
        if not deeper:
            return found
        for name in deeper:
            outer = found[str(symmetries.groups[name].within)]
            each = symmetries.groups[name].size // len(outer)
            found[name] = _expanded(outer, torch.arange(each).expand(len(outer), each))


def _signs(signed: Tensor, order: Tensor) -> Tensor:
    """The sign of each matched pair; +1 where they have nothing in common."""
    matched = signed[torch.arange(len(order)), order]
    return torch.where(matched < 0, -1.0, 1.0).double()


def _turned(of: Mapping[str, Tensor], orders: Mapping[str, Tensor], symmetries: Symmetries, name: str) -> Tensor:
    """The best matrices of a gauge, once the units that have its vectors are matched."""
    gauge = symmetries.gauges[name]
    count = 1 if gauge.of is None else symmetries.groups[gauge.of].size
    total: Tensor | None = None
    for owner, crossed in of.items():
        order = orders.get(owner, torch.zeros(1, dtype=torch.int64))
        part = crossed[torch.arange(len(order)), order]
        part = part.reshape(count, len(order) // count, *part.shape[1:]).sum(1)
        total = part if total is None else total + part
    assert total is not None
    return gauges.matrices(gauge.kind, gauges.best(gauge.kind, total))
