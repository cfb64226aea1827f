"""A table of symmetries as matching walks it: where units and vectors lie, which groups are decided together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from eutectic.checkpoint.symmetry import Part, Symmetries

if TYPE_CHECKING:
    from torch import Tensor

# Statistics that a layer keeps of its inputs. They move with the units, and are no weights: where activations are
# large they would outvote all of them.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def votes(name: str, dtype: str) -> bool:
    """Whether a tensor of this name and dtype says which units are alike: weights do, statistics and counts do not."""
    return "float" in dtype and not name.endswith(_STATISTICS)


@dataclass(frozen=True, slots=True)
class Place:
    """A factor of a part of an axis of a tensor, where units of a group or vectors of a gauge are.

    Attributes:
        tensor, axis: which.
        start: first entry of the part on the axis.
        part: that the factor is of.
        factor: its number in the part.
    """

    tensor: str
    axis: int
    start: int
    part: Part
    factor: int

    @property
    def group(self) -> str | None:
        """Whose units are here."""
        return self.part.factors[self.factor].group

    @property
    def gauge(self) -> str | None:
        """Whose coordinates are here."""
        return self.part.factors[self.factor].gauge

    def units(self, tensor: Tensor) -> Tensor:
        """The tensor as (units, all else)."""
        sizes = [factor.size for factor in self.part.factors]
        return self._split(tensor, sizes).movedim(self.axis + self.factor, 0).reshape(sizes[self.factor], -1)

    def vectors(self, tensor: Tensor, units: int) -> Tensor:
        """The tensor as (units, coordinates, all else).

        `units` divides the number of those that stand before the coordinates; as many consecutive ones as there are
        more share a basis.
        """
        sizes = [factor.size for factor in self.part.factors]
        before, after = 1, 1
        for size in sizes[: self.factor]:
            before *= size
        for size in sizes[self.factor + 1 :]:
            after *= size
        apart = self._split(tensor, [units, before // units, sizes[self.factor], after])
        return apart.movedim((self.axis, self.axis + 2), (0, 1)).flatten(2)

    def _split(self, tensor: Tensor, sizes: list[int]) -> Tensor:
        piece = tensor.narrow(self.axis, self.start, self.part.size)
        return piece.reshape(*piece.shape[: self.axis], *sizes, *piece.shape[self.axis + 1 :])


@dataclass(frozen=True, slots=True)
class Family:
    """Groups and gauges that are decided in one step.

    Attributes:
        root: the group whose units take their places first; None when there is a gauge alone.
        inner: groups within it (query heads of a key's head).
        gauges: bases of vectors of these units.
        within: the group that the root is within, whose own step does not see it: units stay within its units.
        stacked: groups in the tensors that are units of the root (hidden units of experts).
    """

    root: str | None
    inner: tuple[str, ...] = ()
    gauges: tuple[str, ...] = ()
    within: str | None = None
    stacked: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of groups and gauges."""
        return (*([] if self.root is None else [self.root]), *self.inner, *self.gauges)


class Index:
    """Where everything of a table is.

    Attributes:
        symmetries: the table.
        tensors: those that vote, by the names of the table.
        families: in the order of the table.
    """

    def __init__(self, symmetries: Symmetries, tensors: Iterable[str]) -> None:
        self.symmetries = symmetries
        self.tensors = tuple(tensors)
        self.families = tuple(self._families())
        self._tensors_of: dict[frozenset[str], tuple[str, ...]] = {}

    @cached_property
    def places(self) -> dict[str, tuple[Place, ...]]:
        """Tensor → its factors that can move."""
        return {name: tuple(self._places(name)) for name in self.tensors}

    @cached_property
    def movers(self) -> dict[str, frozenset[str]]:
        """Tensor → groups and gauges that can move it, with the one that it is a unit of."""
        found = {
            name: {mover for place in places for mover in (place.group, place.gauge) if mover is not None}
            for name, places in self.places.items()
        }
        for group in self.symmetries.stacks:
            for names in self.units(group):
                for name in names:
                    if name in found:
                        found[name].add(group)
        return {name: frozenset(movers) for name, movers in found.items()}

    def units(self, group: str) -> list[tuple[str, ...]]:
        """For each unit of a stack the tensors that are it, in the order of the patterns."""
        patterns = self.symmetries.stacks[group]
        size = self.symmetries.groups[group].size
        return [tuple(pattern.replace("{}", str(unit)) for pattern in patterns) for unit in range(size)]

    def tensors_of(self, names: Collection[str]) -> tuple[str, ...]:
        """The tensors that these groups and gauges can move, and what is within them."""
        key = frozenset(names)
        if key not in self._tensors_of:
            wanted = set(key)
            groups = self.symmetries.groups
            while more := {name for name, group in groups.items() if group.within in wanted} - wanted:
                wanted |= more
            found = tuple(tensor for tensor in self.tensors if not wanted.isdisjoint(self.movers[tensor]))
            self._tensors_of[key] = found
        return self._tensors_of[key]

    @cached_property
    def neighbours(self) -> list[set[int]]:
        """For each family the numbers of those whose best step may change with its own.

        Itself too, where units of it are on two sides of a tensor, or where orders and bases are found in turns.
        """
        touched = [set(self.tensors_of(family.names)) for family in self.families]
        found = []
        for number, family in enumerate(self.families):
            near = {other for other, tensors in enumerate(touched) if not tensors.isdisjoint(touched[number])}
            twice = any(self.twice(family.root, tensor) for tensor in touched[number])
            found.append(near if family.inner or twice else near - {number})
        return found

    def twice(self, group: str | None, tensor: str) -> bool:
        """Whether units of a group are on two axes of a tensor."""
        return group is not None and len({place.axis for place in self.places[tensor] if place.group == group}) > 1

    def _places(self, name: str) -> Iterator[Place]:
        for number, parts in enumerate(self.symmetries.axes[name]):
            start = 0
            for part in parts:
                for place, factor in enumerate(part.factors):
                    if factor.group is not None or factor.gauge is not None:
                        yield Place(name, number, start, part, place)
                start += part.size

    def _families(self) -> Iterator[Family]:
        groups, gauges = self.symmetries.groups, self.symmetries.gauges
        roots = [name for name, group in groups.items() if group.within is None]
        inner = [name for name, group in groups.items() if group.within in roots]
        for name, group in groups.items():
            if name in inner:
                continue
            within = tuple(one for one in inner if groups[one].within == name)
            bases = tuple(one for one, gauge in gauges.items() if gauge.of in {name, *within})
            yield Family(name, within, bases, group.within, self._stacked(name))
        yield from (Family(None, gauges=(name,)) for name, gauge in gauges.items() if gauge.of is None)

    def _stacked(self, group: str) -> tuple[str, ...]:
        if group not in self.symmetries.stacks:
            return ()
        movers = [{one for name in names for one in self._named(name)} for names in self.units(group)]
        shared = set.intersection(*movers)
        return tuple(sorted(set.union(*movers) - shared))

    def _named(self, tensor: str) -> Iterator[str]:
        for parts in self.symmetries.axes[tensor]:
            yield from (factor.group for part in parts for factor in part.factors if factor.group is not None)
