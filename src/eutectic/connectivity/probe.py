"""Tasks on the points of paths: checked once, every model measured once, known scores from the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from eutectic.averaging.statistics import statistics_layers, update_bn
from eutectic.checkpoint import MemorySource, Source
from eutectic.connectivity.mixing import Path
from eutectic.errors import Problem, RecipeError
from eutectic.evaluate import Call, Score, Settings, Task, task_of
from eutectic.evaluate.doors import Kept, cache_of
from eutectic.evaluate.evaluation import recalled
from eutectic.plan.labels import unique_labels
from eutectic.run.refusals import check_device


class Probe:
    """Measures several tasks on sources."""

    def __init__(
        self,
        tasks: Sequence[Any],
        run: Settings,
        cache: Kept = False,
        batches: Iterable[Any] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """Measures nothing yet.

        Args:
            tasks: what to measure, each as for `loss_task`.
            run: how.
            cache: whether scores are kept and found again, or the folder for them.
            batches: what the statistics of batch normalisation are computed from at each point; None: they are mixed
                like weights.
            tell: called with the label of each model that is measured.
        """
        check_device(run.device)
        self.tasks = tuple(loss_task(task) for task in tasks)
        self.names = tuple(unique_labels(task.name for task in self.tasks))
        self._run = run
        self._cache = cache_of(cache)
        self._batches = batches
        self._tell = tell or (lambda label: None)

    @property
    def resets(self) -> bool:
        """Whether statistics of batch normalisation are computed at each point."""
        return self._batches is not None

    def check(self, path: Path) -> None:
        """Refuses what cannot be mixed or measured, before any weight is read. Raises `EutecticError`."""
        source = path.at(0.5)
        problems: list[Problem] = []
        for task in self.tasks:
            try:
                task.check(source, self._run)
            except RecipeError as error:
                problems += error.problems
        if problems:
            raise RecipeError(list(dict.fromkeys(problems)))
        if self.resets:
            self._run.loader.check_module(source)

    def scores(self, source: Source) -> list[Score]:
        """The score of each task."""
        self._tell(source.label)
        if self._batches is not None:
            source = self._reset(source, self._batches)
        return [recalled(source, task, self._run, self._cache)[0] for task in self.tasks]

    def _reset(self, source: Source, batches: Iterable[Any]) -> Source:
        """The same weights with statistics that they have themselves."""
        with self._run.loader.module(source, device=self._run.device) as module:
            if not statistics_layers(module):
                message = f"{type(module).__name__} has no batch normalisation with statistics"
                raise RecipeError(Problem("L814", message, "batches", "leave `batches` out"))
            update_bn(batches, module, device=self._run.device)
            # Copies: the loader puts the next model into the same module.
            return MemorySource(source.label, {name: value.clone() for name, value in module.state_dict().items()})


def loss_task(task: Any) -> Task:
    """A task from whatever `eutectic.evaluate` takes; a function is a loss of the source, for all or for each item."""
    if callable(task) and not isinstance(task, Task):
        name = getattr(task, "__name__", type(task).__name__)
        return Call(task, name=name, metric="loss", higher_is_better=False)
    return task_of(task)
