"""Random masks cannot be compared bit by bit: shares and means are, on rows whose magnitudes grow from 1 to 512."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peer import Peer
from torch import Tensor

from parity.cases import Case
from parity.compare import Task, ours, stored_inputs, theirs

KIND = "ramp"
STORED = "float32"
# Two draws are this many standard deviations of their difference apart in one of 16,000 comparisons.
DEVIATIONS = 4.0


@dataclass(frozen=True)
class Draw:
    """What a mask did: share of entries kept, in all and of the smallest and largest tenth; mean over the true mean."""

    kept: float
    smallest: float
    largest: float
    mean: float

    @classmethod
    def of(cls, change: Tensor, delta: Tensor) -> Draw:
        """The figures of a masked delta."""
        kept, tenth = (change != 0).double(), change.shape[1] // 10
        shares = (kept, kept[:, :tenth], kept[:, -tenth:])
        return cls(*(float(share.mean()) for share in shares), float(change.double().mean() / delta.double().mean()))


@dataclass(frozen=True)
class Comparison:
    """A masked method by both."""

    case: Case
    ours: Draw
    theirs: Draw
    entries: int

    @property
    def agrees(self) -> bool:
        """True if the shares may be those of one distribution."""
        pairs = (
            (self.ours.kept, self.theirs.kept, self.entries),
            (self.ours.smallest, self.theirs.smallest, self.entries / 10),
            (self.ours.largest, self.theirs.largest, self.entries / 10),
        )
        return all(abs(a - b) <= DEVIATIONS * math.sqrt(2 * a * (1 - a) / count) for a, b, count in pairs)


def compare(cases: Sequence[Case], peer: Peer, scratch: Path) -> list[Comparison]:
    """Every masked case of a peer."""
    tensors = {name: tensor for name, tensor in stored_inputs().items() if name.startswith(KIND)}
    wanted = [Task(case, 1, KIND, STORED, "") for case in cases]
    answers = theirs(wanted, peer, scratch, tensors)
    found = []
    for number, case in enumerate(cases):
        base, model = (tensors[f"{KIND}/{STORED}/{index}"] for index in range(2))
        mine = ours(case, 1, tensors, {f"{KIND}/{STORED}"})[f"{KIND}/{STORED}"]
        draws = [Draw.of(result - base, model - base) for result in (mine, answers.results[number])]
        found.append(Comparison(case, *draws, base.numel()))
    return found
