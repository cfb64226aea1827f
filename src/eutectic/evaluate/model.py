"""What an evaluation is: the protocol of a task, the settings of a run, the score, and the difference of two scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eutectic.checkpoint import Source
from eutectic.errors import NumericError, Problem, RecipeError, several
from eutectic.evaluate import intervals
from eutectic.evaluate.content import digest_of_json
from eutectic.evaluate.loading import Loader

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run, the same for every task and model. Only `limit` and `seed` choose what is measured.

    Attributes:
        device: `cpu`, `cuda` or `cuda:N`.
        batch: items a forward pass. Scores of different batch sizes differ by rounding alone.
        limit: evaluate this many items, drawn by `seed`; None for all.
        seed: draws the items of `limit`, resamples of a bootstrap, and seeds torch before each task.
        loader: makes modules of sources, and keeps the last one.
        tell: called with the share of one task on one model that was just done, from 0 to 1.
    """

    device: str = "cpu"
    batch: int = 8
    limit: int | None = None
    seed: int = 0
    loader: Loader = field(default_factory=Loader, compare=False, repr=False)
    tell: Callable[[float], None] = field(default=lambda share: None, compare=False, repr=False)

    def __post_init__(self) -> None:
        least = {"batch": 1, "limit": 1, "seed": 0}
        problems = []
        for name, low in least.items():
            value = getattr(self, name)
            if value is None and name == "limit":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                problems.append(Problem("M603", f"must be a whole number from {low} on, not {value!r}", name))
        if problems:
            raise RecipeError(problems)

    def chosen(self, count: int) -> list[int]:
        """The numbers of the items to evaluate, of `count`: all, or `limit` of them, in order."""
        if self.limit is None or self.limit >= count:
            return list(range(count))
        return sorted(np.random.default_rng(self.seed).choice(count, self.limit, replace=False).tolist())


@runtime_checkable
class Task(Protocol):
    """What can be measured of a model. Anything with these six is a task.

    Attributes:
        name: its label, in tables and messages.
        metric: what `Score.value` is.
        higher_is_better: whether more of it is better.
    """

    @property
    def name(self) -> str:
        """Its label, in tables and messages."""

    @property
    def metric(self) -> str:
        """What `Score.value` is."""

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it is better."""

    def identity(self) -> dict[str, Any] | None:
        """All that decides a score beside the model and the run: options and a digest of the data. Plain JSON data.

        None where that cannot be told; such a score is never taken from the cache.
        """

    def check(self, source: Source, run: Settings) -> None:
        """Refuses before long work what `score` could not do: data without its fields, a model without tokenizer.

        Reads no weight. Raises `EutecticError` with every problem.
        """

    def score(self, source: Source, run: Settings) -> Score:
        """Measures a model. The same source, settings and machine give the same score, to the last bit."""


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """What an evaluation returns.

    Attributes:
        task: the task's name.
        metric: what `value` is.
        higher_is_better: whether more of it is better.
        value: the score.
        stderr: its standard error over the items; None for a single item.
        interval: of 95 %; None for a single item.
        items: one value an item, in the order of the data.
        weights: what each item counts (1, or its tokens).
        details: other metrics by name.
        scale: how `value` follows from the items: `mean` (weighted), `exp` of that mean, or `resampled`, where it is
            no mean and `replicates` has its values on resamples that are the same for every model.
        replicates: see `scale`; else empty.
        basis: digest of what the items are. Scores can be paired where it is equal.
    """

    task: str
    metric: str
    higher_is_better: bool
    value: float
    stderr: float | None
    interval: Interval | None
    items: Floats
    weights: Floats
    details: Mapping[str, float] = field(default_factory=dict)
    scale: Literal["mean", "exp", "resampled"] = "mean"
    replicates: Floats = field(default_factory=lambda: np.empty(0))
    basis: str = ""

    def __repr__(self) -> str:
        bounds = "" if self.interval is None else f" ({self.interval[0]:.4g} to {self.interval[1]:.4g})"
        found = f"{self.metric} {self.value:.6g}{bounds}"
        return f"<Score {self.task}: {found}, {several(len(self.items), 'item')}; see .details>"

    @property
    def merit(self) -> float:
        """The value, or its negative where lower is better: for a search, which has no use for intervals."""
        return self.value if self.higher_is_better else -self.value

    def as_json(self, *, items: bool = False) -> dict[str, Any]:
        """The score as plain data; with `items` all of it, for `from_json`."""
        data: dict[str, Any] = {
            "task": self.task,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "value": self.value,
            "stderr": self.stderr,
            "interval": None if self.interval is None else list(self.interval),
            "count": len(self.items),
            "details": dict(self.details),
        }
        if items:
            arrays = {name: getattr(self, name).tolist() for name in ("items", "weights", "replicates")}
            data |= {"scale": self.scale, "basis": self.basis, **arrays}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The score that `as_json(items=True)` wrote, bit for bit. Raises `KeyError` and the like for other data."""
        plain = {
            name: data[name] for name in ("task", "metric", "higher_is_better", "value", "stderr", "scale", "basis")
        }
        arrays: dict[str, Any] = {name: np.array(data[name], np.float64) for name in ("items", "weights", "replicates")}
        low_high = None if data["interval"] is None else (float(data["interval"][0]), float(data["interval"][1]))
        return cls(**plain, interval=low_high, details=dict(data["details"]), **arrays)


