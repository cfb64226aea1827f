"""`parameters.t=0:1:0.1` → a sweep in the recipe language. The numbers are decimal: 0.1 is added exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from eutectic.errors import Problem, RecipeError
from eutectic.recipe.plain import unboxed
from eutectic.recipe.sweep import MAX_VARIANTS

_FORM = "write parameters.t=0:1:0.1 or parameters.t=[0.1, 0.3]"


def overrides_of(over: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Changes to a recipe that make it a sweep: from `KEY=VALUES` texts, or from values by key.

    Values are a list or an array of one dimension, or a range `start:stop:step` with both ends. Raises `RecipeError`
    (S805) with every problem.
    """
    if isinstance(over, str):
        over = [over]
    problems: list[Problem] = []
    found: list[str] = []
    items = over.items() if isinstance(over, Mapping) else [_split(text) for text in over]
    for path, values in items:
        try:
            if not path:
                raise ValueError("no key is named")
            found.append(f"{path}={{sweep: {_listed(values)}}}")
        except ValueError as error:
            problems.append(Problem("S805", str(error), str(path), _FORM))
    if problems:
        raise RecipeError(problems)
    return found


def _split(text: str) -> tuple[str, Any]:
    path, _, values = text.partition("=")
    return path.strip(), values.strip()


def _listed(values: Any) -> str:
    """The values as a list in YAML."""
    if isinstance(values, str):
        if values.startswith("[") and values.endswith("]"):
            return values
        return f"[{', '.join(steps(values))}]"
    if getattr(values, "ndim", None) == 1:
        values = values.tolist()
    if not isinstance(values, Sequence):
        raise ValueError(f"must be a list of values or a range, not {values!r}")
    try:
        return json.dumps([unboxed(value) for value in values])
    except TypeError:
        raise ValueError(f"must be values of a recipe, not {values!r}") from None


def steps(text: str) -> list[str]:
    """The numbers of a range `start:stop:step`, both ends included. Raises `ValueError` for anything else."""
    try:
        numbers = [Decimal(part.strip()) for part in text.split(":")]
    except InvalidOperation:
        numbers = []
    if len(numbers) != 3 or not all(number.is_finite() for number in numbers):
        raise ValueError(f"{text!r} is neither a range nor a list" if text else "no values are given")
    start, stop, step = numbers
    if step <= 0 or stop < start:
        raise ValueError(f"{text!r} needs a step above 0 and an end that is not before its start")
    # A third is no decimal: 0:1:0.3333333 ends at 1 up to rounding.
    count = int((stop - start) / step + Decimal("1e-6")) + 1
    if count > MAX_VARIANTS:
        raise ValueError(f"{text!r} has {count} values, at most {MAX_VARIANTS} are made at once")
    return [f"{start + number * step:f}" for number in range(count)]
