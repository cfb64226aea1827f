"""Axes as sums of products of atoms: what units an axis has, found by cutting, splitting and identifying them.

An axis is a list of segments one behind the other, a segment a product of atoms, the slowest first. An atom is so many
units that change places freely, until it is told better: that they stay (`fix`), that they are the units of another
axis (`unify`), a product (`peel`) or several parts (`cut`). It is refined in place, so everything that has its units
knows at once. Whatever cannot be told apart in these terms is fixed, which is always right: fewer units move.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence


class Atom:
    """So many units, two at least.

    Attributes:
        size: number of units.
        fixed: whether they keep their places.
        link: the atom that has the same units and speaks for this one.
        parts: the axis that this one turned out to be.
    """

    __slots__ = ("fixed", "link", "parts", "size")

    def __init__(self, size: int, fixed: bool = False) -> None:
        self.size = size
        self.fixed = fixed
        self.link: Atom | None = None
        self.parts: Axis | None = None


Segment = tuple[Atom, ...]
Axis = tuple[Segment, ...]

# One entry: the product of nothing.
ONE: Axis = ((),)


def fresh(size: int, fixed: bool = False) -> Axis:
    """An axis of which nothing is known, or in which nothing moves."""
    return _units(size, fixed) if size else ()


def length(axis: Axis) -> int:
    """Entries of an axis."""
    return sum(_size(segment) for segment in axis)


def resolved(axis: Axis) -> Axis:
    """The axis in the atoms of now. One that is a sum stays whole behind others of a product."""
    made: list[Segment] = []
    for segment in axis:
        heads: list[Segment] = [()]
        for each in segment:
            atom = root(each)
            inner = None if atom.parts is None else resolved(atom.parts)
            if inner is None or (len(inner) > 1 and heads != [()]):
                heads = [(*head, atom) for head in heads]
            elif len(inner) == 1:
                heads = [head + inner[0] for head in heads]
            else:
                heads = list(inner)
        made += heads
    return tuple(made)


def root(atom: Atom) -> Atom:
    """The atom that speaks for another."""
    while atom.link is not None:
        atom = atom.link
    return atom


def leaves(axis: Axis) -> Iterator[Atom]:
    """The atoms of now, those within sums too."""
    for segment in resolved(axis):
        for atom in segment:
            if atom.parts is None:
                yield atom
            else:
                yield from leaves(atom.parts)


def is_fixed(axis: Axis) -> bool:
    """Whether nothing in it moves."""
    return all(atom.fixed for atom in leaves(axis))


def fix(axis: Axis) -> None:
    """Lets nothing in it move."""
    for atom in leaves(axis):
        atom.fixed = True


def unify(one: Axis, other: Axis) -> None:
    """Makes two axes of one length have the same units."""
    while (a := resolved(one)) != (b := resolved(other)):
        if is_fixed(a) or is_fixed(b):
            fix(a)
            fix(b)
            return
        if len(a) == 1 and len(a[0]) == 1:
            a[0][0].parts = b
        elif len(b) == 1 and len(b[0]) == 1:
            b[0][0].parts = a
        elif not _nearer(a, b):
            fix(a)
            fix(b)


def cut(axis: Axis, at: int) -> tuple[Axis, Axis]:
    """The first `at` entries, and the others."""
    while True:
        parts, before = resolved(axis), 0
        for number, segment in enumerate(parts):
            if before == at:
                return parts[:number], parts[number:]
            if before + _size(segment) > at:
                break
            before += _size(segment)
        else:
            return parts, ()
        if not _cut(segment, at - before):
            fix((segment,))
            left, right = fresh(at - before, True), fresh(before + _size(segment) - at, True)
            return parts[:number] + left, right + parts[number + 1 :]


def peel(axis: Axis, size: int) -> tuple[Axis, Axis]:
    """The axis as a product of two: what is before the last factor, of that size, and the factor."""
    while True:
        parts = resolved(axis)
        if length(parts) == size:
            return ONE, parts
        if size == 1:
            return parts, ONE
        tails = [_tail(segment, size) for segment in parts]
        if None in tails:
            if all(tail is not None or _open(segment, size) for segment, tail in zip(parts, tails, strict=True)):
                continue
            fix(parts)
            return fresh(length(parts) // size, True), fresh(size, True)
        ends = [segment[tail:] for segment, tail in zip(parts, tails, strict=True)]
        unlike = [end for end in ends[1:] if end != ends[0] and not is_fixed((end, ends[0]))]
        if not unlike:
            return tuple(segment[:tail] for segment, tail in zip(parts, tails, strict=True)), (ends[0],)
        unify((ends[0],), (unlike[0],))


def joined(axes: Sequence[Axis]) -> Axis:
    """The product of axes, the slowest first."""
    made = ONE
    for axis in map(resolved, axes):
        if made == ONE:
            made = axis
        elif len(axis) == 1:
            made = tuple(segment + axis[0] for segment in made)
        else:
            atom = Atom(length(axis))
            atom.parts = axis
            made = tuple((*segment, atom) for segment in made)
    return made


def _size(segment: Segment) -> int:
    return math.prod(atom.size for atom in segment)


def _units(size: int, fixed: bool) -> Axis:
    return ONE if size == 1 else ((Atom(size, fixed),),)


def _nearer(a: Axis, b: Axis) -> bool:
    """Refines one atom that keeps two axes from being the same; False where that is not possible."""
    one, other = next(pair for pair in zip(a, b, strict=False) if pair[0] != pair[1])
    if _size(one) != _size(other):
        large, small = (one, other) if _size(one) > _size(other) else (other, one)
        return _cut(large, _size(small))
    while one[-1] is other[-1]:
        one, other = one[:-1], other[:-1]
    if one[-1].size == other[-1].size:
        return _same(one[-1], other[-1])
    inner, outer = sorted((one[-1], other[-1]), key=lambda atom: atom.size)
    return _split(outer, inner.size)


def _same(one: Atom, other: Atom) -> bool:
    if one.parts is None:
        one, other = other, one
    if other.parts is not None:
        unify(one.parts or (), other.parts)
    elif one.parts is None:
        one.fixed = one.fixed or other.fixed
    elif other.fixed:
        fix(one.parts)
    other.link = one
    return True


def _cut(segment: Segment, at: int) -> bool:
    """Makes the first atom of a product a sum, such that the product can be cut there."""
    inner = _size(segment[1:])
    if at % inner or not _leaf(segment[0]):
        return False
    first, fixed = segment[0], segment[0].fixed
    first.parts = _units(at // inner, fixed) + _units(first.size - at // inner, fixed)
    return True


def _split(atom: Atom, inner: int) -> bool:
    """Makes an atom a product whose last factor is of that size."""
    if atom.size % inner or not _leaf(atom):
        return False
    atom.parts = ((Atom(atom.size // inner, atom.fixed), Atom(inner, atom.fixed)),)
    return True


def _leaf(atom: Atom) -> bool:
    """Whether an atom is not refined; a sum in which nothing moves is made one that is not."""
    if atom.parts is not None and is_fixed(atom.parts):
        atom.parts, atom.fixed = None, True
    return atom.parts is None


def _tail(segment: Segment, size: int) -> int | None:
    """Where the last atoms begin whose product is of that size."""
    for number in range(len(segment), -1, -1):
        if _size(segment[number:]) == size:
            return number
    return None


def _open(segment: Segment, size: int) -> bool:
    """Splits the atom in whose midst such a product would begin."""
    for number in range(len(segment) - 1, -1, -1):
        inner = _size(segment[number + 1 :])
        if inner * segment[number].size > size:
            return size % inner == 0 and _split(segment[number], size // inner)
    return False
