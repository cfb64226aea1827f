"""Straight-through estimator: moves of B for which the midpoint of the models has a low loss, by gradient."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from eutectic.alignment.comparing import Pair, compared
from eutectic.alignment.matching import match_weights
from eutectic.alignment.model import Match
from eutectic.averaging.statistics import statistics_layers
from eutectic.checkpoint import MemorySource, Source, open_source
from eutectic.checkpoint.symmetry import Moves, Symmetries
from eutectic.errors import NumericError, Problem, RecipeError
from eutectic.lazy import LazyModule
from eutectic.statistics.batches import Batch
from eutectic.statistics.doors import place_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

Loss = Callable[[Any, Any], "Tensor"]


def match_straight_through(
    module: nn.Module,
    a: Any,
    b: Any,
    batches: Iterable[Any],
    loss: Loss,
    symmetries: Symmetries,
    *,
    steps: int,
    lr: float = 0.01,
    momentum: float = 0.9,
    seed: int = 0,
    tell: Callable[[int, float], None] | None = None,
) -> Match:
    """Finds moves π of B that make the loss of ½ (A + π(B)) small.

    An estimate θ of the moved B begins at A. In each step π is what weight matching finds of B for θ, begun where the
    step before ended; the loss is that of the midpoint with π(B), and its gradient goes to θ as if π(B) were θ. The
    first π is thus that of weight matching, and the moves that are kept are the best by the loss over all batches:
    never worse there than weight matching or the identity.

    Source: Ainsworth et al. 2023, arXiv:2209.04836, §3.3. Differs from the paper's code: moves are chosen by
    the loss over all batches after each pass, not over the batch of a step; batch normalisation uses the statistics of
    each batch, as those of the midpoint are not known.

    Args:
        module: of the models' architecture; its own weights are not used, and it stays as it was.
        a: the weights that stand: a module, a state dict, a path or a source, by the names of the table and the module.
        b: those that move.
        batches: of inputs, as for `match_activations`, with what the loss needs; gone through again and again.
        loss: a function of the module's output and the batch: one number, or one a sample, of which the mean is taken.
        symmetries: of both.
        steps: batches that a step is made with.
        lr: learning rate of SGD on the estimate.
        momentum: of SGD.
        seed: of weight matching.
        tell: called after each pass with the steps made and the best loss so far.

    Returns a match whose objective is minus the best loss after each pass, the first that of weight matching; `start`
    is that of the identity.

    Raises `RecipeError` (F101, G220), `NumericError` (G221) for a loss that is NaN or infinite.
    """
    _check(batches, steps, lr, momentum)
    work = _Midpoint(module, open_source(a), open_source(b), symmetries, loss, list(batches))
    start = work.score(Moves())
    kept, history = _descended(work, start, (steps, lr, momentum, seed), tell or (lambda step, best: None))
    before, after, changes = compared(Pair(work.a, work.b, symmetries, 0), kept)
    return Match(kept, tuple(-best for best in history), -start, before, after, changes)


def _descended(
    work: _Midpoint, start: float, how: tuple[int, float, float, int], tell: Callable[[int, float], None]
) -> tuple[Moves, list[float]]:
    """The best moves on the way of the estimate, and the best loss after each pass."""
    steps, lr, momentum, seed = how
    estimate = {name: work.standing[name].clone() for name in work.learned}
    optimiser = torch.optim.SGD(list(estimate.values()), lr=lr, momentum=momentum)
    moves = work.matched(estimate, None, seed)
    kept, best, scored = Moves(), start, None
    history: list[float] = []
    for step in range(steps + 1):
        if step % len(work.batches) == 0 or step == steps:
            if scored is None or not _same(moves, scored):
                kept, best = min((kept, best), (moves, work.score(moves)), key=lambda one: one[1])
                scored = moves
            history.append(best)
            tell(step, best)
        if step < steps:
            gradient = work.gradient(moves, step)
            for name, tensor in estimate.items():
                # The midpoint has half of B in it.
                tensor.grad = gradient[name] / 2
            optimiser.step()
            moves = work.matched(estimate, moves, seed)
    return kept, history


class _Midpoint:
    """½ (A + π(B)) as a module: its loss, and its gradient."""

    def __init__(
        self, module: nn.Module, a: Source, b: Source, symmetries: Symmetries, loss: Loss, batches: list[Any]
    ) -> None:
        if not batches:
            raise RecipeError(Problem("F101", "the loader gave no batch", "batches", "was it used up before?"))
        self.a, self.b, self.batches = a, b, batches
        self._module, self._symmetries, self._loss = copy.deepcopy(module).eval(), symmetries, loss
        for layer in statistics_layers(self._module):
            layer.train()
        self._place = place_of(module)
        self.standing = {name: a[name].to(self._place) for name in a.specs}
        self.learned = [name for name, _ in module.named_parameters() if name in self.standing]
        self._moved: tuple[Moves, dict[str, Tensor]] | None = None

    def matched(self, estimate: Mapping[str, Tensor], begun: Moves | None, seed: int) -> Moves:
        """What weight matching finds of B for the estimate."""
        stands = MemorySource("estimate", {**self.standing, **estimate})
        return match_weights(stands, self.b, self._symmetries, seed=seed, start=begun).moves

    def score(self, moves: Moves) -> float:
        """The loss over all batches."""
        total, count = 0.0, 0
        for value in self.batches:
            batch = Batch.of(value, self._place)
            with torch.no_grad():
                total += float(self._of(self._tensors(moves), batch)) * batch.size
            count += batch.size
        return self._finite(total / count)

    def gradient(self, moves: Moves, step: int) -> dict[str, Tensor]:
        """Of the loss of a batch, by the midpoint's tensors; zeros for those it does not depend on."""
        tensors = self._tensors(moves)
        learned = [tensors[name].requires_grad_() for name in self.learned]
        with torch.enable_grad():
            value = self._of(tensors, Batch.of(self.batches[step % len(self.batches)], self._place))
        self._finite(float(value.detach()))
        found = torch.autograd.grad(value, learned, allow_unused=True, materialize_grads=True)
        return dict(zip(self.learned, found, strict=True))

    def _of(self, tensors: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The loss of a batch, with these tensors in the module."""
        whole = {**tensors, **{other: tensors[name] for other, name in self.a.ties.items()}}

        def call(*inputs: Any, **named: Any) -> Any:
            # The batch runs it as it would run the module.
            return torch.func.functional_call(self._module, whole, inputs, named)

        return self._loss(batch.run(cast("nn.Module", call)), batch.value).mean()

    def _tensors(self, moves: Moves) -> dict[str, Tensor]:
        """The midpoint; what is no float is A's."""
        if self._moved is None or self._moved[0] is not moves:
            made = {name: self._symmetries.made(name, self.b.__getitem__, moves) for name in self.standing}
            self._moved = moves, {name: tensor.to(self.standing[name]) for name, tensor in made.items()}
        moved = self._moved[1]
        return {
            name: (own + moved[name]) / 2 if own.is_floating_point() else own.clone()
            for name, own in self.standing.items()
        }

    def _finite(self, value: float) -> float:
        if not math.isfinite(value):
            hint = "lower the learning rate, or look at the models and data"
            raise NumericError(Problem("G221", f"the loss at the midpoint is {value}", "loss", hint))
        return value


def _same(one: Moves, other: Moves) -> bool:
    pairs = ((one.orders, other.orders), (one.scales, other.scales), (one.matrices, other.matrices))
    return all(
        left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())
        for left, right in pairs
    )


def _check(batches: Any, steps: Any, lr: float, momentum: float) -> None:
    """Raises `RecipeError` (G220) with every problem."""
    problems = []
    if not isinstance(batches, Iterable) or isinstance(batches, Iterator):
        message = f"must be batches that can be gone through again, not a {type(batches).__name__}"
        problems.append(Problem("G220", message, "batches", "a list of them, or a DataLoader"))
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        problems.append(Problem("G220", f"must be a whole number from 1 on, not {steps!r}", "steps"))
    if not (math.isfinite(lr) and lr > 0):
        problems.append(Problem("G220", f"must be above 0, not {lr!r}", "lr"))
    if not 0 <= momentum < 1:
        problems.append(Problem("G220", f"must be from 0 on and below 1, not {momentum!r}", "momentum"))
    if problems:
        raise RecipeError(problems)
