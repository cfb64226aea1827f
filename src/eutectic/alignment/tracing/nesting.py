"""Units that change places within each unit of an outer axis, and not only alike in all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from eutectic.alignment.tracing.atoms import Atom, Axis, leaves, resolved
from eutectic.alignment.tracing.values import Trace


def nested(trace: Trace, axes: Sequence[Axis]) -> dict[Atom, Atom]:
    """Atom → the atom within whose units its own change places independently.

    It must stand right behind that one wherever it is in a parameter, no tensor in the network may have it alone, and
    no operation may look over all of the outer units at one of the inner.

    Args:
        trace: of the network.
        axes: of its parameters.
    """
    before: dict[Atom, set[Atom | None]] = {}
    for segment in (segment for axis in axes for segment in axis):
        for outer, inner in pairwise((None, *segment)):
            if inner is not None:
                before.setdefault(inner, set()).add(outer)
    pairs = {
        inner: outer
        for inner, (outer, *others) in ((inner, tuple(found)) for inner, found in before.items())
        if outer is not None and not others and _free(inner) and _free(outer)
    }
    for value in trace.values:
        _drop_lone(pairs, [list(leaves(axis)) for axis in value.axes], [resolved(axis) for axis in value.axes])
    for apart in trace.apart:
        outer_atoms = _atoms(apart.outer)
        for inner in _atoms(apart.inner):
            if pairs.get(inner) in outer_atoms:
                del pairs[inner]
    return pairs


def _drop_lone(pairs: dict[Atom, Atom], atoms: list[list[Atom]], axes: list[Axis]) -> None:
    """Drops the pairs whose inner atom a value has without the outer one, or more than once and not right behind it."""
    flat = [atom for axis in atoms for atom in axis]
    for inner in set(flat) & pairs.keys():
        outer = pairs[inner]
        once = flat.count(inner) == 1 == flat.count(outer)
        behind = all(
            number > 0 and segment[number - 1] is outer
            for axis in axes
            for segment in axis
            for number, atom in enumerate(segment)
            if atom is inner
        )
        if outer not in flat or not (once or behind):
            del pairs[inner]


def _atoms(axes: Iterable[Axis]) -> set[Atom]:
    return {atom for axis in axes for atom in leaves(axis)}


def _free(atom: Atom) -> bool:
    return atom.parts is None and not atom.fixed
