"""Candidates → scores: from the cache where they are known, and checked before long work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from eutectic.checkpoint import Source
from eutectic.evaluate import Cache, Score, Settings, Task
from eutectic.evaluate.evaluation import recalled, refuse_early


class Scorer:
    """Scores one candidate after the other; the module stays, and each candidate's weights are put into it."""

    def __init__(self, run: Settings, cache: Cache | None, on_score: Callable[[str, str], None] | None = None) -> None:
        """Measures nothing yet.

        Args:
            run: how to run.
            cache: where scores are kept, which makes a search resumable; None for nowhere.
            on_score: called with the labels of model and task before each score that has to be measured.
        """
        self.run, self.cache = run, cache
        self._on_score = on_score
        self.measured = 0

    def check(self, sources: Sequence[Source], tasks: Sequence[Task]) -> None:
        """Raises what `evaluate_all` would raise before it reads a weight."""
        refuse_early(sources, tasks, self.run, self.cache)

    def __call__(self, source: Source, task: Task) -> Score:
        """The score of a candidate. Raises as `evaluate` does."""
        told = partial(self._on_score, source.label, task.name) if self._on_score else None
        found, kept = recalled(source, task, self.run, self.cache, told)
        self.measured += not kept
        return found
