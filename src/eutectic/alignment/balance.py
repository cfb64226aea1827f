"""Of all equivalent models the one of least norm: scales and bases that two models are compared in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eutectic.alignment import gauges
from eutectic.alignment.moves import compose
from eutectic.alignment.places import Index, Place
from eutectic.alignment.reading import Reading
from eutectic.checkpoint.symmetry import Moves
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# Scales of layers one behind the other depend on each other. Rounds of one layer after the other until none changes by
# more than this part; each halves about what is left.
_SETTLED = 1e-11
_ROUNDS = 1000


def balanced(reading: Reading, index: Index) -> Moves:
    """The scales and matrices to the equivalent model in which the sum of squares of all weights is least.

    Units with a scale come to have ‖made‖ = ‖read‖, as training with weight decay leaves them; so do vectors between
    two maps. The least norm is unique up to signs and rotations (Kempf and Ness, 1979; for scales also Stock et al.,
    2019, *Equi-normalization of neural networks*): models that are equivalent become equal up to these and orders.
    Units that are not made, or not read, stay.
    """
    moves = Moves()
    todo = [name for name, group in index.symmetries.groups.items() if group.scale in ("positive", "any")]
    todo += [name for name, gauge in index.symmetries.gauges.items() if gauge.kind != "orthogonal"]
    neighbours = {name: {one for tensor in index.tensors_of([name]) for one in index.movers[tensor]} for name in todo}
    around = {name for name in todo if _around(index, name)}
    for _ in range(_ROUNDS):
        changed: set[str] = set()
        for name in todo:
            step, change = _step(reading, index, name, moves)
            if change > _SETTLED:
                moves = compose(step, moves, index.symmetries)
                changed.add(name)
        # What stands alone is right after one step, unless it reads what it makes itself.
        todo = [name for name in neighbours if changed & (neighbours[name] - ({name} - around))]
        if not todo:
            break
    return moves


def _step(reading: Reading, index: Index, name: str, moves: Moves) -> tuple[Moves, float]:
    """The best scales or matrices of one group or gauge while all others stay, and the most that they change."""
    made, read = _grams(reading, index, name, moves)
    if name in index.symmetries.gauges:
        matrices = gauges.balance(index.symmetries.gauges[name].kind, made, read)
        eye = torch.eye(matrices.shape[-1], dtype=torch.float64)
        return Moves(matrices={name: matrices}), float((matrices - eye).abs().max())
    p, q = made.flatten(), read.flatten()
    whole = (p > 0) & (q > 0)
    # Units that are on both sides of a tensor all step at once: a whole step would lead as far beyond the balance.
    power = 0.125 if _around(index, name) else 0.25
    scale = torch.where(whole, (q / torch.where(whole, p, 1.0)) ** power, 1.0)
    return Moves(scales={name: scale}), float((scale - 1).abs().max())


def _around(index: Index, name: str) -> bool:
    """Whether units of a group are made by a tensor out of themselves, as those of a recurrent layer are."""
    return any(index.twice(name, tensor) for tensor in index.tensors)


def _grams(reading: Reading, index: Index, name: str, moves: Moves) -> tuple[Tensor, Tensor]:
    """Gram matrices of what makes and what reads the vectors of each unit, (units, size, size); size 1 for scales."""
    symmetries = index.symmetries
    gauge = symmetries.gauges.get(name)
    if gauge is None:
        units, size = symmetries.groups[name].size, 1
    else:
        units, size = 1 if gauge.of is None else symmetries.groups[gauge.of].size, gauge.size
    made, read = torch.zeros(2, units, size, size, dtype=torch.float64)
    for tensor in index.tensors:
        places = [place for place in index.places[tensor] if name in (place.group, place.gauge)]
        if not places:
            continue
        for block in reading.blocks(tensor, moves):
            for place in places:
                if place.part.role != "order":
                    vectors = _vectors(place, block.double(), units, gauge is None)
                    (read if place.part.role == "in" else made).add_(vectors @ vectors.mT)
    return made, read


def _vectors(place: Place, block: Tensor, units: int, scale: bool) -> Tensor:
    return place.units(block)[:, None] if scale else place.vectors(block, units)
