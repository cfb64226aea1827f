"""What is known of a tensor within a network: its axes, and of which parameter it is a rearrangement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from eutectic.alignment.tracing.atoms import Axis, fix, fresh, is_fixed, length
from eutectic.checkpoint.symmetry import Role


@dataclass(frozen=True, slots=True)
class Origin:
    """The parameter of which a value has the entries: its name, and for each axis of the value those of it."""

    name: str
    axes: tuple[frozenset[int], ...]


@dataclass(frozen=True, slots=True)
class Stack:
    """An axis along which a value is pulled apart at once, such as that of q, k and v.

    Attributes:
        dim: which it is.
        items: the other axes of each item. Items need not have the same units.
    """

    dim: int
    items: tuple[tuple[Axis, ...], ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor: its axes, in which nothing is known of those of a stack."""

    axes: tuple[Axis, ...]
    origin: Origin | None = None
    stack: Stack | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Entries of each axis."""
        return tuple(map(length, self.axes))

    def items(self) -> list[Value]:
        """The items of a stack, or the value itself."""
        return [self] if self.stack is None else [Value(item) for item in self.stack.items]


@dataclass(frozen=True, slots=True)
class Apart:
    """Axes of which no unit changes places within those of others: these are looked at together.

    A softmax or a norm looks at all of the axes `outer` for each entry along `inner`; a product of matrices sums along
    `inner` over the entries of one row and of another, both along `outer`.
    """

    inner: tuple[Axis, ...]
    outer: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Unknown:
    """An operation without a rule: its name, the module it stands in, and the axes on both sides."""

    operation: str
    module: str
    inputs: tuple[Axis, ...]
    outputs: tuple[Axis, ...]


@dataclass
class Trace:
    """What is noted on the way through a graph."""

    values: list[Value] = field(default_factory=list)
    apart: list[Apart] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)

    def mixes(self, value: Value, dims: Iterable[int]) -> None:
        """Notes that each entry depends on all of these axes."""
        chosen = {dim % len(value.axes) for dim in dims}
        mixed = tuple(axis for dim, axis in enumerate(value.axes) if dim in chosen)
        self.apart.append(Apart(tuple(axis for dim, axis in enumerate(value.axes) if dim not in chosen), mixed))

    def plays(self, role: Role, value: Value, dim: int) -> None:
        """Notes what an axis of a parameter is for, the first time that it tells."""
        if value.origin is not None:
            for number in value.origin.axes[dim]:
                self.roles.setdefault((value.origin.name, number), role)


def all_fixed(shape: Sequence[int]) -> Value:
    """A tensor in which nothing moves."""
    return Value(tuple(fresh(int(size), True) for size in shape))


def all_free(shape: Sequence[int]) -> Value:
    """A tensor that is the same along each axis, whichever way that is permuted."""
    return Value(tuple(fresh(int(size)) for size in shape))


def fix_value(value: Value) -> None:
    """Lets nothing in a tensor move."""
    for axis in value.axes:
        fix(axis)


def still(value: Value) -> bool:
    """Whether nothing in a tensor moves."""
    return all(is_fixed(axis) for one in value.items() for axis in one.axes)


def values_in(arguments: Any) -> list[Value]:
    """The tensors among arguments, within lists too."""
    if isinstance(arguments, Value):
        return [arguments]
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    return [value for one in arguments for value in values_in(one)] if isinstance(arguments, list | tuple) else []
