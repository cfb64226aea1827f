"""stored bits -> stored bits: deltas of which each row keeps a band of magnitudes, for breadcrumbs by rows.

Magnitudes are compared as the whole numbers with the same bits, which order alike. NaN, above all, is one number.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eutectic.kernels.fused import LANES, TILE, add_sizes, compiled, consensus, value_of

# Entries that are compared at once while the last of several equal ones is looked for.
STEP = 64


@compiled
def count_above(words: Any, level: Any) -> tuple[int, int]:
    """How many are larger than `level`, and how many equal to it."""
    above: Any = np.int32(0)
    equal: Any = np.int32(0)
    for t in range(len(words)):
        word = words[np.uint64(t)]
        above = np.int32(above + np.int32(word > level))
        equal = np.int32(equal + np.int32(word == level))
    return above, equal


@compiled
def after_last(words: Any, level: Any, wanted: int) -> int:
    """The entry after the `wanted`-th (from 1) that is exactly `level`."""
    found = 0
    for start in range(0, len(words), STEP):
        stop = min(start + STEP, len(words))
        same: Any = np.int32(0)
        for t in range(start, stop):
            same = np.int32(same + np.int32(words[np.uint64(t)] == level))
        if found + same >= wanted:
            for t in range(start, stop):
                found += words[t] == level
                if found == wanted:
                    return t + 1
        found += same
    return len(words)


@compiled
def row_ends(words: Any, length: int, levels: Any, rank: int, ends: Any) -> None:
    """Of each row of `words`, the entry before which those equal to its level are among its `rank` largest."""
    for number in range(len(levels)):
        row = words[number * length : (number + 1) * length]
        above, equal = count_above(row, levels[number])
        wanted = rank - above
        ends[number] = length if wanted == equal else after_last(row, levels[number], wanted)


@compiled
def between(base: Any, row: Any, words: Any, first: int, levels: Any, ends: Any, out: Any) -> None:
    """Writes the deltas of entries of one row, the first being entry `first` of it, zero outside of the band.

    `levels` and `ends` are the least magnitude that is kept and the largest, and before which entry of the row those
    equal to it belong to the larger ones: these stay of the former, and go of the latter.
    """
    low, high, low_end, high_end = levels[0], levels[1], ends[0] - first, ends[1] - first
    for t in range(len(out)):
        i = np.uint64(t)
        word, delta = words[i], value_of(row[i]) - value_of(base[i])
        enough = (word > low) | ((word == low) & (t < low_end))
        small = (word < high) | ((word == high) & (t >= high_end))
        out[i] = delta if enough & small else type(delta)(0)


@compiled
def banded(
    base: Any, row: Any, words: Any, skipped: int, length: int, levels: Any, ends: Any, start: int, count: int, out: Any
) -> None:
    """As `between`, of entries `start : start + count`, of any number of rows, with `levels (R, 2)` and `ends (R, 2)`.

    `words` has entry 0 at `skipped`.
    """
    done = 0
    while done < count:
        at = skipped + start + done
        number = at // length
        more = min(count - done, (number + 1) * length - at)
        i = start + done
        between(
            base[i : i + more],
            row[i : i + more],
            words[at : at + more],
            at - number * length,
            levels[number],
            ends[number],
            out[done : done + more],
        )
        done += more


@compiled
def combine_bands(
    base: Any,
    rows: Any,
    weights: Any,
    divisor: Any,
    scale: float,
    factor: Any,
    words: Any,
    skipped: int,
    length: int,
    levels: Any,
    ends: Any,
    normalize: bool,
    tiny: float,
    out: Any,
) -> None:
    """As `fused.combine_deltas`, of the entries within the band of their row.

    `words (K, m)` are magnitudes of whole rows of `length`, entry 0 at `skipped`; `levels` and `ends` are `(K, R, 2)`.
    """
    deltas = np.empty((len(rows), TILE), type(value_of(base[0])))
    for start in range(0, len(out), TILE):
        count = min(TILE, len(out) - start)
        for k in range(len(rows)):
            banded(base, rows[k], words[k], skipped, length, levels[k], ends[k], start, count, deltas[k])
        consensus(base, rows, weights, divisor, scale, None, factor, deltas, normalize, tiny, start, count, out)


@compiled
def band_sums(base: Any, rows: Any, words: Any, skipped: int, length: int, levels: Any, ends: Any, sums: Any) -> None:
    """Adds to `sums[K, 2]` Σ|xₖ - base| of all entries and of those that are kept, over sixteen fixed lanes."""
    deltas = np.empty(TILE, type(value_of(base[0])))
    for k in range(len(rows)):
        lanes = np.zeros((2, LANES), np.float64)
        for start in range(0, len(base), TILE):
            count = min(TILE, len(base) - start)
            banded(base, rows[k], words[k], skipped, length, levels[k], ends[k], start, count, deltas)
            add_sizes(base, rows[k], start, deltas[:count], lanes)
        sums[k, 0] += lanes[0].sum()
        sums[k, 1] += lanes[1].sum()
