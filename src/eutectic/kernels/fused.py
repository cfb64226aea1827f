"""stored bits -> stored bits: the methods' arithmetic in one pass over a block, compiled by numba.

A block is a tuple of rows of stored bits, one row a model, with the base apart. The number of models is part of the
type, so the loop over models is unrolled and everything stays in registers while the loop over entries vectorises.
Sums are float64, values float32 (float64 where an input is), and nothing is contracted or reordered: the results equal
the plain torch forms bit for bit, but for the last bit of sums over a whole tensor (slerp, L1 norms), which are added
in another order.

The type of an array says what its bits are: `uint16` holds bfloat16, `int16` float16; float32 and float64 are
themselves.

Numba's cache notices changes in the file of a kernel only. The kernels of other families (`fused_*.py`) build on
what stands here, so after a change here their cached code is stale: the tests remove it (`tests/conftest.py`), and an
installation replaces all files at once.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

# Entries whose random words are made at a time: they stay in the first-level cache.
TILE = 1024
LANES = 16


def compiled(function: Any) -> Any:
    """Compiles at first use; caches beside the source, in the user's cache, or not at all if neither may be written."""
    try:
        return njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:
        return njit(nogil=True, error_model="numpy")(function)


# Helpers are compiled into the kernels that call them.
inlined = njit(nogil=True, error_model="numpy")


# Stored bits and floats


def _as_float(_context: Any, word: Any) -> Any:
    """The float32 whose bits are this unsigned integer."""
    signature = types.float32(types.uint32)
    return signature, lambda _c, builder, _s, arguments: builder.bitcast(arguments[0], ir.FloatType())


def _as_word(_context: Any, value: Any) -> Any:
    """The unsigned integer with this float32's bits."""
    signature = types.uint32(types.float32)
    return signature, lambda _c, builder, _s, arguments: builder.bitcast(arguments[0], ir.IntType(32))


as_float: Any = intrinsic(_as_float)
as_word: Any = intrinsic(_as_word)


def value_of(bits: Any) -> Any:
    """The float that one stored element is. Compiled code only."""


@overload(value_of)
def _value_of(bits):  # type: ignore[no-untyped-def]
    if bits == types.uint16:
        return lambda bits: as_float(np.uint32(bits) << np.uint32(16))
    if bits == types.int16:

        def half(bits):  # type: ignore[no-untyped-def]
            word = np.uint32(np.uint16(bits))
            # 13 bits up, the magnitude is that of a float 2^112 times too small, subnormals included.
            size = as_float((word & np.uint32(0x7FFF)) << np.uint32(13)) * np.float32(2.0**112)
            infinite = np.uint32(0x7F800000) if (word & np.uint32(0x7C00)) == np.uint32(0x7C00) else np.uint32(0)
            return as_float(as_word(size) | infinite | ((word & np.uint32(0x8000)) << np.uint32(16)))

        return half
    return lambda bits: bits


def store(out: Any, i: Any, value: Any) -> None:
    """Rounds a float to nearest even and stores it in `out[i]`, like torch. Compiled code only."""


@overload(store)
def _store(out, i, value):  # type: ignore[no-untyped-def]
    if out.dtype == types.uint16:

        def bfloat16(out, i, value):  # type: ignore[no-untyped-def]
            word = as_word(np.float32(value))
            rounded = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            out[i] = np.uint32(0x7FC0) if (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000) else rounded

        return bfloat16
    if out.dtype == types.int16:

        def float16(out, i, value):  # type: ignore[no-untyped-def]
            word = as_word(np.float32(value))
            size = word & np.uint32(0x7FFFFFFF)
            odd = (size >> np.uint32(13)) & np.uint32(1)
            half = (size - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13)
            # Adding 0.5 leaves a subnormal half, rounded, in the last bits of the float.
            low = as_word(np.float32(as_float(size) + np.float32(0.5))) - np.uint32(0x3F000000)
            half = low if size < np.uint32(0x38800000) else half
            half = np.uint32(0x7C00) if size >= np.uint32(0x477FF000) else half
            half = np.uint32(0x7E00) if size > np.uint32(0x7F800000) else half
            out[i] = np.uint32(half) | ((word >> np.uint32(16)) & np.uint32(0x8000))

        return float16

    def plain(out, i, value):  # type: ignore[no-untyped-def]
        out[i] = value

    return plain


