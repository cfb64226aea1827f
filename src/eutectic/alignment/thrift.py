"""Scales and bases that bring B hardly nearer to A are noise of training, and are left as they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from eutectic.alignment.comparing import Pair
from eutectic.alignment.moves import essential
from eutectic.checkpoint.symmetry import Moves
from eutectic.errors import several
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

# What scales or bases of a group must take away of ‖A - B‖² over its tensors. See docs/decisions/0021-matching.md.
WORTH = 0.1
# They fit noise too, and take away as much as their numbers are of all entries: they must do so many times better.
_MORE_THAN_NOISE = 2


# Nearer to the identity than this is rounding.
_ROUNDING = 1e-9


def thrifty(pair: Pair, moves: Moves) -> tuple[Moves, tuple[str, ...]]:
    """Moves without the scales and matrices that are not worth it, and what was left out in sentences.

    Signs and orders stay. Each group and gauge is judged by ‖A - moved B‖² over its tensors, with it and without.
    """
    dropped = 0
    for name in [*moves.scales, *moves.matrices]:
        size = _size(moves, name)
        if size <= _ROUNDING:
            moves = _without(moves, name)
        elif not _worth(pair, moves, name):
            moves = _without(moves, name)
            dropped += 1
    note = (
        f"scales and bases of {several(dropped, 'group')} stay as they are: they would bring the models hardly nearer"
    )
    return essential(moves), (note,) if dropped else ()


def _size(moves: Moves, name: str) -> float:
    """How far scales, signs apart, or matrices are from the identity."""
    if name in moves.scales:
        return float((moves.scales[name].abs() - 1).abs().max())
    matrices = moves.matrices[name]
    return float((matrices - torch.eye(matrices.shape[-1], dtype=torch.float64)).abs().max())


def _worth(pair: Pair, moves: Moves, name: str) -> bool:
    tensors = pair.index.tensors_of([name])
    with_it, without = (math.fsum(pair.distances(tensors, one).values()) for one in (moves, _without(moves, name)))
    numbers = (moves.matrices if name in moves.matrices else moves.scales)[name].numel()
    noise = _MORE_THAN_NOISE * numbers / sum(pair.a.specs[tensor].numel for tensor in tensors)
    return with_it <= (1 - max(WORTH, noise)) * without


def _without(moves: Moves, name: str) -> Moves:
    if name in moves.matrices:
        return Moves(moves.orders, moves.scales, {key: one for key, one in moves.matrices.items() if key != name})
    return Moves(moves.orders, {**moves.scales, name: moves.scales[name].sign()}, moves.matrices)
