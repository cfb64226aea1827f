"""What matching finds: the moves of the second model, and what they are worth. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from eutectic.checkpoint.symmetry import Moves
from eutectic.errors import several


@dataclass(frozen=True, slots=True)
class Change:
    """What matching did to one group of units.

    Attributes:
        units: how many there are.
        moved: how many are not where they were.
        before: ‖A - B‖² over the tensors that have units of the group.
        after: the same once B has moved.
    """

    units: int
    moved: int
    before: float
    after: float


@dataclass(frozen=True)
class Match:
    """How the second model, B, is to move so that it stands where the first, A, does.

    Attributes:
        moves: of B, without what stays as it is: fine-tunes of one base have none.
        objective: what was maximised, after every sweep, never less than the sweep before; float64.
        start: the objective of what matching began with.
        before: ‖A - B‖² over all tensors that vote.
        after: the same once B has moved. 1 - after/before is what a merge has to gain from the moves.
        changes: by group.
        notes: what was decided on the way, in sentences.
    """

    moves: Moves
    objective: tuple[float, ...]
    start: float
    before: float = 0.0
    after: float = 0.0
    changes: Mapping[str, Change] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        units, moved = (sum(getattr(one, key) for one in self.changes.values()) for key in ("units", "moved"))
        steps, groups = several(len(self.objective), "step"), several(len(self.changes), "group")
        reached = f"objective {self.start:.6g} → {[self.start, *self.objective][-1]:.6g} in {steps}"
        distance = f"distance² {self.before:.4g} before and {self.after:.4g} after"
        return f"<Match: {moved} of {several(units, 'unit')} in {groups} move, {reached}, {distance}; see .changes>"

    @property
    def gain(self) -> float:
        """The part of ‖A - B‖² that the moves take away; 0 for models that do not differ."""
        return 1 - self.after / self.before if self.before > 0 else 0.0
