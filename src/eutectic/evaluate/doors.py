"""The room's two doors: one task on one model, and several on several."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from eutectic.errors import EutecticError, Problem, RecipeError
from eutectic.evaluate.cache import Cache
from eutectic.evaluate.evaluation import Evaluation, evaluate_all
from eutectic.evaluate.loading import Loader
from eutectic.evaluate.model import Score, Settings, Task
from eutectic.evaluate.opening import opened, refuse_several
from eutectic.evaluate.taskfile import task_of

# Whether scores are kept and found again, or the folder for them.
Kept = str | os.PathLike[str] | bool


def evaluate(
    source: Any,
    task: Any,
    *,
    device: str = "cpu",
    batch: int = 8,
    limit: int | None = None,
    seed: int = 0,
    cache: Kept = True,
    module: Callable[[], Any] | None = None,
    tokenizer: Any = None,
) -> Score:
    """What a model scores in a task. A merge is evaluated without being written, and scores what it would then.

    Args:
        source: a recipe as for `eutectic.plan`, or a model as for `eutectic.open`; a live module is evaluated where
            it is.
        task: a task of `eutectic.evaluate`, the path of a task file, `KIND:DATA`, or a dict.
        device: `cpu`, `cuda` or `cuda:N`.
        batch: items a forward pass.
        limit: evaluate this many items, drawn by the seed.
        seed: see `limit`; also of bootstraps.
        cache: whether scores are kept and found again, or the folder for them.
        module: makes the module, without arguments, for weights that are no `transformers` model.
        tokenizer: instead of the one beside the weights: an object of `transformers`, or a folder.

    Raises `EutecticError` with every problem before long work; later E905 for weights that do not fit their module,
    and E908 for a score that is not a number.
    """
    run = Settings(device, batch, limit, seed, Loader(module, tokenizer))
    kept, wanted = cache_of(cache), task_of(task)
    with opened([source], live=module is None) as sources:
        refuse_several(sources)
        scores = evaluate_all(sources, [wanted], run, kept).scores
    return next(iter(next(iter(scores.values())).values()))


def evaluate_models(
    models: Sequence[Any],
    tasks: Sequence[Any],
    *,
    settings: Settings | None = None,
    cache: Kept = True,
    on_start: Callable[[str, str], None] | None = None,
) -> Evaluation:
    """Several tasks on several models, with their differences. A recipe with a sweep stands for each of its merges.

    Args:
        models: each as for `evaluate`.
        tasks: each as for `evaluate`.
        settings: how to run.
        cache: as for `evaluate`.
        on_start: called with the labels of model and task before each that is measured.

    Raises as `evaluate`.
    """
    kept, wanted = cache_of(cache), tasks_of(tasks)
    with opened(models) as sources:
        return evaluate_all(sources, wanted, settings or Settings(), kept, on_start)


def tasks_of(tasks: Sequence[Any]) -> list[Task]:
    """The tasks; all that is wrong with any of them is told at once."""
    problems: list[Problem] = []
    found = []
    for task in tasks:
        try:
            found.append(task_of(task))
        except EutecticError as error:
            problems += error.problems
    if problems or not found:
        raise RecipeError(problems or Problem("E901", "there is no task to evaluate", "tasks"))
    return found


def cache_of(cache: Kept) -> Cache | None:
    """The cache that was asked for, if any."""
    if isinstance(cache, bool):
        return Cache() if cache else None
    return Cache(cache)
