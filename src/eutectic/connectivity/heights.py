"""Scores along a path -> loss and error as curves, and how high a curve rises, by each definition in use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eutectic.errors import several
from eutectic.evaluate import Score, intervals

Floats = NDArray[np.float64]
Interval = tuple[float, float]
Definition = Literal["entezari", "frankle", "freeman"]
# The first decides: it alone gives 0 for every straight line.
DEFINITIONS: Mapping[Definition, str] = {
    "entezari": "above the line between the ends (arXiv:2110.06296)",
    "frankle": "above the mean of the ends (of the error: arXiv:1912.05671, of the loss: arXiv:2209.04836)",
    "freeman": "above the higher end (arXiv:1611.01540)",
}
# Details of a score that are a mean loss, or a mean of right answers.
_LOSSES, _RIGHT = ("cross_entropy", "nll"), ("accuracy", "acc")


def _none() -> Floats:
    return np.empty(0)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One quantity at one point.

    Attributes:
        value: lower is better.
        interval: of 95 %, if known.
        items: one value an item, whose weighted mean is `value`; empty where that is not known.
        weights: of the items.
        replicates: the value on resamples, of what is no mean of items.
    """

    value: float
    interval: Interval | None = None
    items: Floats = field(default_factory=_none)
    weights: Floats = field(default_factory=_none)
    replicates: Floats = field(default_factory=_none)

    def __repr__(self) -> str:
        bounds = "" if self.interval is None else f", {self.interval[0]:.4g} to {self.interval[1]:.4g}"
        return f"<Reading {self.value:.4g}{bounds}; {several(len(self.items), 'item')}>"


class Height(NamedTuple):
    """How high a curve rises above its ends.

    The interval is that of the height at `t`, from the same items at all points; as the highest of many points was
    taken, noise alone makes it a little larger than it should be. None where items are not known, and at an end.
    """

    value: float
    t: float
    stderr: float | None = None
    interval: Interval | None = None

    def as_json(self) -> dict[str, Any]:
        """The height as plain data."""
        return self._asdict() | {"interval": None if self.interval is None else list(self.interval)}


@dataclass(frozen=True, slots=True)
class Curve:
    """A loss or an error along a path.

    Attributes:
        quantity: `loss` or `error`.
        metric: what the task measures of it, such as `nll` or `1 - accuracy`.
        t: where, from 0 to 1, in order.
        readings: one for each.
    """

    quantity: str
    metric: str
    t: tuple[float, ...]
    readings: tuple[Reading, ...]

    def __repr__(self) -> str:
        reach = f"{min(self.values):.4g} to {max(self.values):.4g}"
        return f"<Curve of the {self.quantity}, {self.metric}: {reach} at {several(len(self.t), 'point')}; see .values>"

    @property
    def values(self) -> list[float]:
        """The value at each point."""
        return [reading.value for reading in self.readings]

    @property
    def lowest(self) -> tuple[float, float]:
        """Where the curve is lowest, and how low; of equal points the first."""
        value, t = min(zip(self.values, self.t, strict=True))
        return t, value

    def height(self, definition: Definition = "entezari") -> Height:
        """How high the curve rises by a definition; never below 0, and by `frankle` above it where the ends differ."""
        return self._highest([self._shares(t, definition) for t in self.t])

    @property
    def rise(self) -> Height:
        """How high it rises above its first end."""
        return self._highest([(1.0, 0.0)] * len(self.t))

    def excess(self) -> list[float]:
        """How far each point is above the line between the ends."""
        first, last = self.values[0], self.values[-1]
        return [value - ((1 - t) * first + t * last) for t, value in zip(self.t, self.values, strict=True)]

    def _shares(self, t: float, definition: Definition) -> tuple[float, float]:
        if definition == "entezari":
            return 1 - t, t
        if definition == "frankle":
            return 0.5, 0.5
        return (1.0, 0.0) if self.values[0] >= self.values[-1] else (0.0, 1.0)

    def _highest(self, shares: Sequence[tuple[float, float]]) -> Height:
        first, last = self.values[0], self.values[-1]
        found = [value - (a * first + b * last) for value, (a, b) in zip(self.values, shares, strict=True)]
        at = int(np.argmax(found))
        error, bounds = self._spread(at, *shares[at])
        return Height(found[at], self.t[at], error, bounds)

    def _spread(self, at: int, a: float, b: float) -> tuple[float | None, Interval | None]:
        """Standard error and interval of a point less these shares of the ends, item by item."""
        here, first, last = (self.readings[number] for number in (at, 0, -1))
        if len(here.replicates):
            moved = here.replicates - a * first.replicates - b * last.replicates
            return intervals.of_replicates(moved) if moved.any() else (None, None)
        if not len(here.items) == len(first.items) == len(last.items):
            return None, None
        items = here.items - a * first.items - b * last.items
        if len(items) < 2 or not items.any():
            return None, None
        value, error = intervals.weighted_mean(items, here.weights)
        half = intervals.t_quantile(len(items) - 1) * (error or 0.0)
        return error, (value - half, value + half)

    def as_json(self) -> dict[str, Any]:
        """The curve as plain data."""
        points = [
            {"t": t, "value": one.value, "interval": None if one.interval is None else list(one.interval)}
            for t, one in zip(self.t, self.readings, strict=True)
        ]
        barriers = {name: self.height(name).as_json() for name in DEFINITIONS}
        lowest = dict(zip(("t", "value"), self.lowest, strict=True))
        return {"metric": self.metric, "barrier": barriers, "lowest": lowest, "points": points}


def curves_of(ts: Sequence[float], scores: Sequence[Score]) -> dict[str, Curve]:
    """The loss and the error of scores along a path; one of them where the task measures no other."""
    found = {}
    for quantity, of in (("loss", loss_of), ("error", error_of)):
        known = [one for score in scores if (one := of(score)) is not None]
        if len(known) == len(scores):
            readings = tuple(reading for _, reading in known)
            found[quantity] = Curve(quantity, known[0][0], tuple(ts), readings)
    return found


def loss_of(score: Score) -> tuple[str, Reading] | None:
    """What a score says of the loss, with its name: that of the metric, or one among the details."""
    if not score.higher_is_better and score.scale == "exp":
        bounds = score.interval and (math.log(score.interval[0]), math.log(score.interval[1]))
        return f"log {score.metric}", Reading(math.log(score.value), bounds, score.items, score.weights)
    if not score.higher_is_better:
        return score.metric, Reading(score.value, score.interval, *_parts(score))
    name = next((name for name in _LOSSES if name in score.details), None)
    return None if name is None else (name, Reading(score.details[name]))


def error_of(score: Score) -> tuple[str, Reading] | None:
    """What a score says of the error: 1 less the metric where more is better, or less the accuracy in the details."""
    if score.higher_is_better:
        bounds = score.interval and (1 - score.interval[1], 1 - score.interval[0])
        items, weights, replicates = _parts(score)
        return f"1 - {score.metric}", Reading(1 - score.value, bounds, 1 - items, weights, 1 - replicates)
    name = next((name for name in _RIGHT if name in score.details), None)
    return None if name is None else (f"1 - {name}", Reading(1 - score.details[name]))


def _parts(score: Score) -> tuple[Floats, Floats, Floats]:
    """Items, weights and replicates; no items of what is no mean of them."""
    if score.scale == "resampled":
        return _none(), _none(), score.replicates
    return score.items, score.weights, _none()
