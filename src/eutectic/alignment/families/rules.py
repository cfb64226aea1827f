"""Rules, from a tensor's name to the axes it has, and the table that they make of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

from eutectic.alignment.families.blocks import ATTENTION, AXES_OF_ATTENTION, Attention
from eutectic.checkpoint.source import Spec
from eutectic.checkpoint.symmetry import Axis, Factor, Gauge, Group, Part, Role, Symmetries
from eutectic.errors import Problem, did_you_mean, several

Scale = Literal["", "sign", "positive", "any"]
_ROLES: dict[str, Role] = {"<": "in", "=": "order"}
EXPERTS = "experts"


@dataclass(frozen=True)
class Layout:
    """How the tensors of a model hang together.

    Attributes:
        family: its name, for people.
        rules: name of a tensor → its axes, apart by spaces. `{}` in a name is the number of a layer, a second one that
            of an expert: `experts.{}.up.weight`, or `experts.up[{}]` where each is a slice of one tensor along its
            first dimension; experts themselves are units of the group `@experts`. An axis is `-` (nothing moves) or a
            group of units, and several are joined by `+`.
            Before a group: `<` where its units are read, `=` where their places alone are followed, nothing where
            they are made, then `@` when each layer, or each expert, has its own. After it: `*` when a unit has several
            entries in a row. `@query`, `@key` and so on are the axes of the layer's attention.
        prefix: before the names of the body, which a model without a head lacks.
        attention: that of every layer.
        scales: group → what its units may be multiplied by.
        sizes: group → number of units, where no axis is these alone.
        parts: group → the number of parts it is divided into, whose units stay together (group norms).
        fixed: groups in which nothing may move in this model.
    """

    family: str
    rules: Mapping[str, str]
    prefix: str = ""
    attention: Attention | None = None
    scales: Mapping[str, Scale] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, int] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        found = []
        for pattern, axes in self.rules.items():
            text = re.escape(pattern).replace(r"\{\}", r"(\d+)")
            found.append((re.compile(text), axes))
        return found

    def placed(self, name: str, shape: tuple[int, ...]) -> _Placed | None:
        """The axes of a tensor or slice by name; None when no rule is for it."""
        short = name.removeprefix(self.prefix)
        if short in self.rules:
            return _Placed(name, shape, _parsed(self.rules[short]))
        for pattern, axes in self._patterns:
            if (match := pattern.fullmatch(short)) is not None:
                layer = short[: match.end(1)] + "."
                expert = match[2] if pattern.groups > 1 else ""
                stack = name[: len(name) - len(short) + match.start(2)] + "{}" + short[match.end(2) :] if expert else ""
                return _Placed(name, shape, _parsed(axes), layer, expert, stack)
        return None

    def every(self, name: str, shape: tuple[int, ...]) -> list[_Placed]:
        """A tensor with its axes, or its slices; none when no rule is for them."""
        if (whole := self.placed(name, shape)) is not None:
            return [whole]
        if not shape or self.placed(f"{name}[0]", shape[1:]) is None:
            return []
        slices = [self.placed(f"{name}[{unit}]", shape[1:]) for unit in range(shape[0])]
        return [one for one in slices if one is not None]


@dataclass(frozen=True, slots=True)
class _Piece:
    """One part of an axis, as a rule has it."""

    role: Role
    group: str
    own: bool = False
    several: bool = False


@dataclass(frozen=True, slots=True)
class _Placed:
    """A tensor, or a slice of one, and what its rule says."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[tuple[_Piece, ...], ...]
    layer: str = ""
    expert: str = ""
    stack: str = ""

    def group(self, piece: _Piece) -> str:
        """The full name of a group."""
        if not piece.own:
            return piece.group
        return f"{self.layer}{piece.group}" + (f".{self.expert}" if self.expert else "")


@lru_cache(maxsize=1024)
def _parsed(axes: str) -> tuple[tuple[_Piece, ...], ...]:
    return tuple(tuple(_piece(text) for text in one.split("+")) for one in axes.split())


def _piece(text: str) -> _Piece:
    name = text.lstrip("<=@").removesuffix("*")
    return _Piece(_ROLES.get(text[0], "out"), "" if name == "-" else name, "@" in text, text.endswith("*"))


def table_of(specs: Mapping[str, Spec], layout: Layout) -> tuple[Symmetries, list[Problem]]:
    """The symmetries of a model with these tensors, and what does not fit: G162, and those of the table itself."""
    table = _Table(layout)
    placed = list(table.placed(specs))
    table.measure(placed)
    for one in placed:
        table.add(one)
    table.look_for_gaps()
    stacks = {group: tuple(patterns) for group, patterns in table.stacks.items()}
    made = Symmetries(table.groups, table.axes, table.gauges, f"declared for {layout.family}", stacks)
    unknown = {problem.where for problem in table.problems}
    others = [problem for problem in made.problems(specs) if problem.where not in unknown]
    return made, table.problems + others


