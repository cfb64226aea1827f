"""What matching will take: operations, assignments and memory, from headers alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from eutectic.alignment.places import Family, Index, Place, votes
from eutectic.alignment.reading import BLOCK
from eutectic.checkpoint.source import Spec
from eutectic.checkpoint.symmetry import Symmetries

# Of a symmetric or general d × d matrix, operations of its singular values and of all factors, in units of d³.
_VALUES, _FACTORS = 4, 20
# Float64 copies that are alive at once, measured: of a block while B is moved, of similarities while they are added up
# and assigned.
_BLOCKS, _SIMILARITIES = 4, 6


@dataclass(frozen=True)
class Cost:
    """The cost of one sweep in which every family takes its turn.

    A match takes about one such sweep for models that are equivalent or of one base, and ten or twenty for others, most
    of them with few families.

    Attributes:
        sweeps: how many there are at most.
        flops: floating-point operations of similarities and bases.
        read: bytes of both models that are read; after the first sweep from memory, as far as it keeps them.
        assignments: units → how many assignment problems of that size.
        memory: bytes at the peak, without what is kept between reads.
    """

    sweeps: int
    flops: int
    read: int
    assignments: Mapping[int, int]
    memory: int


def predict(specs: Mapping[str, Spec], symmetries: Symmetries, *, sweeps: int = 100, restarts: int = 0) -> Cost:
    """What `match_weights` takes for two models of these tensors.

    Args:
        specs: of one model.
        symmetries: of it.
        sweeps: of an ascent at most, after the one that goes outwards.
        restarts: further ascents.
    """
    specs = symmetries.apart(specs)
    index = Index(symmetries, [name for name in symmetries.axes if votes(name, specs[name].dtype)])
    flops, read, peak = 0, 0, 0
    assignments: Counter[int] = Counter()
    for family in index.families:
        work, similarities = _of_family(index, family, specs)
        flops += work
        tensors = index.tensors_of(family.names)
        read += 2 * sum(specs[name].nbytes for name in tensors)
        block = max((_block(index, name, specs[name]) for name in tensors), default=0)
        peak = max(peak, 8 * (_BLOCKS * block + _SIMILARITIES * similarities))
        assignments.update(_assignments(family, symmetries))
    return Cost(1 + sweeps * (1 + restarts), flops, read, dict(sorted(assignments.items())), peak)


def _of_family(index: Index, family: Family, specs: Mapping[str, Spec]) -> tuple[int, int]:
    """Operations, and entries of its largest similarities."""
    flops, largest = 0, 0
    for name in index.tensors_of(family.names):
        for place in index.places[name]:
            if place.group in family.names or place.gauge in family.gauges:
                work, entries = _of_place(index, place, specs[name])
                flops += work
                largest = max(largest, entries)
    for name in family.gauges:
        gauge = index.symmetries.gauges[name]
        units = 1 if gauge.of is None else index.symmetries.groups[gauge.of].size
        if gauge.kind != "rotary":
            flops += (_VALUES * units**2 + _FACTORS * units) * gauge.size**3
    return flops, largest


def _of_place(index: Index, place: Place, spec: Spec) -> tuple[int, int]:
    sizes = [factor.size for factor in place.part.factors]
    share = spec.numel * place.part.size // max(1, spec.shape[place.axis])
    if place.gauge is None:
        units = sizes[place.factor]
        return 2 * units * share, units**2
    units, size = math.prod(sizes[: place.factor]), sizes[place.factor]
    if index.symmetries.gauges[place.gauge].kind == "rotary":
        return 4 * units * share, 2 * units**2 * size
    return 2 * units * size * share, (units * size) ** 2


def _block(index: Index, name: str, spec: Spec) -> int:
    moves = any(place.axis == 0 for place in index.places[name])
    return spec.numel if moves else min(spec.numel, max(BLOCK, math.prod(spec.shape[1:])))


def _assignments(family: Family, symmetries: Symmetries) -> Counter[int]:
    found: Counter[int] = Counter()
    if family.root is not None:
        size = symmetries.groups[family.root].size
        parts = 1 if family.within is None else symmetries.groups[family.within].size
        found[size // parts] += parts
        for name in family.inner:
            found[symmetries.groups[name].size // size] += size**2
    return found
