"""stored bits -> stored bits: Arcee Fusion, which takes over the entries whose change matters most; compiled by numba.

Blocks, rows and what an array's type says about its bits are as in `fused`; the arithmetic is that of `importance`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from eutectic.kernels.exponential import LEAST, SMALL, UNREDUCED
from eutectic.kernels.fused import compiled, inlined, scores, store, value_of
from eutectic.kernels.fused_exponential import exp, expm1, series, short_series


class Changes(NamedTuple):
    """Entries of a row of stored bits, as a selection ranks them beside the base's: by their importance.

    They begin `before` entries after a row of `length` of the tensor does; `divergence` is that of each such row, and
    `largest` the largest working float.
    """

    tuned: Any
    before: int
    length: int
    divergence: Any
    largest: Any


@compiled
def _peaks(base: Any, tuned: Any, first: int, top: Any, peak: Any, apart: Any) -> None:
    """The largest base, tuned and |tuned - base|, lane by lane; a NaN, which spoils the sums, is none of them."""
    for t in range(len(top)):
        i = np.uint64(first) + np.uint64(t)
        old, new = np.float64(value_of(base[i])), np.float64(value_of(tuned[i]))
        delta = abs(new - old)
        # `max` would take three times as long, and so would a choice between values that are not read before.
        highest, above, widest = top[t], peak[t], apart[t]
        top[t] = old if old > highest else highest
        peak[t] = new if new > above else above
        apart[t] = delta if delta > widest else widest


@compiled
def _light(base: Any, tuned: Any, first: int, prior: Any, grown: Any, moved: Any) -> Any:
    """Adds what a light row has in these entries, and says how many of them it must not have."""
    heavy = np.int64(0)
    for t in range(len(prior)):
        i = np.uint64(first) + np.uint64(t)
        old = np.float64(value_of(base[i]))
        delta = np.float64(value_of(tuned[i])) - old
        heavy += np.int64((abs(old) > UNREDUCED) | (abs(delta) > SMALL))
        own = 1.0 + series(old)
        more = own * short_series(delta)
        prior[t] += own
        grown[t] += more
        moved[t] += (own + more) * delta
    return heavy


@compiled
def _near(base: Any, tuned: Any, first: int, top: float, prior: Any, grown: Any, moved: Any) -> None:
    for t in range(len(prior)):
        i = np.uint64(first) + np.uint64(t)
        old = np.float64(value_of(base[i]))
        delta = np.float64(value_of(tuned[i])) - old
        below = old - top
        own = exp(LEAST if below < LEAST else below)
        more = own * expm1(delta)
        prior[t] += own
        grown[t] += more
        moved[t] += (own + more) * delta


@compiled
def _far(base: Any, tuned: Any, first: int, top: float, peak: float, prior: Any, grown: Any, moved: Any) -> None:
    for t in range(len(prior)):
        i = np.uint64(first) + np.uint64(t)
        old, new = np.float64(value_of(base[i])), np.float64(value_of(tuned[i]))
        below, under = old - top, new - peak
        own = exp(LEAST if below < LEAST else below)
        more = exp(LEAST if under < LEAST else under)
        prior[t] += own
        grown[t] += more
        moved[t] += more * (new - old)


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


@inlined
def _largest(values: Any) -> Any:
    found = values[0]
    for t in range(1, len(values)):
        found = max(found, values[t])
    return found


@inlined
def _summed_light(base: Any, tuned: Any, first: int, length: int, terms: Any) -> Any:
    """Whether a row is light; if so, `terms (3, w)` has its sums over `w` lanes."""
    terms[:] = 0.0
    width = terms.shape[1]
    for start in range(0, length, width):
        stop = min(width, length - start)
        if _light(base, tuned, first + start, terms[0][:stop], terms[1][:stop], terms[2][:stop]):
            return False
    return True


@inlined
def _summed(base: Any, tuned: Any, first: int, length: int, terms: Any) -> Any:
    """As `_summed_light`, of any other row; returns the last two numbers of `importance.row_sums`."""
    terms[:] = -np.inf
    width = terms.shape[1]
    for start in range(0, length, width):
        stop = min(width, length - start)
        _peaks(base, tuned, first + start, terms[0][:stop], terms[1][:stop], terms[2][:stop])
    top, peak, apart = _largest(terms[0]), _largest(terms[1]), _largest(terms[2])
    terms[:] = 0.0
    for start in range(0, length, width):
        stop = min(width, length - start)
        prior, grown, moved = terms[0][:stop], terms[1][:stop], terms[2][:stop]
        if apart <= 1:
            _near(base, tuned, first + start, top, prior, grown, moved)
        else:
            _far(base, tuned, first + start, top, peak, prior, grown, moved)
    return peak - top, 0.0 if apart <= 1 else 1.0


@compiled
def row_sums(base: Any, tuned: Any, length: int, width: int, sums: Any) -> None:
    """Writes what `importance.divergence` takes of each row of `length` to `sums (R, 5)`, over `width` lanes."""
    terms = np.empty((3, min(width, length)))
    for row in range(len(sums)):
        first = row * length
        sums[row, 3:] = 0.0
        if not _summed_light(base, tuned, first, length, terms):
            sums[row, 3], sums[row, 4] = _summed(base, tuned, first, length, terms)
        for part in range(3):
            sums[row, part] = _folded(terms[part])


@inlined
def _importance(base: Any, tuned: Any, i: Any, divergence: float, largest: Any) -> Any:
    """|δ| · divergence in working floats, at most `largest`; that too where it is NaN."""
    found = abs(np.float64(value_of(tuned[i])) - np.float64(value_of(base[i]))) * divergence
    ranked = type(largest)(found)
    return ranked if ranked < largest else largest


@inlined
def _of_row(base: Any, tuned: Any, start: int, divergence: float, largest: Any, out: Any) -> None:
    for t in range(len(out)):
        out[t] = _importance(base, tuned, np.uint64(start) + np.uint64(t), divergence, largest)


@overload(scores)
def _importances(base, row, start, count, out):  # type: ignore[no-untyped-def]
    """`Changes` are ranked by importance."""
    if getattr(row, "instance_class", None) is not Changes:
        return None

    def importances(base, row, start, count, out):  # type: ignore[no-untyped-def]
        done = 0
        while done < count:
            at = row.before + start + done
            place = at // row.length
            stop = min(count, done + (place + 1) * row.length - at)
            _of_row(base, row.tuned, start + done, row.divergence[place], row.largest, out[done:stop])
            done = stop

    return importances


def choose(out: Any, i: Any, low: Any, high: Any, lower: Any) -> None:
    """Stores an element of `low` where `lower` is true, else of `high`. Compiled code only."""


@overload(choose)
def _choose(out, i, low, high, lower):  # type: ignore[no-untyped-def]
    if out.dtype == low:

        def same(out, i, low, high, lower):  # type: ignore[no-untyped-def]
            out[i] = low if lower else high

        return same

    def converted(out, i, low, high, lower):  # type: ignore[no-untyped-def]
        store(out, i, value_of(low) if lower else value_of(high))

    return converted


@compiled
def _chosen(base: Any, tuned: Any, start: int, divergence: float, largest: Any, level: Any, out: Any) -> None:
    for t in range(len(out)):
        i = np.uint64(start) + np.uint64(t)
        lower = _importance(base, tuned, i, divergence, largest) < level
        choose(out, np.uint64(t), base[i], tuned[i], lower)


@compiled
def combine_important(base: Any, changes: Any, level: Any, out: Any) -> None:
    """out = the entry of the `Changes` where its importance is at least `level`, else the base's."""
    for row in range(len(changes.divergence)):
        start = max(row * changes.length - changes.before, 0)
        stop = min((row + 1) * changes.length - changes.before, len(out))
        if start < stop:
            part = out[start:stop]
            _chosen(base, changes.tuned, start, changes.divergence[row], changes.largest, level, part)
