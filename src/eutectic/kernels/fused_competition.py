"""stored bits -> stored bits: PCB-Merging, whose task vectors compete for every entry, compiled by numba.

Blocks, rows and what an array's type says about its bits are as in `fused`; the scores are those of `consensus`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from eutectic.kernels.consensus import RANKED
from eutectic.kernels.exponential import LEAST, SMALL
from eutectic.kernels.fused import TILE, compiled, inlined, put, scores, unrolled, value_of
from eutectic.kernels.fused_consensus import total_delta
from eutectic.kernels.fused_exponential import exp, short_tanh, tanh

# The largest (eᶻ - 1 - z - ½z²) / z³ for z from 0 to 1.
_CUBIC = 0.2182818284590453
# Between these a bound in float32 neither vanishes nor overflows.
_SURE = 2.0**100


class Scratch(NamedTuple):
    """Memory for a tile: flags, the places of the flagged, sums of deltas, exponents of the flagged, their scores.

    `flags (TILE,)` are bytes, `places (TILE + 1,)` uint32, `rough (TILE,)` the sums in working floats, the others
    float64 `(TILE,)`.
    """

    flags: Any
    places: Any
    total: Any
    rough: Any
    power: Any
    score: Any


class Contender(NamedTuple):
    """A row of stored bits as a selection ranks it: by its scores beside all `rows`, those below `floor` as zero.

    `top` is its largest |δ|, or 1; `highest (1,)` becomes the highest score met, if that is larger.
    """

    rows: Any
    row: Any
    top: float
    floor: float
    highest: Any
    scratch: Scratch


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
def new_scratch(zero: Any) -> Scratch:
    """Memory for a thread; `zero` is a working float."""
    flags, places = np.empty(TILE, np.uint8), np.empty(TILE + 1, np.uint32)
    return Scratch(flags, places, np.empty(TILE), np.empty(TILE, type(zero)), np.empty(TILE), np.empty(TILE))


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
def _totals(base: Any, rows: Any, start: int, count: int, out: Any, rough: Any) -> None:
    for t in range(count):
        i = np.uint64(start) + np.uint64(t)
        total = total_delta(value_of(base[i]), rows, i)
        out[t], rough[t] = total, total


@compiled
def _may_count(
    base: Any, row: Any, start: int, count: int, inverse: Any, models: Any, rough: Any, level: Any, flags: Any
) -> None:
    """Flags the entries that may have a score of `level` · exp(-K) or more, in working floats.

    exp(K (n² - 1)) is exp(-K) exp z with z = K n², and of exp z a cubic is never less, nor is x than tanh x.
    """
    floats, one = type(inverse), type(inverse)(1.0)
    half, cubic = floats(0.5), floats(_CUBIC)
    for t in range(count):
        i = np.uint64(start) + np.uint64(t)
        own = value_of(row[i]) - value_of(base[i])
        part = own * inverse
        z = part * part * models
        bound = own * rough[np.uint64(t)] * (one + z * (one + z * (half + z * cubic)))
        flags[np.uint64(t)] = np.uint8((bound >= level) | (z > one))


@compiled
def _listed(count: int, scratch: Scratch) -> Any:
    """Lists the flagged places of a tile, and says how many there are."""
    found = np.uint64(0)
    # Written unconditionally and counted if flagged: no branch to mispredict.
    for t in range(count):
        scratch.places[found] = t
        found += np.uint64(scratch.flags[t])
    return int(found)


@compiled
def _gathered(base: Any, row: Any, start: int, places: Any, total: Any, own: Any, product: Any) -> None:
    for j in range(len(places)):
        t = np.uint64(places[j])
        i = np.uint64(start) + t
        own[j] = np.float64(value_of(row[i]) - value_of(base[i]))
        product[j] = own[j] * total[t]


@compiled
def _powers(power: Any, product: Any, top: float, models: float) -> Any:
    """Turns deltas into exponents, and products that do not count into zero; how many are above `SMALL`."""
    inverse, large = 1.0 / top, np.int64(0)
    for j in range(len(power)):
        size = abs(power[j])
        counts = (size <= top) & (product[j] > 0)
        part = size * inverse
        exponent = (part * part - 1.0) * models
        power[j] = exponent if counts & (exponent > LEAST) else LEAST
        product[j] = product[j] if counts else 0.0
        large += np.int64(product[j] > SMALL)
    return large


@compiled
def _times_exp(power: Any, values: Any) -> None:
    for j in range(len(values)):
        values[j] *= exp(power[j])


@compiled
def _tanhs(values: Any, large: int) -> None:
    # As a rule products are tiny, and the same is had for less.
    if large:
        for j in range(len(values)):
            values[j] = tanh(values[j])
    else:
        for j in range(len(values)):
            values[j] = short_tanh(values[j])


@compiled
def _scored(
    base: Any, row: Any, start: int, count: int, top: float, models: float, floor: float, scratch: Scratch
) -> Any:
    """Scores the entries `start : start + count` of one model; `top` is its largest |δ|, or 1.

    Of those whose score may be `floor` or more, `scratch` has the places and the scores; returns how many they are.
    """
    floats = type(value_of(base[0]))
    level = floor / exp(max(-models, LEAST))
    if 1 / _SURE < level < _SURE:
        inverse = floats(1.0 / top)
        _may_count(base, row, start, count, inverse, floats(models), scratch.rough, floats(level), scratch.flags)
    else:
        scratch.flags[:count] = 1
    found = _listed(count, scratch)
    places, power, score = scratch.places[:found], scratch.power[:found], scratch.score[:found]
    _gathered(base, row, start, places, scratch.total, power, score)
    _tanhs(score, _powers(power, score, top, models))
    _times_exp(power, score)
    return found


@inlined
def _ranked(scratch: Scratch, found: int, highest: float, out: Any) -> float:
    """Writes what the entries are ranked by; returns the highest score, or `highest` if that is larger."""
    out[:] = 0.0
    for j in range(found):
        score = scratch.score[j]
        highest = score if score > highest else highest
        out[scratch.places[j]] = score * RANKED
    return highest


@overload(scores)
def _contending(base, row, start, count, out):  # type: ignore[no-untyped-def]
    """A `Contender` is ranked by its scores."""
    if getattr(row, "instance_class", None) is not Contender:
        return None

    def contending(base, row, start, count, out):  # type: ignore[no-untyped-def]
        models = np.float64(len(row.rows))
        for first in range(0, count, TILE):
            part = out[first : min(first + TILE, count)]
            _totals(base, row.rows, start + first, len(part), row.scratch.total, row.scratch.rough)
            found = _scored(base, row.row, start + first, len(part), row.top, models, row.floor, row.scratch)
            row.highest[0] = _ranked(row.scratch, found, row.highest[0], part)

    return contending


@inlined
def _keep(scratch: Scratch, found: int, level: Any, highest: float, out: Any) -> None:
    out[:] = 0.0
    for j in range(found):
        score = scratch.score[j]
        out[scratch.places[j]] = score / highest if type(level)(score * RANKED) >= level else 0.0


@compiled
def _shared(base: Any, rows: Any, kept: Any, scale: float, start: int, count: int, out: Any) -> None:
    for t in range(count):
        i = np.uint64(start) + np.uint64(t)
        origin = value_of(base[i])
        share = share_sum(kept, rows, t)
        share = 1.0 if share == 0 else share
        put(out, i, origin, shared_delta(origin, rows, kept, share, i, t) * scale)


@compiled
def combine_competition(
    base: Any, rows: Any, tops: Any, floors: Any, highest: Any, level: Any, scale: float, out: Any
) -> None:
    """out = base + scale · Σ βₖ δₖ / Σ βₖ, βₖ being a score over the `highest[k]` if it ranks at least `level[k]`.

    No score below `floors[k]` does.
    """
    scratch, kept = new_scratch(value_of(base[0])), np.empty((len(rows), TILE))
    models = np.float64(len(rows))
    for start in range(0, len(out), TILE):
        count = min(TILE, len(out) - start)
        _totals(base, rows, start, count, scratch.total, scratch.rough)
        for k in range(len(rows)):
            found = _scored(base, rows[k], start, count, tops[k], models, floors[k], scratch)
            _keep(scratch, found, level[k], highest[k], kept[k])
        _shared(base, rows, kept, scale, start, count, out)
