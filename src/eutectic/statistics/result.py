"""Statistics in memory, and what statistics.json says of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eutectic import dtypes
from eutectic.checkpoint import Source
from eutectic.errors import several
from eutectic.evaluate.content import content_of
from eutectic.kernels.digests import tensor_digest
from eutectic.statistics.folder import Folder
from eutectic.statistics.model import Collector, Kind, Layout

if TYPE_CHECKING:
    from torch import Tensor

MEANS: Mapping[Kind, str] = {
    "fisher": "over samples, of squares of gradients by sample",
    "gram": "over positions, of outer products of inputs",
    "activations": "over positions, of inputs and of their squares",
}


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Means that were collected of a module over data, in memory.

    Attributes:
        kind: `fisher`, `gram` or `activations`.
        tensors: name → mean, float32.
        counts: name → what it is a mean over: samples (fisher), or positions that the layer saw; 0: it saw none, and
            the tensor is zero.
        layout: which weights share statistics, and the like.
        samples: that were gone through.
        positions: of them that are not padding, where the batches tell; else 0.
        model: what names the module by its content.
        settings: how it was collected.
    """

    kind: Kind
    tensors: Mapping[str, Tensor]
    counts: Mapping[str, int]
    layout: Layout
    samples: int
    positions: int
    model: Mapping[str, Any]
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        counts = f"{several(len(self.tensors), 'tensor')} over {several(self.samples, 'sample')}"
        return f"<Statistics {self.kind}: {counts}; see .tensors>"

    def save(self, out: str | os.PathLike[str], *, replace: bool = False) -> None:
        """Writes the folder that `eutectic collect` would. Raises `OutputError`, or `RecipeError` (W401) if it exists.

        Args:
            out: the folder to make.
            replace: whether it may replace statistics that are there.
        """
        shapes = self.layout.shapes
        identity = [self.kind, self.model, self.settings, self.samples]
        with Folder(os.fspath(out), shapes, identity=identity, stamps=[self.model], replace=replace) as folder:
            if folder.complete:
                return
            folder.write(self.tensors, count=dict(self.counts))
            folder.finish(about(self))


def about(found: Statistics) -> dict[str, Any]:
    """What statistics.json says, but for what the folder knows of itself."""
    return {
        "kind": found.kind,
        "mean": MEANS[found.kind],
        "samples": found.samples,
        "tokens": found.positions,
        **found.settings,
        **found.model,
        **found.layout.as_json(),
    }


def result_of(collector: Collector, source: Source, settings: Mapping[str, Any]) -> Statistics:
    """What a collector has found, in memory."""
    counts = {name: collector.counts[unit] for unit, of in collector.layout.units.items() for name in of}
    return Statistics(
        collector.kind,
        collector.means(),
        counts,
        collector.layout,
        collector.samples,
        collector.positions,
        identity_of(source),
        settings,
    )


def identity_of(source: Source) -> dict[str, Any]:
    """What names a model by its content: label, digest of all, and of each stored tensor. Reads every weight."""
    digests = {}
    for name, spec in source.specs.items():

        def read(start: int, stop: int, view: memoryview, name: str = name) -> None:
            source.read_into(name, start, stop, view)

        digests[name] = tensor_digest(spec.numel, dtypes.itemsize(spec.dtype), read)
    content = content_of(source, lambda stamp, make: make())
    return {"model": {"label": source.label, "content": content}, "digests": digests}
