"""Moves -> every reason why they are no element of the group that a table of symmetries describes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from eutectic.checkpoint.symmetry import Gauge, Group, Moves, Symmetries
from eutectic.errors import Problem, did_you_mean
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# Relative error up to which a matrix is of its gauge's kind, and the condition number from which it cannot be inverted.
_KIND, _CONDITION = 1e-6, 1e10


def misfits(symmetries: Symmetries, moves: Moves) -> Iterator[Problem]:
    """Everything by which moves are no element of the group (G112), each with the group or gauge as its place."""
    for kind, given, known in (
        ("order", moves.orders, symmetries.groups),
        ("scale", moves.scales, symmetries.groups),
        ("matrices", moves.matrices, symmetries.gauges),
    ):
        for name in given:
            if name not in known:
                yield Problem("G112", f"has {kind}, and the symmetries do not know it", name, did_you_mean(name, known))
    for name, group in symmetries.groups.items():
        order, scale = moves.orders.get(name), moves.scales.get(name)
        if order is not None and (why := _no_order(order, group)):
            yield Problem("G112", f"the order {why}", name)
        elif group.within is not None and not _stays_within(name, group, symmetries, moves):
            yield Problem("G112", f"units leave the unit of {group.within} that they are within", name)
        if scale is not None and (why := _no_scale(scale, group)):
            yield Problem("G112", f"the scale {why}", name)
    for name, gauge in symmetries.gauges.items():
        if (matrices := moves.matrices.get(name)) is not None:
            units = 1 if gauge.of is None else symmetries.groups[gauge.of].size
            if why := _no_matrices(matrices, gauge, units):
                yield Problem("G112", f"the matrices {why}", name)


def _no_order(order: Tensor, group: Group) -> str:
    if order.dtype != torch.int64 or tuple(order.shape) != (group.size,):
        return f"is {_about(order)}, and must be int64 [{group.size}]"
    return "" if torch.equal(order.sort().values, torch.arange(group.size)) else "does not have each unit once"


def _stays_within(name: str, group: Group, symmetries: Symmetries, moves: Moves) -> bool:
    """Whether units go where the unit goes that they are within; true where sizes or the outer order are wrong."""
    outer = symmetries.groups[str(group.within)]
    order, above = moves.orders.get(name), moves.orders.get(str(group.within))
    if group.size % outer.size or (above is not None and _no_order(above, outer)):
        return True
    order = torch.arange(group.size) if order is None else order
    above = torch.arange(outer.size) if above is None else above
    inner = group.size // outer.size
    return torch.equal(order // inner, above.repeat_interleave(inner))


def _no_scale(scale: Tensor, group: Group) -> str:
    if not group.scale:
        return "is of a group whose units have none"
    if scale.dtype != torch.float64 or tuple(scale.shape) != (group.size,):
        return f"is {_about(scale)}, and must be float64 [{group.size}]"
    if not (torch.isfinite(scale) & torch.isfinite(1 / scale)).all():
        return "is zero or not finite for some units, or its inverse is not"
    if group.scale == "sign" and not (scale.abs() == 1).all():
        return "is not 1 or -1 for some units, which is all that the group allows"
    return "is not positive for some units" if group.scale == "positive" and not (scale > 0).all() else ""


def _no_matrices(matrices: Tensor, gauge: Gauge, units: int) -> str:
    due = (units, gauge.size, gauge.size)
    if matrices.dtype != torch.float64 or tuple(matrices.shape) != due:
        return f"are {_about(matrices)}, and must be float64 {list(due)}"
    if not torch.isfinite(matrices).all():
        return "are not finite"
    values = torch.linalg.svdvals(matrices)
    if not ((values[:, 0] < _CONDITION * values[:, -1]) & torch.isfinite(1 / values[:, -1])).all():
        return "cannot be inverted"
    if gauge.kind == "linear":
        return ""
    off = (matrices - _nearest(matrices, gauge)).flatten(1).norm(dim=1) / matrices.flatten(1).norm(dim=1)
    return f"are not {gauge.kind}" if (off > _KIND).any() else ""


def _nearest(matrices: Tensor, gauge: Gauge) -> Tensor:
    """The nearest matrices of a gauge's kind."""
    if gauge.kind == "orthogonal":
        left, _, right = torch.linalg.svd(matrices)
        return torch.bmm(left, right)
    half = gauge.size // 2
    a, b = matrices[:, :half, :half], matrices[:, :half, half:]
    c, d = matrices[:, half:, :half], matrices[:, half:, half:]
    same, turned = (torch.diag_embed(((x + y) / 2).diagonal(dim1=1, dim2=2)) for x, y in ((a, d), (c, -b)))
    return torch.cat([torch.cat([same, -turned], 2), torch.cat([turned, same], 2)], 1)


def _about(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
