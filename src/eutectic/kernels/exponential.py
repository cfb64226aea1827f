"""x -> exp x and exp x - 1 in float64, by additions and products alone: torch and compiled code give the same bits.

The exponentials of libraries differ from each other in their last bits. Where one decides which entries are kept, the
compiled form of a method would choose others than its plain one. exp x = 2ⁿ exp r with |r| ≤ ½ ln 2, of which the
Taylor series is exact to a rounding. |x| must be at most 700.
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


def parts(x: Any) -> tuple[Any, Any]:
    """n + `_NEAREST` and exp r - 1, of a float64 or a tensor of them."""
    shifted = x * _PER_TWO + _NEAREST
    n = shifted - _NEAREST
    r = (x - n * _HIGH) - n * _LOW
    tail = _C8 + r * (_C9 + r * (_C10 + r * (_C11 + r * (_C12 + r * _C13))))
    tail = _C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * (_C7 + r * tail)))))
    return shifted, r + r * r * tail


def _power(shifted: Tensor) -> Tensor:
    """2ⁿ: what is shifted out are the bits of `_NEAREST`."""
    return ((shifted.view(torch.int64) + 1023) << 52).view(torch.float64)


def exp(x: Tensor) -> Tensor:
    """exp x, float64 in and out, within two units in the last place."""
    shifted, rest = parts(x)
    power = _power(shifted)
    grown: Tensor = power + power * rest
    return grown


def expm1(x: Tensor) -> Tensor:
    """exp x - 1, float64 in and out, within two units in the last place."""
    shifted, rest = parts(x)
    power = _power(shifted)
    grown: Tensor = power * rest + (power - 1.0)
    return grown
