"""The doors that choose a merge by what it scores, and write it if they are told where: soup and tune."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eutectic import averaging, checkpoint, methods, recipe, search
from eutectic.checkpoint import REAL, Source, Storage
from eutectic.errors import Problem, RecipeError
from eutectic.evaluate import Score, Settings
from eutectic.evaluate.doors import Kept
from eutectic.merging import Merge, OnPlan, Options, checked, make
from eutectic.plan import Plan, make_plan
from eutectic.recipe import Recipe

# What is told while a search runs: the labels of model and task before each score that is measured.
OnStart = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Soup:
    """A soup: what was chosen and why, and the merge if it was written."""

    choice: search.Choice
    merge: Merge | None = None


@dataclass(frozen=True, slots=True)
class Tuned:
    """A sweep that was evaluated: the scores and the choice, the recipe chosen, and the merge if it was written."""

    found: search.Tuning
    recipe: Recipe | None
    merge: Merge | None = None


def soup(
    checkpoints: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    task: Any = None,
    method: str = "greedy",
    held_out: Sequence[Any] = (),
    tie_break: str | None = None,
    by: str = "model",
    epochs: int = 5,
    rate: float = 0.05,
    settings: Settings | None = None,
    cache: Kept = True,
    log: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    options: Options | None = None,
    on_start: OnStart | None = None,
    on_step: Callable[[search.Step], None] | None = None,
    on_plan: OnPlan | None = None,
    progress: Callable[[int], None] | None = None,
    storage: Storage = REAL,
) -> Soup:
    """Averages those of many fine-tunes whose average scores best. Resumes: known scores come from the cache.

    Args:
        checkpoints: a list of folders, files, hub ids, patterns, modules and mappings of tensors, or one pattern.
        out: the folder to make; see `merge`. None: choose only.
        task: as for `evaluate`: data that no checkpoint was trained on, by which the soup is chosen. A uniform soup
            needs none.
        method: `greedy`, `uniform`, `pruned` or `learned`.
        held_out: tasks without a say, on which the soup, its best ingredient and the uniform soup are compared.
        tie_break: a loss among the task's details that decides between equal scores (`greedy` and `pruned`).
        by: weights of a learned soup for each `model`, or for each model and `layer`.
        epochs: of a learned soup.
        rate: of a learned soup.
        settings: how to evaluate.
        cache: whether scores are kept and found again, or the folder for them.
        log: a file for every step; by default `out.soup.jsonl`, and none without `out`.
        dtype: of the output; by default that of the checkpoints.
        options: threads, memory bound, and so on, of the merge that writes.
        on_start: called with the labels of model and task before each score that is measured.
        on_step: called with each mixture that was tried.
        on_plan: see `merge`.
        progress: see `merge`.
        storage: see `merge`.

    Raises `RecipeError` (S801, S802, S803, S804) for what cannot be, `OutputError` (S809) for the log, and what
    `evaluate` and `merge` raise.
    """
    chosen_by = search.SoupOptions(method, tie_break, by, epochs, rate)
    opener = _opener(storage)
    if out is not None:
        options = checked(options, out)
        search.refuse_place(out, storage, replace=options.replace)
        log = f"{os.fspath(out).rstrip('/')}.soup.jsonl" if log is None else log
    choice = search.choose_soup(
        checkpoints,
        chosen_by,
        opener,
        task=task,
        held_out=held_out,
        settings=settings,
        cache=cache,
        out=out,
        log=log,
        dtype=dtype,
        on_start=on_start,
        on_step=on_step,
    )
    if out is None:
        return Soup(choice)
    planned = make_plan(recipe.load(choice.recipe, methods=methods), opener)
    if note := averaging.statistics_note(job.name for job in planned.jobs if job.action == "merge"):
        planned = replace(planned, notes=(*planned.notes, note))
    return Soup(choice, make(planned, out, options or Options(), on_plan, progress, storage))


def tune(
    source: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    out: str | os.PathLike[str] | None = None,
    *,
    over: Mapping[str, Any] | Sequence[str] = (),
    tasks: Sequence[Any] = (),
    keep: Sequence[str] = (),
    overrides: Sequence[str] = (),
    settings: Settings | None = None,
    cache: Kept = True,
    options: Options | None = None,
    on_start: OnStart | None = None,
    on_score: Callable[[str, str, Score], None] | None = None,
    on_plan: OnPlan | None = None,
    progress: Callable[[int], None] | None = None,
    storage: Storage = REAL,
) -> Tuned:
    """Scores every merge of a sweep without writing it, and chooses the best that keeps what must be kept.

    Args:
        source: the recipe, as for `plan`.
        out: the folder for the chosen merge; None: choose only.
        over: the values to try: `{"parameters.t": "0:1:0.1", "parameters.density": [0.2, 0.5]}`, or texts
            `parameters.t=0:1:0.1`. The recipe may sweep parameters itself.
        tasks: each as for `evaluate`; the first is the target.
        keep: constraints, as `general <= base + 0.02`; `general.nll` is a detail of the task `general`.
        overrides: other changes to the recipe.
        settings: how to evaluate.
        cache: whether scores are kept and found again, or the folder for them.
        options: threads, memory bound, and so on, of the merge that writes.
        on_start: called with the labels of model and task before each score that is measured.
        on_score: called with the labels of model and task and the score.
        on_plan: see `merge`.
        progress: see `merge`.
        storage: see `merge`.

    `eutectic.sweep` writes all of them and measures none. Raises `RecipeError` (S803, S805, S806, S807; S808 if `out`
    is given and no merge keeps the constraints), and what `evaluate` and `merge` raise.
    """
    if out is not None:
        options = checked(options, out)
        search.refuse_place(out, storage, replace=options.replace)
    changes = [overrides] if isinstance(overrides, str) else list(overrides)
    variants = search.variants_of(source, [*changes, *search.overrides_of(over)])
    opener = _opener(storage)
    found = search.tune_recipe(
        variants,
        opener,
        tasks=tasks,
        keep=keep,
        settings=settings,
        cache=cache,
        on_start=on_start,
        on_score=on_score,
    )
    chosen = next((one.recipe for one in variants if one.label == found.best), None)
    if out is None:
        return Tuned(found, chosen)
    if chosen is None:
        nearest = min(found.failed, key=lambda label: len(found.failed[label]))
        message = f"none of {len(found.choices)} merges keeps {', '.join(found.keep)}"
        hint = f"{nearest} fails {', '.join(found.failed[nearest])}; without OUT the table shows all"
        raise RecipeError(Problem("S808", message, "keep", hint))
    planned: Plan = make_plan(chosen, opener)
    return Tuned(found, chosen, make(planned, out, options or Options(), on_plan, progress, storage))


def _opener(storage: Storage) -> Callable[[Any, str | None], Source]:
    return lambda model, folder: checkpoint.open_source(model, folder=folder, storage=storage)
