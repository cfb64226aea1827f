"""Several models: the barrier of every pair, layer by layer where that is wanted, and the plane through three."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from eutectic.adviser.opening import Opened
from eutectic.alignment import align as find_alignment
from eutectic.checkpoint import Alignment, Source
from eutectic.checkpoint.symmetry import Moves
from eutectic.connectivity.barriers import POINTS, REFINE, Barrier, check_points, measured
from eutectic.connectivity.heights import Height
from eutectic.connectivity.mixing import Path, averaged_statistics, layers_of, mixture, straight
from eutectic.connectivity.opening import opened, settings_for
from eutectic.connectivity.planes import Plane, check_side, measured_planes
from eutectic.connectivity.probe import Probe
from eutectic.errors import Problem, RecipeError, listed
from eutectic.evaluate import Score, Settings
from eutectic.evaluate.doors import Kept

# Of the path of one layer: the ends, the quarters and the middle. There are many layers.
LAYER_POINTS = 5
_MIXED = (
    "the statistics of batch normalisation were mixed like weights, which is not what the mixed networks would "
    "measure, so barriers look higher than they are; in Python, batches= computes them at each point"
)


@dataclass(frozen=True, slots=True)
class Layer:
    """What happens to the first model when one layer goes over to the second's (arXiv:2307.06966).

    Attributes:
        name: of the layer.
        barrier: on the path from the first model to the first model with this layer of the second.
    """

    name: str
    barrier: Barrier

    def __repr__(self) -> str:
        return f"<Layer {self.name}: rise {self.rise.value:.4g}; see .barrier>"

    @property
    def rise(self) -> Height:
        """How high loss or error rises above the first model's: 0 where the layers are interchangeable."""
        return self.barrier.curve.rise

    def as_json(self) -> dict[str, Any]:
        """The layer as plain data."""
        return {"layer": self.name, "rise": self.rise.as_json(), **self.barrier.as_json()}


