"""stored bits -> inner products of whole tensors, and steps from one model towards another, compiled by numba.

The sums run over sixteen fixed lanes of a block, so they have the same bits on any machine. See `fused`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eutectic.kernels.fused import LANES, TILE, compiled, inlined, store, value_of


@inlined
def _add_products(a: Any, b: Any, count: int, lanes: Any) -> None:
    """Adds a[i] · b[i] to lane i mod 16."""
    for start in range(0, count, LANES):
        # A length unknown to the compiler: a loop of sixteen it would unroll and then not vectorise.
        for j in range(min(LANES, count - start)):
            i = np.uint64(start) + np.uint64(j)
            lanes[j] += a[i] * b[i]


@inlined
def _add_gram(wide: Any, count: int, lanes: Any) -> None:
    """Adds one tile's products of every pair."""
    for j in range(len(wide)):
        for k in range(j, len(wide)):
            _add_products(wide[j], wide[k], count, lanes[j, k])


@inlined
def _fold_lanes(lanes: Any, out: Any) -> None:
    for j in range(len(out)):
        for k in range(j, len(out)):
            out[j, k] = out[k, j] = lanes[j, k].sum()


@compiled
def gram_of_weights(rows: Any, out: Any) -> None:
    """out[j, k] = ⟨xⱼ, xₖ⟩ in float64."""
    wide = np.empty((len(rows), TILE), np.float64)
    lanes = np.zeros((len(rows), len(rows), LANES), np.float64)
    for start in range(0, len(rows[0]), TILE):
        count = min(TILE, len(rows[0]) - start)
        for k in range(len(rows)):
            row, line = rows[k], wide[k]
            for t in range(count):
                line[t] = value_of(row[np.uint64(start) + np.uint64(t)])
        _add_gram(wide, count, lanes)
    _fold_lanes(lanes, out)


@compiled
def gram_of_deltas(base: Any, rows: Any, out: Any) -> None:
    """out[j, k] = ⟨xⱼ - base, xₖ - base⟩ in float64, the differences in working floats."""
    wide = np.empty((len(rows), TILE), np.float64)
    lanes = np.zeros((len(rows), len(rows), LANES), np.float64)
    for start in range(0, len(base), TILE):
        count = min(TILE, len(base) - start)
        for k in range(len(rows)):
            row, line = rows[k], wide[k]
            for t in range(count):
                i = np.uint64(start) + np.uint64(t)
                line[t] = value_of(row[i]) - value_of(base[i])
        _add_gram(wide, count, lanes)
    _fold_lanes(lanes, out)


@compiled
def near_swap(a: Any, b: Any, t: float, out: Any) -> None:
    """out = b where |b - a| ≤ t, else a moved by t towards b."""
    back = -t
    for k in range(len(out)):
        i = np.uint64(k)
        start, end = value_of(a[i]), value_of(b[i])
        origin = np.float64(start)
        distance = np.float64(end) - origin
        # Each choice has a name of its own: nested ones are compiled to branches, at five times the cost.
        step = t if distance > 0 else back
        moved = type(start)(origin + step)
        value = end if abs(distance) <= t else moved
        store(out, i, value)
