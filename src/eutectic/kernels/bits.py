"""How stored bits become floats, by dtype: shared by the compiled kernels and those who call them."""

from __future__ import annotations

import numpy as np

# The top half of a float32, a half float, or the float itself.
BF16, FP16, PLAIN = 0, 1, 2

KIND = {"bfloat16": BF16, "float16": FP16, "float32": PLAIN, "float64": PLAIN}

# What an array of stored bits is made of: plain floats are held as themselves.
STORED: dict[str, type] = {"bfloat16": np.uint16, "float16": np.uint16, "float32": np.float32, "float64": np.float64}

# All ones in a NaN or infinity.
EXPONENT = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000, "float64": 0x7FF0000000000000}
