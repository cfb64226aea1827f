"""A recipe with `{sweep: [...]}` in place of values -> one recipe for each combination of values."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from eutectic.errors import did_you_mean
from eutectic.recipe.located import Document, Faults, Node, Trail, path_of, shown

KEY = "sweep"
MAX_VARIANTS = 256
# The parameter that says which tensors need their statistics. Merges of a sweep read the same.
READS = "solve"


@dataclass(frozen=True, slots=True)
class Axis:
    """One parameter that is swept: where it stands, its name in labels, and the values."""

    trail: Trail
    name: str
    values: tuple[Any, ...]


def axes_of(document: Document, faults: Faults, params: Collection[str] = ()) -> list[Axis]:
    """Every sweep in a document, in the order written; what is wrong with one goes to `faults`.

    `params` are the names of the method's parameters, for advice.
    """
    nodes = _sweeps(Node(document, document.data))
    found = [axis for node in nodes if (axis := _axis(node, faults, params)) is not None]
    names = [path_of(_last_words(axis.trail)) for axis in found]
    # The parameter alone where that is unique, else the whole path.
    axes = [
        Axis(axis.trail, name if names.count(name) == 1 else axis.name, axis.values)
        for axis, name in zip(found, names, strict=True)
    ]
    if (count := prod(len(axis.values) for axis in axes)) > MAX_VARIANTS:
        place = document.place(axes[-1].trail)
        faults.add("R128", place, f"sweeps to {count} merges, at most {MAX_VARIANTS} are made at once", "sweep fewer")
    return axes


def _last_words(trail: Trail) -> Trail:
    """`density`, or `density[0]` for an entry of a list of filters."""
    return trail[-3:-1] if trail[-1] == "value" and isinstance(trail[-2], int) else trail[-1:]


def _sweeps(node: Node) -> Iterator[Node]:
    """The values that are mappings with the key `sweep`; not in recipes inside."""
    if isinstance(node.data, dict):
        if node.trail and "merge_method" in node.data:
            return
        if node.trail and KEY in node.data and (_may_be_swept(node.trail) or len(node.data) == 1):
            yield node
            return
        for _, item in node.items():
            yield from _sweeps(item)
    elif isinstance(node.data, list):
        for item in node.elements():
            yield from _sweeps(item)


def _may_be_swept(trail: Trail) -> bool:
    return bool({"parameters", "post"} & set(trail))


def _axis(node: Node, faults: Faults, params: Collection[str]) -> Axis | None:
    values, hint = node.data[KEY], "write {sweep: [0.1, 0.3, 0.5]}"
    if not _may_be_swept(node.trail):
        faults.add("R128", node.place, "cannot be swept: only parameters are", _meant(node.trail, params))
    elif len(node.data) > 1 or not isinstance(values, list) or not values:
        found = "an empty list" if values == [] else shown(values)
        faults.add("R128", node.place, f"a sweep needs a list of values and nothing else, not {found}", hint)
    elif node.trail[-1] == "scope":
        faults.add("R128", node.place, "cannot be swept: it decides what is ranked together", "merge once for each")
    elif READS in node.trail:
        faults.add("R128", node.place, "cannot be swept: it decides what is read", "merge once for each")
    elif not isinstance(node.trail[-1], str):
        hint = "sweep the whole list, or the `value` of an entry with a filter"
        faults.add("R128", node.place, "an anchor of a gradient cannot be swept", hint)
    elif repeated := [value for number, value in enumerate(values) if value in values[:number]]:
        faults.add("R128", node.place, f"has {shown(repeated[0])} twice", "name each value once")
    else:
        # In a list of filters what is swept is the entry's value; the entry says which.
        trail = node.trail[:-1] if node.trail[-1] == "value" and isinstance(node.trail[-2], int) else node.trail
        return Axis(node.trail, path_of(trail), tuple(values))
    return None


def _meant(trail: Trail, params: Collection[str]) -> str:
    """What to do about a sweep that stands where no parameter does."""
    key = str(trail[-1])
    if key in params:
        return f"did you mean {path_of((*trail[:-1], 'parameters', key))!r}?"
    near = did_you_mean(key, params)
    return f"{near} It stands under `parameters`" if near else "merge once for each value"


def variants_of(document: Document, axes: Sequence[Axis]) -> Iterator[tuple[str, dict[str, Any], Document]]:
    """`(label, {path: value}, document)` for every combination of values; the last sweep runs fastest.

    Labels name folders: `t=0.1`, `density=0.2,lambda=1`; a value that is no scalar, or reads
    like another one, is named by its number.
    """
    for choice in itertools.product(*(range(len(axis.values)) for axis in axes)):
        chosen = dict(zip((axis.trail for axis in axes), choice, strict=True))
        data = _filled(document.data, (), chosen)
        values = {
            _moved(trail, chosen): mark for trail, mark in document.values.items() if not _passed_by(trail, chosen)
        }
        made = Document(data, document.file, values, dict(document.keys), dict(document.overridden))
        label = ",".join(f"{axis.name}={_word(axis, i)}" for axis, i in zip(axes, choice, strict=True))
        yield label, {path_of(axis.trail): axis.values[i] for axis, i in zip(axes, choice, strict=True)}, made


def _word(axis: Axis, index: int) -> str:
    words = [_short(value) for value in axis.values]
    if isinstance(axis.values[index], dict | list) or words.count(words[index]) > 1:
        return f"#{index + 1}"
    return words[index]


def _short(value: Any) -> str:
    """A scalar as plans print it, in characters that every file system takes."""
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value:.9g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.+-]", "_", text)


def _filled(data: Any, trail: Trail, chosen: dict[Trail, int]) -> Any:
    """A copy with the chosen value in place of each sweep; live objects stay the same objects."""
    if trail in chosen:
        return data[KEY][chosen[trail]]
    if isinstance(data, dict):
        return {key: _filled(value, (*trail, key), chosen) for key, value in data.items()}
    if isinstance(data, list):
        return [_filled(value, (*trail, number), chosen) for number, value in enumerate(data)]
    return data


def _moved(trail: Trail, chosen: dict[Trail, int]) -> Trail:
    """Where a value stands once the chosen one has taken the sweep's place."""
    for sweep in chosen:
        if trail[: len(sweep)] == sweep and len(trail) >= len(sweep) + 2:
            return sweep + trail[len(sweep) + 2 :]
    return trail


def _passed_by(trail: Trail, chosen: dict[Trail, int]) -> bool:
    """Whether a value belongs to a sweep and is not the chosen one."""
    for sweep, index in chosen.items():
        if trail[: len(sweep)] == sweep:
            return len(trail) < len(sweep) + 2 or trail[len(sweep) + 1] != index
    return False
