"""Elements of a symmetry group: random ones, inverses and products."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from eutectic.checkpoint.symmetry import Axis, Gauge, Group, Moves, Symmetries
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


def random_moves(symmetries: Symmetries, seed: int) -> Moves:
    """A random element: the same for the same groups, gauges and seed, whatever their order in the table.

    Orders are uniform among those that move something and keep the units of one unit of `within` together. Positive
    scales are from ½ to 2, with a random sign where the group has both. Linear matrices have singular values from ½ to
    2, orthogonal ones are from Haar's distribution, rotary ones have a uniform angle and a scale from ½ to 2 in each
    plane.
    """
    draw = torch.Generator().manual_seed(seed)
    orders: dict[str, Tensor] = {}
    for name in _parents_first(symmetries):
        group = symmetries.groups[name]
        orders[name] = _random_order(group, orders.get(group.within or ""), draw)
    scales = {name: _random_scale(one, draw) for name, one in sorted(symmetries.groups.items()) if one.scale}
    matrices = {
        name: torch.stack([_random_matrix(one, draw) for _ in range(_units(symmetries, one))])
        for name, one in sorted(symmetries.gauges.items())
    }
    return Moves(orders, scales, matrices)


def compose(second: Moves, first: Moves, symmetries: Symmetries) -> Moves:
    """The element that does `first`, then `second`: moved(x, result) = moved(moved(x, first), second).

    Exact for orders; scales and matrices are products in float64.
    """
    first = _shelved(first, second, symmetries)
    orders = {
        name: _order(first, name, one.size)[_order(second, name, one.size)]
        for name, one in symmetries.groups.items()
        if name in first.orders or name in second.orders
    }
    scales = {
        name: _scale(second, name, one.size) * _scale(first, name, one.size)[_order(second, name, one.size)]
        for name, one in symmetries.groups.items()
        if name in first.scales or name in second.scales
    }
    matrices = {}
    for name, gauge in symmetries.gauges.items():
        if name not in first.matrices and name not in second.matrices:
            continue
        before = _carried(first, name, gauge, second, symmetries)
        matrices[name] = second.matrices[name].double() @ before if name in second.matrices else before
    return Moves(orders, scales, matrices)


def inverse(moves: Moves, symmetries: Symmetries) -> Moves:
    """The element that undoes another: exact for orders, float64 for scales and matrices."""
    orders = {name: torch.argsort(order) for name, order in moves.orders.items()}
    scales = {
        name: 1 / (scale.double()[orders[name]] if name in orders else scale.double())
        for name, scale in moves.scales.items()
    }
    back = Moves(orders, scales)
    undone = Moves({}, {}, {name: torch.linalg.inv(one.double()) for name, one in moves.matrices.items()})
    gauges = symmetries.gauges.items()
    matrices = {name: _carried(undone, name, one, back, symmetries) for name, one in gauges if name in moves.matrices}
    return _shelved(Moves(orders, scales, matrices), back, symmetries)


def essential(moves: Moves) -> Moves:
    """The same element without the groups and gauges that it leaves as they are."""
    return Moves(
        {name: one for name, one in moves.orders.items() if not torch.equal(one, torch.arange(len(one)))},
        {name: one for name, one in moves.scales.items() if not torch.all(one == 1)},
        {
            name: one
            for name, one in moves.matrices.items()
            if not torch.equal(one, torch.eye(one.shape[-1]).to(one).expand_as(one))
        },
    )


def _shelved(moves: Moves, by: Moves, symmetries: Symmetries) -> Moves:
    """What `moves` do within the units of stacks, each named for the place to which `by` brings its unit."""
    renamed: dict[str, str] = {}
    for group, patterns in symmetries.stacks.items():
        for place, taken in enumerate(_order(by, group, symmetries.groups[group].size).tolist()):
            for pattern in patterns:
                here, there = (symmetries.axes[pattern.replace("{}", str(unit))] for unit in (place, taken))
                renamed |= dict(zip(_names(here), _names(there), strict=True))
    kept = {new: old for new, old in renamed.items() if new != old}
    return Moves(*(_renamed(part, kept) for part in (moves.orders, moves.scales, moves.matrices)))


def _names(axes: tuple[Axis, ...]) -> list[str]:
    factors = (factor for parts in axes for part in parts for factor in part.factors)
    return [name for factor in factors for name in (factor.group, factor.gauge) if name is not None]


def _renamed(of: Mapping[str, Tensor], kept: Mapping[str, str]) -> dict[str, Tensor]:
    stay = {name: one for name, one in of.items() if name not in kept}
    return stay | {new: of[old] for new, old in kept.items() if old in of}


def _carried(moves: Moves, name: str, gauge: Gauge, by: Moves, symmetries: Symmetries) -> Tensor:
    """A gauge's matrices once `by` has moved the units that they are of, and the coordinates if those are units too."""
    matrices = moves.matrices.get(name)
    matrices = _eye(symmetries, gauge) if matrices is None else matrices.double()
    if gauge.of is not None:
        matrices = matrices[_order(by, gauge.of, len(matrices))]
    if (group := _coordinates(name, symmetries)) is not None:
        order, scale = _order(by, group, gauge.size), _scale(by, group, gauge.size)
        matrices = scale[:, None] * matrices[:, order][:, :, order] / scale
    return matrices


