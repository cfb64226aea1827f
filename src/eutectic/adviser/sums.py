"""What is added up over entries, tensors and layers, and the statistics that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Sums:
    """Sums over the entries of one or more tensors of 1 + K rows: an origin and K models. δₖ is model k - origin.

    Matrices `(K, K)` hold what stands at or below the diagonal.

    Attributes:
        tensors, entries: how many.
        own: Σ x² of every row.
        pairs: Σ δᵢδⱼ and Σ |δᵢδⱼ|.
        signs: entries that both models change, and that they change in opposite directions.
        sizes: Σ |δ|, and that of entries where half of δ, added to the origin in bfloat16, is lost.
        changed: entries where δ is not zero.
        untouched: tensors that equal the origin's.
        shared: entries among the largest of both models; on the diagonal, of one. See `statistics.TOP`.
        chance: Σ over tensors of what `shared` would be if the largest entries lay anywhere.
        ranks: Σ of effective rank as a share of the smaller side, times entries; Σ of those entries.
    """

    tensors: int
    entries: int
    own: NDArray[np.float64]
    pairs: NDArray[np.float64]
    signs: NDArray[np.int64]
    sizes: NDArray[np.float64]
    changed: NDArray[np.int64]
    untouched: NDArray[np.int64]
    shared: NDArray[np.int64]
    chance: NDArray[np.float64]
    ranks: NDArray[np.float64]

    @classmethod
    def zeros(cls, models: int) -> Sums:
        """Of nothing."""
        return cls(
            0,
            0,
            np.zeros(1 + models),
            np.zeros((2, models, models)),
            np.zeros((2, models, models), np.int64),
            np.zeros((2, models)),
            np.zeros(models, np.int64),
            np.zeros(models, np.int64),
            np.zeros((models, models), np.int64),
            np.zeros((models, models)),
            np.zeros((2, models)),
        )

    def add(self, other: Sums) -> None:
        """Takes in the sums over other tensors."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    @property
    def models(self) -> int:
        """K."""
        return len(self.changed)

    # Rows: 0 is the origin, k + 1 model k.

    def norm(self, row: int) -> float:
        """‖x‖ of a row."""
        return math.sqrt(self.own[row])

    def distance(self, a: int, b: int) -> float:
        """‖a - b‖ of two rows, from their differences to the origin."""
        square = _gram(self.pairs[0], a, a) + _gram(self.pairs[0], b, b) - 2 * _gram(self.pairs[0], a, b)
        return math.sqrt(max(0.0, square))

    def relative_distance(self, a: int, b: int) -> float | None:
        """The distance of two rows over the geometric mean of their norms: about √2 for unrelated weights."""
        return _ratio(self.distance(a, b), math.sqrt(self.norm(a) * self.norm(b)))

    def direction(self, origin: int, a: int, b: int) -> float | None:
        """The cosine of the differences of rows a and b to any third row."""
        pairs = self.pairs[0]
        between = _gram(pairs, a, b) - _gram(pairs, a, origin) - _gram(pairs, b, origin) + _gram(pairs, origin, origin)
        return _cosine(between, self.distance(a, origin), self.distance(b, origin))

    # Models towards the origin.

    def change(self, model: int) -> float | None:
        """‖δ‖ / ‖origin‖."""
        return _ratio(math.sqrt(self.pairs[0, model, model]), self.norm(0))

    def cosine(self, a: int, b: int) -> float | None:
        """The cosine of two models' differences."""
        return self.direction(0, a + 1, b + 1)

    def opposed(self, a: int, b: int) -> float | None:
        """Of the entries that both models change, the share that they change in opposite directions."""
        return _ratio(_lower(self.signs[1], a, b), _lower(self.signs[0], a, b))

    def opposed_by_size(self, a: int, b: int) -> float | None:
        """The same, each entry counted by |δᵢδⱼ|."""
        size = _lower(self.pairs[1], a, b)
        found = _ratio(size - _lower(self.pairs[0], a, b), 2 * size)
        return None if found is None else min(max(found, 0.0), 1.0)

    def overlap(self, a: int, b: int) -> float | None:
        """How many of the largest entries two models share, over the geometric mean of how many each has."""
        return _ratio(_lower(self.shared, a, b), math.sqrt(float(self.shared[a, a]) * float(self.shared[b, b])))

    def overlap_by_chance(self, a: int, b: int) -> float | None:
        """What the overlap would be if each model's largest entries lay anywhere in their tensors."""
        return _ratio(_lower(self.chance, a, b), math.sqrt(float(self.shared[a, a]) * float(self.shared[b, b])))

    def lost(self, model: int) -> float | None:
        """The share of Σ|δ| whose half vanishes when it is added to the origin and rounded to bfloat16."""
        return _ratio(self.sizes[1, model], self.sizes[0, model])

    def mean_change(self, model: int) -> float | None:
        """The mean |δ|."""
        return _ratio(self.sizes[0, model], self.entries)

    def share_changed(self, model: int) -> float | None:
        """The share of entries that differ from the origin."""
        return _ratio(self.changed[model], self.entries)

    def rank(self, model: int) -> float | None:
        """The effective rank of δ as a share of the smaller side, a mean over matrices weighted by their entries."""
        return _ratio(self.ranks[0, model], self.ranks[1, model])

    def as_json(self, *, base: bool) -> dict[str, Any]:
        """Every statistic; of the differences to the origin only where it is the base. Undefined ones are None."""
        rows = range(0 if not base else 1, self.models + 1)
        found: dict[str, Any] = {
            "tensors": self.tensors,
            "entries": self.entries,
            "distance": [[self.relative_distance(a, b) for b in rows] for a in rows],
        }
        if base:
            found |= {name: [function(k) for k in range(self.models)] for name, function in self._of_one().items()}
            found |= {
                name: [[function(a, b) for b in range(self.models)] for a in range(self.models)]
                for name, function in self._of_two().items()
            }
        return found

    def _of_one(self) -> dict[str, Any]:
        return {
            "change": self.change,
            "mean_change": self.mean_change,
            "share_changed": self.share_changed,
            "lost_in_bfloat16": self.lost,
            "effective_rank": self.rank,
        }

    def _of_two(self) -> dict[str, Any]:
        return {
            "cosine": self.cosine,
            "opposed": self.opposed,
            "opposed_by_size": self.opposed_by_size,
            "overlap": self.overlap,
            "overlap_by_chance": self.overlap_by_chance,
        }


def _lower(matrix: NDArray[Any], a: int, b: int) -> float:
    return float(matrix[max(a, b), min(a, b)])


def _gram(pairs: NDArray[Any], a: int, b: int) -> float:
    """⟨a, b⟩ of two rows' differences to row 0, whose own is zero."""
    return _lower(pairs, a - 1, b - 1) if a and b else 0.0


def _ratio(part: float, whole: float) -> float | None:
    return float(part) / float(whole) if whole else None


def _cosine(between: float, a: float, b: float) -> float | None:
    found = _ratio(between, a * b)
    return None if found is None else min(max(found, -1.0), 1.0)
