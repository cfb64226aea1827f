"""similarities -> how much of each unit of one set goes to each of another, so that they are most similar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    from scipy import optimize, sparse
else:
    optimize = LazyModule("scipy.optimize")
    sparse = LazyModule("scipy.sparse")


def transport(similarity: NDArray[np.float64]) -> NDArray[np.float64]:
    """The plan T that makes Σ T[u, v] similarity[u, v] largest, exactly, all units of a set weighing the same.

    Args:
        similarity: (n, m) float64.

    Returns (n, m) float64 from 0 on, with rows of sum 1 / n and columns of sum 1 / m. Where one of n and m divides the
    other, every unit of the larger set is with one of the smaller: an assignment, for n = m a permutation. Otherwise a
    linear program is solved, whose time grows faster than n·m.
    """
    n, m = similarity.shape
    if n > m:
        return transport(similarity.T).T
    if m % n:
        return _program(similarity)
    times = m // n
    rows, columns = optimize.linear_sum_assignment(np.repeat(similarity, times, 0), maximize=True)
    plan = np.zeros((n, m))
    plan[rows // times, columns] = 1 / m
    return plan


def _program(similarity: NDArray[np.float64]) -> NDArray[np.float64]:
    n, m = similarity.shape
    sums: Any = sparse.vstack(
        [sparse.kron(sparse.eye(n), np.ones((1, m))), sparse.kron(np.ones((1, n)), sparse.eye(m))]
    )
    masses = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    found = optimize.linprog(-similarity.reshape(-1), A_eq=sums.tocsr(), b_eq=masses, method="highs")
    if found.x is None:
        raise ArithmeticError(f"the transport of {n} units to {m} was not solved: {found.message}")
    return np.asarray(found.x).reshape(n, m).clip(0)
