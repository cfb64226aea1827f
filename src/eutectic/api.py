"""The doors: merge, average, learn, plan, open, merged, verify, compare, evaluate, connect, align, cite, explain.

The one place where the layers are joined.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from eutectic import averaging, checkpoint, dtypes, methods, recipe
from eutectic.checkpoint import REAL, Source, Storage
from eutectic.errors import Problem, RecipeError, did_you_mean
from eutectic.merging import Merge as Merge
from eutectic.merging import OnPlan, Run, SweepFolder, changes_of, checked, execute, make
from eutectic.merging import Options as Options
from eutectic.merging import beside as beside
from eutectic.merging import budget_for as budget_for
from eutectic.plan import Plan, make_plan
from eutectic.plan.effects import refuse_idle_sweeps
from eutectic.plan.effects import same_merges as same_merges
from eutectic.plan.planner import planning_together
from eutectic.recipe import Recipe
from eutectic.report.again import recipe_in
from eutectic.report.verify import read_manifest
from eutectic.report.verify import verify as verify
from eutectic.run.budget import Budget
from eutectic.run.budget import largest as largest
from eutectic.run.merged import MergedSource
from eutectic.run.refusals import check_device as check_device

if TYPE_CHECKING:
    from eutectic.adviser import Comparison as Comparison
    from eutectic.adviser import compare as compare
    from eutectic.alignment import Alignment as Alignment
    from eutectic.alignment import align as align
    from eutectic.alignment import align_all as align_all
    from eutectic.alignment import prove as prove
    from eutectic.choosing import Soup as Soup
    from eutectic.choosing import Tuned as Tuned
    from eutectic.choosing import Watch as Watch
    from eutectic.choosing import learn as learn
    from eutectic.choosing import soup as soup
    from eutectic.choosing import tune as tune
    from eutectic.codes import CODES as CODES
    from eutectic.connectivity import Connection as Connection
    from eutectic.connectivity import connect as connect
    from eutectic.evaluate import Evaluation as Evaluation
    from eutectic.evaluate import Score as Score
    from eutectic.evaluate import evaluate as evaluate
    from eutectic.evaluate import evaluate_models as evaluate_models
    from eutectic.repairing import RepairedMerge as RepairedMerge
    from eutectic.repairing import repair as repair
    from eutectic.report.citations import Citation as Citation
    from eutectic.report.citations import cite as cite
    from eutectic.report.compare_html import write_report as write_report
    from eutectic.report.connect_html import write_connection as write_connection
    from eutectic.report.html import check_report_place as check_report_place
    from eutectic.report.pages import example as example
    from eutectic.report.pages import first_line as first_line
    from eutectic.report.pages import method_named as method_named
    from eutectic.report.pages import method_page as method_page
    from eutectic.report.pages import step_named as step_named
    from eutectic.report.pages import step_page as step_page
    from eutectic.report.search_html import write_learning_report as write_learning_report
    from eutectic.report.search_html import write_soup_report as write_soup_report
    from eutectic.report.search_html import write_tuning_report as write_tuning_report
    from eutectic.report.verify import Verification as Verification
    from eutectic.search import Learned as Learned
    from eutectic.statistics import collect as collect

# Doors to rooms that a merge does not enter: opened at first use, so that a merge starts sooner.
_ROOMS = {
    "eutectic.adviser": ("Comparison", "compare"),
    "eutectic.alignment": ("Alignment", "align", "align_all", "prove"),
    "eutectic.choosing": ("Soup", "Tuned", "Watch", "learn", "soup", "tune"),
    "eutectic.codes": ("CODES",),
    "eutectic.connectivity": ("Connection", "connect"),
    "eutectic.evaluate": ("Evaluation", "Score", "evaluate", "evaluate_models"),
    "eutectic.repairing": ("RepairedMerge", "repair"),
    "eutectic.report.citations": ("Citation", "cite"),
    "eutectic.report.compare_html": ("write_report",),
    "eutectic.report.connect_html": ("write_connection",),
    "eutectic.report.html": ("check_report_place",),
    "eutectic.report.pages": ("example", "first_line", "method_named", "method_page", "step_named", "step_page"),
    "eutectic.report.search_html": ("write_learning_report", "write_soup_report", "write_tuning_report"),
    "eutectic.search": ("Learned",),
    "eutectic.report.verify": ("Verification",),
    "eutectic.statistics": ("collect",),
}
_DOORS = {name: room for room, names in _ROOMS.items() for name in names}

RecipeLike = str | os.PathLike[str] | Mapping[str, Any] | Recipe
_T = TypeVar("_T")


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module 'eutectic.api' has no attribute {name!r}")
    return getattr(importlib.import_module(_DOORS[name]), name)


def load_recipe(
    source: RecipeLike, *, overrides: Sequence[str] = (), seed: int | None = None, dtype: str | None = None
) -> Recipe:
    """A checked recipe from a path, YAML text, a dict or a `Recipe`. Raises `RecipeError` with every problem.

    The path may be that of a finished merge, or of the manifest in it, and then stands for the recipe recorded there.
    `overrides` are changes such as `parameters.t=0.4`; `seed` and `dtype` (of the output) override the recipe's own.
    """
    return _loaded(recipe.load, source, overrides, seed, dtype)


def _loaded(
    load: Callable[..., _T], source: RecipeLike, overrides: Sequence[str], seed: int | None, dtype: str | None
) -> _T:
    try:
        return load(recipe_in(source), overrides=_changes(overrides, seed, dtype), methods=methods)
    except RecipeError as error:
        # They went the way of `--set`, and are called what they were given as.
        names = {"seed": "seed"} if seed is not None else {}
        names |= {"out_dtype": "dtype"} if dtype is not None else {}
        raise RecipeError(
            replace(one, file="", where=names[one.where]) if one.file == "overrides" and one.where in names else one
            for one in error.problems
        ) from error.__cause__


def _changes(overrides: Sequence[str], seed: int | None = None, dtype: str | None = None) -> list[str]:
    changes = changes_of(overrides)
    for key, value in (("seed", seed), ("out_dtype", dtypes.named(dtype))):
        if value is not None:
            # Text in quotes: empty text would be YAML for nothing.
            changes.append(f"{key}={json.dumps(value) if isinstance(value, str) else value}")
    return changes


def plan(
    source: RecipeLike, *, overrides: Sequence[str] = (), seed: int | None = None, dtype: str | None = None
) -> Plan:
    """What a merge would do, tensor by tensor; opens headers, reads no weight.

    Args:
        source: path of a recipe or of a finished merge, YAML text, dict or `Recipe`.
        overrides: changes such as `parameters.t=0.4`.
        seed: for random masks; overrides the recipe's.
        dtype: of the output, by name or torch's own; overrides the recipe's.

    Raises `RecipeError` (every problem of the recipe and of the models' shapes) or `CheckpointError`.
    """
    return make_plan(load_recipe(source, overrides=overrides, seed=seed, dtype=dtype), open_model)


def open_model(model: Any, folder: str | None = None) -> Source:
    """A checkpoint as a lazy mapping of tensors: a folder, a file, a hub id, a live module or a state dict.

    `folder` is where relative paths start that are not found from the current folder. Public as `eutectic.open`.
    Raises `CheckpointError` if it is missing, broken or unsafe to read.
    """
    return checkpoint.open_source(model, folder=folder)


def merged(
    source: RecipeLike, *, overrides: Sequence[str] = (), seed: int | None = None, dtype: str | None = None
) -> MergedSource:
    """A merge as a lazy mapping of tensors, computed on read and never written.

    `module.load_state_dict(dict(eutectic.merged(recipe)))` loads it into a live module. Arguments as for `plan`.
    """
    return MergedSource(plan(source, overrides=overrides, seed=seed, dtype=dtype))


def merge(
    source: RecipeLike,
    out: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    dtype: str | None = None,
    options: Options | None = None,
    on_plan: OnPlan | None = None,
    progress: Callable[[int], None] | None = None,
    storage: Storage = REAL,
) -> Merge:
    """Merges models into the folder `out`, which appears complete or not at all.

    The same call resumes after an interruption; the bytes are those of an uninterrupted run.

    Args:
        source: the recipe, and
        overrides: changes to it, and
        seed: for random masks, and
        dtype: of the output, all as for `plan`.
        out: the folder to make. It must not exist, or be empty, or be this very merge; see `Options.replace`.
        options: threads, memory bound, device, shard size, and so on.
        on_plan: called with the plan, the memory budget and the notes before any weight is read.
        progress: called with the number of output bytes after each block.
        storage: the file system.

    Raises `RecipeError`, `CheckpointError`, `OutputError`, `NumericError`, `ResourceError`, or `InterruptedMergeError`
    after SIGINT or SIGTERM (when called from the main thread).
    """
    options = checked(options, out, on_plan=on_plan, progress=progress)
    loaded = load_recipe(source, overrides=overrides, seed=seed, dtype=dtype)
    planned = make_plan(loaded, lambda model, folder: checkpoint.open_source(model, folder=folder, storage=storage))
    return make(planned, out, options, on_plan, progress, storage)


def average(
    checkpoints: Any,
    out: str | os.PathLike[str],
    *,
    window: str = "uniform",
    decay: float | None = None,
    last: int | None = None,
    until: int | None = None,
    dtype: str | None = None,
    options: Options | None = None,
    on_plan: OnPlan | None = None,
    progress: Callable[[int], None] | None = None,
    storage: Storage = REAL,
) -> Merge:
    """Averages checkpoints of one training run into the folder `out`. Resumes, and is verified, like any merge.

    Args:
        checkpoints: a list of folders, files, hub ids and patterns (`run/checkpoint-*`), or one pattern. Their order
            is that of the steps in their names.
        out: the folder to make; see `merge`.
        window: `uniform`; `exponential`: weights fall by the factor `decay` from each checkpoint to the one before;
            `ema`: as in an exponential moving average with this `decay` a step.
        decay: see `window`.
        last: take only so many, the latest.
        until: take only those up to this step.
        dtype: of the output; by default that of the checkpoints.
        options: threads, memory bound, and so on; the rest as for `merge`.
        on_plan: see `merge`.
        progress: see `merge`.
        storage: see `merge`.

    Integer tensors, config and tokenizer are the latest checkpoint's. Raises `RecipeError` for fewer than two
    checkpoints (T711), an order that is needed and not known (T712) and a window that cannot be (T713), and what
    `merge` raises.
    """
    options = checked(options, out, on_plan=on_plan, progress=progress)
    chosen = averaging.Window(window, decay, last, until)
    loaded = load_recipe(averaging.average_recipe(checkpoints, chosen, out=out), dtype=dtype)
    planned = make_plan(loaded, lambda model, folder: checkpoint.open_source(model, folder=folder, storage=storage))
    merged = (job.name for job in planned.jobs if job.action == "merge")
    notes = filter(None, (chosen.note(len(loaded.models)), averaging.statistics_note(merged)))
    planned = replace(planned, notes=(*planned.notes, *notes))
    return make(planned, out, options, on_plan, progress, storage)


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep did: for each combination of values the folder's name, the merge, and the values by path.

    `notes` says which merges are one and the same, and what an earlier sweep left in the folder.
    """

    path: str
    merges: Mapping[str, Merge]
    choices: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()


def is_sweep(source: RecipeLike, *, overrides: Sequence[str] = ()) -> bool:
    """Whether a recipe has `{sweep: [...]}` for a parameter. Raises `RecipeError` for a broken sweep."""
    return bool(recipe.load_sweep(recipe_in(source), overrides=_changes(overrides), methods=methods))


def sweep(
    source: RecipeLike,
    out: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    dtype: str | None = None,
    options: Options | None = None,
    on_plan: Callable[[Sequence[str], Plan, Budget, Sequence[str]], None] | None = None,
    progress: Callable[[int], None] | None = None,
    storage: Storage = REAL,
) -> Sweep:
    """Makes one merge for each combination of swept values, all in one pass over the inputs.

    A parameter is swept where the recipe (or an override) has `{sweep: [0.1, 0.3]}` for its value. Each merge gets a
    folder under `out`, named by its values (`t=0.1`), which equals byte for byte what the merge by itself would write;
    `out/sweep.json` lists them. Arguments and errors as for `merge`; a recipe without a sweep is R128, a sweep that
    changes nothing P317. `on_plan` gets the names of the folders and the plan of the first. The same call resumes,
    and skips what is complete.
    """
    options = checked(options, out, on_plan=on_plan, progress=progress)
    variants = _loaded(recipe.load_sweep, source, overrides, seed, dtype)
    if not variants:
        hint = "write `t: {sweep: [0.1, 0.3]}`, or use `eutectic.merge`"
        raise RecipeError(Problem("R128", "the recipe sweeps no parameter", hint=hint))
    plans = _plans(variants, storage)
    place, same = os.fspath(out), same_merges(plans)
    try:
        held: dict[bytes, bytes] = {}
        runs = [
            Run(planned, os.path.join(place, label), options, storage, len(plans), held)
            for label, planned in plans.items()
        ]
        if on_plan:
            on_plan(list(plans), runs[0].plan, largest([run.budget for run in runs]), [*runs[0].notes, *same])
        choices = {variant.label: variant.choices for variant in variants}
        with SweepFolder(place, choices, storage) as folder:
            merges = execute(runs, progress, folder.write)
    finally:
        for planned in plans.values():
            planned.close()
    return Sweep(place, dict(zip(plans, merges, strict=True)), choices, (*same, *folder.notes))


def plan_sweep(
    source: RecipeLike, *, overrides: Sequence[str] = (), seed: int | None = None, dtype: str | None = None
) -> dict[str, Plan]:
    """What `sweep` would do: the plan of each merge by the name of its folder. They share their open inputs."""
    variants = _loaded(recipe.load_sweep, source, overrides, seed, dtype)
    return _plans(variants, REAL)


def _plans(variants: Sequence[recipe.Variant], storage: Storage) -> dict[str, Plan]:
    made = planning_together(lambda model, folder: checkpoint.open_source(model, folder=folder, storage=storage))
    plans: dict[str, Plan] = {}
    problems: dict[Problem, None] = {}
    for variant in variants:
        try:
            plans[variant.label] = made(variant.recipe)
        except RecipeError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        for planned in plans.values():
            planned.close()
        raise RecipeError(list(problems))
    refuse_idle_sweeps(variants, plans.values())
    return plans


def method_names() -> list[str]:
    """Every method, built in or installed."""
    return methods.names()


def step_names() -> list[str]:
    """Every step after a method."""
    return list(methods.steps())


def verify_bytes(out: str | os.PathLike[str], *, stored_only: bool = False) -> int:
    """Bytes that `verify` will go through, for a progress bar."""
    tensors = read_manifest(os.fspath(out))["tensors"].values()
    total: int = sum(math.prod(t["shape"]) * dtypes.itemsize(t["dtype"]) for t in tensors)
    return total if stored_only else 2 * total


def explain(code: str) -> tuple[str, str]:
    """Title and explanation of a problem's code. Raises `RecipeError` (X902) for an unknown one."""
    from eutectic.codes import CODES

    wanted = str(code).upper()
    if (found := CODES.get(wanted)) is None:
        raise RecipeError(Problem("X902", f"there is no code {code!r}", hint=did_you_mean(wanted, CODES)))
    return found
