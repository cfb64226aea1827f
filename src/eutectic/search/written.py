"""A recipe with learned weights → a file that `eutectic merge` runs."""

from __future__ import annotations

import json
import os

import yaml

from eutectic.checkpoint import REAL
from eutectic.checkpoint.existing import REPLACE, refuse_parent
from eutectic.errors import OutputError, Problem, RecipeError, listed
from eutectic.recipe import Recipe
from eutectic.recipe.model import Model, label_of, rebased
from eutectic.search.coefficients import Learned


def refuse_file(out: str | os.PathLike[str], recipe: Recipe, *, replace: bool) -> None:
    """Raises before long work what would be raised after it: `RecipeError` (S810, S811, W401), `OutputError` (W405)."""
    path = os.fspath(out)
    problems = []
    if not path.lower().endswith((".yml", ".yaml")):
        problems.append(Problem("S810", f"{path!r} does not end in .yml", "OUT", "name a recipe"))
    if unnamed := _in_memory(recipe):
        hint = "leave out the file: the recipe is returned"
        problems.append(Problem("S811", f"{listed(unnamed)}: in memory, so no file can name it", "OUT", hint))
    if os.path.isdir(path) or (os.path.exists(path) and not replace):
        problems.append(Problem("W401", "exists", path, REPLACE))
    if problems:
        raise RecipeError(problems)
    refuse_parent(os.path.realpath(path), path, REAL)


def _in_memory(recipe: Recipe) -> list[str]:
    """The labels of the models that are live objects, recipes within the recipe included."""
    found: list[str] = []
    models: list[Model | None] = [recipe.base, *(entry.model for entry in recipe.models)]
    for model in models:
        if isinstance(model, Recipe):
            found += _in_memory(model)
        elif model is not None and not isinstance(model, str):
            found.append(label_of(model))
    return found


def write_recipe(learned: Learned, out: str | os.PathLike[str]) -> None:
    """Writes the recipe, whole or not at all; paths that started from the old recipe's folder start from the new one's.

    Raises `OutputError` (W405).
    """
    path = os.fspath(out)
    plain = rebased(learned.recipe, os.path.dirname(path) or os.curdir).to_dict()
    body = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    data = ", ".join(json.dumps(name) for name in learned.data)
    options = learned.options
    about = f"# Weights by {options.by}, learned from {data} by {options.objective}: step {learned.chosen}"
    try:
        with open(f"{path}.partial", "w", encoding="utf-8") as file:
            file.write(f"{about}\n{body}")
        os.replace(f"{path}.partial", path)
    except OSError as error:
        raise OutputError(Problem("W405", f"cannot be written: {error.strerror or error}", path)) from error
