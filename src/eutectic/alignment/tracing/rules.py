"""Which rule an operation of a graph has, and what a rule is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from eutectic.alignment.tracing.values import Trace, Value

Made = Value | tuple[Value | None, ...]
_Rule = TypeVar("_Rule", bound=Callable[..., Made])

# Operation of ATen → rule(step, *arguments) -> the value it makes, or values; `NotImplemented`: it is not understood.
RULES: dict[str, Callable[..., Made]] = {}


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a graph on its way through a rule.

    Attributes:
        trace: where to note things.
        node: of the graph.
    """

    trace: Trace
    node: Any

    @property
    def operation(self) -> str:
        """Its name, without that of the overload."""
        return name_of(self.node.target)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor it makes, or of the first one."""
        made = self.node.meta["val"]
        first = made[0] if isinstance(made, list | tuple) else made
        return tuple(int(size) for size in first.shape)


def name_of(target: Any) -> str:
    """What an operation of ATen is called, `add`; any other one with what it is of, `torchvision.nms`."""
    packet = getattr(target, "overloadpacket", None)
    if packet is None:
        return str(getattr(target, "__name__", target))
    space, _, name = target._schema.name.partition("::")
    return str(name if space == "aten" else f"{space}.{name}")


def rule(*operations: str) -> Callable[[_Rule], _Rule]:
    """Registers the rule of operations."""

    def register(function: _Rule) -> _Rule:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return register
