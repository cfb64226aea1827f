"""Many models -> orders and signs for all of them at once, by Frank-Wolfe between permutations: one universe.

Each model has one element of the group, which takes its units to those of a common *universe*; from model i to j they
go through it, so no cycle can contradict itself. On the way elements are *soft*: for each group a convex combination of
(signed) permutation matrices P, and P W stands where the moved W will.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

from eutectic.alignment.evidence import Evidence
from eutectic.alignment.heads import best_step
from eutectic.alignment.places import Family, Index, Place
from eutectic.alignment.reading import Reading
from eutectic.checkpoint.symmetry import Moves
from eutectic.kernels.axes import mixed
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# Steps at most, and the part of the objective by which one must raise it.
_STEPS, _LEAST = 100, 1e-6

# What stands for the order of the units at a place.
Matrices = Callable[["Place"], "Tensor"]


@dataclass
class Soft:
    """An element between permutations.

    Attributes:
        places: group → (n, n) float64, the mean of permutation matrices: what follows places alone.
        signed: group with signs → the same of signed ones.
    """

    places: dict[str, Tensor]
    signed: dict[str, Tensor]

    def matrix(self, place: Place) -> Tensor:
        """What stands for the order of the units at a place."""
        assert place.group is not None
        return (self.signed if place.part.role != "order" else {}).get(place.group, self.places[place.group])

    def on_the_way(self, other: Soft, step: float) -> Matrices:
        """`matrix` of the element that lies so far on the way to another."""

        def matrix(place: Place) -> Tensor:
            return self.matrix(place).lerp(other.matrix(place), step)

        return matrix

    def towards(self, other: Soft, step: float) -> Soft:
        """The element that lies so far on the way to another."""
        return Soft(
            {name: torch.lerp(one, other.places[name], step) for name, one in self.places.items()},
            {name: torch.lerp(one, other.signed[name], step) for name, one in self.signed.items()},
        )


def universe(
    readings: Sequence[Reading], index: Index, forms: Sequence[Moves], tell: Callable[[int, int], None]
) -> list[Moves]:
    """Orders and signs of all models with a large Σ ⟨model i, model j⟩ over pairs, the first model's units in place.

    Frank-Wolfe from the centre: every gradient is answered by the best element, an assignment a group and model, and
    the step on the way to it maximises the objective exactly, a polynomial. At the end each soft element becomes the
    nearest one. Heads, experts and what is inside them are left as they are, and tensors that they move are not heard.

    Args:
        readings: of the models, K ≥ 2.
        index: of their table.
        forms: of the models, between which there are only orders, signs and rotations.
        tell: called with the steps made and how many there are at most.

    Returns orders and signs, a model each; nothing for the first. Takes 16·K·Σn² bytes for groups of n units, twice
    that for those with signs, and 32·K bytes an entry of the largest tensor that moves.

    Source: Crisostomi et al., 2024, *C²M³: Cycle-Consistent Multi-Model Merging*, §3. Differs from the paper's code:
    begins in the centre and not at the identity, from which the first assignments would follow noise; the first model
    is the universe, which loses nothing, as only the way between models counts; the step is exact.
    """
    families = [family for family in index.families if plain(family, index)]
    known = {name for family in families for name in family.names}
    tensors = [name for name in index.tensors if index.movers[name] and index.movers[name] <= known]
    problem = Relaxation(readings, index, forms, families, tensors)
    elements = [problem.vertex(Moves()), *(problem.centre() for _ in readings[1:])]
    reached = problem.curve(elements, elements)(0.0)
    for made in range(1, _STEPS + 1):
        ends = [elements[0], *problem.answers(elements)]
        curve = problem.curve(elements, ends)
        step = highest(curve)
        elements = [one.towards(end, step) for one, end in zip(elements, ends, strict=True)]
        gained, reached = curve(step) - reached, curve(step)
        tell(made, _STEPS)
        if gained <= _LEAST * abs(reached):
            break
    return [Moves(), *(problem.nearest(one) for one in elements[1:])]


def softened(index: Index, name: str, tensor: Tensor, matrix: Matrices, leave: Place | None = None) -> Tensor:
    """A tensor with the units of all its places mixed, but for one place; float64.

    Args:
        index: where its places are.
        name: of the tensor.
        tensor: which.
        matrix: gives (n, n) for a place of n units.
        leave: the place that stays.
    """
    for place in index.places[name]:
        if place != leave:
            sizes, end = [factor.size for factor in place.part.factors], place.start + place.part.size
            before, part, behind = tensor.tensor_split([place.start, end], place.axis)
            part = mixed(part, place.axis, sizes, place.factor, matrix(place)[None])
            tensor = torch.cat([before, part, behind], place.axis)
    return tensor


def plain(family: Family, index: Index) -> bool:
    """Whether units of the family are compared as they are: no bases in them, and no tensors that are units."""
    inside = {name for each in index.families for name in each.stacked}
    return not (family.gauges or family.root in index.symmetries.stacks or family.root in inside)


def highest(curve: Polynomial) -> float:
    """Where in [0, 1] a polynomial is largest, 0 if there is a choice."""
    turns = curve.deriv().roots()
    inner = [float(turn.real) for turn in np.atleast_1d(turns) if abs(turn.imag) < 1e-9 and 0 < turn.real < 1]
    return max([0.0, *inner, 1.0], key=lambda step: float(curve(step)))


def _summed(steps: NDArray[np.float64], soft: Tensor) -> Polynomial:
    """Σ ⟨model i, model j⟩ over pairs as a polynomial of the step, from (steps, models, entries) on the way."""
    both = soft.sum(1)
    values = (both @ both.T - torch.einsum("ske,tke->st", soft, soft)) / 2
    powers = np.linalg.inv(np.vander(steps, increasing=True))
    products = powers @ values.numpy() @ powers.T
    flipped = products[:, ::-1]
    return Polynomial([flipped.trace(place) for place in range(len(steps) - 1, -len(steps), -1)])


@dataclass
class Relaxation:
    """The models and what may move in them, with soft elements in place of those of the group.

    Attributes:
        readings: of the models.
        index: of their table.
        forms: of the models.
        families: whose groups move.
        tensors: that nothing else moves.
    """

    readings: Sequence[Reading]
    index: Index
    forms: Sequence[Moves]
    families: Sequence[Family]
    tensors: Collection[str]

    def vertex(self, moves: Moves) -> Soft:
        """An element as matrices."""
        made = Soft({}, {})
        groups = self.index.symmetries.groups
        for name in (name for family in self.families for name in family.names):
            size = groups[name].size
            order, eye = moves.orders.get(name, torch.arange(size)), torch.eye(size, dtype=torch.float64)
            made.places[name] = eye[order]
            if groups[name].scale in ("sign", "any"):
                made.signed[name] = moves.scales.get(name, torch.ones(size)).double()[:, None] * eye[order]
        return made

    def centre(self) -> Soft:
        """The mean of all elements."""
        made = self.vertex(Moves())
        places = {name: torch.full_like(one, 1 / len(one)) for name, one in made.places.items()}
        return Soft(places, {name: torch.zeros_like(one) for name, one in made.signed.items()})

    def answers(self, elements: Sequence[Soft]) -> list[Soft]:
        """For each model but the first the element that goes along with the gradient most."""
        gradients = [Evidence() for _ in elements]
        for name in self.tensors:
            weights = self._weights(name)
            soft = self._all_softened(name, weights, [one.matrix for one in elements])
            total = soft.sum(0)
            for number, element in list(enumerate(elements))[1:]:
                others = total - soft[number]
                for place in self.index.places[name]:
                    moved = softened(self.index, name, weights[number], element.matrix, leave=place)
                    self._hear(gradients[number], place, place.units(others) @ place.units(moved).T)
        return [self.vertex(self._step(gradient)) for gradient in gradients[1:]]

    def curve(self, elements: Sequence[Soft], ends: Sequence[Soft]) -> Polynomial:
        """Σ ⟨model i, model j⟩ over pairs as a polynomial of the step from some elements to others."""
        total, ways = Polynomial([0.0]), list(zip(elements, ends, strict=True))
        for name in self.tensors:
            weights, degree = self._weights(name), len(self.index.places[name])
            # A soft tensor is a polynomial of that degree: as many values and one more say which.
            steps = np.linspace(0, 1, degree + 1)
            soft = [
                self._all_softened(name, weights, [one.on_the_way(end, step) for one, end in ways])
                for step in steps.tolist()
            ]
            total = total + _summed(steps, torch.stack(soft).flatten(2))
        return total

    def nearest(self, element: Soft) -> Moves:
        """The element without softness that has most in common with a soft one."""
        return self._step(Evidence(dict(element.places), dict(element.signed)))

    def _step(self, evidence: Evidence) -> Moves:
        steps = []
        for family in self.families:
            plain, signed = (
                {name: of[name] for name in family.names if name in of} for of in (evidence.plain, evidence.signed)
            )
            steps.append(best_step(Evidence(plain, signed), family, self.index.symmetries))
        return Moves(
            {name: one for step in steps for name, one in step.orders.items()},
            {name: one for step in steps for name, one in step.scales.items()},
        )

    def _weights(self, name: str) -> list[Tensor]:
        readings = zip(self.readings, self.forms, strict=True)
        return [torch.cat(list(reading.blocks(name, form))).double() for reading, form in readings]

    def _all_softened(self, name: str, weights: Sequence[Tensor], by: Sequence[Matrices]) -> Tensor:
        """(models, …)."""
        return torch.stack([softened(self.index, name, one, matrix) for one, matrix in zip(weights, by, strict=True)])

    def _hear(self, gradient: Evidence, place: Place, more: Tensor) -> None:
        assert place.group is not None
        signs = self.index.symmetries.groups[place.group].scale in ("sign", "any") and place.part.role != "order"
        sums = gradient.signed if signs else gradient.plain
        sums[place.group] = sums[place.group] + more if place.group in sums else more
