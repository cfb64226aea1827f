"""stored bits -> stored bits: DELLA, which keeps an entry with a probability that depends on its rank in its row.

A rank among magnitudes is written as a *place*: how many are smaller + how many are not larger. That is 1, 3, 5, …
where all differ, and twice the mean rank + 1 for equal ones. `inverse[place]` is 1 / p, p the probability of keeping;
while rows are ranked, as the word that a float32 is stored as.

A row is cut into bins of equal width. The width is a power of two, so its multiples are represented exactly: they have
an even bin each, and what lies before the next one has the odd bin between. All of an even bin are equal. Where several
share an odd bin they are *open*: those are listed with all their bits, sorted, and settled. Deltas of 16-bit floats are
multiples of few widths, and few are open; float32 takes more bins than can be counted, and in these some are equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eutectic.kernels.fused import (
    LANES,
    TILE,
    add_sizes,
    as_float,
    as_word,
    compiled,
    consensus,
    inlined,
    philox,
    value_of,
)

# Marks what is open: above every place, and the sign of a float.
OPEN = np.uint32(1 << 31)
# A row is cut up to about this many times its mean magnitude; what is larger has the last bin. The mean is that of so
# many entries. Both decide the time, never the result.
SPAN, SAMPLED = np.float32(5), 32
# The exponents, as stored, between which the cut is: then the width of a bin and its inverse are normal floats.
LOWEST, HIGHEST = 40, 214
# Open entries of a row that are sorted at once; more are left to numpy.
FEW = 64
# Where more than one entry in so many is open, of at least so many, the widths of the rows to come are halved.
COARSE, TRIED = 32, 4096


@inlined
def size_of(base: Any, row: Any, i: Any) -> Any:
    """|x - base|."""
    return abs(value_of(row[i]) - value_of(base[i]))


# Bins, each loop in a function of its own, or it would not vectorise


@compiled
def span_of(base: Any, row: Any) -> Any:
    """The power of two up to which a row is cut."""
    total, count = np.float32(0), 0
    for t in range(0, len(row), max(1, len(row) // SAMPLED)):
        total += size_of(base, row, np.uint64(t))
        count += 1
    # NaN and infinity have the largest exponent.
    exponent = as_word(SPAN * total / np.float32(count)) >> np.uint32(23)
    return as_float(np.uint32(min(max(exponent, LOWEST), HIGHEST) + 1) << np.uint32(23))


@compiled
def bins_of(base: Any, row: Any, span: Any, count: int, bins: Any) -> None:
    """The bins of a row of which `count` widths reach up to `span`."""
    scale, width, last = np.float32(count) / span, span / np.float32(count), np.float32(count - 1)
    for t in range(len(bins)):
        i = np.uint64(t)
        size = size_of(base, row, i)
        part = size * scale
        # NaN has the last bin too.
        whole = np.int32(part if part < last else last)
        # Not by the quotient, which may have become zero.
        bins[i] = 2 * whole + np.int32(np.float32(whole) * width != size)


@compiled
def largest(bins: Any) -> Any:
    found = bins[0]
    for t in range(len(bins)):
        found = max(found, bins[np.uint64(t)])
    return found


# By counting


@compiled
def tally(bins: Any, counts: Any) -> None:
    for t in range(len(bins)):
        counts[bins[np.uint64(t)]] += 1


@compiled
def inverse_of(counts: Any, inverse: Any, out: Any) -> Any:
    """1 / p of each bin, of an open one its place as if all were equal; returns whether there are any."""
    below, found = np.uint32(0), np.uint32(0)
    for pair in range(len(counts) // 2):
        even, odd = np.uint64(2 * pair), np.uint64(2 * pair + 1)
        number = np.uint32(counts[even])
        out[even] = inverse[below + below + number]
        below += number
        number = np.uint32(counts[odd])
        place = below + below + number
        alone = inverse[place]
        several = number > np.uint32(1)
        out[odd] = (place | OPEN) if several else alone
        found |= np.uint32(several)
        below += number
    return found


@compiled
def looked_up(bins: Any, table: Any, out: Any) -> None:
    for t in range(len(bins)):
        i = np.uint64(t)
        out[i] = table[bins[i]]


@compiled
def are_open(words: Any, flags: Any) -> None:
    for t in range(len(words)):
        i = np.uint64(t)
        flags[i] = np.uint8(words[i] >= OPEN)


@inlined
def open_key(base: Any, row: Any, number: int, t: Any, bits: int) -> Any:
    """What an open entry is sorted by: the number of its row, 31 bits of magnitude, `bits` of the index in the row."""
    word = np.uint64(as_word(size_of(base, row, np.uint64(t))))
    return (((np.uint64(number) << np.uint64(31)) | word) << np.uint64(bits)) | np.uint64(t)


@compiled
def list_open(base: Any, row: Any, number: int, bits: int, flags: Any, out: Any, keys: Any, found: int) -> int:
    """Adds the open entries of a row to `keys`, which has `found`; `out` keeps their places."""
    are_open(out, flags)
    eights = flags.view(np.uint64)
    for group in range(len(eights)):
        if eights[group]:
            for t in range(8 * group, 8 * group + 8):
                if flags[t]:
                    keys[found] = open_key(base, row, number, t, bits)
                    out[t] ^= OPEN
                    found += 1
    return found


@compiled
def settle(keys: Any, length: int, bits: int, inverse: Any, out: Any) -> None:
    """Writes 1 / p of open entries to `out`; `keys` has been sorted."""
    words, mask = keys >> np.uint64(bits), np.uint64((1 << bits) - 1)
    first = 0
    while first < len(keys):
        row = words[first] >> np.uint64(31)
        origin = row * np.uint64(length)
        # Those of one bin, as no two bins of a row have the same place.
        place, last = out[origin + (keys[first] & mask)], first + 1
        while last < len(keys) and words[last] >> np.uint64(31) == row and out[origin + (keys[last] & mask)] == place:
            last += 1
        start = first
        while start < last:
            stop = start + 1
            while stop < last and words[stop] == words[start]:
                stop += 1
            # The place of all of a bin is twice as many as are below, and their number.
            by_p = inverse[place - (last - first) + (start - first) + (stop - first)]
            for j in range(start, stop):
                out[origin + (keys[j] & mask)] = by_p
            start = stop
        first = last


@compiled
def insertion_sort(keys: Any) -> None:
    for j in range(1, len(keys)):
        key, at = keys[j], j
        while at > 0 and keys[at - 1] > key:
            keys[at] = keys[at - 1]
            at -= 1
        keys[at] = key


@compiled
def settle_few(keys: Any, found: int, more: int, length: int, bits: int, inverse: Any, out: Any) -> int:
    """Settles the open entries of a row, `found : more` of `keys`, if these are few; returns how many keys are left."""
    if more - found > FEW:
        return more
    insertion_sort(keys[found:more])
    settle(keys[found:more], length, bits, inverse, out)
    return found


@compiled
def rank_by_counts(
    base: Any, row: Any, length: int, bits: int, count: int, counts: Any, few: int, inverse: Any, out: Any, keys: Any
) -> int:
    """Writes 1 / p of every entry to `out (n)` and the keys of open ones to `keys`; returns how many.

    A row has `length` entries, whose index takes `bits`. The first is cut into `count` widths, others into twice as
    many where that is too coarse; `counts` is scratch, two for each width, as far as it goes. `out` has the
    place of an open entry as if all of its bin were equal. It gives up where they are more than `few`.
    """
    bins = np.empty(length, np.uint16)
    table = np.empty(len(counts), np.uint32)
    flags = np.zeros((length + 7) // 8 * 8, np.uint8)
    found, opened, passed = 0, 0, 0
    for number in range(len(out) // length):
        part = slice(number * length, (number + 1) * length)
        origin, own, kept = base[part], row[part], out[part]
        bins_of(origin, own, span_of(origin, own), count, bins)
        used = 2 * (int(largest(bins)) // 2 + 1)
        counts[:used] = 0
        tally(bins, counts)
        some = inverse_of(counts[:used], inverse, table)
        looked_up(bins, table, kept)
        if some:
            more = list_open(origin, own, number, bits, flags, kept, keys, found)
            opened += more - found
            found = settle_few(keys, found, more, length, bits, inverse, out)
        if found > few:
            break
        passed += length
        if passed >= TRIED and opened * COARSE > passed and 4 * count <= len(counts):
            count, opened, passed = 2 * count, 0, 0
    return found


# By sorting, where bins are many


@compiled
def binned(base: Any, row: Any, length: int, bits: int, count: int, keys: Any) -> None:
    """Writes how many whole widths each entry has above `bits` of its index to `keys (n)`, to be sorted by rows."""
    bins = np.empty(length, np.uint32)
    for first in range(0, len(keys), length):
        part = slice(first, first + length)
        bins_of(base[part], row[part], span_of(base[part], row[part]), count, bins)
        for t in range(length):
            whole = type(keys[0])(bins[np.uint64(t)] >> np.uint32(1))
            keys[np.uint64(first) + np.uint64(t)] = (whole << bits) | type(keys[0])(t)


@compiled
def as_if_different(ranked: Any, mask: Any, inverse: Any, out: Any) -> None:
    for j in range(len(out)):
        at = np.uint64(j)
        out[ranked[at] & mask] = inverse[at + at + np.uint64(1)]


@compiled
def as_before(ranked: Any, shift: Any, flags: Any) -> None:
    """Which have as many whole widths as the one before."""
    for j in range(len(ranked) - 1):
        at = np.uint64(j)
        flags[at + np.uint64(1)] = np.uint8(ranked[at] >> shift == ranked[at + np.uint64(1)] >> shift)


@compiled
def rank_by_sorting(base: Any, row: Any, length: int, bits: int, ranked: Any, inverse: Any, out: Any, keys: Any) -> int:
    """As `rank_by_counts`, of what `binned` wrote, each row of it sorted."""
    flags = np.zeros((length + 7) // 8 * 8, np.uint8)
    eights = flags.view(np.uint64)
    shift, mask = type(ranked[0])(bits), type(ranked[0])((1 << bits) - 1)
    found = 0
    for number in range(len(out) // length):
        part = slice(number * length, (number + 1) * length)
        origin, own, kept, rising = base[part], row[part], out[part], ranked[part]
        as_if_different(rising, mask, inverse, kept)
        as_before(rising, shift, flags)
        stop, more = 0, found
        for group in range(len(eights)):
            if not eights[group]:
                continue
            for j in range(8 * group, 8 * group + 8):
                if j < stop or not flags[j]:
                    continue
                start, stop = j - 1, j + 1
                while stop < length and flags[stop]:
                    stop += 1
                least, opens = size_of(origin, own, np.uint64(rising[start] & mask)), False
                for at in range(j, stop):
                    opens |= size_of(origin, own, np.uint64(rising[at] & mask)) != least
                word = np.uint32(start + stop) if opens else inverse[start + stop]
                for at in range(start, stop):
                    kept[rising[at] & mask] = word
                    if opens:
                        keys[more] = open_key(origin, own, number, rising[at] & mask, bits)
                        more += 1
        found = settle_few(keys, found, more, length, bits, inverse, out)
    return found


# By comparing, where rows are short


@compiled
def rank_by_pairs(base: Any, row: Any, words: Any, size: Any, inverse: Any, out: Any) -> None:
    """Writes 1 / p of every entry to `out (n)`.

    `words` and `size` are a row of scratch, the same memory as signed integers and as the working floats.
    """
    length = len(size)
    for first in range(0, len(out), length):
        for t in range(length):
            size[np.uint64(t)] = size_of(base, row, np.uint64(first) + np.uint64(t))
        for t in range(length):
            own, place = words[np.uint64(t)], np.int32(0)
            for j in range(length):
                other = words[np.uint64(j)]
                place = np.int32(place + np.int32(other < own) + np.int32(other <= own))
            out[np.uint64(first) + np.uint64(t)] = inverse[place]


# What is kept


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