@dataclass(slots=True)
class Connection:
    """What lies between models.

    Attributes:
        models: their labels.
        tasks: the tasks' labels.
        barriers: for each task, by the numbers of two models, the lower first.
        layers: the same, a list over the layers.
        planes: one a task.
        alignments: of the models that are there a second time, aligned to the first.
        notes: what to mind.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    barriers: dict[str, dict[tuple[int, int], Barrier]]
    layers: dict[str, dict[tuple[int, int], list[Layer]]] = field(default_factory=dict)
    planes: dict[str, Plane] = field(default_factory=dict)
    alignments: tuple[Alignment, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        reach = []
        for task, pairs in self.barriers.items():
            found = [one.value for one in pairs.values()]
            reach.append(f"{task} {min(found):.4g} to {max(found):.4g}")
        return f"<Connection of {listed(self.models)}: barriers of {listed(reach)}; see .barriers>"

    def matrix(self, task: str) -> list[list[float | None]]:
        """The barrier of every pair; None for a model with itself, and for one that is aligned with one that is not."""
        found = {pair: one.value for pair, one in self.barriers[task].items()}
        numbers = range(len(self.models))
        return [[found.get((min(i, j), max(i, j))) for j in numbers] for i in numbers]

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "models": list(self.models),
            "tasks": list(self.tasks),
            "barriers": [one.as_json() for pairs in self.barriers.values() for one in pairs.values()],
            "layers": [
                {"ends": [self.models[i] for i in pair], "task": task, "layers": [one.as_json() for one in layers]}
                for task, pairs in self.layers.items()
                for pair, layers in pairs.items()
            ],
            "planes": [one.as_json() for one in self.planes.values()],
            "alignments": [one.as_json() for one in self.alignments],
            "notes": list(self.notes),
        }


def connect(
    models: Sequence[Any],
    tasks: Sequence[Any],
    *,
    points: int = POINTS,
    refine: int = REFINE,
    layerwise: bool = False,
    plane: int | None = None,
    align: bool | Mapping[str, Any] = False,
    settings: Settings | None = None,
    batches: Iterable[Any] | None = None,
    cache: Kept = True,
    tell: Callable[[str], None] | None = None,
) -> Connection:
    """Loss and error on the straight lines between all pairs of models. No file is written.

    Args:
        models: two or more, each as for `eutectic.open`.
        tasks: what to measure, each as for `barrier`: such as one on training data and one on held-out data.
        points: see `barrier`.
        refine: see `barrier`; around the maximum of each task.
        layerwise: measure as well, for each pair and layer, the path on which this layer alone goes over.
        plane: of exactly three models, the plane through them, with so many points a side.
        align: measure as well the lines to all models but the first once they are aligned to it, and between those.
            A mapping has arguments for `eutectic.align`.
        settings: see `barrier`.
        batches: see `barrier`.
        cache: see `barrier`.
        tell: called with the label of each model that is measured.

    Raises what `barrier` raises, and `plane`, and `eutectic.align`.
    """
    check_points(points, refine)
    if plane is not None:
        check_side(plane)
    if isinstance(tasks, str) or not isinstance(tasks, Sequence) or not tasks:
        raise RecipeError(Problem("E901", "must be a list of one task or more", "tasks"))
    with opened(models, least=2) as found:
        probe = Probe(tasks, settings_for(found, settings), cache, batches, tell)
        if plane is not None and len(found.sources) != 3:
            message = f"a plane goes through three models, not {len(found.sources)}"
            raise RecipeError(Problem("L811", message, "models"))
        both, alignments = _aligned(found, align, tell) if align is not False else (found, ())
        work = _Pairs(both, probe)
        result = Connection(tuple(both.labels), probe.names, {name: {} for name in probe.names})
        result.alignments = alignments
        mixed = work.check()
        for i, j in _lines(len(found.sources), len(both.sources)):
            for name, one in zip(probe.names, work.line(i, j, points, refine), strict=True):
                result.barriers[name][i, j] = one
            if layerwise:
                for name, layers in work.layers(i, j).items():
                    result.layers.setdefault(name, {})[i, j] = layers
        if plane is not None:
            corners = [work.ends[number] for number in range(len(found.sources))]
            result.planes = dict(zip(probe.names, measured_planes(found, probe, plane, corners), strict=True))
        result.notes = (*([_MIXED] if mixed and not probe.resets else []), *_without_loss(result))
    return result


def _aligned(
    found: Opened, how: bool | Mapping[str, Any], tell: Callable[[str], None] | None
) -> tuple[Opened, tuple[Alignment, ...]]:
    """The models, and behind them those once more that an alignment to the first moves."""
    first, *others = found.sources
    sources, labels, alignments = list(found.sources), list(found.labels), []
    for source, label in zip(others, found.labels[1:], strict=True):
        if tell:
            tell(f"the alignment of {label}")
        one = find_alignment(first, source, **(how if isinstance(how, Mapping) else {}))
        alignments.append(one)
        if one.moves != Moves():  # else its lines are those of the model as it is
            sources.append(one.source(source, label=f"{label} aligned"))
            labels.append(f"{label} aligned")
    return Opened(sources, labels), tuple(alignments)


def _lines(count: int, total: int) -> list[tuple[int, int]]:
    """The pairs of models as they are, then those of the first and of the models that are aligned to it."""
    return [*combinations(range(count), 2), *combinations([0, *range(count, total)], 2)]


def _without_loss(found: Connection) -> list[str]:
    """What to tell of tasks that measure an error alone."""
    first = {task: next(iter(pairs.values())).curve for task, pairs in found.barriers.items()}
    return [
        f"{task} measures no loss: its barriers are those of the error ({curve.metric})"
        for task, curve in first.items()
        if curve.quantity == "error"
    ]


class _Pairs:
    """Measures paths between the models, each model by itself only once."""

    def __init__(self, models: Opened, probe: Probe) -> None:
        self._sources = models.sources
        self._labels = models.labels
        self._probe = probe
        # Model → its scores, once it was the end of a line.
        self.ends: dict[int, Sequence[Score]] = {}

    def check(self) -> bool:
        """Refuses what cannot be done, for all models; whether statistics of batch normalisation would be mixed."""
        count = len(self._sources)
        mixed = averaged_statistics(mixture(self._sources, [1 / count] * count))
        for i in range(count - 1):  # each that gives a mixture its config and tokenizer
            self._probe.check(self._straight(i, i + 1))
        return mixed

    def line(self, i: int, j: int, points: int, refine: int) -> list[Barrier]:
        """The barrier of each task between two models."""
        ends = {0.0: i, 1.0: j}
        return measured(
            self._straight(i, j),
            self._probe,
            (self._labels[i], self._labels[j]),
            points,
            refine,
            lambda t, source: self._end(ends[t], source) if t in ends else self._probe.scores(source),
        )

    def layers(self, i: int, j: int) -> Mapping[str, list[Layer]]:
        """For each task every layer's path from model i to model i with the layer of model j."""
        found: dict[str, list[Layer]] = {name: [] for name in self._probe.names}
        for name in layers_of(self._sources[i]):
            label = f"{self._labels[i]} with {name} of {self._labels[j]}"
            path = straight(self._sources[i], self._sources[j], label, only=name)
            ends = (self._labels[i], label)
            for task, one in zip(found, self._layer(path, ends, i), strict=True):
                found[task].append(Layer(name, one))
        return found

    def _layer(self, path: Path, ends: tuple[str, str], i: int) -> list[Barrier]:
        def score(t: float, source: Source) -> Sequence[Score]:
            return self._end(i, source) if t == 0.0 else self._probe.scores(source)

        return measured(path, self._probe, ends, LAYER_POINTS, 0, score)

    def _end(self, model: int, source: Source) -> Sequence[Score]:
        if model not in self.ends:
            self.ends[model] = self._probe.scores(source)
        return self.ends[model]

    def _straight(self, i: int, j: int) -> Path:
        return straight(self._sources[i], self._sources[j], f"{self._labels[i]} → {self._labels[j]}")
