"""Weight matching: the moves of B that bring it nearest to A, a family of units at a time, never a step back."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from eutectic.alignment.balance import balanced
from eutectic.alignment.comparing import Pair, compared
from eutectic.alignment.evidence import gathered, trusted
from eutectic.alignment.heads import best_step
from eutectic.alignment.model import Match
from eutectic.alignment.moves import compose, essential, inverse, random_moves
from eutectic.alignment.places import Family, Index
from eutectic.alignment.thrift import thrifty
from eutectic.checkpoint.source import Source
from eutectic.checkpoint.symmetry import Moves, Symmetries
from eutectic.errors import Problem, RecipeError, did_you_mean
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# A step that gains less than this part of the terms of its sums gains nothing: float64 is no better.
_ROUNDING = 1e-13
# Bases of neighbours that are found in turns come ever nearer to the best ones: a sweep in which nothing else moved and
# that gained less than this part of the objective was the last.
_SETTLED = 1e-8

# Called after each family with the number of the sweep (0 goes outwards), the families done in it and how many there
# are.
Progress = Callable[[int, int, int], None]


def match_weights(
    a: Source,
    b: Source,
    symmetries: Symmetries,
    *,
    seed: int = 0,
    restarts: int = 0,
    sweeps: int = 100,
    start: Moves | None = None,
    fixed: Collection[str] = (),
    memory: int = 1 << 30,
    progress: Progress | None = None,
) -> Match:
    """Finds the moves of B with the largest Σ ⟨A, moved B⟩ over all tensors, by coordinate ascent (Algorithm 1).

    Both models are first seen in their forms of least norm (`balance`), between which there are only orders, signs
    and rotations. Then one family of groups at a time takes the best step while all others stay: an assignment, inside
    it those of query heads, and rotations in closed form. The moves that come back lead B to A's orders, balance and
    bases. Scales and bases that bring B hardly nearer are left out, as is all that stays.

    Args:
        a: stays.
        b: moves.
        symmetries: of both.
        seed: of the order in which families take their turn, and of restarts.
        restarts: further ascents, from random orders; the best one counts.
        sweeps: after how many turns of all families an ascent ends at the latest.
        start: where the ascent begins, in place of a first sweep outwards from what cannot move.
        fixed: groups whose order and signs stay as they are at the start.
        memory: bytes of tensors that are kept between reads.
        progress: called after each family's turn.

    Returns the moves, the objective (in forms of least norm) after each sweep, and distances; the same each time.

    Differs from the paper: the first sweep goes outwards from what cannot move (inputs, vocabulary, classes) and
    listens only to tensors whose other sides are settled; the identity is kept where it scores higher. Sums are
    float64, and a step counts only if it raises the objective. Scales, bases and heads are matched too.

    Source: Ainsworth et al., 2023, *Git Re-Basin*, §3.2; for bases and heads the closed forms of `gauges` and `heads`.

    Raises `RecipeError` G170, G171 for models that differ in shapes or names, G101 to G103 where the table does not
    fit, G173 for an argument that cannot be; `NumericError` G172 for weights that are not finite.
    """
    _check_arguments(symmetries, restarts, sweeps, fixed)
    pair = Pair(a, b, symmetries, memory)
    pair.check_finite()
    forms = [balanced(reading, pair.index) for reading in (pair.a, pair.b)]
    draw = torch.Generator().manual_seed(seed)
    begin = _places_and_signs(start or Moves(), symmetries)
    best = Ascent(pair, forms, begin, fixed)
    begun = best.total
    if start is None:
        best.guess(progress)
    best.climb(sweeps, draw, progress)
    for _ in range(restarts):
        other = Ascent(pair, forms, _elsewhere(pair.index, begin, fixed, draw), fixed)
        other.climb(sweeps, draw, progress)
        best = max(best, other, key=lambda one: one.total)
    return _finished(pair, forms[0], best, begun)


def _finished(pair: Pair, form: Moves, ascent: Ascent, begun: float) -> Match:
    """What an ascent found, as moves of B to A as it is: out of the form that A was seen in."""
    symmetries = pair.index.symmetries
    moves, notes = thrifty(pair, essential(compose(inverse(form, symmetries), ascent.moves, symmetries)))
    return Match(moves, tuple(ascent.trace), begun, *compared(pair, moves), notes)


def _check_arguments(symmetries: Symmetries, restarts: int, sweeps: int, fixed: Collection[str]) -> None:
    problems = []
    for name, value, least in (("restarts", restarts, 0), ("sweeps", sweeps, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            problems.append(Problem("G173", f"must be a whole number from {least} on, not {value!r}", name))
    for name in fixed:
        if name not in symmetries.groups:
            hint = did_you_mean(name, symmetries.groups)
            problems.append(Problem("G173", f"the symmetries have no group {name!r}", "fixed", hint))
    if problems:
        raise RecipeError(problems)


def _places_and_signs(moves: Moves, symmetries: Symmetries) -> Moves:
    """An element without sizes and bases: these are found anew in forms of least norm."""
    signed = [name for name, group in symmetries.groups.items() if group.scale in ("sign", "any")]
    return Moves(moves.orders, {name: moves.scales[name].sign() for name in signed if name in moves.scales})


def _elsewhere(index: Index, begin: Moves, fixed: Collection[str], draw: torch.Generator) -> Moves:
    """Random orders and signs of all families but fixed ones."""
    random = random_moves(index.symmetries, int(torch.randint(1 << 62, (), generator=draw)))
    found = _places_and_signs(random, index.symmetries)
    kept = {name for family in index.families if not set(fixed).isdisjoint(family.names) for name in family.names}
    return Moves(
        {name: one for name, one in found.orders.items() if name not in kept} | _of(kept, begin.orders),
        {name: one for name, one in found.scales.items() if name not in kept} | _of(kept, begin.scales),
    )


def _of(names: Collection[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: one for name, one in tensors.items() if name in names}


def _only_bases(before: Moves, after: Moves) -> bool:
    """Whether orders and scales are the same."""
    pairs = ((before.orders, after.orders), (before.scales, after.scales))
    return all(one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one) for one, other in pairs)


def _moves_any(moves: Moves) -> bool:
    return bool(moves.orders or moves.scales or moves.matrices)


class Ascent:
    """Where one ascent stands.

    Args:
        pair: A and B.
        forms: of A and B, between which there are only orders, signs and rotations.
        begin: orders, signs and rotations of B to begin with.
        fixed: groups whose order and signs stay.

    Attributes:
        moves: of B as it is.
        trace: the objective after every sweep.
    """

    def __init__(self, pair: Pair, forms: Sequence[Moves], begin: Moves, fixed: Collection[str]) -> None:
        self._pair = pair
        self._index = pair.index
        self._form = forms[0]
        self._fixed = frozenset(fixed)
        self.moves = compose(begin, forms[1], pair.index.symmetries)
        self._values = pair.products(self._index.tensors, self._form, self.moves)
        self._restless = set(range(len(self._index.families)))
        self.trace: list[float] = []

    @property
    def total(self) -> float:
        """The objective: Σ ⟨A, moved B⟩ in forms of least norm."""
        return math.fsum(self._values.values())

    def guess(self, progress: Progress | None = None) -> None:
        """Goes outwards from what cannot move, and hears of each family only tensors that are settled but for it."""
        moves, settled = self.moves, set[str]()
        families = self._index.families
        left, moved, partly = set(range(len(families))), False, set[int]()
        while left:
            heard = {number: trusted(self._index, families[number], settled) for number in left}
            number = max(sorted(left), key=lambda one: self._entries(families[one], heard[one]))
            step = self._step(families[number], moves, heard[number])
            if _moves_any(step):
                moves, moved = compose(step, moves, self._index.symmetries), True
            whole = heard[number] == self._index.tensors_of(families[number].names)
            if not whole or (_moves_any(step) and number in self._index.neighbours[number]):
                partly.add(number)
            settled |= {*families[number].names}
            left.remove(number)
            if progress is not None:
                progress(0, len(families) - len(left), len(families))
        if not moved or self._take(moves, self._index.tensors):
            # Who heard all there is has taken the best step, and nobody that it heard of has moved since.
            self._restless = partly

    def climb(self, sweeps: int, draw: torch.Generator, progress: Progress | None) -> None:
        """Steps of all families in random orders, until none gains; families whose neighbours rest are passed over."""
        families = self._index.families
        restless = self._restless
        for sweep in range(1, sweeps + 1):
            turns = [one for one in torch.randperm(len(families), generator=draw).tolist() if one in restless]
            before, total = self.moves, self.total
            for done, number in enumerate(turns, 1):
                restless.discard(number)
                if self._turn(families[number]):
                    restless |= self._index.neighbours[number]
                if progress is not None:
                    progress(sweep, done, len(turns))
            self.trace.append(self.total)
            little = self.total - total <= _SETTLED * abs(total)
            if not restless or (little and _only_bases(before, self.moves)):
                break

    def _turn(self, family: Family) -> bool:
        """Takes the best step of a family if it raises the objective."""
        touched = self._index.tensors_of(family.names)
        step = self._step(family, self.moves, touched)
        if not _moves_any(step):
            return False
        moves = compose(step, self.moves, self._index.symmetries)
        for hidden in self._index.families:
            # An expert in another's place has its hidden units in an order of its own.
            if hidden.root in family.stacked:
                found = self._step(hidden, moves, self._index.tensors_of(hidden.names))
                moves = compose(found, moves, self._index.symmetries)
        return self._take(moves, touched)

    def _step(self, family: Family, moves: Moves, tensors: Collection[str]) -> Moves:
        evidence = gathered(self._pair, self._form, moves, family, tensors)
        ordered = self._fixed.isdisjoint(family.names)
        return essential(best_step(evidence, family, self._index.symmetries, ordered=ordered))

    def _take(self, moves: Moves, touched: Collection[str]) -> bool:
        """Goes there if the objective is higher."""
        reached = self._pair.products(touched, self._form, moves)
        sizes = [abs(value) for name in touched for value in (reached[name], self._values[name])]
        gain = math.fsum(reached[name] - self._values[name] for name in touched)
        if gain <= _ROUNDING * math.fsum(sizes):
            return False
        self.moves = moves
        self._values |= reached
        return True

    def _entries(self, family: Family, tensors: Collection[str]) -> float:
        """How much is known of each unit."""
        size = 1 if family.root is None else self._index.symmetries.groups[family.root].size
        return sum(self._pair.a.specs[name].numel for name in tensors) / size
