"""Many models -> the moves that bring all of them to the first: one element a model, so no cycle contradicts itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from eutectic.alignment.balance import balanced
from eutectic.alignment.comparing import Pair, compared
from eutectic.alignment.matching import Ascent, Progress
from eutectic.alignment.model import Change, Match
from eutectic.alignment.moves import compose, essential, inverse
from eutectic.alignment.places import Index
from eutectic.alignment.reading import Cache, Reading
from eutectic.alignment.thrift import thrifty
from eutectic.alignment.universe import universe
from eutectic.checkpoint.source import Source, Spec
from eutectic.checkpoint.symmetry import Moves, Symmetries
from eutectic.errors import EutecticError, Problem, RecipeError, did_you_mean
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

Made = TypeVar("Made")

METHODS = ("universe", "mean")
# Turns of all models at the latest, and sweeps of one model's turn.
_ROUNDS, _SWEEPS = 100, 100


def align_many(
    models: Sequence[Source],
    symmetries: Symmetries,
    *,
    method: Literal["universe", "mean"] = "universe",
    seed: int = 0,
    memory: int = 1 << 30,
    progress: Progress | None = None,
) -> tuple[Match, ...]:
    """Finds moves of all models with a large Σ ⟨moved i, moved j⟩ over all pairs; the first model's are none.

    `mean` begins with each model matched to the mean of those before it. `universe` begins with all of them matched at
    once (`alignment.universe`), heads and experts still as they are. From there on both do the same: in random order
    each model is matched to the mean of the others by ascent (as `match_weights` does, all kinds of symmetry), until
    none gains by it. Every step raises the sum over pairs, so it never falls.

    Args:
        models: two or more of the same tensors.
        symmetries: of all.
        method: how to begin.
        seed: of the order in which models, and in them families of groups, take their turns.
        memory: bytes of tensors that are kept between reads.
        progress: called with the round, what is done in it and how much there is: in round 0, the beginning, steps of
            all models or models that were matched; then turns.

    Returns a match for each model. Moves lead to the first model as it is; from i to j they lead through it. Scales and
    bases that bring a model hardly nearer to the first are left out. The objective is the same for all: the sum over
    pairs after each round, in forms of least norm (`balance`). `Aligned(model, symmetries, match.moves)` reads a model
    so; `Alignment` keeps moves in a folder.

    Sources: Ainsworth et al., 2023, *Git Re-Basin*, Algorithm 3 (MergeMany), for `mean`; Crisostomi et al., 2024, C²M³,
    for `universe`. Differs from the papers: MergeMany begins with the models as they are; C²M³ ends where Frank-Wolfe
    does, without further rounds, and knows only permutations.

    Raises `RecipeError` G181 for fewer than two models, G182 for another method, and what `match_weights` raises for
    models that differ.
    """
    check_request(models, method)
    pairs = pairs_of(models, symmetries, memory)
    _check_finite(pairs)
    together = _Together.of(models, symmetries, memory)
    start, tell = together.total, progress or (lambda turn, done, of: None)
    if method == "universe":
        steps = universe(together.readings, together.index, together.forms, partial(tell, 0))
        together.begin(steps)
    else:
        together.gather(partial(tell, 0))
    trace = together.settle(torch.Generator().manual_seed(seed), tell)
    back = inverse(together.elements[0], symmetries)
    nothing = {name: Change(group.size, 0, 0.0, 0.0) for name, group in symmetries.groups.items()}
    found = [Match(Moves(), trace, start, changes=nothing)]
    for pair, element in zip(pairs, together.elements[1:], strict=True):
        moves, notes = thrifty(pair, essential(compose(back, element, symmetries)))
        found.append(Match(moves, trace, start, *compared(pair, moves), notes))
    return tuple(found)


def check_request(models: Sequence[Any], method: str) -> None:
    """Raises `RecipeError`: G181 for fewer than two models, G182 for another method."""
    problems = []
    if len(models) < 2:
        problems.append(Problem("G181", f"two models or more can be aligned, not {len(models)}", "models"))
    if method not in METHODS:
        hint = did_you_mean(method, METHODS) or f"there are {' and '.join(METHODS)}"
        problems.append(Problem("G182", f"there is no method {method!r} for many models", "method", hint))
    if problems:
        raise RecipeError(problems)


def pairs_of(models: Sequence[Source], symmetries: Symmetries, memory: int) -> list[Pair]:
    """The first model with each other one. Reads nothing. Raises what is wrong with any of them."""
    return _each([partial(Pair, models[0], model, symmetries, memory // len(models)) for model in models[1:]])


def _check_finite(pairs: Sequence[Pair]) -> None:
    _each([pair.check_finite for pair in pairs])


def _each(calls: Sequence[Callable[[], Made]]) -> list[Made]:
    """What some calls return. Raises what any of them raise, together."""
    made, problems, kind = [], dict[Problem, None](), EutecticError
    for call in calls:
        try:
            made.append(call())
        except EutecticError as error:
            problems |= dict.fromkeys(error.problems)
            kind = type(error)
    if problems:
        raise kind(problems)
    return made


class _Mean(Source):
    """The mean of several models as each is moved, in float64. Only tensors that vote are asked of it."""

    def __init__(self, models: Sequence[Source], symmetries: Symmetries, elements: Sequence[Moves]) -> None:
        self.label, self.ties, self.metadata = "the others", {}, {}
        whole = {name: {model.specs[name].dtype for model in models} for name in models[0].specs}
        floats = {name: all("float" in dtype for dtype in dtypes) for name, dtypes in whole.items()}
        self.specs = {
            name: Spec("float64" if floats[name] else spec.dtype, spec.shape) for name, spec in models[0].specs.items()
        }
        self._parts = list(zip(models, elements, strict=True))
        self._symmetries = symmetries
        self._last: tuple[str, Tensor] | None = None

    def read_into(self, name: str, start: int, stop: int, out: memoryview) -> None:
        """As any source; makes the whole tensor, and keeps it for the next of its blocks."""
        kept = self._last
        if kept is None or kept[0] != name:
            made = [self._symmetries.made(name, model.__getitem__, element).double() for model, element in self._parts]
            kept = self._last = (name, torch.stack(made).mean(0).flatten())
        out[:] = kept[1][start:stop].contiguous().view(torch.uint8).numpy().data


@dataclass
class _Together:
    """Where all models stand.

    Attributes:
        models: all.
        symmetries: of all.
        memory: for tensors between reads.
        readings: of the models.
        index: over the tensors that vote in all.
        forms: of least norm.
        elements: of each model as it is.
    """

    models: Sequence[Source]
    symmetries: Symmetries
    memory: int
    readings: Sequence[Reading]
    index: Index
    forms: Sequence[Moves]
    elements: list[Moves]

    @classmethod
    def of(cls, models: Sequence[Source], symmetries: Symmetries, memory: int) -> _Together:
        """Where they stand at first: each in its form of least norm."""
        cache = Cache(memory)
        readings = [Reading(model, symmetries, cache) for model in models]
        index = Pair(_Mean(models, symmetries, [Moves()] * len(models)), models[0], symmetries, 0).index
        forms = [balanced(reading, index) for reading in readings]
        return cls(models, symmetries, memory, readings, index, forms, list(forms))

    @property
    def total(self) -> float:
        """Σ ⟨moved i, moved j⟩ over pairs."""
        sums = []
        for name in self.index.tensors:
            pairs = zip(self.readings, self.elements, strict=True)
            for blocks in zip(*(reading.blocks(name, element) for reading, element in pairs), strict=True):
                stacked = torch.stack([block.double() for block in blocks])
                sums.append(float(stacked.sum(0).square().sum() - stacked.square().sum()) / 2)
        return math.fsum(sums)

    def begin(self, steps: Sequence[Moves]) -> None:
        """Takes a step with each model, if all of them together raise the sum."""
        before, reached = self.elements, self.total
        self.elements = [compose(step, form, self.symmetries) for step, form in zip(steps, self.forms, strict=True)]
        if self.total < reached:
            self.elements = before

    def gather(self, tell: Callable[[int, int], None]) -> None:
        """Matches each model to the mean of those before it, if that raises the sum."""
        before, reached = list(self.elements), self.total
        for number in range(1, len(self.models)):
            ascent = self._ascent(number, range(number))
            ascent.guess()
            ascent.climb(_SWEEPS, torch.Generator().manual_seed(number), None)
            self.elements[number] = ascent.moves
            tell(number, len(self.models) - 1)
        if self.total < reached:
            self.elements = before

    def settle(self, draw: torch.Generator, progress: Progress) -> tuple[float, ...]:
        """Matches models to the mean of the others until none gains by it; returns the sum after each round."""
        restless, trace = set(range(len(self.models))), []
        for turn in range(1, _ROUNDS + 1):
            turns = [one for one in torch.randperm(len(self.models), generator=draw).tolist() if one in restless]
            for done, number in enumerate(turns, 1):
                restless.discard(number)
                ascent = self._ascent(number, [other for other in range(len(self.models)) if other != number])
                before = ascent.total
                ascent.climb(_SWEEPS, draw, None)
                if ascent.total > before:
                    self.elements[number] = ascent.moves
                    restless |= set(range(len(self.models))) - {number}
                progress(turn, done, len(turns))
            trace.append(self.total)
            if not restless:
                break
        return tuple(trace)

    def _ascent(self, number: int, others: Sequence[int]) -> Ascent:
        mean = _Mean([self.models[one] for one in others], self.symmetries, [self.elements[one] for one in others])
        pair = Pair(mean, self.models[number], self.symmetries, self.memory)
        return Ascent(pair, [Moves(), self.elements[number]], Moves(), ())
