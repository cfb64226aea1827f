"""stored bits -> stored bits: methods that ask at each entry what the task vectors agree on, compiled by numba.

Blocks, rows and what an array's type says about its bits are as in `fused`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from eutectic.kernels.fused import TILE, compiled, inlined, put, unrolled, value_of

# One entry of every model, written out for each number of models as in `fused`.


@inlined
def moved(bits: Any, origin: Any) -> Any:
    """The delta."""
    return value_of(bits) - origin


@inlined
def larger(a: Any, b: Any) -> Any:
    """The larger of two, NaN if one is."""
    return a if (a > b) | (a != a) else b


@inlined
def smaller(a: Any, b: Any) -> Any:
    """The smaller of two, NaN if one is."""
    return a if (a < b) | (a != a) else b


@inlined
def matters(delta: Any, total: Any, level: Any) -> Any:
    """1 if the delta outweighs what the others add, else 0."""
    own = np.float64(delta)
    return 1 if abs(own) > abs(total - own) * level else 0


@inlined
def held(delta: Any, epsilon: Any) -> Any:
    """1 if the delta counts as a change, else 0."""
    return 1 if abs(delta) > epsilon else 0


@inlined
def part(delta: Any, epsilon: Any, factor: Any, alone: Any) -> Any:
    """The delta if it counts as a change, else zero; times `factor` if the model is alone."""
    return (delta if abs(delta) > epsilon else type(delta)(0)) * (factor if alone else 1.0)


def largest_delta(origin: Any, rows: Any, i: Any) -> Any:
    """max δₖ at entry i. Compiled code only, like those below."""


def smallest_delta(origin: Any, rows: Any, i: Any) -> Any:
    """min δₖ."""


def total_delta(origin: Any, rows: Any, i: Any) -> Any:
    """Σ δₖ in float64."""


def user_count(origin: Any, rows: Any, levels: Any, total: Any, i: Any) -> Any:
    """How many models an entry matters to."""


def holder_count(origin: Any, rows: Any, epsilon: Any, i: Any) -> Any:
    """How many models changed an entry."""


def changed_sum(origin: Any, rows: Any, epsilon: Any, factors: Any, alone: Any, i: Any) -> Any:
    """Σ δₖ over the models that changed an entry, times factorₖ if one did so alone."""


_NAMES = {
    "moved": moved,
    "larger": larger,
    "smaller": smaller,
    "matters": matters,
    "held": held,
    "part": part,
}
_DELTA = "moved(rows[@][i], origin)"


@overload(largest_delta)
def _largest_delta(origin, rows, i):  # type: ignore[no-untyped-def]
    return unrolled("origin, rows, i", _DELTA, rows, _NAMES, "larger({}, {})")


@overload(smallest_delta)
def _smallest_delta(origin, rows, i):  # type: ignore[no-untyped-def]
    return unrolled("origin, rows, i", _DELTA, rows, _NAMES, "smaller({}, {})")


@overload(total_delta)
def _total_delta(origin, rows, i):  # type: ignore[no-untyped-def]
    return unrolled("origin, rows, i", f"{_DELTA} * 1.0", rows, _NAMES)


@overload(user_count)
def _user_count(origin, rows, levels, total, i):  # type: ignore[no-untyped-def]
    return unrolled("origin, rows, levels, total, i", f"matters({_DELTA}, total, levels[@])", rows, _NAMES)


@overload(holder_count)
def _holder_count(origin, rows, epsilon, i):  # type: ignore[no-untyped-def]
    return unrolled("origin, rows, epsilon, i", f"held({_DELTA}, epsilon)", rows, _NAMES)


@overload(changed_sum)
def _changed_sum(origin, rows, epsilon, factors, alone, i):  # type: ignore[no-untyped-def]
    term = f"part({_DELTA}, epsilon, factors[@], alone)"
    return unrolled("origin, rows, epsilon, factors, alone, i", term, rows, _NAMES)


# Kernels. What is left out is multiplied by zero: choosing the constant 0.0 would make a branch, as `put` asks for it,
# and the loop over entries would not vectorise.


@compiled
def combine_extremes(base: Any, rows: Any, elected: bool, scale: float, out: Any) -> None:
    """out = base + scale · the largest or the smallest delta, by the sign of a vote; the base where the vote is zero.

    The vote is the sum of the deltas if `elected`, otherwise that of the two extremes.
    """
    for t in range(len(out)):
        # Unsigned, so that no index is checked for being negative.
        i = np.uint64(t)
        origin = value_of(base[i])
        high, low = largest_delta(origin, rows, i), smallest_delta(origin, rows, i)
        vote = total_delta(origin, rows, i) if elected else np.float64(high) + np.float64(low)
        chosen = high if vote > 0 else low
        put(out, i, origin, np.float64(chosen) * np.float64(vote != 0) * scale)


@compiled
def combine_agreed(base: Any, rows: Any, levels: Any, wanted: int, scale: float, out: Any) -> None:
    """out = base + scale · Σ δₖ where the entry matters to at least `wanted` models, else the base."""
    for t in range(len(out)):
        i = np.uint64(t)
        origin = value_of(base[i])
        total = total_delta(origin, rows, i)
        enough = user_count(origin, rows, levels, total, i) >= wanted
        put(out, i, origin, total * np.float64(enough) * scale)


@compiled
def combine_positions(base: Any, rows: Any, epsilon: Any, factors: Any, out: Any) -> None:
    """out = base + the mean of the deltas above `epsilon`, times `factors[k]` where model k alone has one."""
    for t in range(len(out)):
        i = np.uint64(t)
        origin = value_of(base[i])
        holders = holder_count(origin, rows, epsilon, i)
        total = changed_sum(origin, rows, epsilon, factors, holders == 1, i)
        put(out, i, origin, total / np.float64(max(holders, 1)))


@compiled
def count_positions(base: Any, rows: Any, epsilon: Any, counts: Any) -> None:
    """Adds to `counts[K, 2]` how many entries each model changed, and how many it alone changed."""
    holders = np.empty(TILE, np.uint8)
    for start in range(0, len(base), TILE):
        count = min(TILE, len(base) - start)
        for t in range(count):
            i = np.uint64(start) + np.uint64(t)
            # Two is as good as more, and fits a byte.
            holders[t] = min(holder_count(value_of(base[i]), rows, epsilon, i), 2)
        for k in range(len(rows)):
            row = rows[k]
            every = np.int32(0)
            alone = np.int32(0)
            for t in range(count):
                i = np.uint64(start) + np.uint64(t)
                own = abs(value_of(row[i]) - value_of(base[i])) > epsilon
                every += np.int32(own)
                alone += np.int32(own & (holders[t] == 1))
            counts[k, 0] += every
            counts[k, 1] += alone
