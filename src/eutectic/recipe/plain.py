"""A dict from Python → a document, under the limits that hold for files."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping
from typing import Any

from eutectic import dtypes
from eutectic.recipe import scalars
from eutectic.recipe.compose import MAX_DEPTH, MAX_NODES
from eutectic.recipe.located import Document, Faults, Live, Place, Trail, path_of, shown

# A dict with one of these keys was meant as a part of a recipe, not as a mapping of tensors.
_RECIPE_KEYS = ("merge_method", "models", "model")


def from_python(data: Mapping[str, Any]) -> Document:
    """The recipe's data, copied; live objects are kept as they are inside `Live`.

    Raises `RecipeError` for keys that are not text, numbers that are not finite, and data without end.
    """
    converter = _Converter()
    plain = converter.mapping(data, ())
    if converter.faults:
        raise converter.faults.error()
    return Document(plain)


class _Converter:
    def __init__(self) -> None:
        self.faults = Faults()
        self.nodes = 0

    def fault(self, code: str, trail: Trail, message: str) -> None:
        self.faults.add(code, Place("", None, None, path_of(trail)), message)

    def convert(self, value: Any, trail: Trail) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(trail) >= MAX_DEPTH:
            limit = f"more than {MAX_NODES} values" if self.nodes > MAX_NODES else f"nested {MAX_DEPTH} levels deep"
            self.fault("R105", trail[:1], limit)
            raise self.faults.error()
        if isinstance(value, Mapping):
            return Live(value) if _may_be_model(trail) and not _is_plain(value) else self.mapping(value, trail)
        if isinstance(value, list | tuple):
            return [self.convert(item, (*trail, index)) for index, item in enumerate(value)]
        return self.leaf(value, trail)

    def mapping(self, value: Mapping[Any, Any], trail: Trail) -> dict[str, Any]:
        result = {}
        for key, item in value.items():
            if not isinstance(key, str) or scalars.fault(key):
                self.fault("R106", trail, f"a key must be text, not {shown(key)}")
            else:
                result[str(key)] = self.convert(item, (*trail, key))
        return result

    def leaf(self, value: Any, trail: Trail) -> Any:
        value = unboxed(dtypes.named(value))
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        elif isinstance(value, numbers.Integral) and not isinstance(value, bool):
            value = int(value)
        elif isinstance(value, numbers.Real) and not isinstance(value, bool):
            value = float(value)
        if value is not None and not isinstance(value, bool | int | float | str):
            return Live(value)
        if reason := scalars.fault(value, *trail[-1:]):
            self.fault("R106", trail, reason)
        return value


def unboxed(value: Any) -> Any:
    """The number in an array or a tensor without dimensions; anything else as it is."""
    item = getattr(value, "item", None)
    return item() if getattr(value, "shape", None) == () and callable(item) else value


def _may_be_model(trail: Trail) -> bool:
    return trail[-1] in ("model", "base_model", "statistics") or (len(trail) > 1 and trail[-2] in ("models", "sources"))


def _is_plain(value: Mapping[Any, Any]) -> bool:
    """False for a mapping of tensors; looks into plain dicts only, since reading another mapping may read a file."""
    if any(key in value for key in _RECIPE_KEYS):
        return True
    if not isinstance(value, dict):
        return False
    kinds = (bool, str, list, tuple, dict, numbers.Real, os.PathLike, type(None))
    return all(isinstance(item, kinds) for item in value.values())
