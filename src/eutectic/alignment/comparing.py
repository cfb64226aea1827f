"""How far apart two models are, before and after the second moves, in all and group by group."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from eutectic.alignment.common import refuse_unopened, still
from eutectic.alignment.model import Change
from eutectic.alignment.places import Index, votes
from eutectic.alignment.reading import Cache, Reading
from eutectic.checkpoint.source import Source
from eutectic.checkpoint.symmetry import Moves, Symmetries
from eutectic.dtypes import is_float
from eutectic.errors import NumericError, Problem, RecipeError, listed
from eutectic.lazy import LazyModule
from eutectic.plan.labels import labels_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# Entries widened at a time: their float64 copies stay in a cache.
_CHUNK = 1 << 18
# Weights up to which sums of products stay finite, in float32 and in float64.
_MOST, _MOST_DOUBLE = 2.0**50, 2.0**500


class Pair:
    """Two models of one table, read tensor by tensor.

    Attributes:
        a, b: the readings.
        index: of the table, over the tensors that vote.
    """

    def __init__(self, a: Source, b: Source, symmetries: Symmetries, memory: int) -> None:
        """Opens nothing and reads nothing.

        Args:
            a, b: the models.
            symmetries: of both.
            memory: bytes of tensors to keep, of both together.

        Raises `RecipeError`: G170 for shapes in which the models differ, G171 for tensors that only one has, G101 to
        G103 for what the table does not fit, G114 for matrices of integers.
        `CheckpointError` (C200) for what is no source.
        """
        refuse_unopened(a, b)
        _check(a, b, symmetries)
        cache = Cache(memory)
        self.labels = (a.label, b.label)
        self.a, self.b = (Reading(one, symmetries, cache) for one in (a, b))
        said = [name for name in symmetries.axes if votes(name, self.a.specs[name].dtype)]
        self.index = Index(symmetries, [name for name in said if votes(name, self.b.specs[name].dtype)])

    def products(self, names: Iterable[str], form: Moves, moves: Moves) -> dict[str, float]:
        """⟨A, B⟩ of each tensor, A in some form and B moved, in float64."""
        return self._summed(names, form, moves, lambda a, b: float(a @ b))

    def distances(self, names: Iterable[str], moves: Moves) -> dict[str, float]:
        """‖A - moved B‖² of each tensor, in float64."""
        return self._summed(names, Moves(), moves, lambda a, b: float((a - b).square().sum()))

    def check_finite(self) -> None:
        """Raises `NumericError` G172 with every tensor that votes and holds NaN, infinity, or what squares to it."""
        problems = []
        for name in self.index.tensors:
            for label, reading in zip(self.labels, (self.a, self.b), strict=True):
                for block in reading.blocks(name, Moves()):
                    largest = float(block.abs().max()) if block.numel() else 0.0
                    # What does not move is multiplied in float64: a mask of the lowest float32, for one.
                    double = block.dtype == torch.float64 or not self.index.movers[name]
                    if not largest <= (_MOST_DOUBLE if double else _MOST):
                        problems.append(_unfit(largest, label, name))
                        break
        if problems:
            raise NumericError(problems)

    def _summed(
        self, names: Iterable[str], form: Moves, moves: Moves, term: Callable[[Tensor, Tensor], float]
    ) -> dict[str, float]:
        found = {}
        for name in names:
            sums = []
            for left, right in zip(self.a.blocks(name, form), self.b.blocks(name, moves), strict=True):
                chunks = zip(torch.split(left.flatten(), _CHUNK), torch.split(right.flatten(), _CHUNK), strict=True)
                sums += [term(one.double(), other.double()) for one, other in chunks]
            found[name] = math.fsum(sums)
        return found


def compared(pair: Pair, moves: Moves) -> tuple[float, float, dict[str, Change]]:
    """‖A - B‖² before and after B moves, over all tensors that vote, and what the moves do to each group."""
    before, after = (pair.distances(pair.index.tensors, each) for each in (Moves(), moves))
    changes = {}
    for name, group in pair.index.symmetries.groups.items():
        tensors = pair.index.tensors_of([name])
        order = moves.orders.get(name)
        gone = 0 if order is None else int((order != torch.arange(group.size)).sum())
        changes[name] = Change(group.size, gone, _total(before, tensors), _total(after, tensors))
    return math.fsum(before.values()), math.fsum(after.values()), changes


def _unfit(largest: float, label: str, name: str) -> Problem:
    if math.isfinite(largest):
        hint = "divide the weights of both models by one number: orders stay the same"
        return Problem("G172", f"a weight of {label!r} is {largest:.3g}, whose products overflow", name, hint)
    return Problem("G172", f"a weight of {label!r} is NaN or infinite", name)


def _total(sums: Mapping[str, float], names: Collection[str]) -> float:
    return math.fsum(sums[name] for name in names)


def _check(a: Source, b: Source, symmetries: Symmetries) -> None:
    models = dict(zip(labels_of([a, b]), (a, b), strict=True))
    problems = [*_only_one(models), *_other_shapes(models)]
    problems = problems or symmetries.problems(a.specs) or list(_quantised(models, symmetries))
    if problems:
        raise RecipeError(problems)


def _only_one(models: Mapping[str, Source]) -> Iterator[Problem]:
    """Tensors that only one of two models has, in one line."""
    (of_a, a), (of_b, b) = models.items()
    said = []
    for has, source, lacks, other in ((of_a, a, of_b, b), (of_b, b, of_a, a)):
        if own := [name for name in source.specs if name not in other.specs]:
            count = f"{len(own)} of its {len(source.specs)} tensors, which {lacks!r} has not"
            said.append(f"{has!r} has {count}: {listed(own)}")
    hint = "rename the tensors of one if both are of one architecture; leave a head that only one has out of it"
    if not a.specs.keys() & b.specs.keys():
        hint = "models of one architecture can be aligned; rename the tensors of one if these are"
    if said:
        yield Problem("G171", "; ".join(said), hint=hint)


def _other_shapes(models: Mapping[str, Source]) -> Iterator[Problem]:
    """Tensors of one name and two shapes, in one line."""
    (of_a, a), (of_b, b) = models.items()
    both = [name for name in a.specs if name in b.specs]
    found = [name for name in both if a.specs[name].shape != b.specs[name].shape]
    said = [f"{name} is {list(a.specs[name].shape)} and {list(b.specs[name].shape)}" for name in found]
    if said:
        message = f"{len(said)} of {len(both)} tensors have other shapes in {of_a!r} and {of_b!r}: {listed(said)}"
        hint = "align models of one width; leave heads and embeddings that differ out of both"
        yield Problem("G170", message, hint=hint)


def _quantised(models: Mapping[str, Source], symmetries: Symmetries) -> Iterator[Problem]:
    """Matrices of integers whose units would move and say nothing of where to."""
    stay = still(symmetries)
    for label, source in models.items():
        for name, spec in source.specs.items():
            if len(spec.shape) > 1 and name not in stay and not is_float(spec.dtype):
                message = f"is {spec.dtype} in {label!r}, which is not compared"
                yield Problem("G114", message, name, "align models before they are quantised")
