"""Symmetries as data: which units of which axes may change places without changing what a network computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from eutectic.checkpoint.source import Spec
from eutectic.errors import Problem, several
from eutectic.kernels.axes import mixed, scaled, taken
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

Role = Literal["out", "in", "order"]
_ROLES = ("out", "in", "order")


@dataclass(frozen=True, slots=True)
class Group:
    """Units of a layer that may change places: neurons, channels, heads, experts, the residual stream.

    Attributes:
        size: number of units.
        scale: by what else a unit may be multiplied, its inputs undoing it: nothing, −1 (`sign`), a positive number
            (`positive`, a ReLU in between) or any but zero (`any`).
        within: a group of fewer units that these are divided among: unit u is of unit ⌊u·m/n⌋ of it, moves along
            with that, and changes places only among the units of the same one (query heads of a key's head).
    """

    size: int
    scale: Literal["", "sign", "positive", "any"] = ""
    within: str | None = None


@dataclass(frozen=True, slots=True)
class Gauge:
    """Bases of vectors between two linear maps, one for each unit of a group, that may be changed.

    Attributes:
        of: the group whose units have one each; None: there is one.
        size: of the vectors.
        kind: the matrices that do: `linear` (all that can be inverted), `orthogonal`, or `rotary` (a rotation and
            a scale in each plane of coordinates i and i + size/2, which rotary embeddings leave alone).
    """

    of: str | None
    size: int
    kind: Literal["linear", "orthogonal", "rotary"]


@dataclass(frozen=True, slots=True)
class Factor:
    """One factor of an axis: `size` places that are units of a group, coordinates of a gauge, or fixed."""

    size: int
    group: str | None = None
    gauge: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive entries of an axis as a product of factors, the slowest first.

    `role` says what multiplications do: `out` makes the units (rows of a weight, its bias), `in` reads them (columns:
    inverse scales, inverse transposed matrices), `order` only follows their places (gains of a norm, a gate).
    """

    factors: tuple[Factor, ...]
    role: Role = "out"

    @property
    def size(self) -> int:
        """Entries."""
        return math.prod(factor.size for factor in self.factors)


# Parts one behind the other.
Axis = tuple[Part, ...]


def axis(*factors: Factor, role: Role = "out") -> Axis:
    """An axis of one part."""
    return (Part(factors, role),)


def fixed(size: int) -> Axis:
    """An axis in which nothing moves."""
    return (Part((Factor(size),)),)


@dataclass(frozen=True)
class Moves:
    """An element of a symmetry group.

    Attributes:
        orders: group → (n,) int64: unit u is what was unit `orders[u]`.
        scales: group → (n,) float64, by which unit u is multiplied when it has its place.
        matrices: gauge → (units, size, size) float64, in the order in which units then are.

    What is not named stays.
    """

    orders: Mapping[str, Tensor] = field(default_factory=dict)
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    matrices: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        counts = (f"{len(of)} {kind}" for kind, of in vars(self).items() if kind != "duals")
        return f"<Moves: {', '.join(counts)}>"

    @cached_property
    def duals(self) -> dict[str, Tensor]:
        """Gauge → inverse transposed matrices, float64: what reads the vectors is multiplied by them."""
        return {gauge: torch.linalg.inv(matrices.double()).mT for gauge, matrices in self.matrices.items()}


@dataclass(frozen=True)
class Symmetries:
    """The symmetries of a network, as a table over its tensors.

    Attributes:
        groups: by name.
        gauges: by name.
        axes: tensor → its axes, one for each dimension. Every tensor of the model is named, fixed ones too.
        stacks: group → patterns of tensors that are its units (experts), with `{}` for the unit's number:
            `experts.{}.up.weight`. `experts.up[{}]` are the slices of `experts.up` along its first dimension. Each
            such tensor or slice has its axes in `axes`; they are those of the place, whoever takes it.
        origin: where the table is from, for people: `declared for llama`, `traced`.
    """

    groups: Mapping[str, Group]
    axes: Mapping[str, tuple[Axis, ...]]
    gauges: Mapping[str, Gauge] = field(default_factory=dict)
    origin: str = ""
    stacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        counts = f"{several(len(self.groups), 'group')} and {several(len(self.gauges), 'gauge')}"
        inside = several(len(self.axes), "tensor")
        return f"<Symmetries{self.origin and f' {self.origin}'}: {counts} in {inside}>"

    def places(self, name: str) -> Iterator[tuple[str, int, Part, int]]:
        """Where a group or gauge is: tensor, number of the axis, part, and place of the factor in the part."""
        yield from self._places.get(name, ())

    @cached_property
    def _places(self) -> dict[str, list[tuple[str, int, Part, int]]]:
        found: dict[str, list[tuple[str, int, Part, int]]] = {}
        for tensor, axes in self.axes.items():
            for number, parts in enumerate(axes):
                for part in parts:
                    for place, factor in enumerate(part.factors):
                        for name in {factor.group, factor.gauge}:
                            if name is not None:
                                found.setdefault(name, []).append((tensor, number, part, place))
        return found

    def moved(self, name: str, tensor: Tensor, moves: Moves) -> Tensor:
        """The tensor that takes the place `name` (see `taker`) as the moves make it.

        Of its own dtype where places change, else float64.
        """
        return moved(tensor, self.axes[name], moves)

    @cached_property
    def _units(self) -> dict[str, tuple[str, str, int]]:
        """Tensor or slice of a stack → group, pattern, number of the unit."""
        return {
            _unit(pattern, number): (group, pattern, number)
            for group, patterns in self.stacks.items()
            if group in self.groups
            for pattern in patterns
            for number in range(self.groups[group].size)
        }

    @cached_property
    def _sliced(self) -> dict[str, list[str]]:
        """Tensor whose slices are units → their names, in order."""
        found: dict[str, list[str]] = {}
        for name, (_, pattern, _) in self._units.items():
            if pattern.endswith("[{}]"):
                found.setdefault(pattern.removesuffix("[{}]"), []).append(name)
        return found

    def taker(self, name: str, moves: Moves) -> str:
        """The tensor or slice that the moves bring to the place `name`: of another unit of its stack, or itself."""
        group, pattern, unit = self._units.get(name, ("", "", 0))
        order = moves.orders.get(group)
        return name if order is None else _unit(pattern, int(order[unit]))

    def made(self, name: str, read: Callable[[str], Tensor], moves: Moves) -> Tensor:
        """A whole tensor of the moved model.

        Args:
            name: as the model has it, of a tensor and not of a slice.
            read: gives the tensor of a name before it moves.
            moves: what to do.
        """
        if name not in self._sliced:
            return self.moved(name, read(self.taker(name, moves)), moves)
        slices = dict(zip(self._sliced[name], read(name), strict=True))
        parts = [self.moved(place, slices[self.taker(place, moves)], moves) for place in slices]
        wide = any(part.dtype != next(iter(slices.values())).dtype for part in parts)
        return torch.stack([part.double() if wide else part for part in parts])

    def apart(self, specs: Mapping[str, Spec]) -> dict[str, Spec]:
        """A model's tensors as `axes` names them: with those slices that are units each by its name."""
        found: dict[str, Spec] = {}
        for name, spec in specs.items():
            slices = self._sliced.get(name)
            if slices is None or spec.shape[:1] != (len(slices),):
                found[name] = spec
            else:
                found |= dict.fromkeys(slices, Spec(spec.dtype, spec.shape[1:]))
        return found

    def problems(self, specs: Mapping[str, Spec]) -> list[Problem]:
        """What does not fit a model with these tensors: G101 an unknown one, G102 a shape, G103 the table itself."""
        specs = self.apart(specs)
        unnamed = [name for name in specs if name not in self.axes]
        found = [Problem("G101", "the symmetries do not name this tensor", name) for name in unnamed]
        for name, axes in self.axes.items():
            found += self._of_table(name, axes)
            if name not in specs:
                found.append(Problem("G101", "the model has no such tensor, which its symmetries name", name))
                continue
            due = _sizes(axes)
            if due != specs[name].shape:
                message = f"is of shape {list(specs[name].shape)}, and its symmetries are for {list(due)}"
                found.append(Problem("G102", message, name))
        return found + list(self._of_groups())

    def _of_groups(self) -> Iterator[Problem]:
        for name, group in self.groups.items():
            parent = None if group.within is None else self.groups.get(group.within)
            if group.within is not None and (parent is None or group.size % max(parent.size, 1)):
                yield Problem("G103", f"group {name!r} cannot be divided among units of {group.within!r}")
            elif name in self._outside(name):
                yield Problem("G103", f"group {name!r} is within itself")
        for name, gauge in self.gauges.items():
            if gauge.of is not None and gauge.of not in self.groups:
                yield Problem("G103", f"gauge {name!r} is of {gauge.of!r}, and there is no such group")
        for name in self.stacks.keys() - self.groups.keys():
            yield Problem("G103", f"has stacks of {name!r}, and there is no such group")
        for name, (_, pattern, _) in self._units.items():
            axes, first = self.axes.get(name), self.axes.get(_unit(pattern, 0))
            if axes is None:
                yield Problem("G103", "is a unit of a stack, and its axes are not given", name)
            elif first is not None and _sizes(axes) != _sizes(first):
                yield Problem("G103", f"is of another shape than {_unit(pattern, 0)!r}, and of one stack with it", name)

    def _outside(self, name: str) -> list[str]:
        """The groups that one is within, the nearest first; each once if they are within each other."""
        found: list[str] = []
        while (group := self.groups.get(name)) is not None and group.within is not None and group.within not in found:
            name = group.within
            found.append(name)
        return found

    def _of_table(self, name: str, axes: tuple[Axis, ...]) -> Iterator[Problem]:
        for part in (part for parts in axes for part in parts):
            units = 1
            for factor in part.factors:
                if factor.group is not None and factor.group not in self.groups:
                    yield Problem("G103", f"has units of {factor.group!r}, and there is no such group", name)
                    continue
                size = self.groups[factor.group].size if factor.group else factor.size
                if factor.size != size:
                    yield Problem(
                        "G103", f"has {several(factor.size, 'unit')} of {factor.group!r}, which has {size}", name
                    )
                if factor.gauge is not None and not self._fits(factor.gauge, factor.size, units):
                    yield Problem("G103", f"has vectors of {factor.gauge!r}, which has none like these", name)
                units *= factor.size

    def _fits(self, name: str, size: int, units: int) -> bool:
        gauge = self.gauges.get(name)
        if gauge is None or gauge.size != size:
            return False
        of = self.groups.get(gauge.of or "")
        return of is None or units % of.size == 0

    def as_json(self) -> dict[str, Any]:
        """The table as plain data, which `from_json` reads."""
        return {
            "origin": self.origin,
            "groups": {name: [one.size, one.scale, one.within] for name, one in self.groups.items()},
            "gauges": {name: [one.of, one.size, one.kind] for name, one in self.gauges.items()},
            "axes": {name: [[_plain(part) for part in parts] for parts in axes] for name, axes in self.axes.items()},
            "stacks": {group: list(patterns) for group, patterns in self.stacks.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Symmetries:
        """Reads what `as_json` made. Raises `ValueError`, `KeyError` or `TypeError` for anything else."""
        return cls(
            {name: Group(*one) for name, one in data["groups"].items()},
            {name: tuple(tuple(map(_part, parts)) for parts in axes) for name, axes in data["axes"].items()},
            {name: Gauge(*one) for name, one in data["gauges"].items()},
            data["origin"],
            {group: tuple(patterns) for group, patterns in data["stacks"].items()},
        )


def _sizes(axes: tuple[Axis, ...]) -> tuple[int, ...]:
    return tuple(sum(part.size for part in parts) for parts in axes)


def _unit(pattern: str, number: int) -> str:
    return pattern.replace("{}", str(number))


def _plain(part: Part) -> list[Any]:
    return [part.role, *([one.size, one.group, one.gauge] for one in part.factors)]


def _part(data: list[Any]) -> Part:
    if data[0] not in _ROLES:
        raise ValueError(f"{data[0]!r} is no role")
    return Part(tuple(Factor(*one) for one in data[1:]), data[0])


def moved(tensor: Tensor, axes: tuple[Axis, ...], moves: Moves) -> Tensor:
    """A tensor with those axes as the moves make it: of its own dtype where only places change, else float64.

    Whatever is float64 is to be rounded once, by who asked.
    """
    for number, parts in enumerate(axes):
        if not any(_touches(factor, moves) for part in parts for factor in part.factors):
            continue
        pieces = torch.split(tensor, [part.size for part in parts], dim=number)
        made = [moved_part(piece, number, part, moves) for piece, part in zip(pieces, parts, strict=True)]
        wide = any(piece.dtype != tensor.dtype for piece in made)
        apart = [piece.double() if wide else piece for piece in made]
        tensor = torch.cat(apart, dim=number) if len(apart) > 1 else apart[0]
    return tensor


def moved_part(tensor: Tensor, axis: int, part: Part, moves: Moves) -> Tensor:
    """Moves one axis of a tensor, all of which is one part."""
    sizes = [factor.size for factor in part.factors]
    for place, factor in enumerate(part.factors):
        if (order := moves.orders.get(factor.group or "")) is not None:
            tensor = taken(tensor, axis, sizes, place, order)
        if part.role == "order":
            continue
        if (scale := moves.scales.get(factor.group or "")) is not None:
            tensor = scaled(tensor, axis, sizes, place, 1 / scale.double() if part.role == "in" else scale)
        if (gauge := factor.gauge or "") in moves.matrices:
            matrices = moves.duals[gauge] if part.role == "in" else moves.matrices[gauge]
            tensor = mixed(tensor, axis, sizes, place, matrices)
    return tensor


def _touches(factor: Factor, moves: Moves) -> bool:
    return factor.group in moves.orders or factor.group in moves.scales or factor.gauge in moves.matrices
