"""stored bits -> stored bits: Arcee Fusion, which takes over the entries whose change matters most; compiled by numba.

Blocks, rows and what an array's type says about its bits are as in `fused`; the arithmetic is that of `importance`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eutectic.kernels.exponential import LEAST
from eutectic.kernels.fused import LANES, compiled, inlined, store, value_of
from eutectic.kernels.fused_consensus import larger
from eutectic.kernels.fused_exponential import exp, expm1


@compiled
def _peaks(base: Any, tuned: Any, first: int, length: int, lanes: Any) -> None:
    """The largest base, tuned and |tuned - base| of a row, over fixed lanes."""
    for start in range(0, length, LANES):
        for j in range(min(LANES, length - start)):
            i = np.uint64(first) + np.uint64(start) + np.uint64(j)
            old, new = np.float64(value_of(base[i])), np.float64(value_of(tuned[i]))
            lanes[0, j] = larger(old, lanes[0, j])
            lanes[1, j] = larger(new, lanes[1, j])
            lanes[2, j] = larger(abs(new - old), lanes[2, j])


@compiled
def _near(base: Any, tuned: Any, first: int, top: float, prior: Any, grown: Any, moved: Any) -> None:
    for t in range(len(prior)):
        i = np.uint64(first) + np.uint64(t)
        old = np.float64(value_of(base[i]))
        delta = np.float64(value_of(tuned[i])) - old
        below = old - top
        own = exp(LEAST if below < LEAST else below)
        more = own * expm1(delta)
        prior[t], grown[t], moved[t] = own, more, (own + more) * delta


@compiled
def _far(base: Any, tuned: Any, first: int, top: float, peak: float, prior: Any, grown: Any, moved: Any) -> None:
    for t in range(len(prior)):
        i = np.uint64(first) + np.uint64(t)
        old, new = np.float64(value_of(base[i])), np.float64(value_of(tuned[i]))
        below, under = old - top, new - peak
        own = exp(LEAST if below < LEAST else below)
        more = exp(LEAST if under < LEAST else under)
        prior[t], grown[t], moved[t] = own, more, more * (new - old)


@compiled
def _add(low: Any, high: Any) -> None:
    for t in range(len(high)):
        low[t] += high[t]


@inlined
def _folded(terms: Any) -> Any:
    """Their sum: the upper half is added to the lower one until one is left."""
    width = len(terms)
    while width > 1:
        half = 1
        while 2 * half < width:
            half *= 2
        _add(terms[: width - half], terms[half:width])
        width = half
    return terms[0]


@compiled
def row_sums(base: Any, tuned: Any, length: int, sums: Any) -> None:
    """Writes what `importance.divergence` takes of each row of `length` to `sums (R, 5)`."""
    lanes, terms = np.empty((3, LANES)), np.empty((3, length))
    width = min(LANES, length)
    for row in range(len(sums)):
        first = row * length
        lanes[:2, :width] = -np.inf
        lanes[2, :width] = 0.0
        _peaks(base, tuned, first, length, lanes)
        top, peak, apart = lanes[0, 0], lanes[1, 0], lanes[2, 0]
        for j in range(1, width):
            top, peak, apart = larger(lanes[0, j], top), larger(lanes[1, j], peak), larger(lanes[2, j], apart)
        if apart <= 1:
            _near(base, tuned, first, top, terms[0], terms[1], terms[2])
        else:
            _far(base, tuned, first, top, peak, terms[0], terms[1], terms[2])
        for part in range(3):
            sums[row, part] = _folded(terms[part])
        sums[row, 3] = peak - top
        sums[row, 4] = 0.0 if apart <= 1 else 1.0


@inlined
def _importance(base: Any, tuned: Any, i: Any, divergence: float, largest: Any) -> Any:
    """|δ| · divergence in working floats, at most `largest`; that too where it is NaN."""
    found = abs(np.float64(value_of(tuned[i])) - np.float64(value_of(base[i]))) * divergence
    ranked = type(largest)(found)
    return ranked if ranked < largest else largest


@compiled
def importances(base: Any, tuned: Any, before: int, length: int, divergence: Any, largest: Any, out: Any) -> None:
    """Writes the importance of each entry; `divergence` is that of the rows, of which the first began `before`."""
    for row in range(len(divergence)):
        start, stop = max(row * length - before, 0), min((row + 1) * length - before, len(out))
        for t in range(start, stop):
            i = np.uint64(t)
            out[i] = _importance(base, tuned, i, divergence[row], largest)


@compiled
def combine_important(
    base: Any, tuned: Any, before: int, length: int, divergence: Any, largest: Any, threshold: float, out: Any
) -> None:
    """out = the tuned entry where its importance is at least `threshold`, else the base's."""
    for row in range(len(divergence)):
        start, stop = max(row * length - before, 0), min((row + 1) * length - before, len(out))
        for t in range(start, stop):
            i = np.uint64(t)
            taken = np.float64(_importance(base, tuned, i, divergence[row], largest)) >= threshold
            old, new = value_of(base[i]), value_of(tuned[i])
            store(out, i, new if taken else old)
