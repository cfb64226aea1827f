"""The merges of a sweep, each scored as a live merge, and the best that keeps what must be kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eutectic.checkpoint import Source
from eutectic.errors import Problem, RecipeError, several
from eutectic.evaluate import Difference, Score, Task, paired
from eutectic.plan.labels import unique_labels
from eutectic.search.keep import Constraint
from eutectic.search.scoring import Scorer


@dataclass(frozen=True, slots=True)
class Candidate:
    """One merge: its label, the values of the swept parameters by path, and the merge itself, unwritten."""

    label: str
    choices: Mapping[str, Any]
    source: Source


@dataclass(frozen=True)
class Tuning:
    """What the merges of a sweep score, and which one was chosen.

    Attributes:
        tasks: the tasks' names; the first is the target.
        choices: label → value of each swept parameter by path, in the order of the sweep.
        scores: label → task → score.
        base: the base's scores by task; empty where the recipe has none.
        keep: the constraints as written.
        failed: label → the constraints that the merge does not keep.
        best: label of the merge with the best target score among those that keep all, of equal ones the first; None
            if none does.
        notes: what to mind.
    """

    tasks: tuple[str, ...]
    choices: Mapping[str, Mapping[str, Any]]
    scores: Mapping[str, Mapping[str, Score]]
    base: Mapping[str, Score]
    keep: tuple[str, ...]
    failed: Mapping[str, tuple[str, ...]]
    best: str | None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        kept = sum(not failed for failed in self.failed.values())
        counts = (
            f"{several(len(self.scores), 'merge')} on {several(len(self.tasks), 'task')}, {kept} keep what must be kept"
        )
        return f"<Tuning: {counts}; best {self.best!r}; see .scores>"

    @property
    def equals(self) -> tuple[str, ...]:
        """The other merges that keep all and have the very score of the best."""
        if self.best is None:
            return ()
        target, kept = self.tasks[0], [label for label, failed in self.failed.items() if not failed]
        top = self.scores[self.best][target].value
        return tuple(one for one in kept if one != self.best and self.scores[one][target].value == top)

    def less(self, label: str, task: str, other: str | None = None) -> Difference | None:
        """A merge's score less that of another (None: the base), item by item; None where they cannot be paired."""
        try:
            return paired(self.scores[label][task], self.base[task] if other is None else self.scores[other][task])
        except (RecipeError, KeyError):
            return None

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        rows = []
        for label, scores in self.scores.items():
            row: dict[str, Any] = {"label": label, "values": dict(self.choices[label])}
            row |= {"kept": not self.failed[label], "failed": list(self.failed[label])}
            row["scores"] = {}
            for task, score in scores.items():
                gaps = {"to_base": self.less(label, task)}
                gaps["to_best"] = self.less(label, task, self.best) if self.best not in (None, label) else None
                gap_data = {name: None if gap is None else gap.as_json() for name, gap in gaps.items()}
                row["scores"][task] = {**score.as_json(), **gap_data}
            rows.append(row)
        base = {task: score.as_json() for task, score in self.base.items()}
        chosen = {"best": self.best, "equals": list(self.equals), "notes": list(self.notes)}
        return {"tasks": list(self.tasks), "keep": list(self.keep), **chosen, "base": base, "merges": rows}


def tune(
    candidates: Sequence[Candidate],
    base: Source | None,
    tasks: Sequence[Task],
    keep: Callable[[Sequence[str]], list[Constraint]],
    scorer: Scorer,
    on_score: Callable[[str, str, Score], None] | None = None,
    notes: Sequence[str] = (),
) -> Tuning:
    """Scores every candidate and the base, and chooses.

    Args:
        candidates: the merges of a sweep.
        base: what constraints compare with; None if there is none.
        tasks: what to measure; the first is what is chosen by.
        keep: the constraints, given the names of the tasks.
        scorer: measures.
        on_score: called with the labels of model and task and the score.
        notes: what to mind of the sweep.

    Raises `RecipeError`: S807 without candidates or tasks, S806 and S803 for constraints, and what evaluation raises.
    """
    if not candidates or not tasks:
        message = "no parameter takes several values" if tasks else "no task is named"
        hint = "name one and its values, as parameters.t=0:1:0.1" if tasks else "name one; the first is the target"
        raise RecipeError(Problem("S807", message, "over" if tasks else "tasks", hint))
    names = unique_labels(task.name for task in tasks)
    constraints = keep(names)
    # One merge stands for all: they differ in values alone.
    scorer.check([candidates[0].source, *([] if base is None else [base])], tasks)
    found: dict[str, dict[str, Score]] = {}
    for label, source in [("base", base), *((one.label, one.source) for one in candidates)]:
        if source is None:
            continue
        scores = found.setdefault(label, {})
        for name, task in zip(names, tasks, strict=True):
            scores[name] = scorer(source, task)
            if on_score:
                on_score(label, name, scores[name])
        for constraint in constraints:
            # A metric that is not there is told after the first model, not after the last.
            constraint.value(scores)
    of_base = found.pop("base", {})
    failed = {
        label: tuple(one.text for one in constraints if not one.holds(scores, of_base or None))
        for label, scores in found.items()
    }
    kept = [label for label in found if not failed[label]]
    best = max(kept, key=lambda label: found[label][names[0]].merit, default=None)
    choices = {one.label: dict(one.choices) for one in candidates}
    texts = tuple(one.text for one in constraints)
    return Tuning(tuple(names), choices, found, of_base, texts, failed, best, tuple(notes))
