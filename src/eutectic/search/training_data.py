"""Data to learn weights from: batches without end in a drawn order, and a part that is held out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eutectic.checkpoint import Source
from eutectic.errors import Problem, RecipeError, several
from eutectic.evaluate import Classification, Perplexity, Settings, Task
from eutectic.evaluate.content import digest_of_json
from eutectic.evaluate.doors import tasks_of
from eutectic.evaluate.taskfile import KINDS
from eutectic.lazy import LazyModule
from eutectic.search.objectives import ClassLoss, Measure, TextLoss, cross_entropy, documents_of

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

BatchLoss = ClassLoss | TextLoss


@dataclass(frozen=True, slots=True)
class TrainingData:
    """One data set, divided.

    Attributes:
        name: the task's.
        training: what batches are drawn from: the loader's own batches, or windows of text as losses of one each.
        held_out: batches that no gradient comes from.
        batch: how many of `training` make one batch: 1 for a loader's.
    """

    name: str
    training: Sequence[BatchLoss]
    held_out: Sequence[BatchLoss]
    batch: int

    def digest(self) -> str:
        """Of all of it, in order."""
        parts = [[one.digest() for one in part] for part in (self.training, self.held_out)]
        return digest_of_json([self.name, self.batch, *parts])

    def batches(self, random: np.random.Generator) -> Iterator[BatchLoss]:
        """Batches without end; each pass goes through all of them, in an order that `random` draws."""
        while True:
            order = random.permutation(len(self.training))
            for at in range(0, len(order), self.batch):
                yield _together([self.training[i] for i in order[at : at + self.batch]])


def data_of(data: Any) -> list[Task]:
    """Tasks to learn from: one or several, each as for `evaluate`; the path of a text or `.jsonl` file is perplexity.

    Raises `RecipeError` with the problems of all of them (E901, E902), and where there is none.
    """
    several = data if isinstance(data, list | tuple) else [data]
    return tasks_of([_named(one) for one in several])


def _named(data: Any) -> Any:
    if not isinstance(data, str | os.PathLike):
        return data
    text = os.fspath(data)
    kind = text.partition(":")[0]
    plain = kind not in KINDS and not text.lower().endswith((".yml", ".yaml"))
    return f"perplexity:{text}" if plain else text


def training_data(task: Task, measure: Measure, share: float, run: Settings, source: Source) -> TrainingData:
    """Reads a task's data and holds some of it out.

    Args:
        task: `Classification`, whose batches are read once and kept, or `Perplexity`.
        measure: the objective.
        share: what is held out: of the batches; of the documents; of the windows of a single document.
        run: `limit` and `seed` draw the items, `batch` is windows a batch.
        source: the model whose tokenizer reads text.

    Raises `RecipeError` (S812) for too little data or data of another form.
    """
    units: list[list[BatchLoss]]
    if isinstance(task, Classification):
        units = [[batch] for batch in _loaded(task, measure, run)]
        what, batch = "batch", 1
    else:
        assert isinstance(task, Perplexity)
        documents = documents_of(task, run, source)
        what = "document" if len(documents) > 1 else "window"
        rows = documents if len(documents) > 1 else [[row] for row in documents[0]]
        units = [[TextLoss([row], measure) for row in unit] for unit in rows]
        batch = run.batch
    count = min(max(1, round(share * len(units))), len(units)) if share else 0
    if len(units) - count < 1:
        hint = "give more data" + (", or hold nothing out: held_out 0" if share and units else "")
        message = f"{task.name} has {several(len(units), what)}, too few to learn from" + (
            " and to hold out" if share else ""
        )
        raise RecipeError(Problem("S812", message, "data", hint))
    drawn = set(np.random.default_rng(run.seed).permutation(len(units))[:count].tolist())
    training = [loss for i, unit in enumerate(units) if i not in drawn for loss in unit]
    apart = [loss for i in sorted(drawn) for loss in units[i]]
    held_out = [_together(apart[at : at + batch]) for at in range(0, len(apart), batch)]
    return TrainingData(task.name, training, held_out, batch)


def _together(losses: Sequence[Any]) -> BatchLoss:
    """One batch of windows; a loader's batch stays what it is."""
    first: BatchLoss = losses[0]
    if isinstance(first, ClassLoss):
        return first
    return TextLoss([row for loss in losses for row in loss.rows], first.measure)


def _loaded(task: Classification, measure: Measure, run: Settings) -> list[ClassLoss]:
    """The batches of a loader, torch seeded, at most `run.limit` items."""
    found: list[ClassLoss] = []
    count = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        for number, item in enumerate(task.loader, 1):
            inputs, labels = _pair(item)
            if measure is not cross_entropy:
                labels = None
            elif labels is None:
                message = f"batch {number} of {task.name} is no pair of inputs and labels"
                hint = "cross-entropy needs labels; the objective entropy does not"
                raise RecipeError(Problem("S812", message, "data", hint))
            found.append(ClassLoss(inputs, labels, measure))
            count += found[-1].count
            if run.limit is not None and count >= run.limit:
                break
    return found


def _pair(item: Any) -> tuple[Any, Any]:
    """Inputs and labels of a batch; what is no pair is inputs alone."""
    if isinstance(item, list | tuple) and len(item) == 2:
        return item[0], item[1]
    alone = isinstance(item, list | tuple) and len(item) == 1
    if not alone and not isinstance(item, torch.Tensor | Mapping):
        message = f"a loader gives tensors, dicts, or pairs of inputs and labels, not {type(item).__name__}"
        raise RecipeError(Problem("S812", message, "data"))
    return (item[0] if alone else item), None
