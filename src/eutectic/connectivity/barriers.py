"""Loss and error along a path, measured most closely where they are highest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eutectic.checkpoint import Source
from eutectic.connectivity.heights import DEFINITIONS, Curve, Height, curves_of
from eutectic.connectivity.mixing import Path, straight
from eutectic.connectivity.opening import opened, settings_for
from eutectic.connectivity.probe import Probe
from eutectic.errors import Problem, RecipeError
from eutectic.evaluate import Score, Settings
from eutectic.evaluate.doors import Kept

POINTS, REFINE = 25, 3


@dataclass(frozen=True, slots=True)
class Barrier:
    """What one task says of a path.

    Attributes:
        ends: labels of the first model and the last.
        task: the task's name.
        curves: by quantity: `loss`, `error` or both.
    """

    ends: tuple[str, str]
    task: str
    curves: Mapping[str, Curve]

    def __repr__(self) -> str:
        found = f"{self.value:.4g} of the {self.curve.quantity} at t = {self.height.t:.3g}"
        return f"<Barrier {' → '.join(self.ends)} on {self.task}: {found}; see .curves>"

    @property
    def curve(self) -> Curve:
        """What decides: the loss, or the error where the task measures no loss."""
        return self.curves.get("loss") or self.curves["error"]

    @property
    def height(self) -> Height:
        """The barrier: how high the deciding curve rises above the line between its ends (arXiv:2110.06296)."""
        return self.curve.height()

    @property
    def value(self) -> float:
        """The barrier as a number; 0 or more."""
        return self.height.value

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        curves = {name: curve.as_json() for name, curve in self.curves.items()}
        decides = {"quantity": self.curve.quantity, "definition": next(iter(DEFINITIONS))}
        about = {"ends": list(self.ends), "task": self.task, "decides": decides}
        return about | {"barrier": self.height.as_json()} | curves


def barrier(
    a: Any,
    b: Any,
    loss: Any,
    *,
    points: int = POINTS,
    refine: int = REFINE,
    settings: Settings | None = None,
    batches: Iterable[Any] | None = None,
    cache: Kept = True,
) -> Barrier:
    """The barrier on the straight line between two models. No file is written.

    Args:
        a: the first model, as for `eutectic.open`, and
        b: the last.
        loss: a task, as for `eutectic.evaluate`; or a function of a mapping from names to tensors, which returns the
            loss, or better the loss of each item.
        points: evenly spaced, both ends among them.
        refine: how often the gaps on both sides of the maximum are halved.
        settings: device, batch size and so on; `Settings(loader=Loader(module=...))` says how to make a module. A
            live module is copied by itself.
        batches: the statistics of batch normalisation are computed from these at each point.
        cache: whether scores are kept and found again, or the folder for them; those of functions never are.

    Raises `RecipeError` for a wrong request and for models that do not fit together, `NumericError` (E908) for a loss
    that is not finite, with the point.
    """
    check_points(points, refine)
    with opened([a, b], least=2, most=2) as found:
        probe = Probe([loss], settings_for(found, settings), cache, batches)
        path = straight(found.sources[0], found.sources[1], " → ".join(found.labels))
        probe.check(path)
        return measured(path, probe, (found.labels[0], found.labels[1]), points, refine)[0]


def measured(
    path: Path,
    probe: Probe,
    ends: tuple[str, str],
    points: int,
    refine: int,
    at: Callable[[float, Source], Sequence[Score]] | None = None,
) -> list[Barrier]:
    """The barrier of each task on a path.

    `at` measures the model at a point; it may know some of them already.
    """
    score = at or (lambda t, source: probe.scores(source))
    known = {t: score(t, path.at(t)) for t in (number / (points - 1) for number in range(points))}
    for _ in range(refine):
        for t in _between(known):
            known[t] = score(t, path.at(t))
    return [Barrier(ends, name, curves) for name, curves in zip(probe.names, _curves(known), strict=True)]


def _curves(known: Mapping[float, Sequence[Score]]) -> list[dict[str, Curve]]:
    """Of each task."""
    ts = sorted(known)
    return [curves_of(ts, scores) for scores in zip(*(known[t] for t in ts), strict=True)]


def _between(known: Mapping[float, Sequence[Score]]) -> list[float]:
    """The middles of the gaps beside each task's maximum: beside the first and the last of them, as of both ends."""
    ts = sorted(known)
    wanted = set()
    for curves in _curves(known):
        excess = (curves.get("loss") or curves["error"]).excess()
        tops = [at for at, value in enumerate(excess) if value == max(excess)]
        gaps = {gap for top in (tops[0], tops[-1]) for gap in (top - 1, top) if 0 <= gap < len(ts) - 1}
        wanted |= {(ts[gap] + ts[gap + 1]) / 2 for gap in gaps}
    return sorted(wanted - known.keys())


def check_points(points: Any, refine: Any) -> None:
    """Raises `RecipeError` (L812) for numbers that make no path."""
    problems = []
    for name, value, least in (("points", points, 3), ("refine", refine, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            problems.append(Problem("L812", f"must be a whole number from {least} on, not {value!r}", name))
    if problems:
        raise RecipeError(problems)
