"""Models as users name them -> open sources with labels of their own, or every problem at once."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from eutectic.adviser.opening import Opened, key_of
from eutectic.errors import Problem, RecipeError
from eutectic.evaluate import LiveSource, Loader, Settings, opening
from eutectic.plan.labels import labels_of


@contextmanager
def opened(models: Any, least: int, most: int | None = None) -> Iterator[Opened]:
    """The models, each once, recipes among them; what was opened here is closed at the end.

    Raises `RecipeError` (L811) for too few or too many, and `EutecticError` with the problems of all that cannot be
    opened.
    """
    if isinstance(models, str | os.PathLike | Mapping) or not isinstance(models, Sequence):
        raise _count(least, f"not a {type(models).__name__}")
    wanted = list({key_of(model): model for model in models}.values())
    if len(wanted) < least:
        again = f", named {len(models)} times" if len(models) > len(wanted) == 1 else ""
        raise _count(least, f"not {len(wanted)}{again}")
    with opening.opened(wanted) as sources:
        if len(sources) > (most or len(sources)):
            raise _count(least, f"not {len(sources)}")
        yield Opened(sources, labels_of(sources))


def settings_for(models: Opened, settings: Settings | None) -> Settings:
    """The settings, or the default ones, with which a live model's mixtures are run in a copy of its module."""
    if settings is not None:
        return settings
    live = next((source for source in models.sources if isinstance(source, LiveSource)), None)
    if live is None:
        return Settings()
    return replace(Settings(), loader=Loader(lambda: copy.deepcopy(live.module)))


def _count(least: int, found: str) -> RecipeError:
    wanted = "a plane needs three different models" if least == 3 else "a path needs two different models"
    return RecipeError(Problem("L811", f"{wanted}, {found}", "models"))
