"""A recipe with learned weights → a file that `eutectic merge` runs, and that the same search knows again."""

from __future__ import annotations

import json
import os

import yaml

from eutectic.checkpoint import REAL
from eutectic.checkpoint.existing import REPLACE, refuse_parent
from eutectic.errors import OutputError, Problem, RecipeError, listed
from eutectic.recipe import Recipe
from eutectic.recipe.model import Model, label_of, rebased
from eutectic.search.coefficients import Learned, LearnStep

# Before the digest of the search, in a comment of the recipe.
_SEARCH = "# search: "
# Characters within which it stands.
_HEAD = 1 << 16


class Finished:
    """The recipe of a finished search, where one is to be written: is it what this search writes?

    Args:
        out: its path.
        log: that of the steps.
    """

    def __init__(self, out: str | os.PathLike[str], log: str) -> None:
        self._path, self._log = os.fspath(out), log
        self._text = _read(self._path)

    def steps(self, search: str) -> list[LearnStep]:
        """The steps that it took. Raises `RecipeError` (W401) for another search, or where its log is gone."""
        if not search or f"\n{_SEARCH}{search}\n" not in self._text:
            raise self._other("another search wrote it, or models or data are others since")
        try:
            lines = [json.loads(line) for line in _read(self._log).splitlines()]
            found = [LearnStep(one["step"], one["loss"], one["held_out"], one["weights"]) for one in lines]
        except (ValueError, KeyError, TypeError):
            found = []
        if not found or found[-1].weights is None:
            raise self._other(f"{self._log} does not have its steps")
        return found

    def check(self, learned: Learned) -> None:
        """Raises `RecipeError` (W401) unless it is this, byte for byte."""
        if _text_of(learned, self._path) != self._text:
            raise self._other("it was changed since it was written")

    def _other(self, why: str) -> RecipeError:
        return RecipeError(Problem("W401", f"exists, and {why}", self._path, REPLACE))


def _read(path: str, most: int = -1) -> str:
    """The text of a file, or so many characters of it; empty where there is none that can be read."""
    if not os.path.isfile(path):
        # A pipe would be waited for.
        return ""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(most)
    except (OSError, ValueError):
        return ""


def refuse_file(out: str | os.PathLike[str], recipe: Recipe, *, replace: bool) -> bool:
    """Raises before long work what would be raised after it: `RecipeError` (S810, S811, W401), `OutputError` (W405).

    True where the recipe of a finished search stands there, which may be this one.
    """
    path = os.fspath(out)
    problems = []
    if not path.lower().endswith((".yml", ".yaml")):
        problems.append(Problem("S810", f"{path!r} does not end in .yml", "OUT", "name a recipe"))
    if unnamed := _in_memory(recipe):
        hint = "leave out the file: the recipe is returned"
        problems.append(Problem("S811", f"{listed(unnamed)}: in memory, so no file can name it", "OUT", hint))
    finished = not replace and f"\n{_SEARCH}" in _read(path, _HEAD)
    if os.path.isdir(path) or (os.path.exists(path) and not replace and not finished):
        problems.append(Problem("W401", "exists", path, REPLACE))
    if problems:
        raise RecipeError(problems)
    refuse_parent(os.path.realpath(path), path, REAL)
    return finished


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
    try:
        with open(f"{path}.partial", "w", encoding="utf-8") as file:
            file.write(_text_of(learned, path))
        os.replace(f"{path}.partial", path)
    except OSError as error:
        raise OutputError(Problem("W405", f"cannot be written: {error.strerror or error}", path)) from error


def _text_of(learned: Learned, path: str) -> str:
    plain = rebased(learned.recipe, os.path.dirname(path) or os.curdir).to_dict()
    body = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    data = ", ".join(json.dumps(name) for name in learned.data)
    options = learned.options
    about = f"# Weights by {options.by}, learned from {data} by {options.objective}: step {learned.chosen}\n"
    if learned.search:
        about += f"{_SEARCH}{learned.search}\n"
    return about + body