@inlined
def put(out: Any, i: Any, origin: Any, total: Any) -> None:
    """Stores origin + total; where nothing changes the origin stays bit for bit: adding zero turns -0.0 into 0.0."""
    change = type(origin)(total)
    store(out, i, origin if change == 0 else origin + change)


# One entry of every model, summed over the models. A loop over models inside the loop over entries would keep the
# latter from vectorising, so the sums are written out for each number of models when a kernel is compiled for it.


def sparse(bits: Any, origin: Any, level: Any) -> Any:
    """The delta, or zero if its magnitude is below `level`, or outside of it if it is a pair (NaN is neither).

    A `level` of `()` leaves every delta as it is.
    """


@overload(sparse)
def _sparse(bits, origin, level):  # type: ignore[no-untyped-def]
    if isinstance(level, types.BaseTuple) and not len(level):
        return lambda bits, origin, level: value_of(bits) - origin
    if isinstance(level, types.BaseTuple):

        def between(bits, origin, level):  # type: ignore[no-untyped-def]
            delta = value_of(bits) - origin
            return type(origin)(0) if (abs(delta) < level[0]) | (abs(delta) > level[1]) else delta

        return between

    def above(bits, origin, level):  # type: ignore[no-untyped-def]
        delta = value_of(bits) - origin
        return type(origin)(0) if abs(delta) < level else delta

    return above


@inlined
def agreeing(part: Any, toward: Any) -> Any:
    """The weighted delta if its sign is the elected one, else zero."""
    return part if part * toward > 0 else 0.0


@inlined
def agreeing_weight(part: Any, toward: Any, weight: Any) -> Any:
    """The weight if the weighted delta has the elected sign, else zero."""
    return weight if part * toward > 0 else 0.0


def level_of(level: Any, k: Any) -> Any:
    """The level of one model; `()` where there is none. Compiled code only."""


@overload(level_of)
def _level_of(level, k):  # type: ignore[no-untyped-def]
    return (lambda level, k: level[k]) if len(level) else (lambda level, k: level)


def deltas_of(level: Any, made: Any, deltas: Any) -> Any:
    """`made` where it is the deltas themselves, as `level` is None. Compiled code only."""


@overload(deltas_of)
def _deltas_of(level, made, deltas):  # type: ignore[no-untyped-def]
    if isinstance(level, types.NoneType):
        return lambda level, made, deltas: made
    return lambda level, made, deltas: deltas


def weighted_entry(rows: Any, weights: Any, i: Any) -> Any:
    """Σ wₖ xₖ at entry i. Compiled code only, like those below."""


def delta_sum(origin: Any, rows: Any, weights: Any, level: Any, factor: Any, made: Any, i: Any, t: Any) -> Any:
    """Σ wₖ fₖ δₖ at entry i; where `level` is None, `made[k, t]` is δₖ.

    `weights`, `level` and `factor` have one of each a model. `()` stands for ones, or for no level at all: to multiply
    by one takes as long as by any number.
    """


def elected_sum(made: Any, rows: Any, weights: Any, factor: Any, t: Any, toward: Any) -> Any:
    """Σ wₖ fₖ δₖ over those with the elected sign, δₖ being `made[k, t]`."""


def elected_share(made: Any, rows: Any, weights: Any, factor: Any, t: Any, toward: Any) -> Any:
    """Σ wₖ over those with the elected sign."""


def divided(total: Any, divisor: Any) -> Any:
    """The sum over the divisor; the sum itself where the divisor is `()`, as a division by one takes as long as any."""


_NAMES = {
    "value_of": value_of,
    "sparse": sparse,
    "agreeing": agreeing,
    "agreeing_weight": agreeing_weight,
}


def unrolled(arguments: str, term: str, rows: Any, names: dict[str, Any] = _NAMES, joined: str = "{} + {}") -> Any:
    """`lambda arguments: term(0) + term(1) + …`, in the order of the models; `joined` says how, if not by adding."""
    terms = reduce(joined.format, (term.replace("@", str(k)) for k in range(len(rows))))
    return eval(f"lambda {arguments}: {terms}", names)


