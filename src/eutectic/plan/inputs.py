"""A recipe's models -> open inputs in the order in which the method gets them, each with a label of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eutectic.checkpoint import About, Alignment, Source, read_about, read_alignment
from eutectic.errors import CheckpointError, Problem, RecipeError
from eutectic.methods import Method
from eutectic.plan.alignments import meant
from eutectic.plan.findings import few
from eutectic.plan.labels import labels_of, unique_labels
from eutectic.plan.model import Plan, PlanInput
from eutectic.recipe import Model, ModelEntry, Recipe, label_of, same_model

# `(model as written, folder of the recipe) -> Source`; reads headers only.
Opener = Callable[[Any, str | None], Source]
# Plans a recipe in place of a model.
PlanNested = Callable[[Recipe, Opener], Plan]


def opening_once(opener: Opener, opened: dict[Any, Source] | None = None) -> Opener:
    """An opener that opens each model once, for plans that share their inputs; what is open is kept in `opened`."""
    found: dict[Any, Source] = {} if opened is None else opened

    def once(model: Any, folder: str | None) -> Source:
        key = (model if isinstance(model, str) else id(model), folder)
        if key not in found:
            found[key] = opener(model, folder)
        return found[key]

    return once


@dataclass(frozen=True, slots=True)
class _Opened:
    """A model as written, what was found there, and its entry in the recipe; None for the base of task vectors.

    `beside` is what was measured of it, where the method uses that.
    """

    model: Model
    entry: ModelEntry | None
    found: Source | Plan
    beside: tuple[Source, About] | None = None

    def close(self) -> None:
        self.found.close()
        if self.beside is not None:
            self.beside[0].close()


@dataclass(frozen=True, slots=True)
class Input:
    """One model, its entry in the recipe (None for the base of task vectors), and its statistics, if they are used."""

    model: PlanInput
    entry: ModelEntry | None
    statistics: PlanInput | None = None

    def close(self) -> None:
        """Closes both."""
        self.model.close()
        if self.statistics is not None:
            self.statistics.close()


def open_inputs(recipe: Recipe, method: Method, opener: Opener, plan_nested: PlanNested) -> list[Input]:
    """Every model once, the base first; models of a symmetric method in an order that is not the recipe's.

    Args:
        recipe: a checked recipe.
        method: its method.
        opener: opens what is no recipe.
        plan_nested: plans what is one. Recipes that give no seed have the outer one's.

    Raises `RecipeError` or `CheckpointError` with the problems of all models; what was opened is closed then.
    """
    opened: list[_Opened] = []
    problems: list[Problem] = []
    requests: list[Problem] = []
    for model, entry in _wanted(recipe, method):
        found: Source | Plan | None = None
        beside: tuple[Source, About] | None = None
        try:
            if isinstance(model, Recipe):
                nested = model if model.seed is not None else replace(model, seed=recipe.seed)
                found = plan_nested(nested, opener)
            else:
                found = opener(model, recipe.folder)
                if entry is not None and entry.aligned is not None:
                    found = _aligned(found, entry, recipe, opener)
        except RecipeError as error:
            requests += error.problems
        except CheckpointError as error:
            problems += [_placed(problem, entry, recipe, "model") for problem in error.problems]
        try:
            if method.statistics and entry is not None:
                beside = _open_statistics(entry, recipe, opener)
        except CheckpointError as error:
            problems += [_placed(problem, entry, recipe, "statistics") for problem in error.problems]
        if found is not None:
            opened.append(_Opened(model, entry, found, beside))
        elif beside is not None:
            beside[0].close()
    requests += _repeated(opened, recipe)
    if requests or problems:
        for item in opened:
            item.close()
        raise RecipeError([*requests, *problems]) if requests else CheckpointError(problems)
    opened = _ordered(opened, method)
    labels = unique_labels((_label(item.found) for item in opened), [_path(item.found) for item in opened])
    # After the models, whose labels stay what they are without statistics.
    names = iter(labels_of([item.beside[0] for item in opened if item.beside], labels))
    inputs = []
    for item, label in zip(opened, labels, strict=True):
        model = _input(item, label, recipe)
        statistics = None
        if item.beside is not None:
            source, about = item.beside
            statistics = PlanInput(next(names), "statistics", source=source, place=model.place, about=about)
        inputs.append(Input(model, item.entry, statistics))
    return inputs


def _repeated(opened: Sequence[_Opened], recipe: Recipe) -> list[Problem]:
    """Models that are the same files by two names: through links, or a folder and the file in it."""
    # Views of one model that were opened by hand (as it is, and aligned) are not the same.
    found = [item.found if isinstance(item.model, str) and isinstance(item.found, Source) else None for item in opened]
    problems = []
    for number, first in twins(found):
        name, other = label_of(opened[number].model), label_of(opened[first].model)
        if name != other:
            problem = Problem("R133", f"{name!r} is the model {other!r} by another name", hint="list it once")
            problems.append(_placed(problem, opened[number].entry, recipe, "model"))
    return problems


def twins(sources: Iterable[Source | None]) -> Iterator[tuple[int, int]]:
    """Numbers of sources that read the files of an earlier one, and of that one."""
    seen: dict[frozenset[str], int] = {}
    for number, source in enumerate(sources):
        key = frozenset((source.files() if source else None) or ())
        if key and (first := seen.setdefault(key, number)) != number:
            yield number, first


def _aligned(model: Source, entry: ModelEntry, recipe: Recipe, opener: Opener) -> Source:
    """The model as its alignment moves it. Raises `CheckpointError` for both; the model is closed then."""
    artefact: Source | None = None
    try:
        if isinstance(entry.aligned, Alignment):
            return entry.aligned.source(model)
        # Stays open until the model is closed: the plans of a sweep share it.
        artefact = opener(entry.aligned, recipe.folder)
        return read_alignment(artefact).source(model, artefact=artefact)
    except CheckpointError as error:
        for source in filter(None, (model, artefact)):
            source.close()
        said = [meant(problem, entry.aligned, model.label, recipe.folder) for problem in error.problems]
        told = few(said, recipe.file or "")
        raise CheckpointError(_placed(problem, entry, recipe, "aligned") for problem in told) from None


def _open_statistics(entry: ModelEntry, recipe: Recipe, opener: Opener) -> tuple[Source, About]:
    source = opener(entry.statistics, recipe.folder)
    try:
        return source, read_about(source)
    except CheckpointError:
        source.close()
        raise


def _placed(problem: Problem, entry: ModelEntry | None, recipe: Recipe, key: str) -> Problem:
    """The problem with the place in the recipe where the model is named, unless it has a place of its own."""
    path = "base_model" if entry is None else f"{entry.place.path}.{key}"
    beside = replace(entry.place, path=path) if entry and key != "model" else None
    place = recipe.places.get(path) or beside or (entry.place if entry else None)
    if place is None or problem.file or problem.line is not None:
        return problem
    where = problem.where or place.path
    return replace(problem, where=where, file=place.file, line=place.line, column=place.column)


def open_donor(
    recipe: Recipe, method: Method, opener: Opener, plan_nested: PlanNested, taken: Collection[str]
) -> PlanInput | None:
    """The base model of a method that does not merge it, for its config and tokenizer; None if it is one of the models.

    Its label is none of those `taken`. Raises `RecipeError` or `CheckpointError` when it cannot be opened.
    """
    base = recipe.base
    listed = any(same_model(entry.model, base) for entry in recipe.models)
    if method.base != "ignored" or base is None or listed:
        return None
    if isinstance(base, Recipe):
        plan = plan_nested(base, opener)
        return PlanInput(unique_labels([_label(plan)], taken=taken)[0], "donor", plan=plan)
    source = opener(base, recipe.folder)
    return PlanInput(labels_of([source], taken)[0], "donor", source=source)


def _wanted(recipe: Recipe, method: Method) -> list[tuple[Model, ModelEntry | None]]:
    base: list[tuple[Model, ModelEntry | None]] = [(recipe.base, None)] if method.space == "deltas" else []
    return [*base, *((entry.model, entry) for entry in recipe.models)]


def _input(item: _Opened, label: str, recipe: Recipe) -> PlanInput:
    base = item.entry is None or (recipe.base is not None and same_model(item.model, recipe.base))
    role = "base" if base else "model"
    place = next((number for number, entry in enumerate(recipe.models) if entry is item.entry), None)
    if isinstance(item.found, Plan):
        return PlanInput(label, role, plan=item.found, place=place)
    return PlanInput(label, role, source=item.found, place=place)


def _ordered(opened: list[_Opened], method: Method) -> list[_Opened]:
    """A canonical order where order means nothing, so that the bytes do not depend on how the recipe lists models."""
    if not method.symmetric:
        return opened
    bases = 1 if method.space == "deltas" else 0
    return opened[:bases] + sorted(opened[bases:], key=_rank)


def _rank(item: _Opened) -> tuple[str, str, str]:
    found = item.found
    identity = found.fingerprint if isinstance(found, Plan) else json.dumps(found.identity(), sort_keys=True)
    return _label(found), identity, label_of(item.model)


def _label(found: Source | Plan) -> str:
    if isinstance(found, Plan):
        return found.recipe.name or f"{found.method.name} of {', '.join(item.label for item in found.inputs)}"
    return found.label


def _path(found: Source | Plan) -> str:
    return "" if isinstance(found, Plan) else found.path
