"""stored bits -> stored bits: PCB-Merging, whose task vectors compete for every entry, compiled by numba.

Blocks, rows and what an array's type says about its bits are as in `fused`; the scores are those of `consensus`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from eutectic.kernels.consensus import RANKED
from eutectic.kernels.exponential import LEAST
from eutectic.kernels.fused import TILE, compiled, inlined, put, scores, unrolled, value_of
from eutectic.kernels.fused_consensus import total_delta
from eutectic.kernels.fused_exponential import as_double, as_long, exp, expm1


def share_sum(kept: Any, rows: Any, t: Any) -> Any:
    """Σ of the kept scores `kept[K, t]`. Compiled code only, like the next."""


def shared_delta(origin: Any, rows: Any, kept: Any, share: Any, i: Any, t: Any) -> Any:
    """Σ δₖ · keptₖ / share at entry i."""


@overload(share_sum)
def _share_sum(kept, rows, t):  # type: ignore[no-untyped-def]
    return unrolled("kept, rows, t", "kept[@, t]", rows)


@overload(shared_delta)
def _shared_delta(origin, rows, kept, share, i, t):  # type: ignore[no-untyped-def]
    return unrolled("origin, rows, kept, share, i, t", "(value_of(rows[@][i]) - origin) * (kept[@, t] / share)", rows)


@compiled
def largest_sizes(base: Any, rows: Any, words: Any, size: Any, infinite: Any, out: Any) -> None:
    """Writes the pattern of each model's largest finite |x - base| to `out (K,)`; zero where there is none.

    `words` and `size` are TILE entries of scratch, the same memory as signed integers and as the working floats;
    `infinite` is the pattern of infinity.
    """
    for k in range(len(rows)):
        zero = type(infinite)(0)
        largest = zero
        for start in range(0, len(base), TILE):
            count = min(TILE, len(base) - start)
            scores(base, rows[k], start, count, size)
            for t in range(count):
                word = words[np.uint64(t)]
                finite = word if word < infinite else zero
                largest = finite if finite > largest else largest
        out[k] = largest


@compiled
def _totals(base: Any, rows: Any, start: int, count: int, out: Any) -> None:
    for t in range(count):
        i = np.uint64(start) + np.uint64(t)
        out[t] = total_delta(value_of(base[i]), rows, i)


@compiled
def _scored(base: Any, row: Any, start: int, count: int, top: float, models: float, total: Any, out: Any) -> None:
    """Writes the scores of one model's entries `start : start + count` to `out`; `top` is its largest |δ|, or 1."""
    for t in range(count):
        i = np.uint64(start) + np.uint64(t)
        own = np.float64(value_of(row[i]) - value_of(base[i]))
        part = abs(own) / top
        product = own * total[np.uint64(t)]
        counts = (part <= 1) & (product > 0)
        size = part if counts else 0.0
        twice = product * 2.0
        twice = twice if twice < 40.0 else 40.0
        grown = expm1(twice if counts else 0.0)
        power = (size * size - 1.0) * models
        out[t] = exp(power if power > LEAST else LEAST) * (grown / (grown + 2.0))


@compiled
def rank_scores(base: Any, rows: Any, tops: Any, out: Any, highest: Any) -> None:
    """Writes what the entries are ranked by to `out[K, n]`, and the highest score of each model to `highest (K,)`."""
    total, score = np.empty(TILE), np.empty(TILE)
    models = np.float64(len(rows))
    floats = type(value_of(base[0]))
    for k in range(len(rows)):
        highest[k] = 0.0
    for start in range(0, len(base), TILE):
        count = min(TILE, len(base) - start)
        _totals(base, rows, start, count, total)
        for k in range(len(rows)):
            _scored(base, rows[k], start, count, tops[k], models, total, score)
            line = out[k]
            # Patterns of what is not negative order like the values, and their maximum vectorises.
            largest = np.int64(0)
            for t in range(count):
                largest = max(largest, as_long(score[np.uint64(t)]))
                line[np.uint64(start) + np.uint64(t)] = floats(score[np.uint64(t)] * RANKED)
            highest[k] = max(highest[k], as_double(largest))


@inlined
def _keep(score: Any, count: int, level: Any, highest: float) -> None:
    for t in range(count):
        ranked = type(level)(score[t] * RANKED)
        part = score[t] / highest
        score[t] = part if ranked >= level else 0.0


@compiled
def _shared(base: Any, rows: Any, kept: Any, scale: float, start: int, count: int, out: Any) -> None:
    for t in range(count):
        i = np.uint64(start) + np.uint64(t)
        origin = value_of(base[i])
        share = share_sum(kept, rows, t)
        share = 1.0 if share == 0 else share
        put(out, i, origin, shared_delta(origin, rows, kept, share, i, t) * scale)


@compiled
def combine_competition(base: Any, rows: Any, tops: Any, highest: Any, level: Any, scale: float, out: Any) -> None:
    """out = base + scale · Σ βₖ δₖ / Σ βₖ, βₖ being a score over the `highest[k]` if it ranks at least `level[k]`."""
    total, kept = np.empty(TILE), np.empty((len(rows), TILE))
    models = np.float64(len(rows))
    for start in range(0, len(out), TILE):
        count = min(TILE, len(out) - start)
        _totals(base, rows, start, count, total)
        for k in range(len(rows)):
            _scored(base, rows[k], start, count, tops[k], models, total, kept[k])
            _keep(kept[k], count, level[k], highest[k])
        _shared(base, rows, kept, scale, start, count, out)
