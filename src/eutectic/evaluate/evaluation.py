"""Several tasks on several models: all checked first, each model loaded once, known scores from the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from eutectic.checkpoint import Source
from eutectic.errors import EutecticError, Problem, RecipeError, listed
from eutectic.evaluate.cache import Cache
from eutectic.evaluate.model import Difference, Score, Settings, Task, paired
from eutectic.plan.labels import labels_of, unique_labels
from eutectic.run.merged import MergedSource
from eutectic.run.refusals import check_device


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What several models score.

    Attributes:
        models: their labels, all different.
        tasks: the tasks' labels, all different.
        scores: by task, then by model.
        cached: how many of them were known before.
        notes: what the plans of merges among the models say: tokenizers that differ, values without effect.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    scores: Mapping[str, Mapping[str, Score]]
    cached: int = 0
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Evaluation of {listed(self.models)} on {listed(self.tasks)}; see .scores>"

    def best(self, task: str) -> str:
        """The model with the best score in a task; of equal ones the first."""
        scores = self.scores[task]
        return max(scores, key=lambda model: scores[model].merit)

    def to_best(self, task: str) -> dict[str, Difference | None]:
        """Each model's score less the best's, item by item; None for the best, and where they cannot be paired."""
        best = self.best(task)
        found: dict[str, Difference | None] = {}
        for model, score in self.scores[task].items():
            try:
                found[model] = None if model == best else paired(score, self.scores[task][best])
            except RecipeError:
                found[model] = None
        return found

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        tasks = []
        for task, scores in self.scores.items():
            gaps = self.to_best(task)
            rows = []
            for model, score in scores.items():
                gap = gaps[model]
                rows.append({"model": model, **score.as_json(), "to_best": None if gap is None else gap.as_json()})
            tasks.append({"task": task, "best": self.best(task), "scores": rows})
        return {"models": list(self.models), "tasks": tasks, "cached": self.cached, "notes": list(self.notes)}


def evaluate_all(
    sources: Sequence[Source],
    tasks: Sequence[Task],
    run: Settings,
    cache: Cache | None = None,
    on_start: Callable[[str, str], None] | None = None,
) -> Evaluation:
    """Scores every task on every model.

    Args:
        sources: the models.
        tasks: what to measure.
        run: how.
        cache: where scores are kept; None for nowhere.
        on_start: called with the labels of model and task before each.

    Raises `EutecticError`: before any weight is read with the problems of all tasks and models; later E905 for weights
    that do not fit, E908 for a score that is not a number.
    """
    check_device(run.device)
    known = refuse_early(sources, tasks, run, cache)
    labels = tuple(labels_of(sources))
    names = tuple(unique_labels(task.name for task in tasks))
    found: dict[str, dict[str, Score]] = {name: {} for name in names}
    cached = 0
    for place, (label, source) in enumerate(zip(labels, sources, strict=True)):
        for number, (name, task) in enumerate(zip(names, tasks, strict=True)):
            score, kept = known[place][number], True
            if score is None:
                told = partial(on_start, label, name) if on_start else None
                score, kept = recalled(source, task, run, cache, told)
            if kept:
                run.tell(1.0)
                cached += 1
            found[name][label] = replace(score, task=name)
    notes = dict.fromkeys(note for source in sources if isinstance(source, MergedSource) for note in source.plan.notes)
    return Evaluation(labels, names, found, cached, tuple(notes))


def recalled(
    source: Source, task: Task, run: Settings, cache: Cache | None, on_start: Callable[[], None] | None = None
) -> tuple[Score, bool]:
    """A score and whether the cache had it; if not it is measured and kept. `on_start` is called before measuring."""
    key = cache.key(source, task, run) if cache is not None else None
    if cache is not None and key is not None and (known := cache.get(key, task.name)) is not None:
        return known, True
    if on_start:
        on_start()
    score = measure(source, task, run)
    if cache is not None and key is not None:
        cache.put(key, score)
    return score, False


def measure(source: Source, task: Task, run: Settings) -> Score:
    """One score, with torch seeded and its generator restored; the cache is not asked."""
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(run.seed)
        score = task.score(source, run)
    source.check_unchanged()
    return score


_Known = list[list[Score | None]]


def refuse_early(sources: Sequence[Source], tasks: Sequence[Task], run: Settings, cache: Cache | None) -> _Known:
    """Scores that are known without reading a weight; all others are checked.

    Raises what is worst of the errors found (a wrong request before a broken model), with every problem.
    """
    wrong: dict[type[EutecticError], dict[Problem, None]] = {}
    known: _Known = []
    for source in sources:
        row: list[Score | None] = []
        for task in tasks:
            try:
                score = cache.known(source, task, run) if cache is not None else None
                if score is None:
                    task.check(source, run)
                row.append(score)
            except EutecticError as error:
                wrong.setdefault(type(error), {}).update(dict.fromkeys(error.problems))
        known.append(row)
    if wrong:
        worst = max(wrong, key=lambda kind: kind.exit_code)
        raise worst(dict.fromkeys(problem for problems in wrong.values() for problem in problems))
    return known
