"""The loss on a plane through three models, on axes made as Garipov et al. make them (arXiv:1802.10026, §A.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from eutectic import adviser
from eutectic.adviser.opening import Opened
from eutectic.connectivity.heights import curves_of
from eutectic.connectivity.mixing import Path
from eutectic.connectivity.opening import opened, settings_for
from eutectic.connectivity.probe import Probe
from eutectic.errors import Problem, RecipeError
from eutectic.evaluate import Score, Settings
from eutectic.evaluate.doors import Kept

Place = tuple[float, float]
# How far the plane goes beyond the models, as a share of their extent.
MARGIN = 0.2
# What is left of the third model's direction, over its length, where it lies on the line through the others.
_FLAT = 1e-6


@dataclass(frozen=True, slots=True)
class Plane:
    """A loss on a grid.

    Attributes:
        models: labels of the three models.
        places: where they are on the plane: the first at the origin, the second on the first axis.
        task: the task's name.
        quantity: `loss` or `error`.
        metric: what the task measures of it.
        x: of each column, a distance in weight space.
        y: of each row.
        values: a row for each `y`, with a value for each `x`.
        corners: the value at each of the models, which are on no point of the grid.
    """

    models: tuple[str, ...]
    places: tuple[Place, ...]
    task: str
    quantity: str
    metric: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    corners: tuple[float, float, float]

    @property
    def lowest(self) -> tuple[Place, float]:
        """Where the plane is lowest, and how low: at a model or on the grid; of equal points the first."""
        grid = [
            ((x, y), value)
            for y, row in zip(self.y, self.values, strict=True)
            for x, value in zip(self.x, row, strict=True)
        ]
        return min([*zip(self.places, self.corners, strict=True), *grid], key=lambda point: point[1])

    @property
    def lowest_at(self) -> str:
        """Where the plane is lowest in words: the name of a model, or `(0.5, 1.2)`."""
        (x, y), _ = self.lowest
        return dict(zip(self.places, self.models, strict=True)).get((x, y), f"({x:.4g}, {y:.4g})")

    def __repr__(self) -> str:
        grid = f"{self.quantity} at {len(self.x)} × {len(self.y)} points"
        low = f"{self.lowest[1]:.4g} at {self.lowest_at}"
        return f"<Plane through {', '.join(self.models)} on {self.task}: {grid}, lowest {low}; see .values>"

    def as_json(self) -> dict[str, Any]:
        """The plane as plain data."""
        corners = zip(self.models, self.places, self.corners, strict=True)
        (x, y), low = self.lowest
        return {
            "models": [{"model": model, "x": x, "y": y, "value": value} for model, (x, y), value in corners],
            "lowest": {"x": x, "y": y, "value": low},
            "task": self.task,
            "quantity": self.quantity,
            "metric": self.metric,
            "x": list(self.x),
            "y": list(self.y),
            "values": [list(row) for row in self.values],
        }


def plane(
    a: Any,
    b: Any,
    c: Any,
    loss: Any,
    *,
    points: int = 11,
    settings: Settings | None = None,
    batches: Iterable[Any] | None = None,
    cache: Kept = True,
) -> Plane:
    """The loss on the plane through three models, on a grid that goes a fifth beyond them. No file is written.

    Args:
        a: the origin, and
        b: in the direction of the first axis, and
        c: the third model.
        loss: as for `barrier`.
        points: a side, so the loss is measured `points²` times, and at the models.
        settings: see `barrier`.
        batches: see `barrier`.
        cache: see `barrier`.

    Raises `RecipeError` (L813) where the three lie on a line, and what `barrier` raises.
    """
    check_side(points)
    with opened([a, b, c], least=3, most=3) as found:
        probe = Probe([loss], settings_for(found, settings), cache, batches)
        return measured_planes(found, probe, points)[0]


def check_side(points: Any) -> None:
    """Raises `RecipeError` (L812) for what is no number of points a side."""
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise RecipeError(Problem("L812", f"a plane has 2 points a side or more, not {points!r}", "plane"))


def measured_planes(
    models: Opened, probe: Probe, points: int, corners: Sequence[Sequence[Score]] | None = None
) -> list[Plane]:
    """The plane of each task. `corners` are the scores of each model, where they are known."""
    probe.check(_point(models, (1 / 3, 1 / 3, 1 / 3)))
    places, shares = _axes(models)
    x, y = (_grid([place[axis] for place in places], points) for axis in (0, 1))
    scores = [probe.scores(_point(models, shares(u, v), (u, v)).at(0.0)) for v in y for u in x]
    if corners is None:
        corners = [
            probe.scores(_point(models, own).at(0.0)) for own in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
        ]
    planes = []
    for number, name in enumerate(probe.names):
        flat = [point[number] for point in (*scores, *corners)]
        curves = curves_of(range(len(flat)), flat)
        curve = curves.get("loss") or curves["error"]
        rows = tuple(tuple(curve.values[at : at + points]) for at in range(0, len(scores), points))
        a, b, c = curve.values[len(scores) :]
        labels = tuple(models.labels)
        planes.append(Plane(labels, places, name, curve.quantity, curve.metric, x, y, rows, (a, b, c)))
    return planes


def _point(models: Opened, shares: tuple[float, float, float], place: Place | None = None) -> Path:
    label = ", ".join(models.labels) + (f" at ({place[0]:.4g}, {place[1]:.4g})" if place else "")
    return Path(tuple(models.sources), label, lambda t: shares)


def _axes(models: Opened) -> tuple[tuple[Place, ...], Callable[[float, float], tuple[float, float, float]]]:
    """Where the models are on axes of length one, and how much of each model a point of the plane has."""
    first, *others = models.sources
    pairs = adviser.compare(others, base=first).whole
    if pairs is None:  # they were planned as a merge before, so they fit
        raise RecipeError(Problem("L813", "the models cannot be compared", "models"))
    uu, uw, ww = (float(pairs.pairs[0, i, j]) for i, j in ((0, 0), (1, 0), (1, 1)))
    along = uw / uu if uu else 0.0
    square = ww - along * uw
    if not uu or square <= _FLAT**2 * ww:
        raise RecipeError(Problem("L813", f"{', '.join(models.labels)} lie on one line", "models"))
    wide, tall = math.sqrt(uu), math.sqrt(square)

    def shares(x: float, y: float) -> tuple[float, float, float]:
        third = y / tall
        second = x / wide - along * third
        return 1 - second - third, second, third

    return ((0.0, 0.0), (wide, 0.0), (along * wide, tall)), shares


def _grid(values: Sequence[float], points: int) -> tuple[float, ...]:
    """Evenly spaced over the values and a margin on both sides."""
    low, high = min(values), max(values)
    low, high = low - MARGIN * (high - low), high + MARGIN * (high - low)
    return tuple(low + (high - low) * number / (points - 1) for number in range(points))
