"""The doors that choose a merge by what it scores, and write it if they are told where: soup, tune and learn."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from eutectic import averaging, checkpoint, methods, recipe, search
from eutectic.checkpoint import REAL, Source
from eutectic.checkpoint.existing import refuse_place
from eutectic.errors import Problem, RecipeError, several
from eutectic.evaluate import Score, Settings
from eutectic.evaluate.doors import Kept
from eutectic.merging import Merge, OnPlan, Options, changes_of, checked, make
from eutectic.plan import make_plan
from eutectic.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Watch:
    """Functions that are called while a search runs.

    Attributes:
        on_start: with the labels of model and task, before each score that is measured.
        on_step: with each mixture that a soup tried.
        on_score: with the labels of model and task and the score, of each merge of a sweep.
        on_plan: of the merge that is written; see `merge`.
        progress: of the merge that is written; see `merge`.
    """

    on_start: Callable[[str, str], None] | None = None
    on_step: Callable[[search.Step], None] | None = None
    on_score: Callable[[str, str, Score], None] | None = None
    on_plan: OnPlan | None = None
    progress: Callable[[int], None] | None = None


@dataclass(frozen=True, slots=True)
class Soup:
    """A soup: what was chosen and why, and the merge if it was written."""

    choice: search.Choice
    merge: Merge | None = None

    def __repr__(self) -> str:
        return f"<Soup {self.choice!r}, {_place_of(self.merge)}>"


@dataclass(frozen=True, slots=True)
class Tuned:
    """A sweep that was evaluated: the scores and the choice, the recipe chosen, and the merge if it was written."""

    found: search.Tuning
    recipe: Recipe | None
    merge: Merge | None = None

    def __repr__(self) -> str:
        count = several(len(self.found.choices), "merge")
        return f"<Tuned: best {self.found.best!r} of {count}, {_place_of(self.merge)}; see .found>"


def _place_of(merge: Merge | None) -> str:
    return "not written" if merge is None else f"in {merge.path}"


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
    watch: Watch | None = None,
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
        watch: functions that are called meanwhile.

    Raises `RecipeError` (S801, S802, S803, S804) for what cannot be, `OutputError` (S809) for the log, and what
    `evaluate` and `merge` raise.
    """
    chosen_by = search.SoupOptions(method, tie_break, by, epochs, rate)
    watch = watch or Watch()
    options = _checked(options, out, watch)
    if out is not None and log is None:
        log = f"{os.fspath(out).rstrip('/')}.soup.jsonl"
    given: dict[str, Any] = {"task": task, "held_out": held_out, "settings": settings, "cache": cache, "dtype": dtype}
    choice = search.choose_soup(
        checkpoints, chosen_by, _open, out=out, log=log, on_start=watch.on_start, on_step=watch.on_step, **given
    )
    if out is None:
        return Soup(choice)
    return Soup(choice, _written(recipe.load(choice.recipe, methods=methods), out, options, watch))


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
    watch: Watch | None = None,
) -> Tuned:
    """Scores every merge of a sweep without writing it, and chooses the best that keeps what must be kept.

    Args:
        source: the recipe, as for `plan`.
        out: the folder for the chosen merge; None: choose only.
        over: the values to try: `{"parameters.t": "0:1:0.1", "parameters.density": [0.2, 0.5]}`, or texts
            `parameters.t=0:1:0.1`; an array of one dimension is a list. The recipe may sweep parameters itself.
        tasks: each as for `evaluate`; the first is the target.
        keep: constraints, as `general <= base + 0.02`; `general.nll` is a detail of the task `general`.
        overrides: other changes to the recipe.
        settings: how to evaluate.
        cache: whether scores are kept and found again, or the folder for them.
        options: threads, memory bound, and so on, of the merge that writes.
        watch: functions that are called meanwhile.

    `eutectic.sweep` writes all of them and measures none. Raises `RecipeError` (S803, S805, S806, S807; S808 if `out`
    is given and no merge keeps the constraints), and what `evaluate` and `merge` raise.
    """
    watch = watch or Watch()
    options = _checked(options, out, watch)
    variants = search.variants_of(source, changes_of(overrides), search.overrides_of(over))
    given: dict[str, Any] = {"tasks": tasks, "keep": keep, "settings": settings, "cache": cache}
    found = search.tune_recipe(variants, _open, on_start=watch.on_start, on_score=watch.on_score, **given)
    chosen = next((one.recipe for one in variants if one.label == found.best), None)
    if out is None:
        return Tuned(found, chosen)
    if chosen is None:
        nearest = min(found.failed, key=lambda label: len(found.failed[label]))
        message = f"none of {several(len(found.choices), 'merge')} keeps {', '.join(found.keep)}"
        hint = f"{nearest} fails {', '.join(found.failed[nearest])}; without OUT the table shows all"
        raise RecipeError(Problem("S808", message, "keep", hint))
    return Tuned(found, chosen, _written(chosen, out, options, watch))


