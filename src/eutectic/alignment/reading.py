"""A model as matching reads it: a tensor, a slice or a block of rows at a time, moved, the last ones kept."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from eutectic.checkpoint.source import Source, Spec
from eutectic.checkpoint.symmetry import Moves, Symmetries
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

# Entries of a block of rows. Embeddings are read in blocks: widened and moved at once they would be the peak.
BLOCK = 1 << 24


class Cache:
    """Tensors that were read last, as they are stored, within a bound that all readings share.

    Args:
        memory: bytes.
    """

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._held = 0
        self._kept: OrderedDict[tuple[int, str, int], Tensor] = OrderedDict()

    def get(self, key: tuple[int, str, int]) -> Tensor | None:
        """What was put there, if it is still there."""
        if (found := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: tuple[int, str, int], tensor: Tensor) -> None:
        """Keeps a tensor, and lets go of those that were not asked for longest."""
        if tensor.nbytes > self._memory:
            return
        self._kept[key] = tensor
        self._held += tensor.nbytes
        while self._held > self._memory:
            self._held -= self._kept.popitem(last=False)[1].nbytes


class Reading:
    """One model's tensors by the names of its table.

    Attributes:
        specs: of tensors, and of slices that are units each by its name.
    """

    def __init__(self, source: Source, symmetries: Symmetries, cache: Cache) -> None:
        self._source = source
        self._symmetries = symmetries
        self._cache = cache
        self._movers: dict[str, set[str]] = {}
        self.specs: dict[str, Spec] = symmetries.apart(source.specs)

    def blocks(self, name: str, moves: Moves) -> Iterator[Tensor]:
        """What takes a place, as the moves make it, float32 at least, in blocks of rows if its rows stay.

        Two models of one table give blocks of the same shapes.
        """
        spec = self.specs[name]
        rows = spec.shape[0] if spec.shape else 1
        step = rows
        if spec.shape and not any(_moves(self._symmetries, name)):
            step = max(1, BLOCK // max(1, math.prod(spec.shape[1:])))
        taker = self._symmetries.taker(name, moves)
        moves = self._local(name, moves)
        for first in range(0, rows, max(1, step)):
            block = self._symmetries.moved(name, self._read(taker, first, min(rows, first + step)), moves)
            yield block if block.dtype == torch.float64 else block.float()

    def _local(self, name: str, moves: Moves) -> Moves:
        """Of moves those that a tensor sees: the inverses of all other matrices are not asked for."""
        if name not in self._movers:
            factors = [one for parts in self._symmetries.axes[name] for part in parts for one in part.factors]
            self._movers[name] = {one for factor in factors for one in (factor.group, factor.gauge) if one is not None}
        seen = self._movers[name]
        return Moves(
            *({one: of[one] for one in seen & of.keys()} for of in (moves.orders, moves.scales, moves.matrices))
        )

    def _read(self, name: str, first: int, last: int) -> Tensor:
        key = (id(self), name, first)
        if (kept := self._cache.get(key)) is not None:
            return kept
        spec = self.specs[name]
        row = math.prod(spec.shape[1:])
        count = (last - first) * row
        tensor = torch.empty(count, dtype=getattr(torch, spec.dtype))
        whole, start = name, first * row
        if name not in self._source.specs:
            whole, _, unit = name[:-1].rpartition("[")
            start += int(unit) * spec.numel
        if count:
            self._source.read_into(whole, start, start + count, tensor.view(torch.uint8).numpy().data)
        tensor = tensor.reshape(last - first, *spec.shape[1:]) if spec.shape else tensor.reshape(())
        self._cache.put(key, tensor)
        return tensor


def _moves(symmetries: Symmetries, name: str) -> Iterator[bool]:
    """Whether the factors of a tensor's first axis can move."""
    for part in symmetries.axes[name][0]:
        yield from (factor.group is not None or factor.gauge is not None for factor in part.factors)