def _each(values: Any, name: str, absent: str) -> str:
    """How the value of one model is written out."""
    return f"{name}[@]" if len(values) else absent


def _part(weights: Any, level: Any, factor: Any) -> str:
    made = isinstance(level, types.NoneType)
    delta = "made[@, t]" if made else f"sparse(rows[@][i], origin, {_each(level, 'level', '()')})"
    if len(factor):
        delta = f"{delta} * factor[@]"
    return f"{delta} * {_each(weights, 'weights', '1.0')}"


@overload(weighted_entry)
def _weighted_entry(rows, weights, i):  # type: ignore[no-untyped-def]
    return unrolled("rows, weights, i", "value_of(rows[@][i]) * weights[@]", rows)


@overload(delta_sum)
def _delta_sum(origin, rows, weights, level, factor, made, i, t):  # type: ignore[no-untyped-def]
    arguments = "origin, rows, weights, level, factor, made, i, t"
    return unrolled(arguments, _part(weights, level, factor), rows)


_SHARED = "made, rows, weights, factor, t, toward"


@overload(elected_sum)
def _elected_sum(made, rows, weights, factor, t, toward):  # type: ignore[no-untyped-def]
    return unrolled(_SHARED, f"agreeing({_part(weights, types.none, factor)}, toward)", rows)


@overload(elected_share)
def _elected_share(made, rows, weights, factor, t, toward):  # type: ignore[no-untyped-def]
    part, weight = _part(weights, types.none, factor), _each(weights, "weights", "1.0")
    return unrolled(_SHARED, f"agreeing_weight({part}, toward, {weight})", rows)


@overload(divided)
def _divided(total, divisor):  # type: ignore[no-untyped-def]
    if isinstance(divisor, types.BaseTuple):
        return lambda total, divisor: total
    return lambda total, divisor: total / divisor


# Kernels


# Left to itself LLVM calls this from a loop that then does not vectorise.
@njit(nogil=True, error_model="numpy", inline="always")
def philox_words(counter: Any, place: Any, key: Any) -> tuple[Any, Any]:
    """The four words of one counter of `place`, as two 64-bit integers; see `kernels.random`."""
    m0, m1, mask = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57), np.uint64(0xFFFFFFFF)
    w0, w1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
    # In 64 bits throughout, as a vector instruction multiplies the low halves of 64-bit lanes.
    x0, x1 = counter & mask, (counter >> np.uint64(32)) | (np.uint64(place) << np.uint64(30))
    x2, x3 = np.uint64(key[2]), np.uint64(key[3])
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(7):
        p0, p1 = x0 * m0, x2 * m1
        x0, x1 = ((p1 >> np.uint64(32)) ^ x1 ^ k0) & mask, p1 & mask
        x2, x3 = ((p0 >> np.uint64(32)) ^ x3 ^ k1) & mask, p0 & mask
        k0, k1 = (k0 + w0) & mask, (k1 + w1) & mask
    return x0 | (x1 << np.uint64(32)), x2 | (x3 << np.uint64(32))


