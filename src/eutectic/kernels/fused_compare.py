"""blocks of stored bits -> the sums that a comparison of models is made of, compiled by numba.

Row 0 is the origin that differences are taken from, the rows after it are models. A tile of differences is made once,
as float32, and every pair of models is summed over it while it is in the cache. Sums are float64 over sixteen fixed
lanes, counts are integers: the same bits on any machine and with any number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eutectic.kernels.fused import LANES, TILE, as_word, compiled, inlined, value_of

# Vectors that a sketch multiplies each difference with: one vector register of float32.
PROBES = 16


@inlined
def _difference(origin: Any, row: Any, start: int, count: int, out: Any) -> None:
    """out = row - origin over one tile; the rest of the tile is zero, which adds nothing to any sum."""
    for t in range(count):
        i = np.uint64(start) + np.uint64(t)
        out[t] = value_of(row[i]) - value_of(origin[i])
    for t in range(count, len(out)):
        out[t] = 0


@inlined
def _squares(row: Any, start: int, count: int) -> float:
    """Σ x² over one tile."""
    lanes = np.zeros(LANES, np.float64)
    whole = count - count % LANES
    for first in range(0, whole, LANES):
        for j in range(LANES):
            i = np.uint64(start) + np.uint64(first) + np.uint64(j)
            x = np.float64(value_of(row[i]))
            lanes[j] += x * x
    for t in range(whole, count):
        x = np.float64(value_of(row[start + t]))
        lanes[t - whole] += x * x
    return float(lanes.sum())


@inlined
def _products(a: Any, b: Any, lanes: Any) -> None:
    """Σ ab and Σ |ab| over one tile into `lanes[2, LANES]`."""
    for first in range(0, len(a), LANES):
        for j in range(LANES):
            i = np.uint64(first) + np.uint64(j)
            product = np.float64(a[i]) * np.float64(b[i])
            lanes[0, j] += product
            lanes[1, j] += abs(product)


@inlined
def _signs(a: Any, b: Any) -> Any:
    """How many entries of a tile both change, and how many of them in opposite directions."""
    both, opposed = np.int32(0), np.int32(0)
    for i in range(len(a)):
        changed = (a[i] != 0) & (b[i] != 0)
        both += np.int32(changed)
        opposed += np.int32(changed & ((a[i] < 0) != (b[i] < 0)))
    return both, opposed


@inlined
def _in_bfloat16(value: Any) -> Any:
    """The bits of a float32 rounded to nearest even bfloat16."""
    word = as_word(np.float32(value))
    return (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)


@inlined
def _losses(origin: Any, start: int, count: int, change: Any, lanes: Any) -> int:
    """Σ |δ|, and that of the entries whose half is lost in bfloat16, into `lanes[2, LANES]`; how many change at all."""
    changed = np.int32(0)
    for first in range(0, count, LANES):
        for j in range(min(LANES, count - first)):
            i = np.uint64(first) + np.uint64(j)
            x = np.float32(value_of(origin[np.uint64(start) + i]))
            size = np.float64(abs(change[i]))
            lost = _in_bfloat16(x + np.float32(0.5) * change[i]) == _in_bfloat16(x)
            lanes[0, j] += size
            lanes[1, j] += size if lost else 0.0
            changed += np.int32(change[i] != 0)
    return int(changed)


@compiled
def pair_sums(bits: Any, own: Any, pairs: Any, signs: Any, sizes: Any, changed: Any, counts: Any) -> None:
    """Adds one block's sums and counts.

    `bits (1 + K, n)` are stored bits. `own[1 + K]` takes Σ x²; `pairs[2, K, K]` Σ δᵢδⱼ and Σ |δᵢδⱼ|, `signs[2, K, K]`
    how many entries both change and how many in opposite directions, all for j ≤ i; `sizes[2, K]` Σ |δ| and that of the
    entries where origin + δ/2, rounded to bfloat16, is the origin rounded to bfloat16; `changed[K]` how many δ are not
    zero; `counts[K, 65536]` the upper 16 bits of each |δ| as float32.
    """
    models = len(bits) - 1
    deltas = np.zeros((models, TILE), np.float32)
    lanes = np.zeros((2, LANES), np.float64)
    top = np.empty(TILE, np.uint16)
    for start in range(0, bits.shape[1], TILE):
        count = min(TILE, bits.shape[1] - start)
        own[0] += _squares(bits[0], start, count)
        for i in range(models):
            change = deltas[i]
            own[i + 1] += _squares(bits[i + 1], start, count)
            _difference(bits[0], bits[i + 1], start, count, change)
            lanes[:] = 0
            changed[i] += _losses(bits[0], start, count, change, lanes)
            sizes[0, i] += lanes[0].sum()
            sizes[1, i] += lanes[1].sum()
            for t in range(count):
                top[t] = as_word(abs(change[t])) >> np.uint32(16)
            for t in range(count):
                counts[i, top[t]] += 1
            for j in range(i + 1):
                lanes[:] = 0
                _products(change, deltas[j], lanes)
                pairs[0, i, j] += lanes[0].sum()
                pairs[1, i, j] += lanes[1].sum()
                both, opposed = _signs(change, deltas[j])
                signs[0, i, j] += both
                signs[1, i, j] += opposed


@compiled
def shared_top(bits: Any, level: Any, shared: Any) -> None:
    """Adds to `shared[K, K]`, j ≤ i, how many entries are changed by at least `level[K]` in both models."""
    models = len(bits) - 1
    change = np.zeros(TILE, np.float32)
    large = np.zeros((models, TILE), np.uint8)
    for start in range(0, bits.shape[1], TILE):
        count = min(TILE, bits.shape[1] - start)
        for i in range(models):
            _difference(bits[0], bits[i + 1], start, count, change)
            for t in range(TILE):
                large[i, t] = (abs(change[t]) >= level[i]) & (change[t] != 0)
            for j in range(i + 1):
                found = np.int32(0)
                for t in range(TILE):
                    found += np.int32(large[i, t] & large[j, t])
                shared[i, j] += found


@compiled
def sketch(origin: Any, row: Any, probes: Any, out: Any) -> None:
    """out (n, 16) += δᵀ δ probes of one block of whole rows of a matrix of n columns; `probes (n, 16)` are float32.

    Four rows at a time, so that each line of `probes` and `out` is fetched once for all of them.
    """
    columns = len(probes)
    deltas = np.zeros((4, columns), np.float32)
    heights = np.zeros((4, PROBES), np.float32)
    for start in range(0, len(origin), 4 * columns):
        for r in range(4):
            first = start + r * columns
            count = columns if first < len(origin) else 0
            _difference(origin, row, first, count, deltas[r])
        heights[:] = 0
        for j in range(columns):
            a, b, c, d = deltas[0, j], deltas[1, j], deltas[2, j], deltas[3, j]
            for p in range(PROBES):
                x = probes[j, p]
                heights[0, p] += a * x
                heights[1, p] += b * x
                heights[2, p] += c * x
                heights[3, p] += d * x
        for j in range(columns):
            a, b, c, d = deltas[0, j], deltas[1, j], deltas[2, j], deltas[3, j]
            for p in range(PROBES):
                out[j, p] += a * heights[0, p] + b * heights[1, p] + c * heights[2, p] + d * heights[3, p]
