"""Where the bytes of each tensor lie in a checkpoint's files, and the Source that reads them from there."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eutectic import dtypes
from eutectic.checkpoint.source import Source, Spec
from eutectic.checkpoint.storage import REAL, Storage
from eutectic.errors import CheckpointError, Problem
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import numpy as np
else:
    np = LazyModule("numpy")

MAX_BESIDE = 64_000_000


@dataclass(frozen=True, slots=True)
class Extent:
    """The place of one tensor: absolute byte `offset` in `file`; `strides` in elements only when not contiguous."""

    file: str
    offset: int
    spec: Spec
    strides: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells that a file is still the one that was opened: size in bytes, time of change in ns, inode.

    `ctime_ns`, which no tool can set, is for telling one run from the next: archives and `rsync` put times of change
    back. Within a run it would tell too much, as a new hard link moves it.
    """

    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int = field(default=0, compare=False)

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        """The stamp in an `fstat`."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns)


def stamp_of(storage: Storage, path: str) -> Stamp:
    """The stamp of a regular file. Raises `OSError`."""
    fd = storage.open_read(path)
    try:
        return Stamp.of(storage.stat(fd))
    finally:
        storage.close(fd)


def unreadable(error: OSError, path: str, label: str = "", tensor: str = "") -> CheckpointError:
    """An `OSError` on a file of the model `label` as the error a user sees."""
    whose = f" of model {label!r}" if label else ""
    reason = error.strerror or str(error)
    hint = "check that the file is whole, that you may read it and that its disk is well"
    if error.errno == errno.EMFILE:
        hint = "let a process have more open files (`ulimit -n`), or merge fewer models at a time"
    return CheckpointError(Problem("C221", f"this file{whose} cannot be read: {reason}", tensor, hint, path))


def _close_all(storage: Storage, descriptors: dict[str, int]) -> None:
    while descriptors:
        # What was read was read, whatever closing says.
        with suppress(OSError):
            storage.close(descriptors.popitem()[1])


class FileSource(Source):
    """Tensors that lie in files at known places, read by position and never mapped.

    A memory-mapped file that another machine truncates kills the process; a read that comes up short is an error
    with a name. Each file has one descriptor, opened at its first read.
    """

    def __init__(
        self,
        label: str,
        extents: Mapping[str, Extent],
        *,
        ties: Mapping[str, str] | None = None,
        implied: Mapping[str, str] | None = None,
        ignored: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        folder: str | None = None,
        identity: Mapping[str, Any] | None = None,
        stamps: Mapping[str, Stamp] | None = None,
        storage: Storage = REAL,
    ) -> None:
        """Opens nothing yet.

        Args:
            label: the model's short name.
            extents: the place of every stored tensor.
            ties: other name → stored name.
            implied: other name → stored name, by config.json alone; see `Source`.
            ignored: stored tensor → why it is left out.
            metadata: the checkpoint's own string metadata.
            folder: what `folder()` answers.
            identity: what `identity()` answers, beside the label. Plain JSON data.
            stamps: file → what it was when its header was read; a file that is no longer so is refused at its
                first read. Files not named here are stamped when they are opened.
            storage: the file system.
        """
        self.label = label
        self.extents: Mapping[str, Extent] = dict(extents)
        self.specs = {name: extent.spec for name, extent in self.extents.items()}
        self.ties = dict(ties or {})
        self.implied = dict(implied or {})
        self.ignored = dict(ignored or {})
        self.metadata = dict(metadata or {})
        self._folder = folder
        self._identity = dict(identity or {})
        self._stamps = dict(stamps or {})
        self._real: dict[str, str] = {}
        self._storage = storage
        self._lock = threading.Lock()
        self._closed = False
        self._descriptors: dict[str, int] = {}
        self._gathered: tuple[str, memoryview] = ("", memoryview(b""))
        self._finalizer = weakref.finalize(self, _close_all, storage, self._descriptors)

    def read_into(self, name: str, start: int, stop: int, out: memoryview) -> None:
        """See `Source.read_into`. One positioned read where the tensor is contiguous."""
        extent = self.extents[name]
        size = dtypes.itemsize(extent.spec.dtype)
        if extent.strides is not None:
            out[:] = self._gather(name, extent)[start * size : stop * size]
            return
        self._read(name, extent.file, out, extent.offset + start * size)

    def identity(self) -> dict[str, Any]:
        """The label and whatever the opener found to name the weights by."""
        return {"label": self.label, **self._identity}

    def folder(self) -> str | None:
        """The folder of config and tokenizer, if there is one."""
        return self._folder

    def beside(self, name: str) -> bytes | None:
        """See `Source.beside`. Raises `CheckpointError` (C221) for a file that cannot be read."""
        path = os.path.join(self._folder or "", name)
        try:
            if self._folder is None or not self._storage.exists(path):
                return None
            return self._storage.read_bytes(path, MAX_BESIDE)
        except OSError as error:
            raise unreadable(error, path, self.label) from error

    def stamp(self) -> Any:
        """Size, both times of change and inode of every file, by its path."""
        return {self._led(path): [s.size, s.mtime_ns, s.ctime_ns, s.inode] for path, s in sorted(self._stamps.items())}

    def files(self) -> Mapping[str, int] | None:
        """Every file by its path, links followed, with its time of change when its header was read."""
        return {self._led(path): stamp.mtime_ns for path, stamp in self._stamps.items()}

    def _led(self, path: str) -> str:
        """Where links lead from a path. Asked once, as every plan of a sweep wants to know."""
        if path not in self._real:
            self._real[path] = os.path.realpath(path)
        return self._real[path]

    def check_unchanged(self) -> None:
        """Raises `CheckpointError` (C220) if a file was written to, replaced or removed since it was first seen.

        A file of which that cannot be known raises it too (C221).
        """
        for path, stamp in list(self._stamps.items()):
            try:
                same = stamp_of(self._storage, path) == stamp
            except FileNotFoundError as error:
                raise self._changed(path) from error
            except OSError as error:
                raise unreadable(error, path, self.label) from error
            if not same:
                raise self._changed(path)

    def close(self) -> None:
        """Closes the files. Reading afterwards raises `CheckpointError` (C222)."""
        with self._lock:
            self._closed = True
            self._finalizer()

    def _read(self, name: str, path: str, out: memoryview, offset: int) -> None:
        descriptor = self._descriptors.get(path)
        try:
            if descriptor is None:
                descriptor = self._open(path)
            self._storage.read_into(descriptor, out, offset)
        except OSError as error:
            self._blame_change(path, error)
            raise unreadable(error, path, self.label, name) from error

    def _open(self, path: str) -> int:
        with self._lock:
            if self._closed:
                message = f"model {self.label!r} was closed before this read"
                raise CheckpointError(Problem("C222", message, hint="open it again", file=path))
            if path in self._descriptors:
                return self._descriptors[path]
            descriptor = self._storage.open_read(path)
            try:
                stamp = Stamp.of(self._storage.stat(descriptor))
                if self._stamps.setdefault(path, stamp) != stamp:
                    raise self._changed(path)
            except BaseException:
                self._storage.close(descriptor)
                raise
            self._descriptors[path] = descriptor
            return descriptor

    def _gather(self, name: str, extent: Extent) -> memoryview:
        """All bytes of a strided tensor in row-major order. The last one is kept: it is asked for range by range."""
        kept, data = self._gathered
        if kept == name:
            return data
        spec, strides = extent.spec, extent.strides or ()
        dtype = np.dtype(dtypes.BY_NAME[spec.dtype].bits)
        last = sum((length - 1) * stride for length, stride in zip(spec.shape, strides, strict=True))
        span = np.empty(last + 1 if spec.numel else 0, dtype)
        if span.size:
            self._read(name, extent.file, span.view(np.uint8).data, extent.offset)
        view = np.lib.stride_tricks.as_strided(span, spec.shape, [stride * dtype.itemsize for stride in strides])
        data = np.ascontiguousarray(view).reshape(-1).view(np.uint8).data
        self._gathered = (name, data)
        return data

    def _blame_change(self, path: str, error: OSError) -> None:
        """Raises C220 instead of a puzzling read error when the file is no longer what it was."""
        stamp = self._stamps.get(path)
        try:
            same = stamp is None or stamp_of(self._storage, path) == stamp
        except OSError:
            return
        if not same:
            raise self._changed(path) from error

    def _changed(self, path: str) -> CheckpointError:
        message = f"this file of model {self.label!r} changed while it was being read"
        hint = "let nothing write to a model while it is merged, then run again"
        return CheckpointError(Problem("C220", message, hint=hint, file=path))
