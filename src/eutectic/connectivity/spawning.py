"""From when on is training stable? Two children of one state, trained on different noise, and the barrier between them.

Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis (arXiv:1912.05671).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from eutectic.connectivity.barriers import POINTS, REFINE, Barrier, barrier, check_points
from eutectic.errors import Problem, RecipeError, several
from eutectic.evaluate import Settings

State = TypeVar("State")
# The paper calls a network stable at a step where the error rises by less than this.
STABLE = 0.02


@dataclass(frozen=True, slots=True)
class Instability:
    """What became of two children of one training run.

    Attributes:
        step: after how many steps they were spawned.
        barrier: on the line between them.
        value: the paper's instability: the height above the mean of the ends, of the error where the task measures it.
    """

    step: int
    barrier: Barrier

    def __repr__(self) -> str:
        return f"<Instability {self.value:.4g} of children spawned after {several(self.step, 'step')}; see .barrier>"

    @property
    def value(self) -> float:
        """See the class."""
        return (self.barrier.curves.get("error") or self.barrier.curve).height("frankle").value

    @property
    def stable(self) -> bool | None:
        """Whether the error rises by less than 2 %; None where the task measures no error."""
        return self.value < STABLE if "error" in self.barrier.curves else None


def instability(
    start: Callable[[int], State],
    finish: Callable[[State, int], Any],
    loss: Any,
    *,
    steps: Sequence[int],
    seeds: tuple[int, int] = (1, 2),
    points: int = POINTS,
    refine: int = REFINE,
    settings: Settings | None = None,
    batches: Iterable[Any] | None = None,
) -> list[Instability]:
    """Spawns two children after each of some numbers of steps, trains them to the end, and measures the line between.

    Args:
        start: trains from the beginning for so many steps and returns the state: weights, optimiser, whatever
            `finish` needs. Step 0 is the initialisation.
        finish: trains a state to the end, with a seed for everything that is noise (the order of data, augmentation),
            and returns the model, as for `eutectic.open`. Each child gets a deep copy of the state of its own. (A
            scheduler of torch keeps hold of its first optimiser when it is copied: leave it out and set the rate.)
        loss: as for `barrier`.
        steps: when to spawn.
        seeds: of the two children.
        points: see `barrier`.
        refine: see `barrier`.
        settings: see `barrier`.
        batches: see `barrier`.

    Raises what `barrier` raises.
    """
    check_points(points, refine)
    if len(set(seeds)) != 2:
        raise RecipeError(Problem("L811", f"the children need two different seeds, not {seeds!r}", "seeds"))
    found = []
    for step in steps:
        state = start(step)
        one, other = (finish(copy.deepcopy(state), seed) for seed in seeds)
        between = barrier(one, other, loss, points=points, refine=refine, settings=settings, batches=batches)
        found.append(Instability(step, between))
    return found
