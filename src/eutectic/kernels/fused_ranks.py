"""stored bits -> 1 / p, p the probability that an entry is kept with by its rank among the magnitudes of its row.

A rank among magnitudes is written as a *place*: how many are smaller + how many are not larger. That is 1, 3, 5, …
where all differ, and twice the mean rank + 1 for equal ones. `inverse[place]` is 1 / p; while rows are ranked, as the
word that a float32 is stored as.

A row is cut into bins of equal width. The width is a power of two, so its multiples are represented exactly: they have
an even bin each, and what lies before the next one has the odd bin between. All of an even bin are equal. Where several
share an odd bin they are *open*: those are listed and settled by all their bits. Deltas of 16-bit floats are multiples
of few widths, and few are open; float32 takes more bins than can be counted, and in these some are equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eutectic.kernels.fused import as_float, as_word, compiled, inlined, value_of

# Marks what is open: above every place, and the sign of a float.
OPEN = np.uint32(1 << 31)
# A row is cut up to about this many times its mean magnitude; what is larger has the last bin. The mean is that of so
# many entries, zeros left out. Both decide the time, never the result.
SPAN, SAMPLED = np.float32(5), 32
# The exponents, as stored, between which the cut is: then the width of a bin and its inverse are normal floats.
LOWEST, HIGHEST = 40, 214
# Open entries of a row that are settled at once; more are left to a sort of all of them.
FEW = 64
# Where more than one entry in so many is open, of at least so many, the widths of the rows to come are halved.
COARSE, TRIED = 32, 4096


@inlined
def size_of(base: Any, row: Any, i: Any) -> Any:
    """|x - base|."""
    return abs(value_of(row[i]) - value_of(base[i]))


# Bins, each loop in a function of its own, or it would not vectorise


@compiled
def span_of(base: Any, row: Any, step: int, otherwise: Any) -> Any:
    """The power of two up to which a row is cut, by a sample; `otherwise` where all of that are zero."""
    total, count = np.float32(0), 0
    for t in range(0, min(len(row), SAMPLED * step), step):
        size = size_of(base, row, np.uint64(t))
        total += size
        count += size != 0
    if not count:
        return np.float32(otherwise)
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


@inlined
def four(word: Any) -> Any:
    """The four bins of one word: to load them one by one would take as long as to count them."""
    mask = np.uint64(0xFFFF)
    return word & mask, (word >> np.uint64(16)) & mask, (word >> np.uint64(32)) & mask, word >> np.uint64(48)


@compiled
def tally(bins: Any, words: Any, counts: Any) -> None:
    """Counts `bins`, of which `words` has whole fours."""
    for t in range(len(words)):
        a, b, c, d = four(words[np.uint64(t)])
        counts[a] += 1
        counts[b] += 1
        counts[c] += 1
        counts[d] += 1
    for t in range(4 * len(words), len(bins)):
        counts[bins[np.uint64(t)]] += 1


@compiled
def inverse_of(pairs: Any, inverse: Any, out: Any) -> Any:
    """1 / p of each bin, of an open one its place as if all were equal; returns whether there are any.

    `pairs` has the counts of an even bin, in its lower half, and of the odd one after it. Where they are zero it reads
    the next place, which behind the largest entry is one more than there are.
    """
    half = np.uint64(4 * pairs.itemsize)
    below, found, mask = np.uint64(0), np.uint32(0), (np.uint64(1) << half) - np.uint64(1)
    for t in range(len(pairs)):
        pair, even = np.uint64(pairs[np.uint64(t)]), np.uint64(2 * t)
        number = pair & mask
        out[even] = inverse[below + below + number]
        below += number
        number = pair >> half
        place = below + below + number
        out[even + np.uint64(1)] = inverse[place]
        below += number
        # Seldom, so that it costs nothing elsewhere.
        if number > np.uint64(1):
            out[even + np.uint64(1)] = np.uint32(place) | OPEN
            found = np.uint32(1)
    return found


@compiled
def looked_up(bins: Any, words: Any, table: Any, out: Any) -> None:
    """What `table` has of each of `bins`, of which `words` has whole fours."""
    for t in range(len(words)):
        i = np.uint64(4 * t)
        a, b, c, d = four(words[np.uint64(t)])
        out[i], out[i + np.uint64(1)] = table[a], table[b]
        out[i + np.uint64(2)], out[i + np.uint64(3)] = table[c], table[d]
    for t in range(4 * len(words), len(bins)):
        out[np.uint64(t)] = table[bins[np.uint64(t)]]


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
def list_open(words: Any, flags: Any, keys: Any, found: Any) -> Any:
    """Adds the indices of a row's open entries to `keys`, which has `found`."""
    are_open(words, flags)
    eights = flags.view(np.uint64)
    for group in range(len(eights)):
        if eights[group]:
            # All eight are written and those that are open counted: no branch to mispredict.
            for t in range(8 * group, 8 * group + 8):
                keys[found] = t
                found += np.int64(flags[t])
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
def settle_few(base: Any, row: Any, entries: Any, inverse: Any, out: Any, own: Any) -> None:
    """Writes 1 / p of a row's open `entries` to `out` by comparing all pairs; `own (2, FEW)` is scratch."""
    places, words = own[0], own[1]
    for j in range(len(entries)):
        places[j] = out[entries[j]] ^ OPEN
        words[j] = as_word(size_of(base, row, entries[j]))
    for j in range(len(entries)):
        # The place of all of a bin is twice as many as are below, and their number.
        place = places[j]
        for i in range(len(entries)):
            at = np.uint64(i)
            same, less, more = places[at] == places[j], words[at] < words[j], words[at] <= words[j]
            place = np.int32(place + np.int32(same) * (np.int32(less) + np.int32(more) - np.int32(1)))
        out[entries[j]] = inverse[place]


