"""The room's two doors: a soup, and a sweep that is evaluated. Both choose; writing is for the caller."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from eutectic import methods, recipe
from eutectic.checkpoint import Source
from eutectic.errors import Problem, RecipeError
from eutectic.evaluate import Loader, Score, Settings, task_of
from eutectic.evaluate.doors import Kept, cache_of, tasks_of
from eutectic.evaluate.evaluation import refuse_early
from eutectic.plan import make_plan
from eutectic.plan.effects import refuse_idle_sweeps, same_merges
from eutectic.plan.inputs import Opener, opening_once
from eutectic.plan.planner import planning_together
from eutectic.recipe import Recipe, Variant
from eutectic.run.merged import MergedSource
from eutectic.run.refusals import check_device
from eutectic.search.coefficients import Earlier, Learned, LearnOptions, LearnStep, learn_weights, refuse_recipe
from eutectic.search.gradients import refuse_memory
from eutectic.search.ingredients import Pot, parts_of
from eutectic.search.keep import constraints_of
from eutectic.search.kept import KeptSteps
from eutectic.search.log import Log
from eutectic.search.objectives import MEASURES, kind_of
from eutectic.search.scoring import Scorer
from eutectic.search.soup import Choice, SoupOptions, Step, choose
from eutectic.search.training_data import data_of, training_data
from eutectic.search.tune import Candidate, Tuning, tune

# Windows, or items of a user's own loader, in a batch of AdaMerging's code.
PAPERS_BATCH = 16
OnScore = Callable[[str, str, Score], None]


def choose_soup(
    checkpoints: Any,
    options: SoupOptions,
    opener: Opener,
    *,
    task: Any = None,
    held_out: Sequence[Any] = (),
    settings: Settings | None = None,
    cache: Kept = True,
    out: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    on_start: Callable[[str, str], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Choice:
    """Chooses the ingredients of a soup, or their weights.

    Args:
        checkpoints: see `Pot`.
        options: how to choose.
        opener: opens a model.
        task: what to choose by.
        held_out: tasks that have no say.
        settings: how to evaluate.
        cache: whether scores are kept and found again, or the folder for them.
        out: where the soup will be written, if it is to be.
        log: a file for every step, one JSON object a line.
        dtype: of the soup.
        on_start: called with the labels of model and task before each that is measured.
        on_step: called with each step.

    Raises `EutecticError`; what can be known before a weight is read, before one is.
    """
    if isinstance(held_out, str | os.PathLike | Mapping):
        held_out = [held_out]
    chosen_by = None if task is None else task_of(task)
    others = tasks_of(held_out) if held_out else []
    scorer = Scorer(_settings(settings, checkpoints), cache_of(cache), on_start)
    pot = Pot(checkpoints, opener, out=out, dtype=dtype)
    try:
        with Log(log) as written:
            return choose(pot, options, chosen_by, others, scorer, written.telling(on_step))
    finally:
        scorer.run.loader.forget()
        pot.close()


def tune_recipe(
    variants: Sequence[Variant],
    opener: Opener,
    *,
    tasks: Sequence[Any],
    keep: Sequence[str] = (),
    settings: Settings | None = None,
    cache: Kept = True,
    on_start: Callable[[str, str], None] | None = None,
    on_score: OnScore | None = None,
) -> Tuning:
    """Scores every merge of a sweep and chooses one.

    Args:
        variants: the merges.
        opener: opens a model.
        tasks: what to measure; the first is the target.
        keep: constraints, as `general <= base + 0.02`.
        settings: how to evaluate.
        cache: as for `choose_soup`.
        on_start: as for `choose_soup`.
        on_score: called with the labels of model and task and the score.

    Raises `EutecticError`; what can be known before a weight is read, before one is.
    """
    if isinstance(tasks, str | os.PathLike | Mapping):
        tasks = [tasks]
    wanted = tasks_of(tasks) if tasks else []
    models = [entry.model for variant in variants[:1] for entry in variant.recipe.models]
    scorer = Scorer(_settings(settings, models), cache_of(cache), on_start)
    with _opened(variants, opener) as (candidates, base, notes):
        try:
            return tune(
                candidates,
                base,
                wanted,
                lambda names: constraints_of(keep, names, has_base=base is not None),
                scorer,
                on_score,
                notes,
            )
        finally:
            scorer.run.loader.forget()


def learn_coefficients(
    loaded: Recipe,
    opener: Opener,
    data: Any,
    options: LearnOptions,
    *,
    settings: Settings | None = None,
    memory: int | None = None,
    log: str | os.PathLike[str] | None = None,
    on_step: Callable[[LearnStep], None] | None = None,
    kept: KeptSteps | None = None,
    earlier: Earlier | None = None,
) -> Learned:
    """Learns the weights of a recipe.

    Args:
        loaded: the recipe.
        opener: opens a model.
        data: tasks, or one: see `data_of`.
        options: what is learned, and how.
        settings: how to evaluate.
        memory: bound on resident memory, activations not counted; None: that of the machine.
        log: a file for every step, one JSON object a line.
        on_step: called with each step.
        kept: steps of a run that was stopped, and where they are kept.
        earlier: as for `learn_weights`.

    Raises `EutecticError`; what can be known before a weight is read, before one is.
    """
    refuse_recipe(loaded, options)
    tasks = data_of(data)
    kinds = {kind_of(task) for task in tasks}
    if len(kinds) > 1:
        message = "text and loaders want different modules, and cannot be learned from together"
        raise RecipeError(Problem("S810", message, "data", "learn from one kind"))
    run = _settings(settings, [loaded.base, *(entry.model for entry in loaded.models)])
    run = run if settings is not None else replace(run, batch=PAPERS_BATCH)
    plan = make_plan(loaded, opener)
    try:
        check_device(run.device)
        parts = {part: names for part, names in parts_of(plan, options.by).items() if names}
        merge = MergedSource(plan, "the merge")
        refuse_early([merge], tasks, run, None)
        refuse_memory(plan, memory, run.device)
        kind = kinds.pop()
        if kept is not None and (loads := run.loader.identity(merge)) is not None:
            asked = [asdict(options), run.device.partition(":")[0], run.batch, run.limit, run.seed, kind, loads]
            kept.open([plan.fingerprint, asked])
        elif earlier is not None:
            # Of models in memory nothing says that they are still the same.
            earlier("")
        measure = MEASURES[options.objective]
        read = [training_data(task, measure, options.held_out, run, merge) for task in tasks]
        with Log(log) as written:
            told = written.telling(on_step)
            return learn_weights(plan, parts, read, kind, options, run, told, kept, earlier)
    finally:
        run.loader.forget()
        plan.close()


@contextmanager
def _opened(variants: Sequence[Variant], opener: Opener) -> Iterator[tuple[list[Candidate], Source | None, list[str]]]:
    """The merges of a sweep, planned and not computed, their base, and notes; they share their open models."""
    found: dict[Any, Source] = {}
    made = planning_together(opener, found)
    try:
        plans = {one.label: made(one.recipe) for one in variants}
        refuse_idle_sweeps(variants, plans.values())
        candidates = [Candidate(one.label, one.choices, MergedSource(plans[one.label], one.label)) for one in variants]
        first = variants[0].recipe if variants else None
        base: Source | None = None
        if first is not None and first.base is not None:
            if isinstance(first.base, Recipe):
                base = MergedSource(made(first.base), "base")
            else:
                base = opening_once(opener, found)(first.base, first.folder)
        yield candidates, base, same_merges(plans)
    finally:
        for source in found.values():
            source.close()


def variants_of(source: Any, overrides: Sequence[str], over: Sequence[str] = ()) -> list[Variant]:
    """The merges of a recipe that sweeps parameters, by itself or by changes that are made to it."""
    return recipe.load_sweep(source, overrides=overrides, over=over, methods=methods)


def _settings(settings: Settings | None, models: Any) -> Settings:
    """The settings, or the default ones, with which mixtures of live modules are run in a copy of the first."""
    if settings is not None:
        return settings
    if isinstance(models, str | os.PathLike | Mapping):
        return Settings()
    live = (model for model in models if callable(getattr(model, "state_dict", None)) and callable(model))
    first = next(live, None)
    return Settings() if first is None else Settings(loader=Loader(lambda: copy.deepcopy(first)))
