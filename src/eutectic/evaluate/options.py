"""The options of a task, said once: as fields of its class, from which task files and Python calls are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from eutectic import dtypes
from eutectic.errors import Problem, RecipeError, did_you_mean
from eutectic.recipe.located import shown

# What a fault is: the key, what is wrong with it, and what to do.
Fault = tuple[str, str, str]


def option(
    default: Any = MISSING, *, choices: tuple[str, ...] = (), least: int | None = None, path: bool = False
) -> Any:
    """A field of a task: its default (none: it must be given), and what it may be.

    Args:
        default: the value where none is given.
        choices: all it may be.
        least: of a whole number.
        path: a file or folder; in a task file it starts from that file's folder.
    """
    metadata = {"choices": choices, "least": least, "path": path}
    return field(default=default, kw_only=default is not MISSING, metadata=metadata)


def name() -> Any:
    """The field for the label, which every task has: in a task file by default the name of that file."""
    return option("")


def dtype() -> Any:
    """The field for the dtype of the arithmetic, for tasks that run a model."""
    return option(None, choices=dtypes.FLOATS)


def faults(made: type, data: Mapping[str, Any]) -> list[Fault]:
    """All that is wrong with the options in `data` for the task class `made`: unknown and missing keys, values."""
    known = {one.name: one for one in fields(made)}
    found: list[Fault] = []
    for key, value in data.items():
        if key not in known:
            hint = did_you_mean(key, known) or f"it has {', '.join(known)}"
            found.append((key, f"{title(made)} has no option {key!r}", hint))
        elif message := _fault(known[key], value):
            found.append((key, message, ""))
    for key, one in known.items():
        if one.default is MISSING and data.get(key) is None and key not in {fault[0] for fault in found}:
            found.append((key, f"{title(made)} needs {key!r}", ""))
    return found


def title(made: type) -> str:
    """What task files call a task class."""
    return str(getattr(made, "kind", made.__name__))


def _fault(one: Field[Any], value: Any) -> str:
    """Why an option cannot have this value, or nothing."""
    kind, choices, least = str(one.type), one.metadata.get("choices"), one.metadata.get("least")
    if value is None and one.default is None:
        return ""
    if choices:
        return "" if value in choices else f"must be one of {', '.join(choices)}, not {shown(value)}"
    if kind == "Any" or "Callable" in kind:
        return ""
    if kind.startswith("int"):
        good = isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)
        return "" if good else f"must be a whole number from {least} on, not {shown(value)}"
    if kind == "bool":
        return "" if isinstance(value, bool) else f"must be true or false, not {shown(value)}"
    if kind.startswith("tuple"):
        good = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        return "" if good else f"must be a list of text, not {shown(value)}"
    if kind == "str" and one.default is MISSING:
        return "" if isinstance(value, str) and value else f"must be text, not {shown(value)}"
    return "" if isinstance(value, str) else f"must be text, not {shown(value)}"


@dataclass(frozen=True)
class Checked:
    """What refuses wrong options where it is made. Raises `RecipeError` (E902) with all of them."""

    def __post_init__(self) -> None:
        given = {one.name: getattr(self, one.name) for one in fields(self) if "choices" in one.metadata}
        wrong = faults(type(self), given)
        if wrong:
            raise RecipeError([Problem("E902", message, key, hint) for key, message, hint in wrong])

    def options(self) -> dict[str, Any]:
        """Everything that was chosen but the label and where the data lie: what the score depends on."""
        left_out = {one.name for one in fields(self) if one.name == "name" or one.metadata.get("path")}
        chosen = {one.name: getattr(self, one.name) for one in fields(self) if "choices" in one.metadata}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in chosen.items() if key not in left_out}
