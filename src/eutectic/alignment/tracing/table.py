"""What a trace knows of a module's tensors → a table of symmetries."""

from __future__ import annotations

from collections.abc import Mapping

from eutectic.alignment.tracing.atoms import Atom, Axis, Segment, fix, leaves, resolved
from eutectic.alignment.tracing.nesting import nested
from eutectic.alignment.tracing.values import Trace, Value
from eutectic.checkpoint.symmetry import Axis as Parts
from eutectic.checkpoint.symmetry import Factor, Group, Part, Role, Symmetries, fixed


def table_of(
    trace: Trace, tensors: Mapping[str, Value], names: Mapping[str, tuple[str, tuple[int, ...]]]
) -> Symmetries:
    """The table of a module.

    Args:
        trace: of its graph.
        tensors: those of the graph, and their values.
        names: every tensor of the module → the name that it has in the graph, and its shape.
    """
    _settle(tensors)
    axes = {name: tuple(map(resolved, value.axes)) for name, value in tensors.items()}
    units = _Units(nested(trace, [axis for one in axes.values() for axis in one]))
    # Makers first, in the order of the graph, so that groups are called after them.
    makers = [place for place, role in trace.roles.items() if role == "out"]
    for name, number in [*makers, *((name, number) for name, of in axes.items() for number in range(len(of)))]:
        units.name(name, axes[name][number])
    done = {
        name: tuple(units.parts(axis, trace.roles.get((name, number), "order")) for number, axis in enumerate(of))
        for name, of in axes.items()
    }
    rest = {name: done.get(within) or tuple(map(fixed, shape)) for name, (within, shape) in names.items()}
    return Symmetries(units.groups, rest, {}, "traced")


def _settle(tensors: Mapping[str, Value]) -> None:
    """Fixes what a table cannot say: sums behind other factors, of which one fixed can make more."""
    found = True
    while found:
        found = False
        for value in tensors.values():
            for segment in (segment for axis in value.axes for segment in resolved(axis)):
                for atom in segment:
                    if atom.parts is not None and not all(leaf.fixed for leaf in leaves(atom.parts)):
                        fix(atom.parts)
                        found = True


class _Units:
    """Groups of a table, as atoms get their names."""

    def __init__(self, within: Mapping[Atom, Atom]) -> None:
        self.within = within
        self.groups: dict[str, Group] = {}
        self._names: dict[Atom, str] = {}
        self._made: dict[str, int] = {}

    def name(self, tensor: str, axis: Axis) -> None:
        """Calls the units of an axis that have no name yet after the module of its tensor."""
        maker = tensor.rpartition(".")[0] or tensor
        for segment in axis:
            for atom in segment:
                if not _moves(atom) or atom in self._names:
                    continue
                count = self._made.get(maker, 0)
                self._made[maker] = count + 1
                self._names[atom] = f"{maker}[{count}]" if count else maker
        for segment in axis:
            for atom in segment:
                if _moves(atom):
                    self._group(atom)

    def _group(self, atom: Atom) -> int:
        """Units of an atom's group: with those of each unit that they are within."""
        outer = self.within.get(atom)
        size = atom.size * (self._group(outer) if outer else 1)
        self.groups.setdefault(self._names[atom], Group(size, within=self._names[outer] if outer else None))
        return size

    def parts(self, axis: Axis, role: Role) -> Parts:
        """An axis as a table has it."""
        made: list[Part] = []
        for segment in axis:
            factors = self._factors(segment)
            if all(factor.group is None for factor in factors):
                size = Part(tuple(factors)).size
                if made and made[-1].factors[0].group is None and len(made[-1].factors) == 1:
                    size += made.pop().size
                made.append(Part((Factor(size),), role))
            else:
                made.append(Part(tuple(factors), role))
        return tuple(made) or fixed(0)

    def _factors(self, segment: Segment) -> list[Factor]:
        made: list[Factor] = []
        for number, atom in enumerate(segment):
            inner = segment[number + 1] if number + 1 < len(segment) else None
            if inner is not None and self.within.get(inner) is atom:
                continue  # said by the group of what is within
            group = self._names.get(atom) if _moves(atom) else None
            if group is None and made and made[-1].group is None:
                made[-1] = Factor(made[-1].size * atom.size)
            else:
                made.append(Factor(self.groups[group].size if group else atom.size, group))
        return made


def _moves(atom: Atom) -> bool:
    return atom.parts is None and not atom.fixed
