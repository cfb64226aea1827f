"""Any Python function as a task: `module:function`, of a source or of the module loaded from it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any, ClassVar

import numpy as np

from eutectic.checkpoint import Source
from eutectic.errors import EutecticError, Problem, RecipeError
from eutectic.evaluate import options
from eutectic.evaluate.loading import Kind
from eutectic.evaluate.model import Score, Settings, score_of
from eutectic.evaluate.options import Checked, option
from eutectic.paths import absolute

_RETURNS = "it returns a number, or one number an item"


@dataclass(frozen=True)
class Call(Checked):
    """What a function of yours says of a model: one number, or one an item, of which the mean is the score.

    Never cached, since nothing tells what a function depends on.

    Attributes:
        function: `module:function`; in Python, a function too.
        name: label; the function's name where it is empty.
        takes: what it is given: the `source`, a lazy mapping of tensors; or a module in evaluation mode: a `causal`
            language model, an `encoder`, or what the `module=` of the call makes.
        metric: what it measures.
        higher_is_better: whether more of it is better.
        folder: where the module lies; the task file's, or the current one.
    """

    kind: ClassVar[str] = "call"
    function: str | Callable[[Any], Any] = option()  # noqa: RUF009 (a field)
    name: str = options.name()
    takes: str = option("source", choices=("source", "module", "causal", "encoder"))
    metric: str = option("value")
    higher_is_better: bool = option(True)
    folder: str = option(os.curdir, path=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.function) and (not isinstance(self.function, str) or self.function.count(":") != 1):
            raise RecipeError(Problem("E902", f"must be module:function, not {self.function!r}", "function"))
        if not self.name:
            label = self.function.rpartition(":")[2] if isinstance(self.function, str) else self.function.__name__
            object.__setattr__(self, "name", label)

    def identity(self) -> None:
        """See `Task.identity`: nothing tells what a function depends on."""

    def check(self, source: Source, run: Settings) -> None:
        """See `Task.check`."""
        _ = self._found
        if self.takes == "module":
            run.loader.check_module(source)
        elif self.takes != "source":
            run.loader.config(source, _kind(self.takes))

    def score(self, source: Source, run: Settings) -> Score:
        """See `Task.score`."""
        function = self._found
        try:
            if self.takes == "source":
                found = function(source)
            else:
                with run.loader.module(source, _kind(self.takes), device=run.device) as model:
                    found = function(model)
            found = found.detach().cpu() if hasattr(found, "detach") else found
            nothing = found is None or any(one is None for one in (found if isinstance(found, list | tuple) else ()))
            items = np.asarray([] if nothing else found, np.float64).reshape(-1)
        except EutecticError:
            raise
        except Exception as error:
            message = f"it failed with model {source.label!r}: {type(error).__name__}: {error}"
            raise RecipeError(Problem("E911", message, self.name, _RETURNS)) from error
        if not len(items):
            returned = "None" + (" among its numbers" if found is not None else "") if nothing else "no number"
            message = f"it returned {returned} for model {source.label!r}"
            raise RecipeError(Problem("E911", message, self.name, _RETURNS))
        run.tell(1.0)
        return score_of(self, source, run, items)

    @cached_property
    def _found(self) -> Callable[[Any], Any]:
        """The function. Raises `RecipeError` (E911) where it cannot be imported."""
        if not isinstance(self.function, str):
            return self.function
        module, _, name = self.function.partition(":")
        folder = absolute(self.folder)
        sys.path.insert(0, folder)
        try:
            thing: Any = _imported(module, os.path.join(folder, f"{module}.py"))
            for part in name.split("."):
                thing = getattr(thing, part)
        except Exception as error:
            message = f"{self.function!r} cannot be imported: {type(error).__name__}: {error}"
            raise RecipeError(Problem("E911", message, "function", f"it was looked for in {self.folder!r}")) from error
        finally:
            sys.path.remove(folder)
        if not callable(thing):
            raise RecipeError(Problem("E911", f"{self.function!r} is a {type(thing).__name__}, not a function"))
        found: Callable[[Any], Any] = thing
        return found


def _imported(module: str, path: str) -> Any:
    """The module in a file, whatever other module of that name was imported before; else the installed one."""
    spec = spec_from_file_location(module, path) if os.path.isfile(path) else None
    if spec is None or spec.loader is None:
        return import_module(module)
    made = module_from_spec(spec)
    other = sys.modules.get(module)
    # A dataclass, for one, looks its module up while it is made.
    sys.modules[module] = made
    try:
        spec.loader.exec_module(made)
    finally:
        del sys.modules[module]
        if other is not None:
            sys.modules[module] = other
    return made


def _kind(takes: str) -> Kind:
    return "causal" if takes == "causal" else "encoder" if takes == "encoder" else "any"