@compiled
def settle_row(
    base: Any, row: Any, number: int, bits: int, inverse: Any, out: Any, keys: Any, found: int, more: int, own: Any
) -> int:
    """Settles a row's open entries, of which `keys[found : more]` has the indices, if they are few.

    Else they get their keys, and `out` their places. Returns how many keys there are.
    """
    if more - found <= FEW:
        settle_few(base, row, keys[found:more], inverse, out, own)
        return found
    for j in range(found, more):
        entry = keys[j]
        out[entry] ^= OPEN
        keys[j] = open_key(base, row, number, entry, bits)
    return more


@compiled
def rank_by_counts(
    base: Any,
    row: Any,
    length: int,
    bits: int,
    count: int,
    counts: Any,
    pairs: Any,
    few: int,
    inverse: Any,
    out: Any,
    keys: Any,
) -> int:
    """Writes 1 / p of every entry to `out (n)` and the keys of open ones to `keys (n + 1)`; returns how many.

    A row has `length` entries, whose index takes `bits`. The first is cut into `count` widths, others into twice as
    many where that is too coarse. `counts` is scratch, two for each width, as far as it goes; `pairs` is the same
    memory, a number for two. `out` has the place of an open entry as if all of its bin were equal. It gives up where
    they are more than `few`.
    """
    bins = np.empty(length, np.uint16)
    words = bins[: length // 4 * 4].view(np.uint64)
    table = np.empty(len(counts), np.uint32)
    flags, pending = np.zeros((length + 7) // 8 * 8, np.uint8), np.empty((2, FEW), np.int32)
    found, opened, passed = 0, 0, 0
    span = span_of(base[:length], row[:length], max(1, length // SAMPLED), 1.0)
    for number in range(len(out) // length):
        part = slice(number * length, (number + 1) * length)
        origin, own, kept = base[part], row[part], out[part]
        # By its first entries: those here and there, which are in no cache yet, would take as long as half of its bins.
        span = span_of(origin, own, 1, span)
        bins_of(origin, own, span, count, bins)
        used = int(largest(bins)) // 2 + 1
        pairs[:used] = 0
        tally(bins, words, counts)
        some = inverse_of(pairs[:used], inverse, table)
        looked_up(bins, words, table, kept)
        if some:
            more = list_open(kept, flags, keys, found)
            opened += more - found
            found = settle_row(origin, own, number, bits, inverse, kept, keys, found, more, pending)
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
    span = span_of(base[:length], row[:length], max(1, length // SAMPLED), 1.0)
    for first in range(0, len(keys), length):
        part = slice(first, first + length)
        span = span_of(base[part], row[part], 1, span)
        bins_of(base[part], row[part], span, count, bins)
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
    flags, pending = np.zeros((length + 7) // 8 * 8, np.uint8), np.empty((2, FEW), np.int32)
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
                word = np.uint32(start + stop) | OPEN if opens else inverse[start + stop]
                for at in range(start, stop):
                    kept[rising[at] & mask] = word
                    if opens:
                        keys[more] = rising[at] & mask
                        more += 1
        if more > found:
            found = settle_row(origin, own, number, bits, inverse, kept, keys, found, more, pending)
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