@compiled
def philox(first: int, count: int, key: Any, place: int, out: Any) -> None:
    """Byte `place` (0 the highest) of the random words of entries `first : first + count`, in `out` of uint64.

    `first` is a multiple of 256, `out` holds whole 256s; its bytes, the lowest of an integer first, are in the order of
    the entries. The layout is that of `kernels.random`.
    """
    for block in range((count + 255) // 256):
        number = np.uint64((first // 256 + block) * 16)
        at = np.uint64(block * 32)
        for j in range(16):
            low, high = philox_words(number + np.uint64(j), place, key)
            out[at + np.uint64(j)] = low
            out[at + np.uint64(16) + np.uint64(j)] = high


@inlined
def random_byte(entry: Any, key: Any, place: Any) -> Any:
    """One byte of one entry's word."""
    within = entry % np.uint64(256)
    counter = entry // np.uint64(256) * np.uint64(16) + within % np.uint64(128) // np.uint64(8)
    low, high = philox_words(counter, place, key)
    half = low if within < np.uint64(128) else high
    return (half >> (entry % np.uint64(8) * np.uint64(8))) & np.uint64(0xFF)


@inlined
def below(entry: Any, key: Any, keep: Any) -> Any:
    """Whether the rest of one entry's word is below that of `keep`, whose highest byte it shares."""
    for place in range(1, 4):
        own = random_byte(entry, key, place)
        wanted = (keep >> np.uint64(24 - 8 * place)) & np.uint64(0xFF)
        if own != wanted:
            return own < wanted
    return False


@compiled
def deciding_bytes(first: int, count: int, key: Any, keep: Any, words: Any) -> None:
    """Fills the bytes of `words` with the highest of each entry's word: it is below `keep` where its byte is below
    `bound_of(keep)`.

    Where the highest byte equals that of `keep`, once in 256 entries, the others decide: it becomes 0 or 255.
    """
    philox(first, count, key, 0, words)
    if keep & np.uint64(0xFFFFFF):
        octets, high = words.view(np.uint8), np.uint8(keep >> np.uint64(24))
        ones = np.uint64(0x0101010101010101)
        for at in range((count + 7) // 8):
            # A byte of zero, where the word's is `high`, borrows from its top bit.
            differs = words[at] ^ (np.uint64(high) * ones)
            if (differs - ones) & ~differs & (ones << np.uint64(7)):
                for t in range(8):
                    i = np.uint64(at) * np.uint64(8) + np.uint64(t)
                    if octets[i] == high:
                        octets[i] = 0 if below(np.uint64(first) + i, key, keep) else 255


@compiled
def kept_deltas(base: Any, row: Any, start: int, count: int, octets: Any, bound: Any, out: Any) -> None:
    """Deltas of entries `start : start + count`, zero where the entry's byte is not below `bound`."""
    for t in range(count):
        i = np.uint64(start) + np.uint64(t)
        delta = value_of(row[i]) - value_of(base[i])
        out[t] = delta if np.uint32(octets[t]) < bound else type(delta)(0)


@compiled
def combine_weights(rows: Any, weights: Any, divisor: Any, out: Any) -> None:
    """out = Σ wᵢ xᵢ / divisor; `()` divides by one."""
    for i in range(len(out)):
        narrow = type(value_of(rows[0][i]))
        store(out, i, narrow(divided(weighted_entry(rows, weights, i), divisor)))


@compiled
def _trimmed(base: Any, row: Any, start: int, level: Any, out: Any) -> None:
    """Writes the deltas of the entries from `start` on as `level` leaves them."""
    for t in range(len(out)):
        i = np.uint64(start) + np.uint64(t)
        out[t] = sparse(row[i], value_of(base[i]), level)


@compiled
def _elected(deltas: Any, rows: Any, weights: Any, factor: Any, scale: float, least: float, out: Any) -> None:
    """scale · Σ wₖ fₖ δₖ / Σ wₖ of those with the elected sign, undivided where |Σ wₖ| is at most `least`."""
    for t in range(len(out)):
        i = np.uint64(t)
        toward = 1.0 if delta_sum(None, rows, weights, None, factor, deltas, i, i) >= 0 else -1.0
        share = elected_share(deltas, rows, weights, factor, i, toward)
        total = elected_sum(deltas, rows, weights, factor, i, toward)
        out[i] = total / (1.0 if abs(share) <= least else share) * scale


@compiled
def _changed(base: Any, changes: Any, start: int, out: Any) -> None:
    """Stores the base plus the changes of the entries from `start` on."""
    for t in range(len(changes)):
        i = np.uint64(start) + np.uint64(t)
        put(out, i, value_of(base[i]), changes[np.uint64(t)])


@compiled
def _summed(
    base: Any,
    rows: Any,
    weights: Any,
    divisor: Any,
    scale: float,
    level: Any,
    factor: Any,
    made: Any,
    start: int,
    count: int,
    out: Any,
) -> None:
    """The consensus that is no election: the weighted sum over the divisor."""
    for t in range(count):
        # Unsigned, so that no index is checked for being negative and the loop vectorises.
        i = np.uint64(start) + np.uint64(t)
        origin = value_of(base[i])
        total = divided(delta_sum(origin, rows, weights, level, factor, made, i, t), divisor)
        put(out, i, origin, total * scale)


@compiled
def consensus(
    base: Any,
    rows: Any,
    weights: Any,
    divisor: Any,
    scale: float,
    level: Any,
    factor: Any,
    made: Any,
    normalize: bool,
    tiny: float,
    start: int,
    count: int,
    out: Any,
) -> None:
    """See `combine_deltas`. Where `level` is None, `made` has the deltas; they are of one tile."""
    if divisor is not None:
        _summed(base, rows, weights, divisor, scale, level, factor, made, start, count, out)
        return
    # An election in one loop needs more registers than there are: deltas and changes of a tile stay in the cache.
    floats = type(value_of(base[0]))
    deltas, changes = np.empty((len(rows), TILE), floats), np.empty(TILE, floats)
    least = tiny if normalize else np.inf
    for first in range(start, start + count, TILE):
        tile = changes[: min(TILE, start + count - first)]
        if level is not None:
            for k in range(len(rows)):
                _trimmed(base, rows[k], first, level_of(level, k), deltas[k, : len(tile)])
        _elected(deltas_of(level, made, deltas), rows, weights, factor, scale, least, tile)
        _changed(base, tile, first, out)


@compiled
def combine_deltas(
    base: Any,
    rows: Any,
    weights: Any,
    divisor: Any,
    scale: float,
    level: Any,
    factor: Any,
    normalize: bool,
    tiny: float,
    out: Any,
) -> None:
    """out = base + scale · consensus(factorᵢ · (xᵢ - base)), deltas of magnitude below `level[k]` taken as zero.

    With a `divisor` the consensus is the weighted sum over it (`()`: the sum). Without (None) it is a sign election:
    Σ over those whose weighted delta has the sign of the whole sum, under `normalize` divided by their weights; weights
    that sum to at most `tiny` have cancelled.
    """
    consensus(base, rows, weights, divisor, scale, level, factor, None, normalize, tiny, 0, len(out), out)


@compiled
def combine_dropped(
    base: Any,
    rows: Any,
    weights: Any,
    divisor: Any,
    scale: float,
    factor: Any,
    keys: Any,
    keep: Any,
    bound: Any,
    first: int,
    normalize: bool,
    tiny: float,
    out: Any,
) -> None:
    """As `combine_deltas`, of those entries whose random word is below `keep[k]` (of 2³²).

    `bound` has `random.bound_of` each `keep`, `keys (K, 4)` are the models' keys; `first` is the flat index of entry 0,
    a multiple of 256.
    """
    words = np.empty(TILE // 8, np.uint64)
    octets = words.view(np.uint8)
    deltas = np.empty((len(rows), TILE), type(value_of(base[0])))
    for start in range(0, len(out), TILE):
        count = min(TILE, len(out) - start)
        for k in range(len(rows)):
            deciding_bytes(first + start, count, keys[k], keep[k], words)
            kept_deltas(base, rows[k], start, count, octets, bound[k], deltas[k])
        consensus(base, rows, weights, divisor, scale, None, factor, deltas, normalize, tiny, start, count, out)


def scores(base: Any, row: Any, start: int, count: int, out: Any) -> None:
    """Writes what entries `start : start + count` of a row are ranked by to `out`: |x - base|. Compiled code only."""


@overload(scores)
def _scores(base, row, start, count, out):  # type: ignore[no-untyped-def]
    if not isinstance(row, types.Array):
        return None

    def magnitudes(base, row, start, count, out):  # type: ignore[no-untyped-def]
        for t in range(count):
            i = np.uint64(start) + np.uint64(t)
            out[t] = abs(value_of(row[i]) - value_of(base[i]))

    return magnitudes


@compiled
def histogram_top(base: Any, rows: Any, words: Any, size: Any, counts: Any) -> None:
    """Counts the top 16 bits of the pattern of each of `rows`' scores into `counts[K, 65536]`.

    The bit pattern of a non-negative float orders like its value, so the k-th largest score is found exactly by
    refining 16 bits at a time. `words` and `size` are TILE entries of scratch, the same memory as unsigned integers and
    as the working floats.
    """
    top = np.empty(TILE, np.uint16)
    shift = 8 * words.itemsize - 16
    for k in range(len(rows)):
        row, tally = rows[k], counts[k]
        for start in range(0, len(base), TILE):
            count = min(TILE, len(base) - start)
            scores(base, row, start, count, size)
            for t in range(count):
                top[t] = words[t] >> shift
            for t in range(count):
                tally[top[t]] += 1


@compiled
def histogram_below(
    base: Any, rows: Any, words: Any, size: Any, mask: Any, prefix: Any, shift: int, counts: Any
) -> None:
    """Counts the 16 bits at `shift` of those patterns that, under `mask[0]`, equal `prefix[K]`; scratch as above."""
    inside = np.empty(TILE + 1, np.uint32)
    for k in range(len(rows)):
        row, tally, wanted = rows[k], counts[k], prefix[k]
        for start in range(0, len(base), TILE):
            count = min(TILE, len(base) - start)
            scores(base, row, start, count, size)
            found = np.uint64(0)
            # Written unconditionally and counted if inside: no branch to mispredict.
            for t in range(count):
                inside[found] = (words[t] >> shift) & 0xFFFF
                found += np.uint64(1) if (words[t] & mask[0]) == wanted else np.uint64(0)
            for j in range(found):
                tally[inside[j]] += 1


@compiled
def histogram_window(
    base: Any, rows: Any, words: Any, size: Any, low: Any, shift: Any, counts: Any, above: Any
) -> None:
    """Counts float32 patterns from `low[K]` on into `counts[K, n]`, 2^`shift[K]` patterns a bin; scratch as above.

    Those beyond the last bin are added to `above[K]`.
    """
    inside = np.empty(TILE + 1, np.uint32)
    width = np.uint32(counts.shape[1])
    for k in range(len(rows)):
        row, tally, bottom, step = rows[k], counts[k], low[k], shift[k]
        end = np.uint64(bottom) + (np.uint64(width) << np.uint64(step))
        beyond = 0
        for start in range(0, len(base), TILE):
            count = min(TILE, len(base) - start)
            scores(base, row, start, count, size)
            larger: Any = np.int32(0)
            for t in range(count):
                larger = np.int32(larger + np.int32(words[np.uint64(t)] >= end))
            beyond += larger
            found = np.uint64(0)
            for t in range(count):
                distance = np.uint32(words[t] - bottom) >> step
                inside[found] = distance
                found += np.uint64(1) if distance < width else np.uint64(0)
            for j in range(found):
                tally[inside[j]] += 1
        above[k] += beyond


@compiled
def all_scores(base: Any, rows: Any, out: Any) -> None:
    """Writes the score of every entry of each row to `out (K, n)`."""
    for k in range(len(rows)):
        scores(base, rows[k], 0, len(base), out[k])


@compiled
def count_near(
    base: Any, row: Any, words: Any, size: Any, low: Any, high: Any, heavy: Any, equal: Any, inside: Any
) -> tuple[int, int]:
    """How many float32 patterns are larger than `high`, and how many are written to `inside`.

    These are the ones from `low` to `high` that are none of `heavy[H]`, of which `equal[H]` takes how many there are.
    `inside` has a place more than there are entries; `words` is signed, else scratch as above.
    """
    flags = np.zeros(TILE, np.uint8)
    eights = flags.view(np.uint64)
    above, found = 0, np.uint64(0)
    for start in range(0, len(base), TILE):
        count = min(TILE, len(base) - start)
        scores(base, row, start, count, size)
        # Cut to 32 bits at each step, or the sums would be of 64 and half as many at a time.
        larger: Any = np.int32(0)
        for t in range(count):
            larger = np.int32(larger + np.int32(words[np.uint64(t)] > high))
        above += larger
        for place in range(len(heavy)):
            same: Any = np.int32(0)
            for t in range(count):
                same = np.int32(same + np.int32(words[np.uint64(t)] == heavy[place]))
            equal[place] += same
        if low == high:
            continue
        # In loops of their own, or none of them would vectorise; most often there is one frequent pattern or none.
        first = heavy[0] if len(heavy) else np.int32(-1)
        for t in range(count):
            word = words[np.uint64(t)]
            flags[np.uint64(t)] = np.uint8((word >= low) & (word <= high) & (word != first))
        for place in range(1, len(heavy)):
            for t in range(count):
                flags[np.uint64(t)] &= np.uint8(words[np.uint64(t)] != heavy[place])
        flags[count:] = 0
        # Few are left: eight are passed over at a time.
        for group in range(len(eights)):
            if eights[group]:
                for t in range(8 * group, 8 * group + 8):
                    inside[found] = words[t]
                    found += np.uint64(flags[t])
    return above, int(found)


@compiled
def count_equal(base: Any, rows: Any, size: Any, threshold: Any, equal: Any) -> None:
    """Adds to `equal[K]` how many scores are exactly `threshold[K]`; `size` is TILE working floats of scratch."""
    for k in range(len(rows)):
        row, level = rows[k], threshold[k]
        for start in range(0, len(base), TILE):
            count = min(TILE, len(base) - start)
            # In two loops, as one would branch at every entry.
            scores(base, row, start, count, size)
            found: Any = np.int32(0)
            for t in range(count):
                found = np.int32(found + np.int32(size[np.uint64(t)] == level))
            equal[k] += found


@compiled
def after_equal(base: Any, row: Any, size: Any, level: Any, wanted: int) -> int:
    """The entry after the `wanted`-th (from 1) whose score is exactly `level`; `size` as above."""
    for start in range(0, len(base), TILE):
        count = min(TILE, len(base) - start)
        scores(base, row, start, count, size)
        for t in range(count):
            if size[t] == level:
                wanted -= 1
                if wanted == 0:
                    return start + t + 1
    return len(base)


@compiled
def kept_sums(base: Any, rows: Any, level: Any, sums: Any) -> None:
    """Adds to `sums[K, 2]` Σ|xₖ - base| of all entries and of those that `level[K]` keeps, over sixteen fixed lanes."""
    for k in range(len(rows)):
        row, bounds = rows[k], level[k]
        lanes = np.zeros((2, LANES), np.float64)
        for start in range(0, len(base), LANES):
            for j in range(min(LANES, len(base) - start)):
                i = np.uint64(start) + np.uint64(j)
                origin = value_of(base[i])
                lanes[0, j] += abs(value_of(row[i]) - origin)
                lanes[1, j] += abs(sparse(row[i], origin, bounds))
        sums[k, 0] += lanes[0].sum()
        sums[k, 1] += lanes[1].sum()


@compiled
def add_sizes(base: Any, row: Any, start: int, deltas: Any, lanes: Any) -> None:
    """Adds |x - base| of the entries from `start` on, a whole tile or the last, and |δ| of what is left of them."""
    for at in range(0, len(deltas), LANES):
        for j in range(min(LANES, len(deltas) - at)):
            t = np.uint64(at) + np.uint64(j)
            i = np.uint64(start) + t
            lanes[0, j] += abs(value_of(row[i]) - value_of(base[i]))
            lanes[1, j] += abs(deltas[t])


@compiled
def dropped_sums(base: Any, rows: Any, first: int, keys: Any, keep: Any, bound: Any, sums: Any) -> None:
    """Adds to `sums[K, 2]` Σ|xₖ - base| of all entries and of those that a random drop keeps."""
    words = np.empty(TILE // 8, np.uint64)
    octets = words.view(np.uint8)
    deltas = np.empty(TILE, type(value_of(base[0])))
    for k in range(len(rows)):
        row = rows[k]
        lanes = np.zeros((2, LANES), np.float64)
        for start in range(0, len(base), TILE):
            count = min(TILE, len(base) - start)
            deciding_bytes(first + start, count, keys[k], keep[k], words)
            kept_deltas(base, row, start, count, octets, bound[k], deltas)
            add_sizes(base, row, start, deltas[:count], lanes)
        sums[k, 0] += lanes[0].sum()
        sums[k, 1] += lanes[1].sum()


@compiled
def convert(row: Any, out: Any) -> None:
    """Stored bits of one dtype to another, rounded to nearest even."""
    for i in range(len(out)):
        store(out, i, value_of(row[i]))


@compiled
def carries(words: Any, mask: Any, step: Any) -> Any:
    """The union of (word & mask) + step over 64-bit words of several stored floats each.

    With the exponents' bits as `mask` and one in the lowest of each as `step`, the addition carries into a sign bit
    just where an exponent is all ones: at a NaN or infinity.
    """
    found = np.uint64(0)
    for i in range(len(words)):
        found |= (words[i] & mask) + step
    return found


@compiled
def count_masked(words: Any, mask: Any) -> int:
    """How many words have every bit of `mask` set."""
    found = 0
    for i in range(len(words)):
        found += (words[i] & mask) == mask
    return found
