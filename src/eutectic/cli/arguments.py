"""Arguments of the library's functions, which problems name as their place → options of the command that was typed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eutectic.errors import Problem
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    from eutectic.recipe import located
else:
    located = LazyModule("eutectic.recipe.located")

# Options that are called otherwise than the argument they stand for.
_OTHER = {
    "overrides": "--set",
    "tasks": "--task",
    "shard_bytes": "--shard-size",
    "by": "--learn",
    "path": "--html",
}
# Places of these are tensors and files, whatever they are called.
_TENSORS = ("C", "N", "V")
_options: ContextVar[Mapping[str, str]] = ContextVar("options")


def know(command: Any) -> None:
    """Problems are told from now on in the options of this command."""
    own = {one.name: one.opts[0] for one in command.params if one.param_type_name == "option"}
    _options.set({name: option for name, option in _OTHER.items() if option in own.values()} | own)


def as_options(problem: Problem) -> Problem:
    """The problem with its place, and what its advice says in backticks as `device='cpu'`, as the command has them."""
    options = _options.get({})
    changed = problem.file in (located.OVER, located.OVERRIDE)
    named = problem.line is None and not changed and problem.code[:1] not in _TENSORS
    return replace(
        problem,
        where=options.get(problem.where, problem.where) if named else problem.where,
        file=options.get(problem.file, problem.file) if changed else problem.file,
        hint=re.sub(r"`(\w+)=([^`]+)`", lambda found: _written(found, options), problem.hint),
    )


def _written(found: re.Match[str], options: Mapping[str, str]) -> str:
    """`device='cpu'` as `--device cpu`, `replace=True` as `--replace`, `memory=3 << 20` as `--memory 3MiB`."""
    name, value = found.groups()
    if name not in options:
        return found[0]
    value = re.sub(r"^(\d+) << 20$", r"\1MiB", value.strip("'\""))
    return f"`{options[name]}`" if value == "True" else f"`{options[name]} {value}`"
