"""x -> exp x, exp x - 1 and tanh x in float64, the same bits in torch and in compiled code: no library's functions.

The exponentials of libraries differ from each other in their last bits. Where one decides which entries are kept, the
compiled form of a method would choose others than its plain one. exp x = 2ⁿ exp r with |r| ≤ ½ ln 2, of which the
Taylor series is exact to a rounding. |x| must be at most 700. Series are added up in pairs, not one term after the
other, as a processor then works on several terms at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# The least that exp is to be asked for.
LEAST = -700.0
# Added to a number below 2⁵¹ it leaves, in the last bits of the sum, the nearest integer.
_NEAREST = 1.5 * 2.0**52
_PER_TWO = 1 / math.log(2)
# ln 2 in two parts: integers of 20 bits times the first are exact.
_HIGH = round(math.log(2) * 2.0**32) / 2.0**32
_LOW = 2.3190468138462996e-17 + (math.log(2) - _HIGH)
_C2, _C3, _C4, _C5, _C6, _C7 = (1 / math.factorial(k) for k in range(2, 8))
_C8, _C9, _C10, _C11, _C12, _C13 = (1 / math.factorial(k) for k in range(8, 14))
# Up to here n is 0: exp x is 1 + `series`, bit for bit.
UNREDUCED = 0.34
# Up to here few terms are exact to a rounding.
SMALL = 1 / 64
_T3, _T5, _T7 = -1 / 3, 2 / 15, -17 / 315
# From here on tanh is 1.
FLAT = 20.0


def reduced(x: Any) -> tuple[Any, Any]:
    """n + `_NEAREST` and r, of a float64 or a tensor of them."""
    shifted = x * _PER_TWO + _NEAREST
    n = shifted - _NEAREST
    return shifted, (x - n * _HIGH) - n * _LOW


def series(r: Any) -> Any:
    """exp r - 1 for |r| ≤ ½ ln 2."""
    square = r * r
    fourth = square * square
    low = (_C2 + _C3 * r) + (_C4 + _C5 * r) * square
    middle = (_C6 + _C7 * r) + (_C8 + _C9 * r) * square
    high = (_C10 + _C11 * r) + (_C12 + _C13 * r) * square
    return r + square * ((low + middle * fourth) + high * (fourth * fourth))


def short_series(r: Any) -> Any:
    """exp r - 1 for |r| ≤ `SMALL`."""
    square = r * r
    return r + square * ((_C2 + _C3 * r) + (_C4 + _C5 * r) * square + (_C6 + _C7 * r) * (square * square))


def short_tanh(x: Any) -> Any:
    """tanh x for |x| ≤ `SMALL`."""
    square = x * x
    return x + x * square * ((_T3 + _T5 * square) + _T7 * (square * square))


def _power(shifted: Tensor) -> Tensor:
    """2ⁿ: what is shifted out are the bits of `_NEAREST`."""
    return ((shifted.view(torch.int64) + 1023) << 52).view(torch.float64)


def exp(x: Tensor) -> Tensor:
    """exp x, float64 in and out, within two units in the last place."""
    shifted, r = reduced(x)
    power = _power(shifted)
    grown: Tensor = power + power * series(r)
    return grown


def expm1(x: Tensor) -> Tensor:
    """exp x - 1, float64 in and out, within two units in the last place."""
    shifted, r = reduced(x)
    power = _power(shifted)
    grown: Tensor = power * series(r) + (power - 1.0)
    return grown


def tanh(x: Tensor) -> Tensor:
    """tanh x of x ≥ 0, float64 in and out, within four units in the last place."""
    grown = expm1(2.0 * x.clamp(max=FLAT))
    return torch.where(x <= SMALL, short_tanh(x), grown / (grown + 2.0))
