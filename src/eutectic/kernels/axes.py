"""Units of an axis change places, and vectors along it are mixed: what a symmetry does to one tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
else:
    np = LazyModule("numpy")
    torch = LazyModule("torch")


def taken(tensor: Tensor, axis: int, sizes: Sequence[int], place: int, order: Tensor) -> Tensor:
    """Reads an axis as a product of factors and takes the units of one of them in another order.

    Args:
        tensor: of any dtype.
        axis: whose length is the product of `sizes`.
        sizes: of the factors, the slowest first.
        place: of the factor among them.
        order: (m,) int64; unit u of the result is unit `order[u]`. m may differ from the factor's size.

    Returns the tensor with its axis m / `sizes[place]` as long.
    """
    shape = tensor.shape
    apart = tensor.reshape(*shape[:axis], *sizes, *shape[axis + 1 :])
    length = shape[axis] // sizes[place] * len(order)
    return _selected(apart, axis + place, order).reshape(*shape[:axis], length, *shape[axis + 1 :])


def _selected(tensor: Tensor, axis: int, order: Tensor) -> Tensor:
    """Entries along an axis in another order."""
    if tensor.element_size() != 2 or tensor.device.type != "cpu" or tensor.requires_grad:
        return tensor.index_select(axis, order.to(tensor.device))
    # Of two bytes each NumPy takes them four times as fast.
    bits = np.take(tensor.view(torch.int16).numpy(), order.cpu().numpy(), axis=axis)
    return torch.from_numpy(bits).view(tensor.dtype)


def mixed(tensor: Tensor, axis: int, sizes: Sequence[int], place: int, matrices: Tensor) -> Tensor:
    """Reads an axis as a product of factors and multiplies one of them by a matrix for each unit of those before it.

    Args:
        tensor: floats.
        axis: whose length is the product of `sizes`.
        sizes: of the factors, the slowest first.
        place: of the factor among them, of size n.
        matrices: (c, m, n) float64. c divides the number of units before the factor; when there are more, as many
            consecutive units as it takes share a matrix (the query heads of a key's).

    Returns float64, with its axis m / n as long: y[u] = matrices[u·c // units] x[u].
    """
    shape, n = tensor.shape, sizes[place]
    count, m = matrices.shape[0], matrices.shape[1]
    wide = tensor.double().movedim(axis, 0)
    inside = math.prod(sizes[place + 1 :]) * math.prod(wide.shape[1:])
    apart = wide.reshape(count, math.prod(sizes[:place]) // count, n, inside)
    made = torch.einsum("cmn,cgnr->cgmr", matrices.to(wide), apart)
    length = shape[axis] // n * m
    return made.reshape(length, *wide.shape[1:]).movedim(0, axis)


def scaled(tensor: Tensor, axis: int, sizes: Sequence[int], place: int, scale: Tensor) -> Tensor:
    """Reads an axis as a product of factors and multiplies each unit of one of them by a number of its own.

    Args as of `taken`; `scale` is (sizes[place],) float64. Returns float64.
    """
    shape = [1] * len(sizes)
    shape[place] = sizes[place]
    along = scale.double().reshape(shape).expand(*sizes).reshape(-1).to(tensor.device)
    return tensor.double() * along.reshape(-1, *[1] * (tensor.dim() - axis - 1))


def pooled(tensor: Tensor, axis: int, sizes: Sequence[int], place: int, into: Tensor, count: int) -> Tensor:
    """Reads an axis as a product of factors and adds up those units of one of them that go into the same unit.

    Args as of `taken`; `into` is (sizes[place],) int64: unit u is added to unit `into[u]` of `count` units. Returns
    float64, with its axis count / `sizes[place]` as long.
    """
    shape = tensor.shape
    apart = tensor.double().reshape(*shape[:axis], *sizes, *shape[axis + 1 :])
    total = apart.new_zeros(*apart.shape[: axis + place], count, *apart.shape[axis + place + 1 :])
    total.index_add_(axis + place, into.to(tensor.device), apart)
    return total.reshape(*shape[:axis], shape[axis] // sizes[place] * count, *shape[axis + 1 :])