def learn(
    source: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    out: str | os.PathLike[str] | None = None,
    *,
    data: Any,
    by: str = "task",
    objective: str = "entropy",
    steps: int = 500,
    lr: float = 1e-3,
    init: float | None = None,
    clamp: bool = True,
    held_out: float = 0.2,
    patience: int = 10,
    overrides: Sequence[str] = (),
    settings: Settings | None = None,
    memory: int | None = None,
    log: str | os.PathLike[str] | None = None,
    replace: bool = False,
    on_step: Callable[[search.LearnStep], None] | None = None,
) -> search.Learned:
    """Learns the weights of a recipe by gradient through the merge, and leaves a recipe with the numbers in it.

    AdaMerging (Yang and others, arXiv:2310.02575): the mean entropy of the merged model's outputs on data
    without labels is made small by Adam; with labels, cross-entropy. Methods: linear, task_arithmetic, ties,
    dare_linear and dare_ties, their trims, votes and masks taken as they are at each step.

    Args:
        source: the recipe, as for `plan`.
        out: the recipe to write, a .yml file; None: only return it. Where it is there and is what this very search
            writes, nothing is learned.
        data: one or several, a batch of each a step: the path of a text or .jsonl file, a perplexity task as for
            `evaluate`, or `Classification` with a loader (labels may be None for entropy).
        by, objective, steps, lr, init, clamp, held_out, patience: as in `eutectic.search.LearnOptions`.
        overrides: other changes to the recipe.
        settings: how to run; by default 16 windows a batch, the paper's.
        memory: bound in bytes on resident memory; what the forward pass keeps comes on top. None: the machine's.
        log: a file for every step; by default `out` with `.learn.jsonl` for its ending, and none without `out`.
        replace: write over `out` if it exists, and throw away kept steps of another search.
        on_step: called with each step.

    The merge is computed at each step as `merge` would. Its gradient goes back through the module and then, block by
    block, through the method's plain torch form. The same call takes the same steps, and with `out`, stopped, goes on
    after the last: what they saw is kept beside `out` (`.learn.partial`), but for modules that a function makes.

    Differs from the paper: the step is chosen by held-out data, a step takes one batch of each data set (the code
    takes two), and a weight that reaches a bound can come back. The entropy of next-token distributions and
    cross-entropy are extensions.

    Raises `RecipeError` (S804, S810 to S812, W401, W403), `ResourceError` (M601), `OutputError` (S809, W402, W405),
    `NumericError` (E908) and what `plan` and `evaluate` raise; all but E908 before a weight is read.
    """
    chosen = search.LearnOptions(by, objective, steps, lr, init, clamp, held_out, patience)
    loaded = recipe.load(source, overrides=changes_of(overrides), methods=methods)
    given: dict[str, Any] = {"settings": settings, "memory": memory, "on_step": on_step}
    learning = partial(search.learn_coefficients, loaded, _open, data, chosen, **given)
    if out is None:
        return learning(log=log)
    stands = search.refuse_file(out, loaded, replace=replace)
    return _learned_into(out, _log_beside(out, log), stands, replace, learning)


def _learned_into(
    out: str | os.PathLike[str], log: str, stands: bool, replace: bool, learning: Callable[..., search.Learned]
) -> search.Learned:
    """Learns and writes, or looks whether the finished search that `stands` there is this one."""
    finished = search.Finished(out, log) if stands else None
    learning = partial(learning, log=log)
    with search.KeptSteps(f"{os.path.splitext(os.fspath(out))[0]}.learn.partial", replace=replace) as kept:
        if finished is None:
            search.write_recipe(found := learning(kept=kept), out)
        else:
            finished.check(found := learning(kept=kept, earlier=finished.steps))
        kept.forget()
    return found


def _log_beside(out: str | os.PathLike[str], log: str | os.PathLike[str] | None) -> str:
    """Where the steps are written. Raises `RecipeError` (M603) for the file of the recipe itself."""
    found = f"{os.path.splitext(os.fspath(out))[0]}.learn.jsonl" if log is None else os.fspath(log)
    if os.path.realpath(found) == os.path.realpath(out):
        raise RecipeError(Problem("M603", "is the file that the recipe is written to", "log", "name another file"))
    return found


def _checked(options: Options | None, out: str | os.PathLike[str] | None, watch: Watch) -> Options:
    """The options of the merge that is written, if one is; what can be told of its place is told now."""
    if out is None:
        return options or Options()
    options = checked(options, out, on_plan=watch.on_plan, progress=watch.progress)
    refuse_place(out, replace=options.replace)
    return options


def _written(chosen: Recipe, out: str | os.PathLike[str], options: Options, watch: Watch) -> Merge:
    planned = make_plan(chosen, _open)
    if note := averaging.statistics_note(job.name for job in planned.jobs if job.action == "merge"):
        planned = replace(planned, notes=(*planned.notes, note))
    return make(planned, out, options, watch.on_plan, watch.progress, REAL)


def _open(model: Any, folder: str | None) -> Source:
    return checkpoint.open_source(model, folder=folder)
