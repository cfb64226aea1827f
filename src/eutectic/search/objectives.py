"""Tasks → losses with a gradient, batch by batch: cross-entropy with labels, entropy without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eutectic.checkpoint import Source
from eutectic.errors import Problem, RecipeError
from eutectic.evaluate import Classification, Perplexity, Settings, Task
from eutectic.evaluate.content import digest_of_json
from eutectic.evaluate.language import Language, Row
from eutectic.evaluate.loading import Kind
from eutectic.lazy import LazyModule
from eutectic.statistics.batches import Batch
from eutectic.statistics.text import IGNORED, batches_of

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

# A mean loss over one batch, as a tensor with a gradient, of the module that it is given.
Loss = Callable[[Any], "torch.Tensor"]
# (logits (N, C), wanted classes (N,) or None) → their mean.
Measure = Callable[[Any, Any], "torch.Tensor"]


def cross_entropy(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The mean of -log p of the wanted class, in nats."""
    return torch.nn.functional.cross_entropy(logits, wanted, ignore_index=IGNORED)


def entropy(logits: torch.Tensor, wanted: torch.Tensor | None = None) -> torch.Tensor:
    """The mean entropy -Σ p log p of the distributions that the logits `(N, C)` give, in nats.

    Of `wanted` it matters only which are `IGNORED`.
    """
    logs = torch.log_softmax(logits, dim=-1)
    # A class that is impossible adds nothing; 0 · -inf would be NaN.
    each = -(logs.exp() * logs.clamp(min=torch.finfo(logs.dtype).min)).sum(-1)
    return each.mean() if wanted is None else each[wanted != IGNORED].mean()


MEASURES: dict[str, Measure] = {"entropy": entropy, "cross-entropy": cross_entropy}


def kind_of(task: Task) -> Kind:
    """What module a task wants. Raises `RecipeError` (S804) for a task that has no gradient."""
    if isinstance(task, Classification):
        return "any"
    if isinstance(task, Perplexity):
        return "causal"
    kind = getattr(task, "kind", type(task).__name__)
    hint = "use a perplexity task, or in Python Classification"
    raise RecipeError(Problem("S804", f"{task.name} ({kind}) has no loss with a gradient", "task", hint))


def documents_of(task: Perplexity, run: Settings, source: Source) -> list[list[Row]]:
    """The windows of each document, as the task reads them."""
    numbers = run.chosen(len(task.documents))
    found: list[list[Row]] = [[] for _ in numbers]
    for place, row in task.windows(Language(source, run), numbers):
        found[place].append(row)
    return found


@dataclass(frozen=True, slots=True)
class ClassLoss:
    """The loss of one batch of a loader. `labels` may be None for an objective that has no use for them.

    Raises `RecipeError` (E904) for a batch that the module or the objective cannot take.
    """

    inputs: Any
    labels: Any
    measure: Measure

    def __call__(self, module: Any) -> torch.Tensor:
        """See `Loss`."""
        try:
            return self._of(module)
        except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            said = " ".join(str(error).split())
            hint = "a batch is inputs of the module, with class numbers from 0, and it gives one logit a class"
            message = f"a batch cannot be run: {type(error).__name__}: {said}"
            raise RecipeError(Problem("E904", message, "loader", hint)) from error

    def _of(self, module: Any) -> torch.Tensor:
        device = next(module.parameters()).device

        def to(value: Any) -> Any:
            return value.to(device) if isinstance(value, torch.Tensor) else value

        given = [self.inputs] if isinstance(self.inputs, torch.Tensor) else self.inputs
        if isinstance(given, list | tuple):
            found = module(*map(to, given))
        else:
            found = module(**{key: to(value) for key, value in given.items()})
        labels = None if self.labels is None else to(torch.as_tensor(self.labels))
        return self.measure(getattr(found, "logits", found), labels)

    def digest(self) -> str:
        """Of everything in the batch."""
        labels = None if self.labels is None else torch.as_tensor(self.labels)
        return Batch([self.inputs, labels], 0, None).digest()

    @property
    def count(self) -> int:
        """Items in the batch."""
        if self.labels is not None:
            return len(self.labels)
        inputs = self.inputs
        first = inputs if isinstance(inputs, torch.Tensor) else next(iter(_values(inputs)))
        return len(first)


def _values(inputs: Any) -> Any:
    found = inputs.values() if hasattr(inputs, "values") else inputs
    return (value for value in found if isinstance(value, torch.Tensor))


@dataclass(frozen=True, slots=True)
class TextLoss:
    """The loss of some windows: the mean over their scored tokens."""

    rows: Sequence[Row]
    measure: Measure

    def __call__(self, module: Any) -> torch.Tensor:
        """See `Loss`."""
        (batch,) = batches_of(self.rows, len(self.rows))
        device = next(module.parameters()).device
        wanted = batch.pop("targets").to(device)
        found = module(**{key: value.to(device) for key, value in batch.items()}, use_cache=False).logits
        return self.measure(found.flatten(0, 1).float(), wanted.flatten())

    def digest(self) -> str:
        """Of the windows."""
        return digest_of_json([[list(row.tokens), row.first] for row in self.rows])

    @property
    def count(self) -> int:
        """Scored tokens."""
        return sum(len(row.tokens) - row.first for row in self.rows)
