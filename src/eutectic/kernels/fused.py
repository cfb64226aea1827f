"""stored bits -> stored bits: the methods' arithmetic in one pass over a block, compiled by numba.

Blocks are `(M, n)` arrays of stored bits, one row a model; for deltas row 0 is the base. Work proceeds in tiles that
stay in the first-level cache, with one simple loop an operation, so that each loop vectorises for any number of
models. Sums are float64, values float32 (float64 where an input is), and nothing is contracted or reordered: the
results equal the plain torch forms bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from eutectic.kernels.bits import BF16, FP16, PLAIN

TILE = 1024

NO_TRIM, TRIM, DROP = 0, 1, 2

_jit = njit(cache=True, nogil=True, error_model="numpy")


@_jit
def _decode(bits: Any, kind: int, words: Any, values: Any) -> None:
    """`words` and `values` are the same memory as unsigned integers and as floats."""
    count = bits.shape[0]
    if kind == BF16:
        for i in range(count):
            words[i] = np.uint32(bits[i]) << np.uint32(16)
    elif kind == FP16:
        # Placing the half's magnitude 13 bits up scales it by 2^-112, subnormals included.
        for i in range(count):
            words[i] = (np.uint32(bits[i]) & np.uint32(0x7FFF)) << np.uint32(13)
        for i in range(count):
            values[i] = values[i] * np.float32(2.0**112)
        for i in range(count):
            half = np.uint32(bits[i])
            infinite = np.uint32(0x7F800000) if (half & np.uint32(0x7C00)) == np.uint32(0x7C00) else np.uint32(0)
            words[i] = words[i] | infinite | ((half & np.uint32(0x8000)) << np.uint32(16))
    else:
        for i in range(count):
            values[i] = bits[i]


@_jit
def _encode(values: Any, kind: int, out: Any) -> None:
    """Rounds to nearest even, like torch: overflow becomes infinity, NaN the quiet NaN."""
    count = out.shape[0]
    if kind == PLAIN:
        for i in range(count):
            out[i] = values[i]
        return
    single = np.empty(count, np.float32)
    words = single.view(np.uint32)
    for i in range(count):
        single[i] = np.float32(values[i])
    if kind == BF16:
        for i in range(count):
            word = words[i]
            rounded = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            nan = (word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            out[i] = np.uint32(0x7FC0) if nan else rounded
    else:
        # Adding 0.5 leaves a subnormal half, rounded, in the last bits of the float.
        shifted = np.empty(count, np.float32)
        low = shifted.view(np.uint32)
        for i in range(count):
            shifted[i] = np.float32(abs(single[i]) + np.float32(0.5))
        for i in range(count):
            word = words[i]
            size = word & np.uint32(0x7FFFFFFF)
            normal = (
                size - np.uint32(0x38000000) + np.uint32(0xFFF) + ((size >> np.uint32(13)) & np.uint32(1))
            ) >> np.uint32(13)
            half = normal if size >= np.uint32(0x38800000) else low[i] - np.uint32(0x3F000000)
            half = np.uint32(0x7C00) if size >= np.uint32(0x477FF000) else half
            half = np.uint32(0x7E00) if size > np.uint32(0x7F800000) else half
            out[i] = half | ((word >> np.uint32(16)) & np.uint32(0x8000))


@_jit
def count_masked(words: Any, mask: Any) -> int:
    """How many words have every bit of `mask` set: with a float's exponent bits, the NaNs and infinities."""
    found = 0
    for start in range(0, words.shape[0], TILE):
        tile = words[start : start + TILE]
        # Counted in 32 bits a tile, so that the loop stays as narrow as the words.
        here: Any = np.int32(0)
        for i in range(tile.shape[0]):
            here += np.int32(1) if (tile[i] & mask) == mask else np.int32(0)
        found += here
    return found


