"""`--set parameters.t=0.4`: changes to a recipe's data before it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from eutectic.errors import RecipeError
from eutectic.recipe.compose import compose
from eutectic.recipe.located import OVERRIDE, Document, Faults, Place, Trail, path_of, shown

_PATH = re.compile(r"[^.\[\]=]+(?:\.[^.\[\]=]+|\[[0-9]{1,6}\])*")
_STEP = re.compile(r"[^.\[\]]+")
_FORM = "write KEY=VALUE, as in parameters.t=0.4 or models[0].parameters.weight=2"


def override(document: Document, overrides: Sequence[str], faults: Faults, option: str = OVERRIDE) -> None:
    """Applies each `KEY=VALUE` to the document in place, in order; problems go to `faults`.

    `option` is what they were given to, by which problems name them.
    """
    for text in overrides:
        _apply(document, text, faults, option)


def _apply(document: Document, text: str, faults: Faults, option: str) -> None:
    path, equals, value = text.partition("=") if isinstance(text, str) else (str(text), "", "")
    path = path.strip()
    if not equals or not _PATH.fullmatch(path):
        faults.add("R140", Place(option, None, None, ""), f"{shown(text)} is not an override", _FORM)
        return
    steps = _STEP.findall(path)
    try:
        found = compose(value, option, key=steps[-1])
    except RecipeError as error:
        reasons = "; ".join(problem.message for problem in error.problems)
        hint = next((problem.hint for problem in error.problems if problem.hint), "")
        faults.add("R140", Place(option, None, None, path), f"the value {shown(value)} cannot be read: {reasons}", hint)
        return
    if len(found) > 1:
        faults.add("R140", Place(option, None, None, path), "the value is more than one YAML document")
        return
    new = _set(document, steps, found[0].data if found else None, faults, option)
    document.overridden |= dict.fromkeys(new, option)


def _set(document: Document, steps: list[str], value: Any, faults: Faults, option: str) -> set[Trail]:
    """Puts `value` at the end of the path, making mappings on the way; returns what it put, nothing after a problem."""
    data: Any = document.data
    trail: Trail = ()
    new: set[Trail] = set()
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        key: str | int = int(step) if isinstance(data, list) and step.isascii() and step.isdigit() else step
        place = Place(option, None, None, path_of((*trail, key)))
        if isinstance(data, list):
            if isinstance(key, str) or key >= len(data):
                faults.add("R140", place, f"leads nowhere: {path_of(trail)} has {_extent(data)}")
                return set()
            if not last and not isinstance(data[key], dict | list):
                # An entry of models may be a bare name; its parameters need the long form.
                data[key] = {"model": data[key]}
                if mark := document.values.get((*trail, key)):
                    document.values[(*trail, key, "model")] = mark
        elif not isinstance(data, dict):
            faults.add("R140", place, f"leads nowhere: {path_of(trail) or 'the recipe'} is {shown(data)}")
            return set()
        trail = (*trail, key)
        if last:
            data[key] = value
        elif isinstance(data, dict) and data.get(step) is None:
            data[key] = {}
            new.add(trail)
        data = data[key]
    return {*new, trail}


def _extent(data: list[Any]) -> str:
    return f"the entries 0 to {len(data) - 1}" if data else "no entries"
