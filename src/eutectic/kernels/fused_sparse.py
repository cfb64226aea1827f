"""stored bits -> stored bits: kernels of the methods that select entries, built on those of `fused`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from eutectic.kernels.fused import (
    LANES,
    TILE,
    agreeing,
    agreeing_weight,
    compiled,
    inlined,
    put,
    scores,
    unrolled,
    value_of,
)

# SCE: entries are selected by how far the models are apart, then signs are elected and energies are the weights


@inlined
def apart(bits: Any, origin: Any, lead: Any) -> Any:
    """How far a delta is from the first model's, in float64."""
    return np.float64(value_of(bits) - origin) - lead


_NAMES = {"value_of": value_of, "apart": apart, "agreeing": agreeing, "agreeing_weight": agreeing_weight}


def apart_sum(origin: Any, lead: Any, rows: Any, i: Any) -> Any:
    """Σ δₖ - δ₀ at entry i, `lead` being δ₀. Compiled code only, like those below."""


def apart_squares(origin: Any, lead: Any, rows: Any, i: Any) -> Any:
    """Σ (δₖ - δ₀)²."""


def plain_sum(origin: Any, rows: Any, i: Any) -> Any:
    """Σ δₖ."""


def agreeing_sum(origin: Any, rows: Any, weights: Any, i: Any, toward: Any) -> Any:
    """Σ wₖ δₖ of those with the sign of `toward`."""


def agreeing_share(origin: Any, rows: Any, weights: Any, i: Any, toward: Any) -> Any:
    """Σ wₖ of those with the sign of `toward`."""


def differing(origin: Any, rows: Any, i: Any) -> Any:
    """How many deltas are not the first one's."""


@overload(apart_sum)
def _apart_sum(origin, lead, rows, i):  # type: ignore[no-untyped-def]
    return unrolled("origin, lead, rows, i", "apart(rows[@][i], origin, lead)", rows, _NAMES)


@overload(apart_squares)
def _apart_squares(origin, lead, rows, i):  # type: ignore[no-untyped-def]
    term = "apart(rows[@][i], origin, lead)"
    return unrolled("origin, lead, rows, i", f"{term} * {term}", rows, _NAMES)


@inlined
def spread_at(origin: Any, rows: Any, i: Any) -> Any:
    """√Σ(δₖ - mean)² at entry i, as `kernels.spread` has it. A NaN is positive, as bits are ranked."""
    lead = np.float64(value_of(rows[0][i]) - origin)
    shift = apart_sum(origin, lead, rows, i)
    squares = apart_squares(origin, lead, rows, i)
    return type(origin)(abs(np.sqrt(squares - shift * shift / len(rows))))


@overload(scores)
def _spreads(base, row, start, count, out):  # type: ignore[no-untyped-def]
    """A plain tuple with a row a model is ranked by how far the models are apart."""
    if not isinstance(row, types.UniTuple):
        return None

    def spreads(base, row, start, count, out):  # type: ignore[no-untyped-def]
        for t in range(count):
            i = np.uint64(start) + np.uint64(t)
            out[t] = spread_at(value_of(base[i]), row, i)

    return spreads


@overload(plain_sum)
def _plain_sum(origin, rows, i):  # type: ignore[no-untyped-def]
    return unrolled("origin, rows, i", "(value_of(rows[@][i]) - origin) * 1.0", rows, _NAMES)


_SHARED = "origin, rows, weights, i, toward"
_PART = "(value_of(rows[@][i]) - origin) * weights[@]"


@overload(agreeing_sum)
def _agreeing_sum(origin, rows, weights, i, toward):  # type: ignore[no-untyped-def]
    return unrolled(_SHARED, f"agreeing({_PART}, toward)", rows, _NAMES)


@overload(agreeing_share)
def _agreeing_share(origin, rows, weights, i, toward):  # type: ignore[no-untyped-def]
    return unrolled(_SHARED, f"agreeing_weight({_PART}, toward, weights[@])", rows, _NAMES)


@overload(differing)
def _differing(origin, rows, i):  # type: ignore[no-untyped-def]
    return unrolled(
        "origin, rows, i", "((value_of(rows[@][i]) - origin) != (value_of(rows[0][i]) - origin))", rows, _NAMES
    )


@compiled
def count_differing(base: Any, rows: Any) -> int:
    """At how many entries not all deltas are equal."""
    found = 0
    for t in range(len(base)):
        i = np.uint64(t)
        found += 1 if differing(value_of(base[i]), rows, i) > 0 else 0
    return found


@compiled
def energies(base: Any, rows: Any, level: Any, sums: Any) -> None:
    """Adds to `sums[K]` Σ (xₖ - base)² over the entries whose spread is at least `level`, over sixteen fixed lanes.

    A `level` of None takes all entries.
    """
    lanes = np.zeros((len(rows), LANES), np.float64)
    size = np.zeros(TILE, type(value_of(base[0])))
    for start in range(0, len(base), TILE):
        count = min(TILE, len(base) - start)
        if level is not None:
            scores(base, rows, start, count, size)
        for k in range(len(rows)):
            row, lane = rows[k], lanes[k]
            for at in range(0, count, LANES):
                for j in range(min(LANES, count - at)):
                    i = np.uint64(start) + np.uint64(at) + np.uint64(j)
                    delta = np.float64(value_of(row[i]) - value_of(base[i]))
                    if level is None:
                        lane[j] += delta * delta
                    else:
                        lane[j] += 0.0 if size[np.uint64(at) + np.uint64(j)] < level else delta * delta
    for k in range(len(rows)):
        sums[k] += lanes[k].sum()


@compiled
def _selected(base: Any, rows: Any, weights: Any, level: Any, start: int, count: int, out: Any) -> None:
    for t in range(count):
        i = np.uint64(start) + np.uint64(t)
        origin = value_of(base[i])
        toward = 1.0 if plain_sum(origin, rows, i) >= 0 else -1.0
        share = agreeing_share(origin, rows, weights, i, toward)
        total = agreeing_sum(origin, rows, weights, i, toward)
        change = type(origin)(total / (1.0 if share == 0 else share))
        if level is not None:
            change = type(origin)(0) if spread_at(origin, rows, i) < level else change
        put(out, i, origin, change)


@compiled
def combine_selected(base: Any, rows: Any, weights: Any, level: Any, out: Any) -> None:
    """out = base + the mean, by `weights`, of the deltas with the elected sign, where the spread is at least `level`.

    The sign is that of the plain sum. A `level` of None takes all entries.
    """
    # Not written out here: only within a call does the loop vectorise.
    _selected(base, rows, weights, level, 0, len(out), out)
