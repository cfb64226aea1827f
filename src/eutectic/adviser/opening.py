"""What a user wants compared -> open sources with labels of their own, or every problem at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from eutectic.checkpoint import Source, open_source
from eutectic.errors import CheckpointError, Problem, RecipeError
from eutectic.plan.labels import labels_of


@dataclass(frozen=True, slots=True)
class Opened:
    """Open sources and their labels, all different, and the number of the base if one was named."""

    sources: Sequence[Source]
    labels: Sequence[str]
    base: int | None = None


@contextmanager
def opened(models: Sequence[Any], base: Any) -> Iterator[Opened]:
    """The models, each once, the base among them; what was opened here is closed at the end.

    Raises `RecipeError` (A801) for too few models, `CheckpointError` with the problems of all that cannot be opened.
    """
    if isinstance(models, str | os.PathLike | Mapping) or not isinstance(models, Sequence):
        kind = type(models).__name__
        raise RecipeError(Problem("A801", f"models must be a list, not a {kind}", "models", "put it in brackets"))
    wanted: dict[Any, Any] = {key_of(model): model for model in models}
    number = None
    if base is not None:
        wanted.setdefault(key_of(base), base)
        number = list(wanted).index(key_of(base))
    if len(wanted) < 2:
        hint = "name another model, or another base" if base is not None else "name another, or a base"
        named = len(models) + (base is not None)
        what = "there is only one model to compare" + (f", named {named} times" if named > 1 else "")
        raise RecipeError(Problem("A801", what, "models", hint))
    sources: list[Source] = []
    problems: list[Problem] = []
    for model in wanted.values():
        try:
            sources.append(open_source(model))
        except CheckpointError as error:
            problems += error.problems
    try:
        if problems:
            raise CheckpointError(problems)
        yield Opened(sources, labels_of(sources), number)
    finally:
        given = [id(model) for model in wanted.values()]
        for source in sources:
            if id(source) not in given:
                source.close()


def key_of(model: Any) -> Any:
    """Equal for what is the same model: a path, however it is written, or a live object."""
    if not isinstance(model, str | os.PathLike):
        return id(model)
    path = os.path.expanduser(os.fspath(model))
    return os.path.realpath(path) if os.path.exists(path) else os.fspath(model)
