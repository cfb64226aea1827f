"""similarities -> which unit goes with which, so that their sum is largest: the linear assignment problem, exactly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic.errors import NumericError, Problem
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from scipy import optimize
    from torch import Tensor

    from eutectic.kernels import assignment as kernel
else:
    kernel = LazyModule("eutectic.kernels.assignment")
    optimize = LazyModule("scipy.optimize")
    torch = LazyModule("torch")

# Units from which on the compiled kernel is worth its loading: SciPy needs a tenth of a second for as many.
LARGE = 1024
# Beyond this, differences and sums are infinite soon.
LIMIT = 1e300
# What is lost or gained by less than this part of the similarities that are summed is rounding.
ROUNDING = 2.0**-48


def assign(similarity: Tensor) -> Tensor:
    """The order of B's units in which Σ similarity[u, order[u]] is largest.

    Args:
        similarity: (n, m) float32 or float64, n ≤ m: units of A in rows, of B in columns.

    Returns (n,) int64, no number twice. Of several best orders it is one that leaves units where they are: the identity
    if that is among them, so that units which are alike do not move. The same similarities give the same order.

    Exact for every size: by SciPy, and for large ones by `kernels.assignment`, which is several times faster and needs
    no copy.

    Raises `NumericError` G180 for NaN, infinity or numbers beyond 1e300, `ValueError` for another shape or dtype.
    """
    if similarity.dim() != 2 or similarity.shape[0] > similarity.shape[1]:
        raise ValueError(f"similarities must be (n, m) with n ≤ m, not {tuple(similarity.shape)}")
    if similarity.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"similarities must be float32 or float64, not {similarity.dtype}")
    # NaN and infinity are among the extremes, which need no memory of their own.
    if similarity.numel() and not all(abs(float(extreme)) <= LIMIT for extreme in similarity.aminmax()):
        raise NumericError(_without_likeness(similarity))
    values = similarity.detach().cpu().numpy()
    if len(values) >= LARGE:
        order, _prices = kernel.assignment(values)
    else:
        order = optimize.linear_sum_assignment(values, maximize=True)[1].astype(np.int64)
    _undo_idle_chains(values, order)
    _undo_idle_swaps(values, order)
    return torch.from_numpy(order)


def _without_likeness(similarity: Tensor) -> Problem:
    wrong = ~(similarity.double().abs() <= LIMIT)
    row, column = (int(place) for place in wrong.nonzero()[0])
    value, count = float(similarity[row, column]), int(wrong.sum())
    message = f"unit {row} of the first and unit {column} of the second model have similarity {value}"
    more = f", and {count - 1} more pairs have none" if count > 1 else ""
    return Problem("G180", message + more, hint="look for NaN and infinity in the weights or activations")


def _undo_idle_chains(values: NDArray[Any], order: NDArray[np.int64]) -> None:
    """Puts back all units of a chain u → order[u] → … that gains nothing, in place: the identity, if it is as good."""
    seen = np.zeros(len(order), bool)
    # Chains with an end (of units that change with none of A's) from their start, so that each is met as a whole.
    starts = np.setdiff1d(np.arange(len(order)), order)
    for first in [*starts, *np.flatnonzero(order != np.arange(len(order)))]:
        chain, unit = [], int(first)
        while unit < len(order) and not seen[unit]:
            seen[unit] = True
            chain.append(unit)
            unit = int(order[unit])
        if chain and _idle(values[chain, order[chain]], values[chain, chain]):
            order[chain] = chain


def _undo_idle_swaps(values: NDArray[Any], order: NDArray[np.int64]) -> None:
    """Puts back each unit that may change with who is in its place, in place."""
    holder = np.full(values.shape[1], -1)
    holder[order] = np.arange(len(order))
    for unit in np.flatnonzero(order != np.arange(len(order))):
        other, column = holder[unit], order[unit]
        now, before = [values[unit, column]], [values[unit, unit]]
        if other >= 0:
            now.append(values[other, unit])
            before.append(values[other, column])
        if unit != column and _idle(np.array(now), np.array(before)):
            order[unit], holder[unit], holder[column] = unit, unit, other
            if other >= 0:
                order[other] = column


def _idle(now: NDArray[Any], before: NDArray[Any]) -> bool:
    gain = math.fsum(now) - math.fsum(before)
    return gain <= ROUNDING * (math.fsum(np.abs(now)) + math.fsum(np.abs(before)))
