"""A source some of whose tensors were computed: they are read from memory, all else from where it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eutectic.checkpoint.memory import MemorySource
from eutectic.checkpoint.source import Source
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")


class Overlaid(Source):
    """A source with other values for some of its tensors. Config, tokenizer and files beside are the source's own.

    Args:
        source: what is read where nothing else is said. Closing the view closes it.
        tensors: name (or tied name) → its values, of the stored shape; rounded once to the stored dtype.
        about: what its identity says besides, plain data.
        label: its short name.
    """

    def __init__(self, source: Source, tensors: Mapping[str, Tensor], about: Mapping[str, Any], label: str) -> None:
        self.label, self.specs, self.ties, self.metadata = label, source.specs, source.ties, source.metadata
        self.implied, self.ignored, self.rounds = source.implied, source.ignored, source.rounds
        self.chat_template = source.chat_template
        stored = {source.ties.get(name, name): tensor for name, tensor in tensors.items()}
        self._source, self._about = source, dict(about)
        self._values = MemorySource(
            label, {name: tensor.to(getattr(torch, self.specs[name].dtype)) for name, tensor in stored.items()}
        )
        for name, spec in self._values.specs.items():
            if spec.shape != self.specs[name].shape:
                raise ValueError(f"{name} is of shape {spec.shape}, and {self.specs[name].shape} is stored")

    def read_into(self, name: str, start: int, stop: int, out: memoryview) -> None:
        """See `Source.read_into`."""
        (self._values if name in self._values.specs else self._source).read_into(name, start, stop, out)

    def identity(self) -> dict[str, Any]:
        """That of the source, and what was said of the changes."""
        return {**self._source.identity(), **self._about}

    def check_unchanged(self) -> None:
        """See `Source.check_unchanged`."""
        self._source.check_unchanged()

    def working_bytes(self) -> int:
        """See `Source.working_bytes`."""
        return self._source.working_bytes()

    def close(self) -> None:
        """Closes the source."""
        self._source.close()

    def folder(self) -> str | None:
        """The source's."""
        return self._source.folder()

    def tokenizer_folder(self) -> str | None:
        """The source's."""
        return self._source.tokenizer_folder()

    def beside(self, name: str) -> bytes | None:
        """The source's."""
        return self._source.beside(name)