def _coordinates(gauge: str, symmetries: Symmetries) -> str | None:
    """The group that a gauge's coordinates are units of as well, as those of a residual stream are."""
    for _, _, part, place in symmetries.places(gauge):
        if part.factors[place].gauge == gauge and part.factors[place].group is not None:
            return part.factors[place].group
    return None


def _order(moves: Moves, name: str, size: int) -> Tensor:
    order = moves.orders.get(name)
    return torch.arange(size) if order is None else order


def _scale(moves: Moves, name: str, size: int) -> Tensor:
    scale = moves.scales.get(name)
    return torch.ones(size, dtype=torch.float64) if scale is None else scale.double()


def _units(symmetries: Symmetries, gauge: Gauge) -> int:
    return 1 if gauge.of is None else symmetries.groups[gauge.of].size


def _eye(symmetries: Symmetries, gauge: Gauge) -> Tensor:
    return torch.eye(gauge.size, dtype=torch.float64).repeat(_units(symmetries, gauge), 1, 1)


def _parents_first(symmetries: Symmetries) -> Iterator[str]:
    """Names of the groups, sorted, each behind the one that it is within."""
    left = sorted(symmetries.groups)
    given: set[str] = set()
    while left:
        ready = [name for name in left if symmetries.groups[name].within in {None, *given}]
        if not ready:
            raise ValueError(f"groups within each other, or within none that there is: {', '.join(left)}")
        yield from ready
        given.update(ready)
        left = [name for name in left if name not in given]


def _random_order(group: Group, parent: Tensor | None, draw: torch.Generator) -> Tensor:
    within = torch.zeros(1, dtype=torch.int64) if parent is None else parent
    inner = group.size // len(within)
    stay = torch.arange(inner)
    while True:
        orders = torch.stack([torch.randperm(inner, generator=draw) for _ in within])
        if inner < 2 or not torch.all(orders == stay):
            return (within[:, None] * inner + orders).reshape(-1)


def _random_scale(group: Group, draw: torch.Generator) -> Tensor:
    sign = torch.randint(2, (group.size,), generator=draw).double() * 2 - 1
    size = torch.exp2(torch.rand(group.size, generator=draw, dtype=torch.float64) * 2 - 1)
    return {"sign": sign, "positive": size, "any": sign * size}[group.scale]


def _random_matrix(gauge: Gauge, draw: torch.Generator) -> Tensor:
    if gauge.kind == "orthogonal":
        return _haar(gauge.size, draw)
    if gauge.kind == "linear":
        values = torch.exp2(torch.rand(gauge.size, generator=draw, dtype=torch.float64) * 2 - 1)
        return _haar(gauge.size, draw) * values @ _haar(gauge.size, draw)
    planes = gauge.size // 2
    angle = torch.rand(planes, generator=draw, dtype=torch.float64) * 2 * math.pi
    scale = torch.exp2(torch.rand(planes, generator=draw, dtype=torch.float64) * 2 - 1)
    cosine, sine = torch.diag(scale * angle.cos()), torch.diag(scale * angle.sin())
    return torch.cat([torch.cat([cosine, -sine], 1), torch.cat([sine, cosine], 1)])


def _haar(size: int, draw: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))
    made: Tensor = q * r.diagonal().sign()
    return made
