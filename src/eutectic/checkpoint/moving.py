"""Rows of a moved tensor, made from no more of the tensor than they need."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from eutectic.checkpoint.symmetry import Axis, Group, Moves, Part, fixed, moved
from eutectic.kernels.axes import mixed, scaled, taken
from eutectic.kernels.digests import BLOCK
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# Gives rows of the tensor before it moves, or entries of a vector: those of each run (first, last + 1), in this order.
Read = Callable[[Sequence[tuple[int, int]]], "Tensor"]

# What becomes of entries: nothing, they change places, also signs, also values, which must then be rounded.
Change = Literal["", "places", "signs", "values"]
_CHANGES = ("", "places", "signs", "values")


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `first:last` of a moved tensor, all of one part, which starts at row `start`.

    `whole`: they are mixed with each other or along the row, and are always made together, so that their bits do not
    depend on what was asked for.
    """

    part: Part
    start: int
    first: int
    last: int
    whole: bool


def change_of(axes: Sequence[Axis], moves: Moves, groups: Mapping[str, Group]) -> Change:
    """What becomes of the entries of a tensor: the most that happens to any of them."""
    found: set[Change] = {""}
    for part in (part for parts in axes for part in parts):
        for factor in part.factors:
            if factor.group in moves.orders:
                found.add("places")
            if part.role == "order":
                continue
            if (group := factor.group or "") in moves.scales:
                found.add("signs" if groups[group].scale == "sign" else "values")
            if factor.gauge in moves.matrices:
                found.add("values")
    return max(found, key=_CHANGES.index)


def pieces(axes: Sequence[Axis], moves: Moves) -> Iterator[Piece]:
    """The rows of a moved tensor in pieces of about a block of entries, or of as many rows as are mixed."""
    row = math.prod(sum(part.size for part in parts) for parts in axes[1:])
    along = any(_mixes(part, moves) < len(part.factors) for parts in axes[1:] for part in parts)
    start = 0
    for part in axes[0]:
        block = _block(part, moves)
        step = block * max(1, BLOCK // max(block * row, 1))
        whole = along or block > 1
        for first in range(start, start + part.size, step):
            yield Piece(part, start, first, min(first + step, start + part.size), whole)
        start += part.size


def made(piece: Piece, axes: Sequence[Axis], moves: Moves, read: Read) -> Tensor:
    """The rows of a piece of the moved tensor, as `symmetry.moved` makes them: of their own dtype, or float64.

    Args:
        piece: what is wanted; one that is not `whole` may be a part of what `pieces` gives.
        axes: of the tensor.
        moves: what to do.
        read: gives the rows before they move.
    """
    low, high = piece.first - piece.start, piece.last - piece.start
    tensor = read(_runs(_origins(piece.part, moves, low, high) + piece.start))
    tensor = _scaled_and_mixed(tensor, piece.part, moves, low)
    return moved(tensor, (fixed(len(tensor)), *axes[1:]), moves)


def _mixes(part: Part, moves: Moves) -> int:
    """The place of the first factor whose coordinates are mixed; the number of factors if there is none."""
    if part.role == "order":
        return len(part.factors)
    places = (place for place, factor in enumerate(part.factors) if factor.gauge in moves.matrices)
    return next(places, len(part.factors))


def _block(part: Part, moves: Moves) -> int:
    """Entries of an axis that are mixed with each other."""
    return math.prod(factor.size for factor in part.factors[_mixes(part, moves) :])


def _origins(part: Part, moves: Moves, low: int, high: int) -> Tensor:
    """Where entries `low:high` of a part come from, as far as places change."""
    origins = torch.arange(part.size)
    sizes = [factor.size for factor in part.factors]
    for place, factor in enumerate(part.factors):
        if (order := moves.orders.get(factor.group or "")) is not None:
            origins = taken(origins, 0, sizes, place, order)
    return origins[low:high]


def _runs(rows: Tensor) -> list[tuple[int, int]]:
    """Rows as runs of consecutive ones, each of which is read at once."""
    breaks = (rows.diff() != 1).nonzero().flatten()
    firsts = torch.cat([rows[:1], rows[breaks + 1]])
    lasts = torch.cat([rows[breaks], rows[-1:]])
    return list(zip(firsts.tolist(), (lasts + 1).tolist(), strict=True))


def _scaled_and_mixed(tensor: Tensor, part: Part, moves: Moves, low: int) -> Tensor:
    """Multiplies rows that have their places: entries of a part from `low` on, of whole blocks where they are mixed."""
    if part.role == "order":
        return tensor
    sizes = [factor.size for factor in part.factors]
    first, block = _mixes(part, moves), _block(part, moves)
    blocks = [len(tensor) // block, *sizes[first:]]
    for place, factor in enumerate(part.factors):
        if (scale := moves.scales.get(factor.group or "")) is not None:
            by = scaled(torch.ones(part.size), 0, sizes, place, 1 / scale.double() if part.role == "in" else scale)
            tensor = tensor.double() * by[low : low + len(tensor)].reshape(-1, *[1] * (tensor.dim() - 1))
        if (gauge := factor.gauge or "") in moves.matrices:
            matrices = moves.duals[gauge] if part.role == "in" else moves.matrices[gauge]
            inside = math.prod(sizes[first:place])
            units = torch.arange(low // block * inside, (low + len(tensor)) // block * inside)
            sharing = math.prod(sizes[:place]) // len(matrices)
            tensor = mixed(tensor, 0, blocks, place - first + 1, matrices[units // sharing])
    return tensor
