"""Learned soups: mixing weights that follow the gradient of a task's loss through the live mixture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from eutectic.checkpoint import Source
from eutectic.evaluate import Classification, Perplexity, Settings, Task
from eutectic.evaluate.loading import Kind
from eutectic.lazy import LazyModule
from eutectic.run.merged import MergedSource
from eutectic.search.gradients import by_part, loss_gradient
from eutectic.search.ingredients import DIGITS, Pot, Weights
from eutectic.search.objectives import ClassLoss, Loss, TextLoss, cross_entropy, documents_of, kind_of
from eutectic.search.pullback import Pullback

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")


class Options(Protocol):
    """What `learn` is told: by what to divide the model, passes over the data, and the rate."""

    @property
    def by(self) -> str:
        """`model` or `layer`."""

    @property
    def epochs(self) -> int:
        """Passes over the data."""

    @property
    def rate(self) -> float:
        """Of AdamW."""


def losses_of(task: Task, run: Settings, source: Source) -> tuple[Kind, Callable[[], Iterator[Loss]]]:
    """What module a task wants, and its loss batch by batch, anew for each epoch.

    Raises `RecipeError` (S804) for a task that has no gradient.
    """
    kind = kind_of(task)
    if isinstance(task, Classification):
        return kind, lambda: _of_classes(task, run)
    assert isinstance(task, Perplexity)
    return kind, _of_text(task, run, source)


def learn(pot: Pot, task: Task, run: Settings, options: Options) -> Iterator[Weights]:
    """The weights after each epoch, those before the first (all equal) first.

    Each step mixes the ingredients as a live merge and takes the gradient of a batch's loss by the mixture's tensors,
    and from it that by each weight. So one module and its gradient are in memory, and not all ingredients.
    """
    parts = pot.parts(options.by)
    everyone = list(range(len(pot.models)))
    logits = torch.zeros((len(parts), len(everyone)), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.AdamW([logits], lr=options.rate, weight_decay=0.0)
    kind, losses = losses_of(task, run, pot.sources[0])
    pullback = Pullback()
    yield _weights(parts, logits)
    for _ in range(options.epochs):
        for number, loss in enumerate(losses(), 1):
            mixture = pot.mix(everyone, _weights(parts, logits))
            assert isinstance(mixture, MergedSource)
            _, gradient = loss_gradient(mixture, [loss], kind, run, f"batch {number} of {task.name}")
            by_share = by_part(mixture.plan, parts, pullback(mixture, gradient))
            optimiser.zero_grad()
            # The gradient by the logits, through the softmax.
            torch.softmax(logits, 1).backward(by_share)  # type: ignore[no-untyped-call]
            optimiser.step()
        yield _weights(parts, logits)


def _weights(parts: dict[str, list[str]], logits: torch.Tensor) -> Weights:
    shares = torch.softmax(logits.detach(), 1).tolist()
    return {part: [round(share, DIGITS) for share in own] for part, own in zip(parts, shares, strict=True)}


def _of_classes(task: Classification, run: Settings) -> Iterator[Loss]:
    seen = 0
    for inputs, labels in task.loader:
        if run.limit is not None and seen >= run.limit:
            return
        seen += len(labels)
        yield ClassLoss(inputs, labels, cross_entropy)


def _of_text(task: Perplexity, run: Settings, source: Source) -> Callable[[], Iterator[Loss]]:
    """Windows as the task reads them, in an order that the seed draws anew for each epoch."""
    rows = [row for document in documents_of(task, run, source) for row in document]
    random = np.random.default_rng(run.seed)

    def batches() -> Iterator[Loss]:
        order = random.permutation(len(rows))
        for at in range(0, len(order), run.batch):
            yield TextLoss([rows[i] for i in order[at : at + run.batch]], cross_entropy)

    return batches