@_jit
def _philox(first: int, count: int, key: Any, out: Any) -> None:
    """Random words of entries `first : first + count`, both multiples of 64 (the last block may run over)."""
    m0, m1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    w0, w1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
    for block in range((count + 63) // 64):
        number = np.uint64((first // 64 + block) * 16)
        for j in range(16):
            counter = number + np.uint64(j)
            x0, x1 = np.uint32(counter & np.uint64(0xFFFFFFFF)), np.uint32(counter >> np.uint64(32))
            x2, x3 = key[2], key[3]
            k0, k1 = key[0], key[1]
            for _ in range(10):
                p0, p1 = np.uint64(x0) * m0, np.uint64(x2) * m1
                y0 = np.uint32(p1 >> np.uint64(32)) ^ x1 ^ k0
                y2 = np.uint32(p0 >> np.uint64(32)) ^ x3 ^ k1
                x1, x3 = np.uint32(p1 & np.uint64(0xFFFFFFFF)), np.uint32(p0 & np.uint64(0xFFFFFFFF))
                x0, x2 = np.uint32(y0), np.uint32(y2)
                k0, k1 = np.uint32(k0 + w0), np.uint32(k1 + w1)
            at = block * 64 + j
            out[at] = x0
            out[at + 16] = x1
            out[at + 32] = x2
            out[at + 48] = x3


@_jit
def combine_weights(bits: Any, kind: int, floats: Any, weights: Any, divisor: float, out: Any, out_kind: int) -> None:
    """out = Σ wᵢ xᵢ / divisor over the rows of `bits (M, n)`.

    `floats` is an empty float32 or float64 array that fixes the working precision, here and below.
    """
    models, numel = bits.shape
    value = np.empty(TILE, floats.dtype)
    words = value.view(np.uint32)
    total = np.empty(TILE, np.float64)
    for start in range(0, numel, TILE):
        count = min(TILE, numel - start)
        for i in range(count):
            total[i] = 0.0
        for k in range(models):
            _decode(bits[k][start : start + count], kind, words, value)
            weight = weights[k]
            for i in range(count):
                total[i] += value[i] * weight
        for i in range(count):
            value[i] = total[i] / divisor
        _encode(value, out_kind, out[start : start + count])


@_jit
def _delta(bits: Any, k: int, start: int, count: int, kind: int, base: Any, delta: Any) -> None:
    _decode(bits[k + 1][start : start + count], kind, delta.view(np.uint32), delta)
    for i in range(count):
        delta[i] = delta[i] - base[i]


@_jit
def _trim(delta: Any, size: Any, count: int, threshold: Any, budget: Any, k: int) -> None:
    """Keeps what is above the threshold, and of what equals it the first `budget[k]`, which is counted down."""
    level = threshold[k]
    equal = 0
    for i in range(count):
        equal += 1 if size[i] == level else 0
    if equal <= budget[k]:
        budget[k] -= equal
        for i in range(count):
            delta[i] = delta[i] if size[i] >= level else 0
    elif budget[k] == 0:
        for i in range(count):
            delta[i] = delta[i] if size[i] > level else 0
    else:
        for i in range(count):
            if size[i] == level and budget[k] > 0:
                budget[k] -= 1
            elif size[i] <= level:
                delta[i] = 0


@_jit
def combine_deltas(
    bits: Any,
    kind: int,
    floats: Any,
    first: int,
    weights: Any,
    divisor: float,
    scale: float,
    sparsifier: int,
    threshold: Any,
    budget: Any,
    keys: Any,
    keep: Any,
    factor: Any,
    dividing: bool,
    elect: bool,
    normalize: bool,
    tiny: float,
    out: Any,
    out_kind: int,
) -> None:
    """out = base + scale · consensus(sparsify(xᵢ - base)).

    Row 0 of `bits` is the base. `first` is the flat index of the block's first entry, a multiple of 64. Trimming takes
    float magnitudes `threshold[K]` and how many entries equal to it may still be kept, `budget[K]` (changed). Dropping
    takes `keys[K, 4]` and `keep[K]` out of 2³². `factor[K]` rescales each delta, by division if `dividing`. Agreeing
    weights that sum to at most `tiny` have cancelled.
    """
    models, numel = bits.shape[0] - 1, bits.shape[1]
    base = np.empty(TILE, floats.dtype)
    deltas = np.empty((models, TILE), floats.dtype)
    size = np.empty(TILE, floats.dtype)
    random = np.empty(TILE, np.uint32)
    total, share, sign = np.empty(TILE, np.float64), np.empty(TILE, np.float64), np.empty(TILE, np.float64)
    for start in range(0, numel, TILE):
        count = min(TILE, numel - start)
        _decode(bits[0][start : start + count], kind, base.view(np.uint32), base)
        for i in range(count):
            total[i] = 0.0
        for k in range(models):
            delta = deltas[k]
            _delta(bits, k, start, count, kind, base, delta)
            if sparsifier == TRIM:
                for i in range(count):
                    size[i] = abs(delta[i])
                _trim(delta, size, count, threshold, budget, k)
            elif sparsifier == DROP and keep[k] < np.uint64(1 << 32):
                _philox(first + start, count, keys[k], random)
                limit = np.uint32(keep[k])
                for i in range(count):
                    delta[i] = delta[i] if random[i] < limit else 0
            if dividing:
                for i in range(count):
                    delta[i] = delta[i] / factor[k]
            elif factor[k] != 1:
                for i in range(count):
                    delta[i] = delta[i] * factor[k]
            weight = weights[k]
            for i in range(count):
                total[i] += delta[i] * weight
        if elect:
            for i in range(count):
                sign[i] = 1.0 if total[i] >= 0 else -1.0
                total[i] = 0.0
                share[i] = 0.0
            for k in range(models):
                weight = weights[k]
                delta = deltas[k]
                for i in range(count):
                    part = delta[i] * weight
                    agrees = part * sign[i] > 0
                    total[i] += part if agrees else 0.0
                    share[i] += weight if agrees else 0.0
            if normalize:
                for i in range(count):
                    total[i] = total[i] / (1.0 if abs(share[i]) <= tiny else share[i])
        else:
            for i in range(count):
                total[i] = total[i] / divisor
        for i in range(count):
            size[i] = total[i] * scale
        for i in range(count):
            base[i] = base[i] + size[i]
        _encode(base, out_kind, out[start : start + count])


@_jit
def inner_products(bits: Any, kind: int, floats: Any) -> Any:
    """⟨a,a⟩, ⟨a,b⟩, ⟨b,b⟩ of rows 0 and 1, in float64 over sixteen fixed lanes: the same bits on any machine."""
    numel = bits.shape[1]
    a, b = np.zeros(TILE, floats.dtype), np.zeros(TILE, floats.dtype)
    aa, ab, bb = np.zeros(16, np.float64), np.zeros(16, np.float64), np.zeros(16, np.float64)
    for start in range(0, numel, TILE):
        count = min(TILE, numel - start)
        _decode(bits[0][start : start + count], kind, a.view(np.uint32), a)
        _decode(bits[1][start : start + count], kind, b.view(np.uint32), b)
        for i in range(count, TILE):
            a[i] = 0
            b[i] = 0
        for i in range(0, TILE, 16):
            for j in range(16):
                x, y = np.float64(a[i + j]), np.float64(b[i + j])
                aa[j] += x * x
                ab[j] += x * y
                bb[j] += y * y
    return np.array([aa.sum(), ab.sum(), bb.sum()])


@_jit
def histogram_top(bits: Any, kind: int, floats: Any, words: Any, counts: Any) -> None:
    """Counts the top 16 bits of each |xₖ - base|'s pattern into `counts[K, 65536]`.

    The bit pattern of a non-negative float orders like its value, so the k-th largest magnitude is found exactly by
    refining 16 bits at a time. `words` is an empty array of the unsigned integer as wide as the floats.
    """
    models, numel = bits.shape[0] - 1, bits.shape[1]
    base, delta = np.empty(TILE, floats.dtype), np.empty(TILE, floats.dtype)
    pattern = delta.view(words.dtype)
    top = np.empty(TILE, np.uint16)
    shift = 8 * words.itemsize - 16
    for start in range(0, numel, TILE):
        count = min(TILE, numel - start)
        _decode(bits[0][start : start + count], kind, base.view(np.uint32), base)
        for k in range(models):
            _delta(bits, k, start, count, kind, base, delta)
            for i in range(count):
                delta[i] = abs(delta[i])
            for i in range(count):
                top[i] = pattern[i] >> shift
            row = counts[k]
            for i in range(count):
                row[top[i]] += 1


@_jit
def histogram_below(bits: Any, kind: int, floats: Any, mask: Any, prefix: Any, shift: int, counts: Any) -> None:
    """Counts the 16 bits at `shift` of those patterns that, under `mask[1]`, equal `prefix[K]`."""
    models, numel = bits.shape[0] - 1, bits.shape[1]
    base, delta = np.empty(TILE, floats.dtype), np.empty(TILE, floats.dtype)
    pattern = delta.view(prefix.dtype)
    inside = np.empty(TILE, np.int64)
    for start in range(0, numel, TILE):
        count = min(TILE, numel - start)
        _decode(bits[0][start : start + count], kind, base.view(np.uint32), base)
        for k in range(models):
            _delta(bits, k, start, count, kind, base, delta)
            wanted = prefix[k]
            found = 0
            # Written unconditionally and counted if inside: no branch to mispredict.
            for i in range(count):
                inside[found] = i
                found += 1 if (pattern[i] & mask[0]) == wanted else 0
            row = counts[k]
            for i in range(found):
                row[(pattern[inside[i]] >> shift) & 0xFFFF] += 1


@_jit
def count_equal(bits: Any, kind: int, floats: Any, threshold: Any, equal: Any) -> None:
    """Adds to `equal[K]` how many |xₖ - base| are exactly `threshold[K]`."""
    models, numel = bits.shape[0] - 1, bits.shape[1]
    base, delta = np.empty(TILE, floats.dtype), np.empty(TILE, floats.dtype)
    for start in range(0, numel, TILE):
        count = min(TILE, numel - start)
        _decode(bits[0][start : start + count], kind, base.view(np.uint32), base)
        for k in range(models):
            _delta(bits, k, start, count, kind, base, delta)
            level = threshold[k]
            found = 0
            for i in range(count):
                found += 1 if abs(delta[i]) == level else 0
            equal[k] += found


@_jit
def trimmed_sums(bits: Any, kind: int, floats: Any, threshold: Any, sums: Any) -> None:
    """Adds to `sums[K, 2]` Σ|xₖ - base| of all entries and of those above `threshold[K]`, over sixteen fixed lanes."""
    models, numel = bits.shape[0] - 1, bits.shape[1]
    base, delta = np.zeros(TILE, floats.dtype), np.zeros(TILE, floats.dtype)
    lanes = np.zeros((2, 16), np.float64)
    for k in range(models):
        lanes[:] = 0.0
        level = threshold[k]
        for start in range(0, numel, TILE):
            count = min(TILE, numel - start)
            _decode(bits[0][start : start + count], kind, base.view(np.uint32), base)
            _delta(bits, k, start, count, kind, base, delta)
            for i in range(count, TILE):
                delta[i] = 0
            for i in range(0, TILE, 16):
                for j in range(16):
                    size = abs(delta[i + j])
                    lanes[0, j] += size
                    lanes[1, j] += size if size > level else 0.0
        sums[k, 0] += lanes[0].sum()
        sums[k, 1] += lanes[1].sum()


@_jit
def dropped_sums(bits: Any, kind: int, floats: Any, first: int, keys: Any, keep: Any, sums: Any) -> None:
    """Adds to `sums[K, 2]` Σ|δ| of all entries and of those that a random drop keeps."""
    models, numel = bits.shape[0] - 1, bits.shape[1]
    base, delta = np.zeros(TILE, floats.dtype), np.zeros(TILE, floats.dtype)
    random = np.empty(TILE, np.uint32)
    lanes = np.zeros((2, 16), np.float64)
    for k in range(models):
        lanes[:] = 0.0
        for start in range(0, numel, TILE):
            count = min(TILE, numel - start)
            _decode(bits[0][start : start + count], kind, base.view(np.uint32), base)
            _delta(bits, k, start, count, kind, base, delta)
            for i in range(count, TILE):
                delta[i] = 0
            _philox(first + start, TILE, keys[k], random)
            for i in range(0, TILE, 16):
                for j in range(16):
                    magnitude = abs(delta[i + j])
                    lanes[0, j] += magnitude
                    lanes[1, j] += magnitude if np.uint64(random[i + j]) < keep[k] else 0.0
        sums[k, 0] += lanes[0].sum()
        sums[k, 1] += lanes[1].sum()


@_jit
def convert(bits: Any, kind: int, floats: Any, out: Any, out_kind: int) -> None:
    """Stored bits of one dtype to another, through floats."""
    numel = bits.shape[0]
    value = np.empty(TILE, floats.dtype)
    for start in range(0, numel, TILE):
        count = min(TILE, numel - start)
        _decode(bits[start : start + count], kind, value.view(np.uint32), value)
        _encode(value, out_kind, out[start : start + count])
