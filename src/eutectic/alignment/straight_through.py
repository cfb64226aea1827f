"""Straight-through estimator: moves of B for which the midpoint of the models has a low loss, by gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from eutectic.alignment.comparing import Pair, compared
from eutectic.alignment.matching import match_weights
from eutectic.alignment.midpoint import Loss, Midpoint, problems_of
from eutectic.alignment.model import Match
from eutectic.checkpoint import MemorySource, open_source
from eutectic.checkpoint.symmetry import Moves, Symmetries
from eutectic.errors import Problem, RecipeError
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")


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

    Raises `RecipeError` (F101, G173, G220), `NumericError` (G221) for a loss that is NaN or infinite.
    """
    _check(batches, steps, lr, momentum)
    # Loaders give modules in inference mode, in which there is no gradient.
    with torch.inference_mode(False):
        work = Midpoint(module, open_source(a), open_source(b), symmetries, loss, list(batches))
        start = work.score(Moves())
        kept, history = _descended(work, start, (steps, lr, momentum, seed), tell or (lambda step, best: None))
    before, after, changes = compared(Pair(work.a, work.b, symmetries, 0), kept)
    return Match(kept, tuple(-best for best in history), -start, before, after, changes)


def _descended(
    work: Midpoint, start: float, how: tuple[int, float, float, int], tell: Callable[[int, float], None]
) -> tuple[Moves, list[float]]:
    """The best moves on the way of the estimate, and the best loss after each pass."""
    steps, lr, momentum, seed = how
    estimate = {name: work.standing[name].clone() for name in work.learned}
    optimiser = torch.optim.SGD(list(estimate.values()), lr=lr, momentum=momentum)
    moves = _matched(work, estimate, None, seed)
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
            moves = _matched(work, estimate, moves, seed)
    return kept, history


def _matched(work: Midpoint, estimate: Mapping[str, Tensor], begun: Moves | None, seed: int) -> Moves:
    """What weight matching finds of B for the estimate."""
    stands = MemorySource("estimate", {**work.standing, **estimate})
    return match_weights(stands, work.b, work.symmetries, seed=seed, start=begun).moves


def _same(one: Moves, other: Moves) -> bool:
    pairs = ((one.orders, other.orders), (one.scales, other.scales), (one.matrices, other.matrices))
    return all(
        left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())
        for left, right in pairs
    )


def _check(batches: Any, steps: Any, lr: float, momentum: float) -> None:
    """Raises `RecipeError` (G220) with every problem."""
    problems = problems_of(batches, steps, lr)
    if not 0 <= momentum < 1:
        problems.append(Problem("G220", f"must be from 0 on and below 1, not {momentum!r}", "momentum"))
    if problems:
        raise RecipeError(problems)
