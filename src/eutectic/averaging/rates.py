"""Learning rates for stochastic weight averaging, as factors for `torch.optim.lr_scheduler.LambdaLR`."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real

from eutectic.errors import Problem, RecipeError


def constant_rate(start: int, factor: float, *, anneal: int = 0) -> Callable[[int], float]:
    """The optimiser's own rate up to step `start`, then `factor` times it.

    Over the last `anneal` steps before `start` the rate goes from the one to the other in a straight line, as in the
    code of the paper (arXiv:1803.05407). Average with `WeightAverage(model, start=start)`.
    """
    _check(start=start, anneal=anneal)
    _check_factors(factor=factor)

    def rate(step: int) -> float:
        if step >= start:
            return factor
        ahead = max(0, step - (start - anneal))
        return 1.0 + (factor - 1.0) * ahead / anneal if anneal else 1.0

    return rate


def cyclic_rate(start: int, period: int, *, high: float = 1.0, low: float) -> Callable[[int], float]:
    """The optimiser's own rate up to step `start`, then cycles of `period` steps from `high` to `low` times it.

    Within a cycle the rate of its i-th step is (1 - t) high + t low with t = i / period (arXiv:1803.05407, Algorithm
    1), so that a cycle ends at the low rate. `WeightAverage(model, start=start, period=period)` collects there.
    """
    _check(start=start)
    _check(1, period=period)
    _check_factors(high=high, low=low)

    def rate(step: int) -> float:
        if step < start:
            return 1.0
        t = ((step - start) % period + 1) / period
        return (1 - t) * high + t * low

    return rate


def _check(least: int = 0, **counts: int) -> None:
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise RecipeError(Problem("T701", f"must be a whole number from {least} on, not {value!r}", name))


def _check_factors(**factors: float) -> None:
    for name, value in factors.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
            raise RecipeError(Problem("T701", f"must be a number above 0, not {value!r}", name))
