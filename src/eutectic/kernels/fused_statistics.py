"""stored bits and statistics -> averages weighted entry by entry, compiled by numba. See `fused`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from eutectic.kernels.fused import LANES, compiled, store, unrolled, value_of, weighted_entry


def importance_entry(rows: Any, weights: Any, i: Any) -> Any:
    """Σ wₖ Fₖ at entry i. Compiled code only, like the next."""


def moment_entry(rows: Any, statistics: Any, weights: Any, i: Any) -> Any:
    """Σ wₖ Fₖ xₖ at entry i."""


@overload(importance_entry)
def _importance_entry(rows, weights, i):  # type: ignore[no-untyped-def]
    return unrolled("rows, weights, i", "value_of(rows[@][i]) * weights[@]", rows)


@overload(moment_entry)
def _moment_entry(rows, statistics, weights, i):  # type: ignore[no-untyped-def]
    term = "wide(value_of(statistics[@][i])) * value_of(rows[@][i]) * weights[@]"
    return unrolled("rows, statistics, weights, i", term, rows, {"value_of": value_of, "wide": np.float64})


@compiled
def total_of(row: Any) -> Any:
    """Σ x in float64, over sixteen fixed lanes."""
    lanes = np.zeros(LANES, np.float64)
    for start in range(0, len(row), LANES):
        # A length unknown to the compiler: a loop of sixteen it would unroll and then not vectorise.
        for j in range(min(LANES, len(row) - start)):
            lanes[j] += value_of(row[np.uint64(start) + np.uint64(j)])
    return lanes.sum()


@compiled
def weigh_entries(
    rows: Any, statistics: Any, weights: Any, scales: Any, divisor: float, level: float, out: Any
) -> None:
    """out = Σ sₖFₖxₖ / Σ sₖFₖ where Σ sₖFₖ is above `level`, else Σ wₖxₖ / divisor."""
    for k in range(len(out)):
        i = np.uint64(k)
        narrow = type(value_of(rows[0][i]))
        importance = importance_entry(statistics, scales, i)
        moment = moment_entry(rows, statistics, scales, i)
        total = weighted_entry(rows, weights, i)
        known = importance > level
        # One division: two cost more than all the rest.
        above = moment if known else total
        below = importance if known else divisor
        store(out, i, narrow(above / below))
