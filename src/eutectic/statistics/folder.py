"""The folder of statistics on its way to the disk: tensors as they are finished, running sums between batches."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from eutectic._version import __version__
from eutectic.checkpoint import REAL, Spec, Storage, open_file, write_header
from eutectic.checkpoint.layout import INDEX, index_of, lay_out
from eutectic.checkpoint.output import WORK, AlreadyCompleteError, Output
from eutectic.checkpoint.statistics import ABOUT, FORMAT
from eutectic.errors import CheckpointError, NumericError
from eutectic.evaluate.content import digest_of_bytes, digest_of_json
from eutectic.kernels.digests import tensor_digest
from eutectic.lazy import LazyModule
from eutectic.statistics.model import Collector

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

_STATE = "state.safetensors"
SHARD_BYTES = 5 * 10**9
# Entries that are widened to float64 at a time.
_AT_ONCE = 1 << 20


class Folder:
    """An output folder of statistics. It appears whole, and unfinished work is kept beside it.

    Args:
        path: the folder to make.
        shapes: of every tensor; all are float32.
        identity: plain data that decides every byte; unfinished work with another one is not gone on with.
        stamps: of the files that go in.
        replace: whether an existing folder of statistics may be replaced.
        shard_bytes: largest file.
        storage: the file system.
    """

    def __init__(
        self,
        path: str,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        identity: Any,
        stamps: Any,
        replace: bool = False,
        shard_bytes: int = SHARD_BYTES,
        storage: Storage = REAL,
    ) -> None:
        self.path = os.path.realpath(path)
        specs = {name: Spec("float32", tuple(shape)) for name, shape in shapes.items()}
        self._shards = lay_out(specs, {"format": "pt"}, shard_bytes)
        self._bytes = sum(spec.nbytes for spec in specs.values())
        self._number = {name: number for number, name in enumerate(specs)}
        self._fingerprint = digest_of_json([identity, {name: list(shape) for name, shape in shapes.items()}])
        self._key = digest_of_json([self._fingerprint, stamps])
        self._storage = storage
        self._state = os.path.join(self.path + WORK, _STATE)
        self._output = Output(
            path,
            self._shards,
            [(name, spec.numel, 4) for name, spec in specs.items()],
            fingerprint=self._fingerprint,
            stamps=stamps,
            replace=replace,
            manifest=ABOUT,
            storage=storage,
        )
        self.complete = False

    def __enter__(self) -> Self:
        """Opens it; `complete` says whether it is there already. Raises as `Output.open`."""
        try:
            self._output.open()
        except AlreadyCompleteError:
            self.complete = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None:
            # The same data would meet the same NaN: what was finished before it is of no use.
            self._output.abandon(remove=issubclass(kind, NumericError))

    def has(self, names: Mapping[str, Any]) -> bool:
        """Whether all these tensors are finished."""
        return all(self._number[name] in self._output.records for name in names)

    def write(self, tensors: Mapping[str, Tensor], **about: Any) -> None:
        """Finished tensors, with what is to be remembered of each."""
        for name, tensor in tensors.items():
            bits: Any = tensor.detach().cpu().contiguous().reshape(-1).numpy()
            raw = memoryview(bits.view("uint8"))
            number = self._number[name]
            self._output.write(number, 0, raw)

            def read(start: int, stop: int, view: memoryview, raw: memoryview = raw) -> None:
                view[:] = raw[4 * start : 4 * stop]

            digest = tensor_digest(bits.size, 4, read)
            pieces = (bits[at : at + _AT_ONCE].astype(float) for at in range(0, bits.size, _AT_ONCE))
            square = math.fsum(float((piece**2).sum()) for piece in pieces)
            own = {key: value[name] for key, value in about.items()}
            self._output.finish(number, {"digest": digest, "square": square, **own})

    def keep(self, collector: Collector, batches: int) -> None:
        """Keeps running sums, so that the next run goes on after so many batches."""
        progress = [batches, collector.samples, collector.positions, collector.counts]
        specs = {name: Spec("float32", tuple(tensor.shape)) for name, tensor in collector.sums.items()}
        header, offsets = write_header(specs, {"key": self._key, "progress": json.dumps(progress)})
        temporary, storage = f"{self._state}.tmp.safetensors", self._storage
        descriptor = storage.create(temporary)
        try:
            storage.truncate(descriptor, 0)
            storage.write(descriptor, header, 0)
            for name, tensor in collector.sums.items():
                if tensor.numel():
                    storage.write(descriptor, tensor.cpu().contiguous().reshape(-1).numpy(), offsets[name])
            storage.sync(descriptor)
        finally:
            storage.close(descriptor)
        storage.rename(temporary, self._state)

    def recall(self, collector: Collector) -> int:
        """Takes up running sums that were kept of these units; returns the number of batches in them."""
        if not self._storage.exists(self._state):
            return 0
        try:
            with open_file(self._state, "state", self._storage) as kept:
                found = json.loads(kept.metadata.get("progress", "[0, 0, 0, {}]"))
                if kept.metadata.get("key") != self._key or found[3].keys() != collector.counts.keys():
                    return 0
                for name, total in collector.sums.items():
                    total.copy_(kept[name])
        except CheckpointError:
            return 0
        batches, collector.samples, collector.positions, collector.counts = found
        return int(batches)

    def forget(self) -> None:
        """Removes what was kept."""
        for path in (self._state, f"{self._state}.tmp.safetensors"):
            self._storage.unlink(path)

    def finish(self, about: Mapping[str, Any]) -> None:
        """Writes statistics.json and lets the folder appear."""
        self._output.flush()
        self.forget()
        records = {name: self._output.records[number] for name, number in self._number.items()}
        files = {}
        if (index := index_of(self._shards, self._bytes)) is not None:
            files[INDEX] = index
        body = {
            "format": FORMAT,
            "eutectic": __version__,
            "fingerprint": self._fingerprint,
            **about,
            "norm": math.sqrt(math.fsum(record["square"] for record in records.values())),
            "counts": {name: record["count"] for name, record in records.items()},
            "weights": {shard.name: shard.identity() for shard in self._shards},
            "files": {name: digest_of_bytes(data) for name, data in files.items()},
        }
        self._output.complete(files, (json.dumps(body, indent=1) + "\n").encode())

    def recorded(self, key: str) -> Any:
        """What was remembered of the first tensor."""
        return self._output.records[0][key]

    def unseen(self) -> list[str]:
        """Finished tensors that are means over nothing."""
        records = self._output.records
        return [name for name, number in self._number.items() if not records[number]["count"]]

    def flush(self) -> None:
        """Makes durable what is finished."""
        self._output.flush()
