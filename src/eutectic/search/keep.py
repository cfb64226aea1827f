"""`TASK <= base + 0.02` → a condition on scores."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from eutectic.errors import Problem, RecipeError, did_you_mean
from eutectic.evaluate import Score

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FORM = re.compile(
    rf"\s*(?P<left>.+?)\s*(?P<sign><=|>=|<|>)\s*"
    rf"(?:(?P<base>base)(?:\s*(?P<more>[-+])\s*(?P<by>{_NUMBER}))?|(?P<bound>[-+]?{_NUMBER}))\s*"
)


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a candidate must keep.

    Attributes:
        text: as written.
        task: the name of a task.
        metric: one of its details; None for the score itself.
        sign: one of <=, >=, <, >.
        relative: whether `bound` is added to the base's score.
        bound: the number.
    """

    text: str
    task: str
    metric: str | None
    sign: str
    relative: bool
    bound: float

    def value(self, scores: Mapping[str, Score]) -> float:
        """What is bounded, of a model's scores by task. Raises `RecipeError` (S803) for a metric that is not there."""
        score = scores[self.task]
        if self.metric is None or self.metric == score.metric:
            return score.value
        if self.metric not in score.details:
            hint = did_you_mean(self.metric, score.details) or f"there are {', '.join(score.details) or 'none'}"
            raise RecipeError(Problem("S803", f"{self.task} measures no {self.metric!r}", "keep", hint))
        return score.details[self.metric]

    def limit(self, base: Mapping[str, Score] | None) -> float:
        """The bound as a number. Added in decimal: 0.7 keeps `base - 0.1` where the base has 0.8."""
        if not self.relative:
            return self.bound
        assert base is not None, "refused before"
        return float(Decimal(repr(self.value(base))) + Decimal(repr(self.bound)))

    def holds(self, scores: Mapping[str, Score], base: Mapping[str, Score] | None) -> bool:
        """Whether a model's scores keep it."""
        return _OPERATORS[self.sign](self.value(scores), self.limit(base))


def constraints_of(texts: Sequence[str], tasks: Sequence[str], *, has_base: bool) -> list[Constraint]:
    """The constraints, checked against the names of the tasks. Raises `RecipeError` (S806) with every problem."""
    problems: list[Problem] = []
    found = []
    for text in [texts] if isinstance(texts, str) else texts:
        match = _FORM.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            problems.append(_wrong(text, "cannot be read", "write TASK <= base + 0.02, or TASK >= 0.7"))
            continue
        named = _named(match["left"], tasks)
        if named is None:
            task = match["left"].rpartition(".")[0] or match["left"]
            near = did_you_mean(match["left"], tasks) or did_you_mean(task, tasks)
            hint = f"{near} The tasks are {', '.join(tasks)}" if near else f"the tasks are {', '.join(tasks)}"
            problems.append(_wrong(text, f"{match['left']!r} is not evaluated", hint))
            continue
        relative = match["base"] is not None
        if relative and not has_base:
            problems.append(_wrong(text, "the recipe has no base_model to compare with", "name one, or give a number"))
            continue
        bound = float(f"{match['more']}{match['by']}" if match["by"] else 0.0) if relative else float(match["bound"])
        if not math.isfinite(bound):
            problems.append(_wrong(text, "the bound is not finite", ""))
            continue
        found.append(Constraint(text.strip(), *named, match["sign"], relative, bound))
    if problems:
        raise RecipeError(problems)
    return found


def _named(left: str, tasks: Sequence[str]) -> tuple[str, str | None] | None:
    """Task and metric; names of tasks may hold dots themselves."""
    if left in tasks:
        return left, None
    return next(((task, left[len(task) + 1 :]) for task in tasks if left.startswith(f"{task}.")), None)


def _wrong(text: object, message: str, hint: str) -> Problem:
    return Problem("S806", f"{text!r}: {message}", "keep", hint)
