"""Where the units of a network can be seen while it runs: in the inputs of the layers that read them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eutectic.checkpoint.symmetry import Part, Symmetries
from eutectic.lazy import LazyModule
from eutectic.statistics.batches import Batch
from eutectic.statistics.inputs import matches, unmasked
from eutectic.statistics.layers import Layer, Names, hooked, layers_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")

# The axis of a weight along which its layer reads.
_READS = {"linear": 1, "transposed": 0, "conv": 1}


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Consecutive inputs of a layer that are units of one group, or of a product of several.

    Attributes:
        layer: that reads them.
        first: entry of its input at which they begin.
        part: what they are, in the layer's weight. Its fixed factors (the places behind a flatten) are samples.
    """

    layer: Layer
    first: int
    part: Part

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups whose units are seen, in the order of the factors."""
        return tuple(factor.group for factor in self.part.factors if factor.group is not None)

    @property
    def units(self) -> int:
        """Columns of its rows: the product of the sizes of its groups."""
        return math.prod(factor.size for factor in self.part.factors if factor.group is not None)

    @property
    def key(self) -> tuple[str, int]:
        """What this view is called in every model of the architecture."""
        return self.layer.weight, self.first

    def rows(self, x: Tensor, batch: Batch) -> Tensor:
        """Samples of the units: an input of the layer → a copy, (samples, units); padding counts nowhere."""
        if self.layer.form == "conv":
            rows = x.movedim(-1 - len(self.layer.module.kernel_size), -1).flatten(0, -2)
        else:
            rows = unmasked(x, batch)
        rows = rows[:, self.first : self.first + self.part.size]
        factors = self.part.factors
        apart = rows.reshape(len(rows), *(factor.size for factor in factors))
        places = [place for place, factor in enumerate(factors, 1) if factor.group is None]
        units = [place for place, factor in enumerate(factors, 1) if factor.group is not None]
        # A copy: the model may go on and change the input in place.
        return apart.permute(0, *places, *units).reshape(-1, self.units).clone()


def views_of(symmetries: Symmetries, module: nn.Module) -> list[View]:
    """Every view of a unit that a linear layer or convolution of the module reads, in the module's order.

    A layer is found by the name of its weight, so tensors of the table and of the module are called alike, but for
    the prefix of `transformers`' base models. Vectors that are seen in a basis of their own (a gauge: what heads hand
    on) are no view, as their coordinates mean nothing in another model; nor are the inputs of grouped convolutions.
    """
    return [
        View(layer, first, part)
        for layer in layers_of(module, Names(module, symmetries.axes))
        if layer.groups == 1
        for first, part in _placed(symmetries.axes[layer.weight][_READS[layer.form]])
        if any(factor.group for factor in part.factors)
        and all(factor.group or not factor.gauge for factor in part.factors)
    ]


def rows_of(module: nn.Module, views: Collection[View], batch: Batch) -> dict[tuple[str, int], list[Tensor]]:
    """Runs the module on a batch: the key of each view → the rows of each call of its layer; no call, no key.

    Rows that are neither samples nor positions of the batch (what a router sends to an expert), and those of a padded
    batch of which it is not known which are padding, are left out.
    """
    found: dict[tuple[str, int], list[Tensor]] = {}
    at: dict[int, list[View]] = {}
    for view in views:
        at.setdefault(id(view.layer), []).append(view)

    def look(layer: Layer, x: Tensor) -> None:
        if _belongs(layer, x, batch):
            for view in at[id(layer)]:
                found.setdefault(view.key, []).append(view.rows(x, batch))

    with torch.no_grad(), hooked([views[0].layer for views in at.values()], look):
        batch.run(module)
    return found


def distinct(module: nn.Module, views: Collection[View], batch: Batch) -> list[View]:
    """Those views that a run of the module on a batch shows, each once: layers of one input tensor see the same."""
    held: list[Tensor] = []
    calls: dict[int, list[tuple[int, int]]] = {}

    def note(layer: Layer, x: Tensor) -> None:
        if _belongs(layer, x, batch):
            held.append(x)  # its id stays its own
            calls.setdefault(id(layer), []).append((id(x), x._version))

    layers = {id(view.layer): view.layer for view in views}
    with torch.no_grad(), hooked(list(layers.values()), note):
        batch.run(module)
    owners: dict[object, View] = {}
    for view in views:
        if inputs := calls.get(id(view.layer)):
            owners.setdefault((*inputs, view.first, view.part), view)
    return list(owners.values())


def _placed(parts: Sequence[Part]) -> Iterator[tuple[int, Part]]:
    first = 0
    for part in parts:
        yield first, part
        first += part.size


def _belongs(layer: Layer, x: Tensor, batch: Batch) -> bool:
    """Whether row i of an input is of the same sample and place in every model that is given the batch."""
    if layer.form == "conv":
        return batch.mask is None
    return matches(x, batch) and len(x) % batch.size == 0 and (x.dim() > 2 or len(x) == batch.size)
