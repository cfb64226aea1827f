"""Similar units first: pairs of units are merged one after the other until as many are left as one model has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eutectic.alignment.zipit.partition import Partition
from eutectic.errors import NumericError, Problem, RecipeError
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

_Array = NDArray[np.float64]


def greedy(similarity: Tensor, models: int, *, alpha: float = 0.3, beta: float = 0.5) -> Partition:
    """Merges the most similar pair of units, of any models, again and again (ZipIt!, Algorithm 1 and appendix).

    The similarity of a merged unit to another is the least of those that its parts have, times `alpha`. Of equal pairs
    the first in row order is taken.

    Source: Stoica et al. 2024, "ZipIt! Merging Models from Different Tasks without Training", arXiv:2305.03053.
    Differs from the paper's code: the budget is looked at before a merge, and a merged unit belongs to every model that
    a part of it is from (in the code to one of them, so that its others merge for nothing): at β = 0 the result is a
    permutation. With three models or more, budgets can leave no pair that may merge: then the smallest set is taken
    apart, and each model's units in it go where they are most similar among the sets without that model. α makes no
    negative similarity larger.

    Cost: the best partner of each unit is remembered, and looked for anew when it has gone: about N² steps and two
    float64 matrices N x N for N units of all models together; the argmax of all pairs at each step takes N³.

    Args:
        similarity: (K·n, K·n) symmetric, model after model: correlations, −1 to 1. The diagonal does not count.
        models: K ≥ 2.
        alpha: 0 to 1. At 1 merged units merge again as readily as others.
        beta: share, 0 to 1, of the (K − 1)·n / K units that each model may lose to merges with units of its own.

    Raises `NumericError` (G241) for NaN or infinity, `RecipeError` (G240) for a parameter or shape.
    """
    check_shares(alpha, beta)
    units = _units(similarity, models)
    state = _Merging(similarity.detach().double().cpu().numpy(), models, units, alpha)
    budget = int((models - 1) * units * beta / models + 1e-4)
    if budget == 0:
        state.close(range(models))
    used = np.zeros(models, np.int64)
    while state.left > units:
        pair = state.best()
        if pair is None:
            state.dissolve()
            continue
        shared = state.counts[pair[0]].astype(bool) & state.counts[pair[1]].astype(bool)
        state.merge(*pair)
        used += shared
        state.close(np.flatnonzero(shared & (used == budget)))
    return state.partition()


def check_shares(alpha: float, beta: float) -> None:
    """Raises `RecipeError` (G240) for what is no share."""
    problems = [
        Problem("G240", f"must be a number from 0 to 1, not {value!r}", name)
        for name, value in (("alpha", alpha), ("beta", beta))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1
    ]
    if problems:
        raise RecipeError(problems)


def _units(similarity: Tensor, models: int) -> int:
    """The number of units of a model."""
    size = similarity.shape[0] if similarity.dim() == 2 else 0
    if models < 2 or similarity.shape != (size, size) or size % models or not size:
        message = f"of shape {list(similarity.shape)} holds no units of {models} models, the same number of each"
        raise RecipeError(Problem("G240", message, "similarity"))
    if bad := int((~similarity.isfinite()).sum()):
        raise NumericError(Problem("G241", f"{bad} similarities are NaN or infinite", "similarity"))
    return size // models


class _Merging:
    """Sets of units on their way, each under the number of its first unit.

    Similarities never rise while sets are merged, so a remembered best one bounds its row from above, and is the best
    as long as it is still there.
    """

    def __init__(self, similarity: _Array, models: int, units: int, alpha: float) -> None:
        size = models * units
        self._units, self._alpha = units, alpha
        self._similarity = similarity
        self._now = similarity.copy()
        np.fill_diagonal(self._now, -np.inf)
        self._partner = self._now.argmax(1)
        self._bound = self._now[np.arange(size), self._partner]
        self._set = np.arange(size)
        self.counts = np.repeat(np.eye(models, dtype=np.int64), units, 0)
        self.left = size

    def best(self) -> tuple[int, int] | None:
        """The most similar pair that may merge."""
        while True:
            row = int(self._bound.argmax())
            if self._bound[row] == -np.inf:
                return None
            partner = int(self._partner[row])
            if self._now[row, partner] == self._bound[row]:
                return min(row, partner), max(row, partner)
            self._partner[row] = self._now[row].argmax()
            self._bound[row] = self._now[row, self._partner[row]]

    def merge(self, first: int, second: int) -> None:
        """Two sets become one."""
        row = np.minimum(self._now[first], self._now[second])
        row[row > 0] *= self._alpha
        row[first] = row[second] = -np.inf
        self._put(first, row)
        self._remove(second)
        self._set[self._set == second] = first
        self.counts[first] += self.counts[second]

    def close(self, models: Any) -> None:
        """From now on no two sets merge that both have units of one of these models."""
        for model in models:
            having = np.flatnonzero(self.counts[:, model])
            self._now[np.ix_(having, having)] = -np.inf

    def dissolve(self) -> None:
        """Takes the smallest set apart, of equal ones the least alike.

        There is a place for each model's units, as fewer sets have them than there are. They go to the most similar
        set: that whose least similar unit is the most similar.
        """
        alive = np.unique(self._set)
        gone = min(map(int, alive), key=lambda one: (self.counts[one].sum(), self._least(one, one), one))
        self._remove(gone)
        members = np.flatnonzero(self._set == gone)
        for model in np.flatnonzero(self.counts[gone]):
            block = members[members // self._units == model]
            free = [one for one in alive if one != gone and not self.counts[one, model]]
            near = [self._least(block, one) for one in free]
            into = int(free[int(np.argmax(near))])
            self._set[block] = into
            self.counts[into, model] = len(block)
        self.counts[gone] = 0

    def _least(self, units: int | NDArray[np.int64], number: int) -> float:
        """The least similarity of units, or of those of a set, to those of a set."""
        inside = np.flatnonzero(self._set == number)
        if not isinstance(units, int):
            return float(self._similarity[np.ix_(units, inside)].min())
        found = self._similarity[np.ix_(inside, inside)]
        np.fill_diagonal(found, np.inf)
        return float(found.min())

    def partition(self) -> Partition:
        """The sets, in the order of their first units."""
        _, into = np.unique(self._set, return_inverse=True)
        return Partition(torch.from_numpy(into.reshape(-1, self._units).astype(np.int64)))

    def _put(self, number: int, row: _Array) -> None:
        self._now[number] = row
        self._now[:, number] = row
        self._partner[number] = row.argmax()
        self._bound[number] = row[self._partner[number]]

    def _remove(self, number: int) -> None:
        self._now[number] = self._now[:, number] = -np.inf
        self._bound[number] = -np.inf
        self.left -= 1
