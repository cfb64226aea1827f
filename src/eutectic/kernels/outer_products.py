"""matrices -> why they are no means of outer products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = LazyModule("numpy")

# Rows of a matrix that are compared with its columns at a time.
_SIDE = 512


def not_outer_products(matrices: NDArray[Any]) -> str:
    """Why one of the finite `(N, d, d)` is no mean of outer products; empty where all may be.

    Products that are rounded differ in their last bits from their mirror images, and no more.
    """
    side = matrices.shape[-1]
    for matrix in matrices if side else ():
        largest = float(matrix.diagonal().max())
        if matrix.diagonal().min() < 0:
            return "has negative squares on its diagonal"
        for start in range(0, side, _SIDE):
            rows = slice(start, start + _SIDE)
            if np.abs(matrix[rows] - matrix[:, rows].T).max() > 1e-3 * largest:
                return "is not symmetric"
    return ""