class _Table:
    """A table in the making."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.groups: dict[str, Group] = {}
        self.gauges: dict[str, Gauge] = {}
        self.axes: dict[str, tuple[Axis, ...]] = {}
        self.stacks: dict[str, dict[str, None]] = {}
        self.problems: list[Problem] = []
        self._sizes: dict[str, int] = {}
        self._attention: dict[str, dict[str, Axis]] = {}
        # Group, or layer of an attention → in which ways it was seen.
        self._seen: dict[str, set[str]] = {}

    def placed(self, specs: Mapping[str, Spec]) -> Iterator[_Placed]:
        """Finds the rule of each tensor and notes which have none."""
        for name, spec in specs.items():
            found = self.layout.every(name, spec.shape)
            if not found or len(found[0].axes) != len(found[0].shape):
                self._unknown(name, found)
            else:
                yield from found

    def _unknown(self, name: str, found: list[_Placed]) -> None:
        hint = did_you_mean(re.sub(r"\d+", "{}", name.removeprefix(self.layout.prefix)), self.layout.rules)
        message = f"no tensor of {self.layout.family} is called this"
        if found:
            shape, axes = found[0].shape, found[0].axes
            hint, message = "", f"has {several(len(shape), 'dimension')}, and in {self.layout.family} {len(axes)}"
        self.problems.append(Problem("G162", message, name, hint))

    def measure(self, placed: list[_Placed]) -> None:
        """Sizes of groups: from axes that are units of one alone, then from those of several parts."""
        for alone in (True, False):
            for one in placed:
                for size, pieces in zip(one.shape, one.axes, strict=True):
                    names = [one.group(piece) for piece in pieces if not self._is_attention(piece) and piece.group]
                    lacking = [name for name in names if name not in self._sizes]
                    if (len(pieces) == 1) is alone and lacking and not any(piece.several for piece in pieces):
                        known = sum(self._sizes.get(name, 0) for name in names)
                        self._sizes |= dict.fromkeys(lacking, (size - known) // len(lacking))

    def add(self, one: _Placed) -> None:
        """Gives a tensor its axes, and declares the groups that they are of."""
        self.axes[one.name] = tuple(
            tuple(part for piece in pieces for part in self._parts(one, piece, size))
            for size, pieces in zip(one.shape, one.axes, strict=True)
        )
        if one.stack:
            self.stacks.setdefault(f"{one.layer}{EXPERTS}", {})[one.stack] = None

    def _is_attention(self, piece: _Piece) -> bool:
        return self.layout.attention is not None and piece.own and piece.group in AXES_OF_ATTENTION

    def _parts(self, one: _Placed, piece: _Piece, size: int) -> Axis:
        if not piece.group or piece.group in self.layout.fixed:
            return (Part((Factor(size),)),)
        if self._is_attention(piece):
            self._seen.setdefault(one.layer, set()).add(piece.group)
            return self._of_attention(one.layer)[piece.group]
        name = one.group(piece)
        units = self._sizes.get(name) or self.layout.sizes.get(piece.group, 0)
        self._declare(name, piece.group, units)
        self._seen.setdefault(name, set()).add(piece.role)
        several = (Factor(size // units),) if piece.several and units else ()
        return (Part((Factor(units, name), *several), piece.role),)

    def _of_attention(self, layer: str) -> dict[str, Axis]:
        if layer not in self._attention:
            assert self.layout.attention is not None
            groups, gauges, self._attention[layer] = self.layout.attention.declared(layer)
            self.groups |= groups
            self.gauges |= gauges
        return self._attention[layer]

    def _declare(self, name: str, kind: str, size: int) -> None:
        parts = self.layout.parts.get(kind, 1)
        within = f"{name}.norm" if parts > 1 else None
        if within:
            self.groups[within] = Group(parts)
        self.groups[name] = Group(size, self.layout.scales.get(kind, ""), within)

    def look_for_gaps(self) -> None:
        """Notes units that nothing makes or nothing reads, where the network is another than the rules are for."""
        for name, ways in self._seen.items():
            due = ATTENTION if name in self._attention else ("out",) if name in self.stacks else ("out", "in")
            words = {"out": "that make its units", "in": "that read its units"}
            lacking = [words.get(way, f"of its {way}") for way in due if way not in ways]
            message = f"{self.layout.family} has tensors {' and '.join(lacking)}, and there are none"
            if lacking:
                self.problems.append(Problem("G162", message, name.removesuffix(".")))
