"""Standard errors and 95 % intervals of weighted means, of differences item by item, and of resampled statistics."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]
# Two-sided, of a normal distribution.
Z = NormalDist().inv_cdf(0.975)
# Of Student's distribution with 1, 2, ... degrees of freedom.
_T = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139)


def weighted_mean(values: Floats, weights: Floats) -> tuple[float, float | None]:
    """Σwx / Σw and its standard error: of a ratio of sums over items, which are drawn with their weights.

    With equal weights the error is s/√n. None for a single item, whose error nothing tells.
    """
    mean = float(math.fsum(values * weights) / math.fsum(weights))
    return mean, _error(influences(values, weights, mean))


def influences(values: Floats, weights: Floats, mean: float) -> Floats:
    """How much each item moves the mean: they add up to 0, and their squares to the mean's variance (but n/(n-1))."""
    return np.asarray(weights * (values - mean) / math.fsum(weights))


def mean_interval(values: Floats, weights: Floats) -> Interval | None:
    """The interval of the mean: Student's t, or Wilson's where every item is 0 or 1 and counts alike.

    Wilson's (JASA 22, 1927) is right where all items are answered alike, of which s/√n makes a certainty.
    """
    count = len(values)
    mean, error = weighted_mean(values, weights)
    if error is None:
        return None
    if _is_binary(values) and np.all(weights == weights[0]):
        middle = (mean + Z**2 / (2 * count)) / (1 + Z**2 / count)
        half = Z * math.sqrt(mean * (1 - mean) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
        # At 0 and 1 the bound is the value itself, but for rounding.
        return max(0.0, min(middle - half, mean)), min(1.0, max(middle + half, mean))
    half = t_quantile(count - 1) * error
    return mean - half, mean + half


def difference(
    a: Floats, b: Floats, weights: Floats, slopes: tuple[float, float]
) -> tuple[float | None, Interval | None]:
    """Standard error and interval of a difference of two statistics of means over the same items.

    Args:
        a: the first's items.
        b: the second's items.
        weights: of the items, in both.
        slopes: the derivative of either statistic by its mean (1 where it is the mean).

    Where every item is 0 or 1, the interval is that of Bonett and Price (J. Educ. Behav. Stat. 37, 2012), which stays
    honest for few items that differ. Else Student's t on the items' influences.
    """
    count = len(a)
    means = (weighted_mean(a, weights)[0], weighted_mean(b, weights)[0])
    moved = slopes[0] * influences(a, weights, means[0]) - slopes[1] * influences(b, weights, means[1])
    error = _error(moved)
    if error is None:
        return None, None
    value = (means[0] - means[1]) if slopes == (1.0, 1.0) else slopes[0] - slopes[1]
    if _is_binary(a) and _is_binary(b) and np.all(weights == weights[0]):
        won = (float(np.sum(a > b)) + 1) / (count + 2)
        lost = (float(np.sum(a < b)) + 1) / (count + 2)
        half = Z * math.sqrt((won + lost - (won - lost) ** 2) / (count + 2))
        return error, (max(-1.0, won - lost - half), min(1.0, won - lost + half))
    half = t_quantile(count - 1) * error
    return error, (value - half, value + half)


def of_replicates(replicates: Floats) -> tuple[float | None, Interval | None]:
    """Standard error and interval of a statistic from its values on resamples (Efron's percentiles)."""
    if len(replicates) < 2:
        return None, None
    low, high = np.quantile(replicates, (0.025, 0.975))
    return float(np.std(replicates, ddof=1)), (float(low), float(high))


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution, to 5 digits (the normal's, expanded in 1/freedom)."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z, v = Z, freedom
    terms = (
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4),
    )
    return z + sum(terms)


def _is_binary(values: Floats) -> bool:
    return bool(np.all((values == 0) | (values == 1)))


def _error(moved: Floats) -> float | None:
    count = len(moved)
    return math.sqrt(float(np.sum(moved**2)) * count / (count - 1)) if count > 1 else None
