"""Settings: one value, a gradient over the layers, or values chosen by filters on tensor names."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from eutectic.errors import did_you_mean
from eutectic.names import matcher
from eutectic.recipe import scalars
from eutectic.recipe.located import Faults, Node, Place, shown
from eutectic.recipe.schema import ParamLike

Scalar = bool | int | float | str
EVERYTHING = "*"
_YES_NO = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
_NOWHERE = Place("", None, None, "")


@dataclass(frozen=True, slots=True)
class Entry:
    """The value of the tensors whose name matches `pattern` (see `eutectic.names.matcher`).

    `values` are the anchors of a gradient, one for a plain value.
    """

    pattern: str
    values: tuple[Scalar, ...]
    place: Place = field(default=_NOWHERE, compare=False)

    def at(self, depth: float, *, stepped: bool) -> Scalar:
        """The value at `depth` in [0, 1]: between two anchors linearly, or the anchor at or before it if `stepped`."""
        position = depth * (len(self.values) - 1)
        index = int(position)
        low = self.values[index]
        high = self.values[min(index + 1, len(self.values) - 1)]
        # A word beside numbers (`auto`) has nothing between it and its neighbour.
        if stepped or index == position or isinstance(low, str) or isinstance(high, str):
            return low
        return low + (high - low) * (position - index)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a recipe says of one parameter. Entries are tried in order; the first that matches a name wins.

    `stepped` settings (booleans, choices, integers) pick an anchor of a gradient; others interpolate.
    """

    entries: tuple[Entry, ...]
    stepped: bool = False

    def at(self, name: str, depth: float) -> Scalar | None:
        """The value for the tensor `name` at `depth` (`eutectic.names.Depths`), or None if no entry matches."""
        for entry in self.entries:
            if matcher(entry.pattern)(name):
                return entry.at(depth, stepped=self.stepped)
        return None

    @property
    def filters(self) -> list[tuple[str, Place]]:
        """The patterns that may fail to match, and where they stand; never `*`."""
        return [(entry.pattern, entry.place) for entry in self.entries if entry.pattern != EVERYTHING]

    @property
    def constant(self) -> Scalar | None:
        """The value if it is the same for every tensor, else None."""
        values = {repr(value) for entry in self.entries for value in entry.values}
        return self.entries[0].values[0] if self.covers_all and len(values) == 1 else None

    @property
    def covers_all(self) -> bool:
        """Has a value for every tensor: ends in an entry without a filter."""
        return self.entries[-1].pattern == EVERYTHING

    def over(self, fallback: Setting | None) -> Setting:
        """This setting, and `fallback` for the tensors that it has no value for."""
        if fallback is None or self.covers_all:
            return self
        return Setting(self.entries + fallback.entries, self.stepped)

    def to_plain(self) -> Any:
        """The setting as a recipe writes it: a scalar, a list, or a list of `{filter, value}`."""
        plain = [list(entry.values) if len(entry.values) > 1 else entry.values[0] for entry in self.entries]
        if len(self.entries) == 1 and self.covers_all:
            return plain[0]
        return [
            {"value": value} if entry.pattern == EVERYTHING else {"filter": entry.pattern, "value": value}
            for entry, value in zip(self.entries, plain, strict=True)
        ]


def read(node: Node, param: ParamLike, faults: Faults) -> Setting | None:
    """The setting written at `node`, every value checked; None after a problem."""
    before = len(faults)
    if isinstance(node.data, dict):
        entries = [_filtered(node, param, faults)]
    elif isinstance(node.data, list) and any(isinstance(item, dict) for item in node.data):
        entries = [_filtered(item, param, faults) for item in node.elements()]
    else:
        entries = [Entry(EVERYTHING, _values(node, param, faults), node.place)]
    if len(faults) > before:
        return None
    for first, second in pairwise(entries):
        if first.pattern == EVERYTHING:
            hint = "move it before the one without a filter"
            faults.add("R124", second.place, "never reached: an entry that matches everything stands before it", hint)
            return None
    return Setting(tuple(entries), stepped=param.kind != "float")


def _filtered(node: Node, param: ParamLike, faults: Faults) -> Entry:
    if not isinstance(node.data, dict):
        faults.add("R124", node.place, f"must be {{filter, value}} like its neighbours, not {shown(node.data)}")
        return Entry(EVERYTHING, ())
    if "sweep" in node.data:
        faults.add("R128", node.place, "a sweep stands only in the outermost recipe", "move it there")
        return Entry(EVERYTHING, ())
    unknown = [(key, item) for key, item in node.items() if key not in ("filter", "value")]
    hints = [did_you_mean(key, ("filter", "value", "sweep")) for key, _ in unknown]
    for (_, item), hint in zip(unknown, hints, strict=True):
        faults.add("R110", item.key_place, "unknown key", hint)
    pattern = node.get("filter")
    value = node.get("value")
    if value is None and not any("'sweep'" in hint for hint in hints):
        faults.add("R124", node.place, "has no value", "write {filter: ..., value: ...}")
    place = node.place if pattern is None else pattern.place
    return Entry(pattern_at(pattern, faults), _values(value, param, faults) if value else (), place)


def pattern_at(node: Node | None, faults: Faults) -> str:
    """The filter written at `node`; what matches everything if there is none, or after a problem."""
    if node is None:
        return EVERYTHING
    if not isinstance(node.data, str) or not node.data:
        faults.add("R125", node.place, f"a filter must be text, not {shown(node.data)}", "put it in quotes")
        return EVERYTHING
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            matcher(node.data)
    except (re.error, OverflowError, RecursionError) as error:
        faults.add("R125", node.place, f"the regular expression {shown(node.data)} is broken: {error}")
    return node.data


def _values(node: Node, param: ParamLike, faults: Faults) -> tuple[Scalar, ...]:
    if not isinstance(node.data, list):
        return tuple(_leaf(node, param, faults))
    if not node.data:
        faults.add("R124", node.place, "a gradient needs at least one value")
    return tuple(value for item in node.elements() for value in _leaf(item, param, faults))


def _leaf(node: Node, param: ParamLike, faults: Faults) -> list[Scalar]:
    """The one value at `node`, or none and a problem."""
    value = node.data
    if value is None or not isinstance(value, bool | int | float | str):
        faults.add("R124", node.place, f"must be one value, not {shown(value)}")
        return []
    if isinstance(value, str) and param.kind in ("float", "int"):
        value = _number(value)
    if param.kind in ("bool", "choice") and not isinstance(value, bool | str) and value in (0, 1):
        value = bool(value)  # as mergekit takes them, whose evolved recipes write 1.0
    if reason := param.fault(value):
        seen = "" if ", not " in reason else f", not {shown(value)}"
        faults.add("R123", node.place, reason + seen, _hint(value, param))
        return []
    if param.kind == "float" and not isinstance(value, str):
        value = float(value)
    elif param.kind == "int":
        value = int(value)
    return [value]


def _number(text: str) -> int | float | str:
    """YAML 1.1 readers hand over `1e-5` as text."""
    value = scalars.number(text)
    return text if value is None or scalars.fault(value) else value


def _hint(value: Scalar, param: ParamLike) -> str:
    word = _YES_NO.get(value.lower()) if isinstance(value, str) and param.kind in ("bool", "choice") else None
    return f"write {word}" if word else ""
