"""What a user wants evaluated → open sources: models, live modules, merges of recipes and of their sweeps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from eutectic import methods
from eutectic.checkpoint import Source, open_source
from eutectic.errors import EutecticError, Problem, RecipeError
from eutectic.evaluate.loading import LiveSource
from eutectic.paths import absolute
from eutectic.plan import make_plan
from eutectic.plan.effects import refuse_idle_sweeps
from eutectic.plan.planner import planning_together
from eutectic.recipe import Recipe, load, load_sweep
from eutectic.run.merged import MergedSource


@contextmanager
def opened(models: Sequence[Any], *, live: bool = True) -> Iterator[list[Source]]:
    """The models and merges, each a source; what was opened here is closed at the end.

    Args:
        models: each a recipe (path, YAML text, dict or `Recipe`), or a model as for `eutectic.open`. A recipe with a
            sweep stands for each of its merges.
        live: whether a live module is evaluated as it is, and not as the tensors it holds.

    Raises `EutecticError` with the problems of all that cannot be opened.
    """
    sources: list[Source] = []
    wrong: list[EutecticError] = []
    try:
        for model in models:
            try:
                sources += _opened(model, live)
            except EutecticError as error:
                wrong.append(error)
        if wrong:
            worst = max(wrong, key=lambda error: error.exit_code)
            raise type(worst)([problem for error in wrong for problem in error.problems])
        yield sources
    finally:
        for source in sources:
            if not any(source is model for model in models):
                source.close()


def _opened(model: Any, live: bool) -> list[Source]:
    if isinstance(model, Source):
        return [model]
    if _is_recipe(model):
        return _merges(model)
    if live and callable(getattr(model, "state_dict", None)) and not isinstance(model, Mapping):
        return [LiveSource(type(model).__name__, model)]
    return [open_source(model)]


def _is_recipe(model: Any) -> bool:
    if isinstance(model, str | os.PathLike):
        text = os.fspath(model)
        low = text.lower()
        own = low.endswith((".yml", ".yaml")) or (low.endswith(".json") and not low.endswith(".index.json"))
        return own or "\n" in text
    return isinstance(model, Recipe) or (isinstance(model, dict) and "merge_method" in model)


def _merges(recipe: Any) -> list[Source]:
    """The merge of a recipe, or each of a sweep, called by its values."""

    def open_one(model: Any, folder: str | None) -> Source:
        return open_source(model, folder=folder)

    named = isinstance(recipe, str | os.PathLike) and "\n" not in os.fspath(recipe)
    if variants := load_sweep(recipe, methods=methods):
        made = planning_together(open_one)
        plans = [made(one.recipe) for one in variants]
        refuse_idle_sweeps(variants, plans)
        return [MergedSource(planned, one.label) for planned, one in zip(plans, variants, strict=True)]
    planned = make_plan(load(recipe, methods=methods), open_one)
    name = os.path.splitext(os.path.basename(os.fspath(recipe)))[0] if named else "merge"
    merged = MergedSource(planned, planned.recipe.name or name)
    if named and planned.recipe.name is None:
        merged.path = os.path.splitext(absolute(os.fspath(recipe)))[0]
    return [merged]


def refuse_several(sources: Sequence[Source]) -> Source:
    """The only source. Raises `RecipeError` (R128) for a sweep, which is not one."""
    if len(sources) == 1:
        return sources[0]
    hint = "use `eutectic.api.evaluate_models`, or `eutectic evaluate`"
    raise RecipeError(Problem("R128", "the recipe sweeps a parameter: not one score but several", hint=hint))
