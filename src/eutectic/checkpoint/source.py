"""Source: a lazy mapping *name → tensor* that knows every dtype and shape before a weight is read."""

from __future__ import annotations

import math
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from eutectic import dtypes
from eutectic.errors import several
from eutectic.kernels.digests import tensor_digest
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")


@dataclass(frozen=True, slots=True)
class Spec:
    """What a header says of one tensor. `dtype` is torch's name, `shape` is row-major."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.numel * dtypes.itemsize(self.dtype)


class Source(Mapping[str, "torch.Tensor"]):
    """A checkpoint, a live module, a merge: anything whose tensors can be read by name, whole or in part.

    As a mapping it yields torch tensors, tied names included, so `module.load_state_dict(dict(source))` works.
    The engine uses `specs` and `read_into` alone. Implementations set the four attributes and give `read_into`.

    Attributes:
        label: short stable name, for messages and for keying random masks; never an absolute path.
        specs: dtype and shape of every stored tensor.
        ties: other name → stored name, for tensors that share their memory.
        metadata: the checkpoint's own string metadata (safetensors `__metadata__`), often empty.
        implied: other name → stored name, for tensors that are not stored and that config.json says are tied; not part
            of the mapping, since not every model class has them.
        ignored: stored tensor → why it is not part of the mapping.
        rounds: tensor that is read wider than it is stored, as it is computed → the dtype that it is stored with.
        chat_template: the Jinja text that a merge gives its tokenizer; None where that of the files stays.
        path: the absolute path it was opened by; empty for what has none of its own. Tells apart what has one label.
    """

    label: str
    specs: Mapping[str, Spec]
    ties: Mapping[str, str]
    metadata: Mapping[str, str]
    implied: Mapping[str, str] = MappingProxyType({})
    ignored: Mapping[str, str] = MappingProxyType({})
    rounds: Mapping[str, str] = MappingProxyType({})
    chat_template: str | None = None
    path: str = ""

    @abstractmethod
    def read_into(self, name: str, start: int, stop: int, out: memoryview) -> None:
        """Writes the stored bytes of elements `start:stop` (flat, row-major) of a tensor of `specs` into `out`.

        `out` is a writable byte view of exactly `(stop - start) * itemsize` bytes. Safe from several threads.
        Raises `CheckpointError` if the bytes cannot be read or the file changed.
        """

    def identity(self) -> dict[str, Any]:
        """What names these weights in a manifest: files with sizes and header digests. Plain JSON data."""
        return {"label": self.label}

    def stamp(self) -> Any:
        """JSON data that differs when the content may differ. Live tensors cannot tell, so they never repeat one."""
        return uuid.uuid4().hex

    def files(self) -> Mapping[str, int] | None:
        """Path, links followed → time of the last change in ns, of every file of weights; None for those in memory."""
        return None

    def check_unchanged(self) -> None:
        """Raises `CheckpointError` if a file behind this source changed since it was opened."""

    def working_bytes(self) -> int:
        """Memory that reading takes at most in a thread, beside what is read; 0 where bytes are read as they lie."""
        return 0

    def close(self) -> None:
        """Releases files. A closed source cannot be read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def folder(self) -> str | None:
        """The folder that holds config and tokenizer beside the weights, if there is one."""
        return None

    def tokenizer_folder(self) -> str | None:
        """The folder that holds the tokenizer, if there is one: of a merge, where its recipe takes it from."""
        return self.folder()

    def digest(self, name: str) -> str:
        """The digest of a stored tensor's bytes, as manifests have it; reads all of it, a block at a time."""
        spec = self.specs[name]
        return tensor_digest(spec.numel, dtypes.itemsize(spec.dtype), partial(self.read_into, name))

    def beside(self, name: str) -> bytes | None:
        """The content of a small file that stands beside the weights; None if there is none."""
        return None

    def __getitem__(self, name: str) -> torch.Tensor:
        name = self.ties.get(name, name)
        spec = self.specs[name]
        tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
        if spec.numel:
            view = tensor.reshape(-1).view(torch.uint8).numpy().data
            self.read_into(name, 0, spec.numel, view)
        return tensor

    def __contains__(self, name: object) -> bool:
        # Without this, Mapping would read the whole tensor to find out.
        return name in self.specs or name in self.ties

    def __iter__(self) -> Iterator[str]:
        yield from self.specs
        yield from self.ties

    def __len__(self) -> int:
        return len(self.specs) + len(self.ties)

    def __repr__(self) -> str:
        total = sum(spec.nbytes for spec in self.specs.values())
        return f"<{type(self).__name__} {self.label!r}: {several(len(self.specs), 'tensor')}, {total:,} bytes>"