def score_of(
    task: Task,
    source: Source,
    run: Settings,
    items: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    scale: Literal["mean", "exp"] = "mean",
    details: Mapping[str, float] | None = None,
    numbers: Sequence[int] | None = None,
    basis: str = "",
) -> Score:
    """The score whose value is the (weighted) mean of `items`, or `exp` of it, with standard error and interval.

    Args:
        task: what was measured, and
        source: of which model, and
        run: how; all three for messages and for `Score.basis`.
        items: one value an item.
        weights: what each counts; None for 1.
        scale: see `Score.scale`.
        details: other metrics.
        numbers: of the items in the data, from 0; None if all of them were measured.
        basis: what else says which items these are.

    Raises `NumericError` (E908) for a value that is not finite, with the number of the item.
    """
    values = np.asarray(items, np.float64).reshape(-1)
    counts = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64).reshape(-1)
    refuse_nonfinite(task, source, values, numbers)
    mean, error = intervals.weighted_mean(values, counts)
    bounds = intervals.mean_interval(values, counts)
    value = mean
    if scale == "exp":
        value = _exp(mean)
        error = None if error is None else value * error
        bounds = None if bounds is None else (_exp(bounds[0]), _exp(bounds[1]))
    refuse_nonfinite(task, source, value)
    kind = (task.name, task.metric, task.higher_is_better)
    about = basis_of(task, run, basis)
    return Score(*kind, value, error, bounds, values, counts, details or {}, scale, basis=about)


def basis_of(task: Task, run: Settings, more: str = "") -> str:
    """What `Score.basis` is for the items of a task in a run."""
    what = task.identity()
    return digest_of_json([task.metric, task.name if what is None else what, run.limit, run.seed, more])


def refuse_nonfinite(task: Task, source: Source, values: ArrayLike, numbers: Sequence[int] | None = None) -> None:
    """Raises `NumericError` (E908) for NaN and infinity among the values of the items, or in a single score."""
    bad = np.flatnonzero(~np.isfinite(np.atleast_1d(np.asarray(values, np.float64))))
    if not len(bad):
        return
    first = int(bad[0])
    what = "the score is" if np.ndim(values) == 0 else f"item {(numbers or range(first + 1))[first] + 1} scores"
    value = float(np.atleast_1d(np.asarray(values, np.float64))[first])
    others = f", and so do {len(bad) - 1} more" if len(bad) > 1 else ""
    message = f"{what} {value} with model {source.label!r}{others}"
    raise NumericError(Problem("E908", message, task.name, "`eutectic compare` finds broken weights"))


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf


@dataclass(frozen=True, slots=True)
class Difference:
    """One score less another on the same items.

    Attributes:
        value: the first score less the second.
        stderr: of the difference, item by item; None for a single item.
        interval: of 95 %; None for a single item.
        better: whether the first is better (True) or worse (False) than the second; None where the interval holds 0.
    """

    value: float
    stderr: float | None
    interval: Interval | None
    better: bool | None

    def as_json(self) -> dict[str, Any]:
        """The difference as plain data."""
        interval = None if self.interval is None else list(self.interval)
        return {"value": self.value, "stderr": self.stderr, "interval": interval, "better": self.better}


def paired(a: Score, b: Score) -> Difference:
    """The difference `a - b` with an interval from the same items in both, which is much narrower than two by itself.

    Raises `RecipeError` (E909) for scores of different tasks, settings or items, and for what is no score.
    """
    for name, score in (("a", a), ("b", b)):
        if not isinstance(score, Score):
            message = f"must be a score of `eutectic.evaluate`, not a {type(score).__name__}"
            raise RecipeError(Problem("E909", message, name))
    hint = "evaluate both with the same task, data, limit and seed"
    if (a.metric, a.basis) != (b.metric, b.basis):
        message = f"scores of {a.task!r} ({a.metric}) and {b.task!r} ({b.metric}) are not of the same items"
        raise RecipeError(Problem("E909", message, hint=hint))
    if len(a.items) != len(b.items) or not np.array_equal(a.weights, b.weights):
        hint = "models with different tokenizers are compared by `metric: bits_per_byte`"
        raise RecipeError(Problem("E909", f"the items of {a.task!r} weigh differently in the two scores", hint=hint))
    value = a.value - b.value
    if a.scale == "resampled":
        error, bounds = intervals.of_replicates(a.replicates - b.replicates)
    else:
        slopes = (a.value, b.value) if a.scale == "exp" else (1.0, 1.0)
        error, bounds = intervals.difference(a.items, b.items, a.weights, slopes)
    undecided = bounds is None or bounds[0] <= 0 <= bounds[1]
    better = None if undecided else (value > 0) == a.higher_is_better
    return Difference(value, error, bounds, better)
