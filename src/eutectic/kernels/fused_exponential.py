"""x -> exp x, exp x - 1 and tanh x in float64, compiled by numba: bit for bit those of `exponential`, for loops."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from eutectic.kernels import exponential
from eutectic.kernels.exponential import FLAT, SMALL
from eutectic.kernels.fused import inlined

reduced = inlined(exponential.reduced)
series = inlined(exponential.series)
short_series = inlined(exponential.short_series)
short_tanh = inlined(exponential.short_tanh)


def _as_long(_context: Any, value: Any) -> Any:
    """The integer with this float64's bits."""
    signature = types.int64(types.float64)
    return signature, lambda _c, builder, _s, arguments: builder.bitcast(arguments[0], ir.IntType(64))


def _as_double(_context: Any, word: Any) -> Any:
    """The float64 whose bits are this integer."""
    signature = types.float64(types.int64)
    return signature, lambda _c, builder, _s, arguments: builder.bitcast(arguments[0], ir.DoubleType())


as_long: Any = intrinsic(_as_long)
as_double: Any = intrinsic(_as_double)


@inlined
def power(shifted: Any) -> Any:
    """2ⁿ, as in `exponential`."""
    return as_double((as_long(shifted) + np.int64(1023)) << np.int64(52))


@inlined
def exp(x: Any) -> Any:
    """exp x."""
    shifted, r = reduced(x)
    scale = power(shifted)
    return scale + scale * series(r)


@inlined
def expm1(x: Any) -> Any:
    """exp x - 1."""
    shifted, r = reduced(x)
    scale = power(shifted)
    return scale * series(r) + (scale - 1.0)


@inlined
def tanh(x: Any) -> Any:
    """tanh x of x ≥ 0."""
    grown = expm1(2.0 * (x if x < FLAT else FLAT))
    return short_tanh(x) if x <= SMALL else grown / (grown + 2.0)
