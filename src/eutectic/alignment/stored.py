"""A checkpoint as a module whose tensors have the names that they are stored by, whatever the module calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from eutectic.checkpoint import MemorySource, Source
from eutectic.evaluate import Loader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class Stored(nn.Module):
    """Runs the module that `transformers` makes of the tensors held here: it renames and fuses what it loads.

    Each call loads it anew, in float64.
    """

    def __init__(self, source: Source) -> None:
        """Reads every tensor of a model with config.json beside it."""
        super().__init__()
        self._source = source
        for name in source.specs:
            *path, last = name.split(".")
            place: nn.Module = self
            for step in path:
                if step not in dict(place.named_children()):
                    place.add_module(step, nn.Module())
                place = place.get_submodule(step)
            place.register_buffer(last, source[name])

    def __deepcopy__(self, memo: dict[int, Any]) -> Stored:
        made = Stored(_Beside(self._source, self.state_dict()))
        memo[id(self)] = made
        return made

    def forward(self, **inputs: Any) -> Any:
        """What the module makes of keyword arguments."""
        source = _Beside(self._source, self.state_dict())
        with (
            Loader().module(source, "saved", dtype="float64") as made,
            # In inference mode, which loaders give modules in, operations hide their dtypes from `check`.
            torch.inference_mode(False),
            torch.no_grad(),
        ):
            return made(**inputs)


class _Beside(MemorySource):
    """Tensors in the place of a model's own."""

    def __init__(self, source: Source, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(source.label, {name: torch.clone(tensors[name]) for name in source.specs})
        self._source = source

    def folder(self) -> str | None:
        return self._source.folder()

    def beside(self, name: str) -> bytes | None:
        return self._source.beside(name)
