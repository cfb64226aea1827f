"""Two networks that were trained apart: brought together by each method, averaged, repaired, measured."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property

import digits
import torch
from torch import Tensor, nn

from eutectic.alignment import (
    Aligned,
    Match,
    Moves,
    Symmetries,
    match_activations,
    match_sinkhorn,
    match_straight_through,
    match_weights,
    repair,
    traced,
)
from eutectic.checkpoint import MemorySource

NAIVE, WEIGHTS, ACTIVATIONS = "as trained", "weights matched", "activations matched"
STRAIGHT, SINKHORN = "straight-through", "Sinkhorn"
BATCH, SAMPLES = 512, 2048
# Of what goes by gradient: steps, and the rate of the straight-through estimator, for which 0.1 was better than the
# paper's 0.01 on the first seed.
STEPS, RATE = {STRAIGHT: 40, SINKHORN: 200}, 0.1

Weights = Mapping[str, Tensor]


class Pair:
    """A network that stands, and another that is brought to it.

    Attributes:
        a: the one that stands.
        b: the other.
        data: images of both.
        symmetries: of both, traced.
    """

    def __init__(self, a: nn.Module, b: nn.Module, data: digits.Split) -> None:
        self.a, self.b, self.data = a, b, data
        self.symmetries: Symmetries = traced(a, data.x[:2])
        self._matches: dict[str, Match] = {}

    @cached_property
    def batches(self) -> list[Tensor]:
        """The first training images, for activations."""
        return list(self.data.x[:SAMPLES].split(BATCH))

    def match(self, how: str) -> Match:
        """What a method finds."""
        if how not in self._matches:
            if how == WEIGHTS:
                sources = MemorySource("a", self.a), MemorySource("b", self.b)
                self._matches[how] = match_weights(*sources, self.symmetries)
            elif how == ACTIVATIONS:
                self._matches[how] = match_activations(self.a, self.b, self.batches, self.symmetries)
            else:
                by_gradient = match_straight_through if how == STRAIGHT else match_sinkhorn
                batches = pairs(self.data.x, self.data.y)
                self._matches[how] = by_gradient(
                    self.a, self.a, self.b, batches, _loss, self.symmetries, steps=STEPS[how], lr=RATE
                )
        return self._matches[how]

    def moved(self, how: str) -> nn.Module:
        """The other network as a method moves it; `NAIVE` leaves it."""
        return self.b if how == NAIVE else moved(self.b, self.symmetries, self.match(how).moves)

    def repaired(self, how: str) -> nn.Module:
        """Half way between both, with its activations repaired."""
        b = self.moved(how)
        return repair(average([self.a, b]), [self.a, b], self.batches).module


def _loss(logits: Tensor, batch: Sequence[Tensor]) -> Tensor:
    return nn.functional.cross_entropy(logits, batch[1])


def moved(model: nn.Module, symmetries: Symmetries, moves: Moves) -> nn.Module:
    """A copy whose units changed places."""
    found = copy.deepcopy(model)
    found.load_state_dict(dict(Aligned(MemorySource("b", model), symmetries, moves)))
    return found


def average(models: Sequence[nn.Module], shared: Sequence[str] | None = None) -> nn.Module:
    """A copy of the first with the mean of all; of the tensors `shared` alone, where given."""
    found, states = copy.deepcopy(models[0]), [model.state_dict() for model in models]
    for name, tensor in found.state_dict().items():
        if tensor.is_floating_point() and (shared is None or name in shared):
            tensor.copy_(sum(state[name] for state in states) / len(states))
    return found.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """In per cent."""
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in pairs(x, y))
    return 100 * right / len(y)


def pairs(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Batches of images and labels."""
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))
