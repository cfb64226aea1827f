"""Sizes as people write them."""

from __future__ import annotations

import re

from eutectic.errors import Problem, RecipeError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "b": 10**9}
_BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def size(text: str, option: str) -> int:
    """Bytes given to an option: `2GiB`, `500MB`, `5G`, `5B` (billions of bytes, as in mergekit), or a plain number.

    Raises `RecipeError` (M603) for anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i|[kmgtb]?)b?\s*", text.lower())
    if not found:
        raise RecipeError(Problem("M603", f"{text!r} is no size", option, "write for example 2GiB, 500MB or 5G"))
    number = float(found[1]) * (_BINARY.get(found[2]) or _UNITS[found[2]])
    if not 1 <= number < 2**63:
        message = f"{text!r} must be at least one byte, and less than 8 EiB"
        raise RecipeError(Problem("M603", message, option, "write for example 2GiB, 500MB or 5G"))
    return int(number)


def shown(nbytes: float) -> str:
    """`1.32 GB`: bytes for people, in powers of ten as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"
