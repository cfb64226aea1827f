"""What is collected: the tensors of each kind before the data are read, and the means after."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from eutectic.errors import NumericError, Problem
from eutectic.lazy import LazyModule
from eutectic.statistics.batches import Batch

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

Kind = Literal["fisher", "gram", "activations"]
KINDS: tuple[Kind, ...] = ("fisher", "gram", "activations")


@dataclass(frozen=True, slots=True)
class Layout:
    """What there is to collect, known before the data are gone through.

    Attributes:
        units: what is collected together → its tensors' names → their shapes. A unit is called as its parameter.
        shared: weight → the weight whose statistics are its own too, as their layers have the very same input.
        bias: weight → bias, where a one stands behind the last input, so that the bias is solved with the weight.
        transposed: weights of shape (inputs, outputs).
        groups: weight → groups of its convolution, where there are several.
        left_out: parameter → why nothing is collected for it.
    """

    units: Mapping[str, Mapping[str, tuple[int, ...]]]
    shared: Mapping[str, str] = field(default_factory=dict)
    bias: Mapping[str, str] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    groups: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape."""
        return {name: shape for tensors in self.units.values() for name, shape in tensors.items()}

    def as_json(self) -> dict[str, Any]:
        """What a reader of the tensors must know, as plain data."""
        plain = {"shared": self.shared, "bias": self.bias, "groups": self.groups, "left_out": self.left_out}
        return {**{key: dict(value) for key, value in plain.items()}, "transposed": list(self.transposed)}


class Collector(ABC):
    """Goes through batches and keeps running sums of some units at a time.

    Attributes:
        kind: of statistics.
        layout: all there is to collect.
        samples: seen since `start`.
        positions: of those that are not padding, where the batches tell.
        sums: the tensors of the units that are being collected, float32.
        counts: unit → what its sums are sums over.
        notes: how it is done, where that is not the usual way.
    """

    kind: Kind
    layout: Layout
    notes: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.samples = 0
        self.positions = 0
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self._watched: list[tuple[str, Tensor]] = []

    def start(self, units: Iterable[str], device: torch.device | str) -> None:
        """Forgets what was collected, and begins with these units."""
        self.samples = self.positions = 0
        self.counts = dict.fromkeys(units, 0)
        shapes = {name: shape for unit in self.counts for name, shape in self.layout.units[unit].items()}
        self.sums = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}

    def add(self, batch: Batch) -> None:
        """Collects from a batch. Raises `NumericError` (F102) for NaN or infinity, with the layer."""
        self._watched = []
        self._collect(batch)
        self.samples += batch.size
        self.positions += batch.positions()
        if self._watched:
            finite = torch.stack([value for _, value in self._watched]).isfinite()
            if not bool(finite.all()):
                self._refuse(self._watched[int((~finite).nonzero()[0])][0], batch)

    def means(self) -> dict[str, Tensor]:
        """The means of the units that were collected; zeros for one that saw nothing."""
        return {
            name: self._whole(self.sums[name]).div_(max(1, count))
            for unit, count in self.counts.items()
            for name in self.layout.units[unit]
        }

    @abstractmethod
    def _collect(self, batch: Batch) -> None:
        """Adds a batch to the sums and counts."""

    def _whole(self, total: Tensor) -> Tensor:
        """A sum as it is written."""
        return total

    def _watch(self, where: str, value: Tensor) -> None:
        """Notes a number of a layer that must be finite; looked at once a batch, which a GPU need not wait for."""
        self._watched.append((where, value.float()))

    def _refuse(self, where: str, batch: Batch) -> None:
        first = self.samples - batch.size + 1
        message = f"NaN or infinity in samples {first} to {self.samples}"
        hint = "a float16 overflow goes away with dtype float32; else weights or data are broken"
        raise NumericError(Problem("F102", message, where, hint))
