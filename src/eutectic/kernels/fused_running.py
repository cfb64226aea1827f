"""stored bits -> running sums in float64 and means of them, with a proof that they are exact; compiled by numba.

A sum of floats does not depend on its order if every partial sum is exact, and it is if all terms are multiples of one
power of two and stay below 2⁵³ of it. So beside each entry's sum stand the smallest and the largest exponent that went
into it. Zero has none, and widens neither.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eutectic.kernels.fused import as_word, compiled, inlined, store, value_of


@inlined
def _exponent(value: Any) -> Any:
    """Of a float32, biased. Denormals are multiples of what the smallest normal numbers are multiples of."""
    return max((as_word(value) >> np.uint32(23)) & np.uint32(0xFF), np.uint32(1))


@compiled
def extend(row: Any, first: bool, total: Any, low: Any, high: Any) -> None:
    """Adds a row to the sum, or begins it with the row."""
    for i in range(len(total)):
        value = value_of(row[i])
        exponent = _exponent(value)
        below = np.uint32(255) if value == 0 else exponent
        above = np.uint32(0) if value == 0 else exponent
        total[i] = value if first else total[i] + value
        low[i] = below if first else min(np.uint32(low[i]), below)
        high[i] = above if first else max(np.uint32(high[i]), above)


@compiled
def mean_with(row: Any, total: Any, low: Any, high: Any, count: float, out: Any) -> Any:
    """out = (total + row) / count, rounded as `combine_weights` does; the widest range of exponents of any entry.

    NaN and infinity have the exponent 255, which no sum has room for.
    """
    widest = np.int32(0)
    for i in range(len(out)):
        value = value_of(row[i])
        exponent = _exponent(value)
        below = min(np.uint32(low[i]), np.uint32(255) if value == 0 else exponent)
        above = max(np.uint32(high[i]), np.uint32(0) if value == 0 else exponent)
        reach = np.int32(above) - np.int32(below)
        # What is not finite is for the merge to refuse, whatever the others are.
        widest = max(widest, np.int32(255) if above == 255 else reach)
        store(out, i, np.float32((total[i] + value) / count))
    return widest
