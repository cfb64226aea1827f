"""x -> exp x and exp x - 1 in float64, compiled by numba: bit for bit those of `exponential`, for use in loops."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from eutectic.kernels import exponential
from eutectic.kernels.fused import inlined

parts = inlined(exponential.parts)


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
    shifted, rest = parts(x)
    scale = power(shifted)
    return scale + scale * rest


@inlined
def expm1(x: Any) -> Any:
    """exp x - 1."""
    shifted, rest = parts(x)
    scale = power(shifted)
    return scale * rest + (scale - 1.0)
