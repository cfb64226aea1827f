"""Scales and bases that bring B hardly nearer to A are noise of training, and are left as they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from eutectic.alignment.comparing import Pair
from eutectic.alignment.moves import essential
from eutectic.checkpoint.symmetry import Moves
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

# What scales or bases of a group must take away of ‖A - B‖² over its tensors. See docs/decisions/0021-matching.md.
WORTH = 0.1
# They fit noise too, and take away as much as their numbers are of all entries: they must do so many times better.
_MORE_THAN_NOISE = 2


def thrifty(pair: Pair, moves: Moves) -> tuple[Moves, tuple[str, ...]]:
    """Moves without the scales and matrices that are not worth it, and what was left out in sentences.

    Signs and orders stay. Each group and gauge is judged by ‖A - moved B‖² over its tensors, with it and without.
    """
    dropped = []
    signs = [name for name, scale in moves.scales.items() if torch.equal(scale.abs(), torch.ones_like(scale))]
    for name in [*(one for one in moves.scales if one not in signs), *moves.matrices]:
        without = _without(moves, name)
        tensors = pair.index.tensors_of([name])
        kept, left = (math.fsum(pair.distances(tensors, one).values()) for one in (moves, without))
        numbers = moves.matrices[name].numel() if name in moves.matrices else moves.scales[name].numel()
        noise = _MORE_THAN_NOISE * numbers / sum(pair.a.specs[tensor].numel for tensor in tensors)
        if kept > (1 - max(WORTH, noise)) * left:
            moves = without
            dropped.append(name)
    moves = essential(moves)
    if not dropped:
        return moves, ()
    return moves, (f"scales and bases of {len(dropped)} groups stay as they are: they bring the models hardly nearer",)


def _without(moves: Moves, name: str) -> Moves:
    if name in moves.matrices:
        return Moves(moves.orders, moves.scales, {key: one for key, one in moves.matrices.items() if key != name})
    return Moves(moves.orders, {**moves.scales, name: moves.scales[name].sign()}, moves.matrices)
