"""stored bits -> stored bits: DELLA, which keeps an entry with a probability that depends on its rank in its row."""

from __future__ import annotations

from typing import Any

import numpy as np

from eutectic.kernels.fused import LANES, TILE, add_sizes, compiled, consensus, philox, value_of


@compiled
def drawn(first: int, count: int, key: Any, words: Any) -> int:
    """Writes the two highest bytes of each random word of `first : first + count` to `words (2, TILE / 8 + 32)`.

    Returns how many others come before them, as random words come in whole groups of 256.
    """
    ahead = first % 256
    for place in range(2):
        philox(first - ahead, ahead + count, key, place, words[place])
    return ahead


@compiled
def kept(
    base: Any, row: Any, start: int, count: int, inverse: Any, skipped: int, words: Any, ahead: int, by: bool, out: Any
) -> None:
    """The deltas of entries `start : start + count`, times 1 / p if `by`; zero where the random word is not below p."""
    high, low = words[0].view(np.uint8), words[1].view(np.uint8)
    for t in range(count):
        i, at = np.uint64(start) + np.uint64(t), np.uint64(ahead) + np.uint64(t)
        delta = value_of(row[i]) - value_of(base[i])
        by_p = inverse[np.uint64(skipped) + i]
        word = type(delta)(np.int32((np.uint32(high[at]) << np.uint32(8)) | np.uint32(low[at])))
        # p · 2¹⁶ is whole: below it the product is at most 65535.01, from it on at least 65535.99, rounding and all.
        keeps = word * by_p < type(delta)(65535.5)
        out[np.uint64(t)] = (delta * by_p if by else delta) if keeps else type(delta)(0)


@compiled
def combine_ranked(
    base: Any,
    rows: Any,
    weights: Any,
    divisor: Any,
    scale: float,
    factor: Any,
    inverse: Any,
    skipped: int,
    first: int,
    keys: Any,
    by: bool,
    normalize: bool,
    tiny: float,
    out: Any,
) -> None:
    """As `fused.combine_deltas`, of those entries whose random word is below p; by p they are divided if `by`.

    `inverse (K, m)` has entry 0 at `skipped`; `keys (K, 4)` are the models' keys, `first` is the flat index of entry 0.
    """
    words = np.empty((2, TILE // 8 + 32), np.uint64)
    deltas = np.empty((len(rows), TILE), type(value_of(base[0])))
    for start in range(0, len(out), TILE):
        count = min(TILE, len(out) - start)
        for k in range(len(rows)):
            ahead = drawn(first + start, count, keys[k], words)
            kept(base, rows[k], start, count, inverse[k], skipped, words, ahead, by, deltas[k])
        consensus(base, rows, weights, divisor, scale, None, factor, deltas, normalize, tiny, start, count, out)


@compiled
def ranked_sums(base: Any, rows: Any, inverse: Any, skipped: int, first: int, keys: Any, by: bool, sums: Any) -> None:
    """Adds to `sums[K, 2]` Σ|xₖ - base| of all entries and of those that are kept, over sixteen fixed lanes."""
    words = np.empty((2, TILE // 8 + 32), np.uint64)
    deltas = np.empty(TILE, type(value_of(base[0])))
    for k in range(len(rows)):
        lanes = np.zeros((2, LANES), np.float64)
        for start in range(0, len(base), TILE):
            count = min(TILE, len(base) - start)
            ahead = drawn(first + start, count, keys[k], words)
            kept(base, rows[k], start, count, inverse[k], skipped, words, ahead, by, deltas)
            add_sizes(base, rows[k], start, deltas[:count], lanes)
        sums[k, 0] += lanes[0].sum()
        sums[k, 1] += lanes[1].sum()
