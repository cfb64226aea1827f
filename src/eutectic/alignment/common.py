"""Two models -> what both have: a tensor in which nothing moves may be missing from one of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eutectic.checkpoint.source import Source
from eutectic.checkpoint.symmetry import Symmetries
from eutectic.errors import CheckpointError, Problem, RecipeError, listed
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    from torch import nn
else:
    nn = LazyModule("torch.nn")


class Less(Source):
    """A source without some of its tensors."""

    def __init__(self, source: Source, names: Collection[str]) -> None:
        """Reads nothing.

        Args:
            source: the model, which is closed by whoever opened it.
            names: of its stored tensors, to be left out.
        """
        self.label, self.metadata, self.path = source.label, source.metadata, source.path
        self.specs = {name: spec for name, spec in source.specs.items() if name not in names}
        self.ties = {alias: kept for alias, kept in source.ties.items() if kept not in names}
        self._source = source

    def read_into(self, name: str, start: int, stop: int, out: memoryview) -> None:
        self._source.read_into(name, start, stop, out)


@dataclass(frozen=True)
class Common:
    """Two models as far as they have the same tensors.

    Attributes:
        a, b: without what only one has and nothing moves in.
        symmetries: of what is left.
        moved: of the second model whole.
        notes: what was left out.
    """

    a: Source
    b: Source
    symmetries: Symmetries
    moved: Symmetries
    notes: tuple[str, ...] = ()


def common(a: Source, b: Source, of_a: Symmetries, of_b: Symmetries) -> Common:
    """What two models have in common, by their tables. Other differences are left to whoever compares them."""
    own = {**dict.fromkeys(b.specs, of_b), **dict.fromkeys(a.specs, of_a)}
    loose = [name for name in a.specs.keys() ^ b.specs.keys() if name in still(own[name])]
    if not loose or not a.specs.keys() & b.specs.keys():
        return Common(a, b, of_a, of_a)
    left = without(of_a, loose)
    if replace(without(of_b, loose), origin=left.origin) != left:
        return Common(a, b, of_a, of_a)
    note = f"only one model has {listed(sorted(loose))}, in which nothing moves: not compared"
    absent = [name for name in loose if name not in b.specs]
    return Common(Less(a, loose), Less(b, loose), left, without(of_b, absent), (note,))


def refuse_unopened(*models: Any) -> None:
    """Raises `CheckpointError` (C200) for each of the models that is no source."""
    others = [type(one).__name__ for one in models if not isinstance(one, Source)]
    if others:
        hint = "give what `eutectic.open` makes of it, or call `eutectic.align`, which opens models itself"
        raise CheckpointError([Problem("C200", f"a {name} is no open model", hint=hint) for name in others])


def no_modules(code: str, given: Mapping[str, Any]) -> Iterator[Problem]:
    """A problem for each of some arguments, by name, that is no live module."""
    for name, one in given.items():
        if not isinstance(one, nn.Module):
            yield Problem(code, f"must be a live module, not a {type(one).__name__}", name, "load the weights into one")


def refuse_no_modules(**given: Any) -> None:
    """Raises `RecipeError` (G173) for each of the arguments that is no live module."""
    if problems := list(no_modules("G173", given)):
        raise RecipeError(problems)


def without(symmetries: Symmetries, names: Collection[str]) -> Symmetries:
    """A table without some of its tensors."""
    return replace(symmetries, axes={name: axes for name, axes in symmetries.axes.items() if name not in names})


def still(symmetries: Symmetries) -> set[str]:
    """The tensors of a table in which nothing can move."""
    return {
        name
        for name, axes in symmetries.axes.items()
        if not any(one.group or one.gauge for parts in axes for part in parts for one in part.factors)
    }
