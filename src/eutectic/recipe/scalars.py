"""One piece of text → the scalar it stands for, and why a scalar may not stand in a recipe."""

from __future__ import annotations

import math
import re

LONGEST_TEXT = 4096
# Templates with tools and thinking have some 10,000 characters.
LONGEST_TEMPLATE = 65_536
LARGEST_INTEGER = 2**63
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}


def number(text: str) -> int | float | None:
    """The number that `text` writes (`1e-5` included, which YAML 1.1 takes for text), or None if it writes none."""
    if len(text) > LONGEST_TEXT:
        return None
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if _NOT_FINITE.fullmatch(text) else None


def plain_scalar(text: str) -> bool | int | float | str | None:
    """What an unquoted YAML scalar means: YAML 1.2's rules, in which `yes`, `0o7` and `1:30` are text."""
    if text in _WORDS:
        return _WORDS[text]
    value = number(text) if text[0] in "+-.0123456789" else None
    return text if value is None else value


def fault(value: object, key: object = None) -> str | None:
    """Why this scalar can stand in no recipe, or not under `key`; None if it can."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, not {value}"
    if isinstance(value, int) and abs(value) >= LARGEST_INTEGER:
        return "must be a number smaller than 2**63"
    if isinstance(value, str):
        return _text_fault(value, LONGEST_TEMPLATE if key == "chat_template" else LONGEST_TEXT)
    return None


def _text_fault(text: str, longest: int) -> str | None:
    if len(text) > longest:
        return f"text of {len(text)} characters, the most is {longest}"
    found = _CONTROL.search(text)
    return f"text must not contain the control character U+{ord(found[0]):04X}" if found else None
