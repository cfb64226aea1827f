"""What two models' weights say of which units of a family are alike, added up place by place."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eutectic.alignment import gauges
from eutectic.alignment.comparing import Pair
from eutectic.alignment.places import Family, Index, Place
from eutectic.alignment.reading import Reading
from eutectic.checkpoint.symmetry import Moves
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# Directions in which the matrices of two experts are compared, and the seed that they are drawn with.
_PROBES = 32


@dataclass
class Evidence:
    """Similarities of the units of A (rows) and those of B as it is now (columns), float64.

    Attributes:
        plain: group → (n, n), where nothing but the unit's place can change.
        signed: group → (n, n), where its sign can change as well.
        crosses: gauge → group whose units have the vectors ("" for a gauge of none) → what `gauges.cross` makes.
    """

    plain: dict[str, Tensor] = field(default_factory=dict)
    signed: dict[str, Tensor] = field(default_factory=dict)
    crosses: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def gathered(pair: Pair, form: Moves, moves: Moves, family: Family, tensors: Collection[str]) -> Evidence:
    """Similarities of a family's units in some tensors, B as it is now: what is found is a step from there.

    Args:
        pair: the models.
        form: of A.
        moves: of B.
        family: whose units are compared.
        tensors: that may speak, all movable by the family.
    """
    found, index = Evidence(), pair.index
    for tensor in tensors:
        places = [one for one in index.places[tensor] if one.group in family.names or one.gauge in family.gauges]
        if places:
            for left, right in zip(pair.a.blocks(tensor, form), pair.b.blocks(tensor, moves), strict=True):
                for place in places:
                    _add(found, index, family, place, left, right)
    if family.root is not None and family.root in index.symmetries.stacks:
        for column, names in enumerate(zip(*index.units(family.root), strict=True)):
            a, b = (
                torch.stack([_sketch(reading, index, family, name, element, column) for name in names])
                for reading, element in ((pair.a, form), (pair.b, moves))
            )
            _accumulate(found.plain, family.root, a @ b.T)
    return found


def trusted(index: Index, family: Family, settled: Collection[str]) -> tuple[str, ...]:
    """The tensors of a family that nothing but itself and what is settled can move, if possible from one side."""
    known = {*settled, *family.names}
    found = tuple(name for name in index.tensors_of(family.names) if index.movers[name] <= known)
    one_sided = tuple(name for name in found if not index.twice(family, name))
    return one_sided or found


def _add(found: Evidence, index: Index, family: Family, place: Place, a: Tensor, b: Tensor) -> None:
    if place.gauge in family.gauges:
        owner = _owner(place, family)
        gauge = index.symmetries.gauges[place.gauge]
        count = index.symmetries.groups[owner].size if owner else 1
        a, b = (one.to(torch.promote_types(a.dtype, b.dtype)) for one in (a, b))
        crossed = gauges.cross(gauge.kind, place.vectors(a, count), place.vectors(b, count))
        _accumulate(found.crosses.setdefault(place.gauge, {}), owner, crossed)
    elif place.group in family.names and not _bases(place, family):
        group = index.symmetries.groups[place.group]
        signs = group.scale in ("sign", "any") and place.part.role != "order"
        _accumulate(found.signed if signs else found.plain, place.group, _similarity(place.units(a), place.units(b)))


def _accumulate(sums: dict[str, Tensor], name: str, more: Tensor) -> None:
    sums[name] = sums[name] + more if name in sums else more


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    """(n, r), (n, r) → (n, n) float64. In float32 where one is: which units are alike is no matter of rounding."""
    work = torch.float64 if a.dtype == b.dtype == torch.float64 else torch.float32
    return (a.to(work) @ b.to(work).T).double()


def _bases(place: Place, family: Family) -> bool:
    """Whether vectors of the family's gauges stand behind these units: then they are compared, and not their bases."""
    return any(factor.gauge in family.gauges for factor in place.part.factors)


def _owner(place: Place, family: Family) -> str:
    """Whose units have the vectors at this place: the innermost group of the family before them."""
    before = [factor.group for factor in place.part.factors[: place.factor]]
    owners = [group for group in before if group is not None and group in family.names]
    return owners[-1] if owners else family.root or ""


def _sketch(reading: Reading, index: Index, family: Family, name: str, moves: Moves, seed: int) -> Tensor:
    """An expert's matrix without the order of its hidden units.

    Of V it is VᵀVΩ/√‖VᵀVΩ‖ for a few random directions Ω of the side that stays, the residual stream: whatever rotates
    the hidden units, its inner products are near ⟨VᵀV, WᵀW⟩, brought to the size of ⟨V, W⟩.
    """
    tensor = torch.cat(list(reading.blocks(name, moves))).double()
    hidden = [place for place in index.places[name] if place.group in family.stacked]
    if not hidden:
        return tensor.flatten()
    rows = hidden[0].units(tensor)
    probes = torch.randn(rows.shape[1], _PROBES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    image = rows.T @ (rows @ probes) / _PROBES**0.5
    sketch: Tensor = image / image.norm().clamp_min(torch.finfo(image.dtype).tiny).sqrt()
    return sketch.flatten()
