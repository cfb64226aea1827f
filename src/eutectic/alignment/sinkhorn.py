"""Sinkhorn re-basin: moves of B with a low loss at the midpoint of the models, by gradient through soft orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from eutectic.alignment.assignment import assign
from eutectic.alignment.comparing import Pair, compared
from eutectic.alignment.matching import match_weights
from eutectic.alignment.midpoint import Loss, Midpoint, problems_of
from eutectic.alignment.model import Match
from eutectic.alignment.moves import compose, essential
from eutectic.alignment.places import Index, Place
from eutectic.alignment.universe import plain, softened
from eutectic.checkpoint import open_source
from eutectic.checkpoint.symmetry import Moves, Symmetries
from eutectic.errors import Problem, RecipeError, several
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

# Times that rows and columns are each brought to the sum 1. More changed nothing on perceptrons of 128 units.
_ROUNDS = 10


def match_sinkhorn(
    module: nn.Module,
    a: Any,
    b: Any,
    batches: Iterable[Any],
    loss: Loss,
    symmetries: Symmetries,
    *,
    steps: int,
    lr: float = 0.1,
    temperature: float = 1.0,
    seed: int = 0,
    tell: Callable[[int, float], None] | None = None,
) -> Match:
    """Finds moves π of B that make the loss of ½ (A + π(B)) small.

    B is first moved as weight matching finds. From there each group has a square of numbers X, and the soft order
    P = Sinkhorn(exp(X / temperature)), of rows and columns that sum to 1, stands for the order of its units: P W for W.
    Adam lowers the loss of ½ (A + P(B)) by X. After each pass the orders are those nearest to P (an assignment on X),
    and the moves that are kept are the best by the loss over all batches: never worse there than weight matching or
    the identity.

    Heads, experts and whatever else is more than an order stay as weight matching has them; the notes say so.

    Source: Peña et al. 2023, *Re-basin via implicit Sinkhorn differentiation*, arXiv:2212.12042. Differs from the
    paper: the gradient goes through the rounds of normalisation; of its losses this is the one at the midpoint, which
    was the best of the three here (docs/decisions/0022-assignment.md); begins at weight matching.

    Args:
        module: of the models' architecture; its own weights are not used, and it stays as it was.
        a: the weights that stand: a module, a state dict, a path or a source, by the names of the table and the module.
        b: those that move.
        batches: of inputs, as for `match_activations`, with what the loss needs; gone through again and again.
        loss: a function of the module's output and the batch: one number, or one a sample.
        symmetries: of both.
        steps: batches that a step is made with.
        lr: learning rate of Adam on X.
        temperature: the lower, the harder the orders are from the start.
        seed: of weight matching.
        tell: called after each pass with the steps made and the best loss so far.

    Returns a match whose objective is minus the best loss after each pass, the first that of weight matching; `start`
    is that of the identity. Takes as much memory as the model and its gradient, and 4·n² bytes five times for groups of
    n units.

    Raises `RecipeError` (F101, G173, G220), `NumericError` (G221) for a loss that is NaN or infinite.
    """
    _check(batches, steps, lr, temperature)
    with torch.inference_mode(False):
        work = Midpoint(module, open_source(a), open_source(b), symmetries, loss, list(batches))
        matched = match_weights(work.a, work.b, symmetries, seed=seed).moves
        return _descended(work, _Descent(work, matched, lr, temperature), steps, tell or (lambda step, best: None))


def _descended(work: Midpoint, descent: _Descent, steps: int, tell: Callable[[int, float], None]) -> Match:
    """The best of the moves that are found and of none."""
    start = work.score(Moves())
    kept, history = descent.run(steps, tell)
    if start <= history[-1]:
        kept = Moves()
    before, after, changes = compared(Pair(work.a, work.b, work.symmetries, 0), kept)
    objective = tuple(-min(start, one) for one in history)
    return Match(kept, objective, -start, before, after, changes, descent.notes)


def _check(batches: Any, steps: Any, lr: float, temperature: float) -> None:
    """Raises `RecipeError` (G220) with every problem."""
    problems = problems_of(batches, steps, lr)
    if not (math.isfinite(temperature) and temperature > 0):
        problems.append(Problem("G220", f"must be above 0, not {temperature!r}", "temperature"))
    if problems:
        raise RecipeError(problems)


def sinkhorn(scores: Tensor) -> Tensor:
    """exp(scores), rows and columns brought to the sum 1 in turns (Sinkhorn, 1964): (n, n) → (n, n), columns exact."""
    for _ in range(_ROUNDS):
        scores = scores - scores.logsumexp(1, keepdim=True)
        scores = scores - scores.logsumexp(0, keepdim=True)
    return scores.exp()


class _Descent:
    """Soft orders of B from where weight matching has it.

    Attributes:
        notes: what has no soft orders.
    """

    def __init__(self, work: Midpoint, matched: Moves, lr: float, temperature: float) -> None:
        self._work, self._matched, self._temperature = work, matched, temperature
        self._index = Index(work.symmetries, [name for name in work.learned if name in work.symmetries.axes])
        families = [one for one in self._index.families if plain(one, self._index) and not (one.inner or one.within)]
        groups = [family.root for family in families if family.root is not None]
        place = next(iter(work.standing.values())).device
        # Near the centre of all orders, a little nearer to the matched one.
        self._scores = {
            name: torch.eye(work.symmetries.groups[name].size, device=place).requires_grad_() for name in groups
        }
        self._optimiser = torch.optim.Adam(self._scores.values(), lr=lr) if groups else None
        left = len(work.symmetries.groups) - len(groups)
        self.notes = (f"matched by weights alone: {several(left, 'group')}",) if left else ()

    def run(self, steps: int, tell: Callable[[int, float], None]) -> tuple[Moves, list[float]]:
        """The best moves by the loss over all batches, and that loss at the start and after each pass."""
        kept, best = self._matched, self._work.score(self._matched)
        history = [best]
        if self._optimiser is None:
            return kept, history
        for step in range(1, steps + 1):
            self._step(step - 1, self._optimiser)
            if step % len(self._work.batches) == 0 or step == steps:
                moves = self._moves
                kept, best = min((kept, best), (moves, self._work.score(moves)), key=lambda one: one[1])
                history.append(best)
                tell(step, best)
        return kept, history

    def _step(self, number: int, optimiser: torch.optim.Optimizer) -> None:
        """One step with one batch."""
        soft = {name: sinkhorn(scores / self._temperature) for name, scores in self._scores.items()}
        optimiser.zero_grad()
        self._work.loss(self._tensors(soft), number).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    @property
    def _moves(self) -> Moves:
        """Of B as it is, with the orders that are nearest."""
        orders = {name: assign(scores.detach()) for name, scores in self._scores.items()}
        return essential(compose(Moves(orders), self._matched, self._work.symmetries))

    def _tensors(self, soft: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The midpoint with soft orders."""

        def matrix(place: Place) -> Tensor:
            assert place.group is not None
            return soft[place.group]

        found, moved = self._work.tensors(self._matched), self._work.moved(self._matched)
        for name in self._work.learned:
            if (movers := self._index.movers.get(name)) and movers <= soft.keys():
                own = self._work.standing[name]
                found[name] = (own + softened(self._index, name, moved[name], matrix).to(own)) / 2
        return found
