"""The midpoint of two models as a module: its loss over batches, for what searches moves of the second by it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from eutectic.alignment.common import refuse_no_modules
from eutectic.averaging.statistics import statistics_layers
from eutectic.checkpoint import Source
from eutectic.checkpoint.symmetry import Moves, Symmetries
from eutectic.errors import NumericError, Problem, RecipeError
from eutectic.lazy import LazyModule
from eutectic.statistics.batches import AGAIN, Batch, no_batches
from eutectic.statistics.doors import place_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

# A function of the module's output and the batch: one number, or one a sample.
Loss = Callable[[Any, Any], "Tensor"]


class Midpoint:
    """½ (A + π(B)) in a module: its loss, and its gradient.

    Layers that normalise by a batch use the statistics of each batch, as those of the midpoint are not known.

    Args:
        module: of the models' architecture; copied.
        a: the weights that stand.
        b: those that move.
        symmetries: of both.
        loss: of the module's output and the batch.
        batches: of inputs, with what the loss needs.

    Attributes:
        a, b, symmetries: as given.
        batches: as given, a list.
        standing: A's tensors where the module is.
        learned: names of those that are its parameters.

    Raises `RecipeError` F101 for no batch at all, G173 for what is no module.
    """

    def __init__(
        self, module: nn.Module, a: Source, b: Source, symmetries: Symmetries, loss: Loss, batches: list[Any]
    ) -> None:
        refuse_no_modules(module=module)
        if not batches:
            raise RecipeError(Problem("F101", "the loader gave no batch", "batches", "was it used up before?"))
        self.a, self.b, self.batches = a, b, batches
        self._module, self.symmetries, self._loss = copy.deepcopy(module).eval(), symmetries, loss
        for layer in statistics_layers(self._module):
            layer.train()
        self._place = place_of(module)
        self.standing = {name: a[name].to(self._place) for name in a.specs}
        self.learned = [name for name, _ in module.named_parameters() if name in self.standing]
        self._moved: tuple[Moves, dict[str, Tensor]] | None = None

    def score(self, moves: Moves) -> float:
        """The loss over all batches. Raises `NumericError` G221 if that is no number."""
        total, count = 0.0, 0
        for value in self.batches:
            batch = Batch.of(value, self._place)
            with torch.no_grad():
                total += float(self._of(self.tensors(moves), batch)) * batch.size
            count += batch.size
        return _finite(total / count)

    def loss(self, tensors: Mapping[str, Tensor], step: int) -> Tensor:
        """The loss of the step's batch with these tensors in the module. Raises `NumericError` G221."""
        with torch.enable_grad():
            value = self._of(tensors, Batch.of(self.batches[step % len(self.batches)], self._place))
        _finite(float(value.detach()))
        return value

    def gradient(self, moves: Moves, step: int) -> dict[str, Tensor]:
        """Of the loss of a batch, by the midpoint's tensors; zeros for those it does not depend on."""
        tensors = self.tensors(moves)
        learned = [tensors[name].requires_grad_() for name in self.learned]
        value = self.loss(tensors, step)
        found = torch.autograd.grad(value, learned, allow_unused=True, materialize_grads=True)
        return dict(zip(self.learned, found, strict=True))

    def moved(self, moves: Moves) -> dict[str, Tensor]:
        """B's tensors once they moved, of A's dtypes and where the module is."""
        if self._moved is None or self._moved[0] is not moves:
            made = {name: self.symmetries.made(name, self.b.__getitem__, moves) for name in self.standing}
            self._moved = moves, {name: tensor.to(self.standing[name]) for name, tensor in made.items()}
        return self._moved[1]

    def tensors(self, moves: Moves) -> dict[str, Tensor]:
        """The midpoint; what is no float is A's."""
        moved = self.moved(moves)
        return {
            name: (own + moved[name]) / 2 if own.is_floating_point() else own.clone()
            for name, own in self.standing.items()
        }

    def _of(self, tensors: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The loss of a batch, with these tensors in the module."""
        whole = {**tensors, **{other: tensors[name] for other, name in self.a.ties.items()}}

        def call(*inputs: Any, **named: Any) -> Any:
            # The batch runs it as it would run the module.
            return torch.func.functional_call(self._module, whole, inputs, named)

        return self._loss(batch.run(cast("nn.Module", call)), batch.value).mean()


def problems_of(batches: Any, steps: Any, lr: float) -> list[Problem]:
    """What is wrong (G220) with batches that are gone through again and again, steps and a learning rate."""
    problems = []
    if why := no_batches(batches):
        problems.append(Problem("G220", why, "batches", AGAIN))
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        problems.append(Problem("G220", f"must be a whole number from 1 on, not {steps!r}", "steps"))
    if not (math.isfinite(lr) and lr > 0):
        problems.append(Problem("G220", f"must be above 0, not {lr!r}", "lr"))
    return problems


def _finite(value: float) -> float:
    if not math.isfinite(value):
        hint = "lower the learning rate, or look at the models and data"
        raise NumericError(Problem("G221", f"the loss at the midpoint is {value}", "loss", hint))
    return value
