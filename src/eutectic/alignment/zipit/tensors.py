"""Tensors of several models, partitions of their units -> the merged tensor, and what each model keeps of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eutectic.alignment.zipit.partition import Partition
from eutectic.checkpoint.symmetry import Axis, Symmetries
from eutectic.kernels.axes import pooled
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

Partitions = Mapping[str, Partition]


def merged(tensors: Sequence[Tensor], axes: Sequence[Axis], partitions: Partitions) -> Tensor:
    """W* = Σₖ Mₖ Wₖ Uₖ: rows that make units are averaged within each set, columns that read them added up.

    What has no unit (a head's rows) is averaged over the models. Gains, biases and running statistics are rows.

    Args:
        tensors: of each model, of one shape.
        axes: of the tensor.
        partitions: of the groups that are merged; the others' units keep their places.

    Returns the tensor of the first one's dtype, rounded once; where that is no float, the first itself.
    """
    first = tensors[0]
    if not first.is_floating_point():
        return first
    total = torch.zeros(first.shape, dtype=torch.float64, device=first.device)
    makes = [any(part.role != "in" for part in parts) for parts in axes]
    flat = [size if made else 1 for size, made in zip(first.shape, makes, strict=True)]
    weight = torch.zeros(flat, dtype=torch.float64, device=first.device)
    for model, tensor in enumerate(tensors):
        total += _into(tensor.to(first.device), axes, partitions, model, ("out", "in", "order"))
        made = [parts if made else () for parts, made in zip(axes, makes, strict=True)]
        weight += _into(torch.ones_like(weight), made, partitions, model, ("out", "order"))
    # No pair of units of one model may have come to a place, where two axes make units.
    return (total / weight.clamp(min=1)).to(first.dtype)


def reading(tensor: Tensor, axes: Sequence[Axis], partitions: Partitions, model: int) -> Tensor:
    """Wₖ Uₖ: a tensor that stays of its model, reading merged units instead of the model's own."""
    if not tensor.is_floating_point():
        return tensor
    return _into(tensor, axes, partitions, model, ("in",)).to(tensor.dtype)


def _into(tensor: Tensor, axes: Sequence[Axis], partitions: Partitions, model: int, roles: Sequence[str]) -> Tensor:
    for number, parts in enumerate(axes):
        found = [part.role in roles and any(one.group in partitions for one in part.factors) for part in parts]
        if not any(found):
            continue
        pieces = list(torch.split(tensor.double(), [part.size for part in parts], number))
        for at, part in enumerate(parts):
            sizes = [factor.size for factor in part.factors]
            for place, factor in enumerate(part.factors) if found[at] else ():
                if (partition := partitions.get(factor.group or "")) is not None:
                    into = partition.into[model]
                    pieces[at] = pooled(pieces[at], number, sizes, place, into, len(into))
        tensor = torch.cat(pieces, number)
    return tensor


def places_of(symmetries: Symmetries, name: str) -> list[str]:
    """The names under which the table has a tensor: its own, or those of its slices."""
    if name in symmetries.axes:
        return [name]
    found: list[str] = []
    while (place := f"{name}[{len(found)}]") in symmetries.axes:
        found.append(place)
    return found
