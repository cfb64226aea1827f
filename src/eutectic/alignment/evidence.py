"""What two models' weights say of which units of a family are alike, added up place by place."""

from __future__ import annotations

from collections.abc import Collection, Iterator
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


# Columns that are gathered before one product adds them up: most tensors are gains and biases, of one column each.
_COLUMNS = 1 << 12


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


class _Similarities:
    """Σ of products of (n, r) units of A and B, by group."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._waiting: dict[str, tuple[list[Tensor], list[Tensor]]] = {}

    def add(self, group: str, a: Tensor, b: Tensor) -> None:
        """Units seen at one more place, (n, r) each."""
        left, right = self._waiting.setdefault(group, ([], []))
        left.append(a)
        right.append(b)
        if sum(one.shape[1] for one in left) >= _COLUMNS:
            self._multiply(group)

    def total(self) -> dict[str, Tensor]:
        """Group → (n, n) float64."""
        for group in list(self._waiting):
            self._multiply(group)
        return self._sums

    def _multiply(self, group: str) -> None:
        left, right = self._waiting.pop(group)
        # In float32 where one is: which units are alike is no matter of rounding.
        work = torch.float64 if all(one.dtype == torch.float64 for one in [*left, *right]) else torch.float32
        a, b = (torch.cat([one.to(work) for one in side], 1) for side in (left, right))
        if group not in self._sums:
            self._sums[group] = torch.zeros(len(a), len(b), dtype=torch.float64)
        self._sums[group] += a @ b.T


def gathered(pair: Pair, form: Moves, moves: Moves, family: Family, tensors: Collection[str]) -> Evidence:
    """Similarities of a family's units in some tensors, B as it is now: what is found is a step from there.

    Args:
        pair: the models.
        form: of A.
        moves: of B.
        family: whose units are compared.
        tensors: that may speak, all movable by the family.
    """
    plain, signed = _Similarities(), _Similarities()
    crosses: dict[str, dict[str, Tensor]] = {}
    groups = pair.index.symmetries.groups
    for tensor, place in _places(pair.index, family, tensors):
        for left, right in zip(pair.a.blocks(tensor, form), pair.b.blocks(tensor, moves), strict=True):
            if place.gauge in family.gauges:
                _add_cross(crosses, pair.index, family, place, left, right)
            elif place.group is not None:
                signs = groups[place.group].scale in ("sign", "any") and place.part.role != "order"
                (signed if signs else plain).add(place.group, place.units(left), place.units(right))
    if family.root is not None and family.root in pair.index.symmetries.stacks:
        for column, names in enumerate(zip(*pair.index.units(family.root), strict=True)):
            a, b = (
                torch.stack([_sketch(reading, pair.index, family, name, element, column) for name in names])
                for reading, element in ((pair.a, form), (pair.b, moves))
            )
            plain.add(family.root, a, b)
    return Evidence(plain.total(), signed.total(), crosses)


def _places(index: Index, family: Family, tensors: Collection[str]) -> Iterator[tuple[str, Place]]:
    """Where units are compared, or, behind those that have bases of their own, vectors."""
    for tensor in tensors:
        for place in index.places[tensor]:
            vectors = any(factor.gauge in family.gauges for factor in place.part.factors)
            if place.gauge in family.gauges or (place.group in family.names and not vectors):
                yield tensor, place


def trusted(index: Index, family: Family, settled: Collection[str]) -> tuple[str, ...]:
    """The tensors of a family that nothing but itself and what is settled can move, if possible from one side."""
    known = {*settled, *family.names}
    found = tuple(name for name in index.tensors_of(family.names) if index.movers[name] <= known)
    one_sided = tuple(name for name in found if not index.twice(family.root, name))
    return one_sided or found


def _add_cross(
    crosses: dict[str, dict[str, Tensor]], index: Index, family: Family, place: Place, a: Tensor, b: Tensor
) -> None:
    assert place.gauge is not None
    owner = _owner(place, family)
    count = index.symmetries.groups[owner].size if owner else 1
    a, b = (one.to(torch.promote_types(a.dtype, b.dtype)) for one in (a, b))
    kind = index.symmetries.gauges[place.gauge].kind
    crossed = gauges.cross(kind, place.vectors(a, count), place.vectors(b, count))
    of = crosses.setdefault(place.gauge, {})
    of[owner] = of[owner] + crossed if owner in of else crossed


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
