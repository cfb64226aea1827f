"""What arrays of stored bits are made of, by dtype: the type of an array tells the compiled kernels what it holds."""

from __future__ import annotations

import numpy as np

# Half floats that numpy has no fast arithmetic for are held as integers: bfloat16 unsigned, float16 signed.
STORED: dict[str, type] = {"bfloat16": np.uint16, "float16": np.int16, "float32": np.float32, "float64": np.float64}

# All ones in a NaN or infinity.
EXPONENT = {"bfloat16": 0x7F80, "float16": 0x7C00, "float32": 0x7F800000, "float64": 0x7FF0000000000000}
