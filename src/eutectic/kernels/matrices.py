"""Δ -> matrices, their singular vectors, and the nearest orthonormal columns: what the spectral methods share.

Singular vectors come from the Gram matrix of the smaller side, in float64. For deltas that were rounded to float32
this is closer to the exact answer than LAPACK's SVD in float32, and several times faster. What it cannot resolve,
singular values below about 1e-8 of the largest, is rounding noise in such deltas and is cut off at `RESOLVED`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eutectic.kernels.sums import one_a_model
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# Rounding a matrix to float32 gives it singular values of up to about 2⁻²⁴ of the largest where it had none. Below
# four times that a direction is noise, and methods that level the singular values would make the noise large.
RESOLVED = 2.0**-22


class Tasks:
    """The task vectors wᵢ τᵢ of one tensor, each widened to float64 when its turn comes; none of weight zero."""

    def __init__(self, deltas: Tensor, weights: Sequence[float]) -> None:
        self._rows = [(delta, weight) for delta, weight in zip(deltas, weights, strict=True) if weight]
        self.shape = tuple(deltas.shape[1:])
        self._zero = deltas.new_zeros(deltas.shape[1:], dtype=torch.float64)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Tensor]:
        for delta, weight in self._rows:
            yield delta.double() * weight

    def total(self) -> Tensor:
        """Σ wᵢ τᵢ, added in the order of the models."""
        total = self._zero
        for task in self:
            total = total + task
        return total

    def mean(self) -> Tensor:
        """Σ wᵢ τᵢ / K, where K counts the models whose weight is not zero."""
        return self.total() / max(1, len(self))


def matrices_in(shape: Sequence[int]) -> tuple[int, int, int] | None:
    """(matrices, rows, columns) of a tensor, or None for one that holds no matrix.

    Two axes are a matrix, three a stack of them (packed experts), more are one matrix (first axis, all others), as of a
    convolution. What has a side of one is a vector.
    """
    if len(shape) < 2:
        return None
    count, rows, columns = shape if len(shape) == 3 else (1, shape[0], math.prod(shape[1:]))
    return (count, rows, columns) if count and rows > 1 and columns > 1 else None


def left_out(parameters: Mapping[str, Any]) -> bool:
    """Whether a tensor is averaged, as its recipe says `spectral: false`."""
    return not parameters["spectral"]


def by_matrix(
    deltas: Tensor,
    weight: float | Sequence[float],
    spectral: bool,
    merge: Callable[[Tasks], Tensor],
    otherwise: Callable[[Tasks], Tensor] = Tasks.mean,
) -> Tensor:
    """`merge` on each matrix of `(K, *shape)`; `otherwise` on a tensor that holds none or is not `spectral`.

    Both get the task vectors of one matrix (tensor) and return float64 of its shape, or several stacked in front of it.
    """
    weights = one_a_model(weight, len(deltas))
    matrices = split(deltas, weights) if spectral and any(weights) else None
    if matrices is None:
        return otherwise(Tasks(deltas, weights))
    return join([merge(tasks) for tasks in matrices], deltas.shape[1:])


def split(deltas: Tensor, weights: Sequence[float]) -> list[Tasks] | None:
    """The task vectors of each matrix in `(K, *shape)`, or None if there is no matrix."""
    found = matrices_in(deltas.shape[1:])
    if found is None:
        return None
    stacks = deltas.reshape(len(deltas), *found)
    return [Tasks(stacks[:, number], weights) for number in range(found[0])]


def join(matrices: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The matrices of `split`, each (…, m, n), as `(…, *shape)`."""
    return torch.stack(list(matrices), dim=-3).reshape(*matrices[0].shape[:-2], *shape)


def principal(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (descending) and eigenvectors (columns) of a Gram matrix, as far as they are resolved.

    One with an infinity or NaN has one eigenvector of NaN, as a merge of such models must go on and be counted.
    """
    if not bool(gram.isfinite().all()):
        spoiled = torch.full_like(gram[:, :1], math.nan)
        return spoiled[0], spoiled
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    rank = int((values > RESOLVED**2 * values[0].clamp_min(0)).sum())
    return values[:rank], vectors[:, :rank]


def singular(matrix: Tensor, most: int | None = None, floor: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, r), σ (r) descending, V (n, r) with UΣVᵀ = `matrix`, in float64: the first `most` with σ > `floor`.

    Directions that are not resolved are left out, so a zero matrix has none. The sign of a pair (u, v) is LAPACK's.
    """
    if matrix.shape[0] > matrix.shape[1]:
        right, values, left = singular(matrix.T, most, floor)
        return left, values, right
    left = principal(matrix @ matrix.T)[1][:, :most]
    right = matrix.T @ left
    # Norms are accurate for small σ too; the roots of eigenvalues are not.
    values = right.norm(dim=0)
    kept = ~(values <= floor)
    return left[:, kept], values[kept], right[:, kept] / values[kept]


def low_rank(factors: tuple[Tensor, Tensor, Tensor], rank: int | None = None) -> Tensor:
    """U Σ Vᵀ of the first `rank` singular directions."""
    left, values, right = (factor[..., :rank] for factor in factors)
    return (left * values) @ right.T


def nearest_orthonormal(columns: Tensor) -> Tensor:
    """C (CᵀC)^-½: the orthonormal columns nearest to C, its polar factor, in the order of C's columns.

    Columns that depend on each other cannot all be orthonormal: they share a direction, where an SVD would fill up with
    arbitrary ones. Two equal columns u, u become u/√2, u/√2.
    """
    if not columns.shape[1]:
        return columns
    values, vectors = principal(columns.T @ columns)
    return ((columns @ vectors) / values.sqrt()) @ vectors.T


def range_of(tasks: Tasks) -> Tensor:
    """Orthonormal columns that span the columns of all task vectors, in the order of their singular values.

    They are the left singular vectors of [τ₁ … τ_K]; of each, the entry of largest magnitude is positive.
    """
    rows, columns = next(iter(tasks)).shape
    if rows <= columns * len(tasks):
        gram = sum((task @ task.T for task in tasks), start=torch.zeros(()))
        basis = principal(gram)[1]
    else:
        basis = singular(torch.cat(list(tasks), dim=1))[0]
    if not basis.shape[1]:
        return basis
    largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    return basis * largest.sign()
