"""The output folder: appears whole, by one rename, or not at all; unfinished work waits beside it and is resumed.

Work happens in `OUT.partial/`: `data/` becomes OUT, `journal` says what is finished, `lock` keeps others out, and
`old/` is what `--replace` moved aside.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from eutectic.checkpoint.existing import MANIFEST, REPLACE, STAMP, Existing, refuse_parent
from eutectic.checkpoint.journal import Journal
from eutectic.checkpoint.layout import Shard
from eutectic.checkpoint.storage import REAL, Storage
from eutectic.errors import EutecticError, OutputError, Problem, RecipeError, listed, several
from eutectic.kernels.digests import tensor_digest

# What the name of the folder of unfinished work adds to the output's.
WORK = ".partial"

# What is written is made durable in batches: often enough to lose little and to have little left at the end, rarely
# enough to cost nothing.
BATCH_BYTES = 64 << 20
BATCH_SECONDS = 10.0


class AlreadyCompleteError(Exception):
    """The output exists and is exactly what was asked for. Not a failure."""


class Output:
    """One output on its way to the disk. A sink of the engine: `write` and `finish` may be called from any thread.

    Args:
        path: the folder to make; links are followed first, so that the work lies on the disk of the result.
        shards: from `layout.lay_out`.
        tensors: (name, number of entries, bytes an entry) of each job.
        fingerprint: of the plan; work with another one is not resumed.
        stamps: identities of the input files now (path, size, times, inode); work from other ones is not resumed, and
            an existing output of other ones is not taken for this merge.
        replace: whether an existing folder may be replaced.
        manifest: name of the file that says what the folder is, with its `fingerprint`, `files` and `weights`.
    """

    def __init__(
        self,
        path: str,
        shards: list[Shard],
        tensors: list[tuple[str, int, int]],
        *,
        fingerprint: str,
        stamps: Any,
        replace: bool = False,
        manifest: str = MANIFEST,
        storage: Storage = REAL,
    ) -> None:
        self.path = os.path.realpath(path)
        self._work = self.path + WORK
        self._data = os.path.join(self._work, "data")
        self._shards, self._tensors = shards, tensors
        self._header = {"fingerprint": fingerprint, "inputs": stamps}
        self._fingerprint, self._replace, self._storage = fingerprint, replace, storage
        self._manifest = manifest
        self._stamp = hashlib.sha256(json.dumps(stamps, sort_keys=True).encode()).hexdigest().encode() + b"\n"
        self._place = {name: (i, offset) for i, shard in enumerate(shards) for name, offset in shard.offsets.items()}
        self._fds: list[int] = []
        self._lock_fd: int | None = None
        self._journal: Journal | None = None
        self._fresh = False  # nothing in the work folder is worth keeping
        self.records: dict[int, dict[str, Any]] = {}
        self.resumed = 0
        self._pending: list[tuple[int, dict[str, Any]]] = []
        self._unsynced: set[int] = set()
        self._unsynced_bytes = 0
        self._wake = threading.Condition()
        self._closing = False
        self._failure: BaseException | None = None
        self._flusher: threading.Thread | None = None

    # Opening

    def open(self, stop: threading.Event | None = None) -> None:
        """Locks, reserves every byte, and reads what an interrupted run has finished (`records`).

        When `stop` is set, what is finished is no longer checked, as nothing will be done with it.
        Raises `AlreadyCompleteError`, `RecipeError` (W401, W403: the request), `OutputError` (W402, W404, W405).
        """
        try:
            refuse_parent(self.path, self.path, self._storage)
            self._acquire()
            self._settle_replacement()
            self._check_target()
            self._open_journal()
            self._reserve()
            self._trust_finished(stop or threading.Event())
        except OSError as error:
            self.abandon(remove=self._fresh)
            raise OutputError(self._problem(error)) from error
        except (EutecticError, AlreadyCompleteError):
            self.abandon(remove=False)
            raise
        self._flusher = threading.Thread(target=self._flush_loop, name="journal", daemon=True)
        self._flusher.start()

    def _acquire(self) -> None:
        storage = self._storage
        while True:
            with suppress(FileExistsError):
                storage.mkdir(self._work)
            if not storage.is_dir(self._work) and storage.exists(self._work):
                raise NotADirectoryError(errno.ENOTDIR, "this is not a folder", self._work)
            lock = os.path.join(self._work, "lock")
            try:
                self._refuse_strangers()
                self._lock_fd = storage.lock(lock)
            except BlockingIOError:
                raise OutputError(
                    Problem(
                        "W402", f"another run is writing {self.path}", self.path, "wait for it, or choose another name"
                    )
                ) from None
            except FileNotFoundError:
                continue  # the other run finished and removed the folder in between
            held = storage.stat(self._lock_fd)
            with suppress(FileNotFoundError):
                named = storage.stat_path(lock)
                if (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino):
                    return
            storage.close(self._lock_fd)
            self._lock_fd = None

    def _refuse_strangers(self) -> None:
        """Every run makes its lock first and removes it last: files without one are somebody's own."""
        names = self._storage.listdir(self._work)
        if names and "lock" not in names:
            message = f"{self._work}, where unfinished work goes, holds what no merge wrote ({listed(names)})"
            hint = "choose another name, or move these files away yourself"
            raise RecipeError(Problem("W401", message, self.path, hint))

    def _settle_replacement(self) -> None:
        """Ends a replacement that was killed between its two renames or before it cleaned up."""
        old = os.path.join(self._work, "old")
        if not self._storage.exists(old):
            return
        if not self._storage.exists(self.path):
            self._storage.rename(old, self.path)
        elif not self._storage.exists(self._data):
            self._storage.remove_tree(old)  # the new folder is in place
        else:
            message = f"{old} is the folder that was being replaced, and {self.path} exists again"
            raise OutputError(Problem("W405", message, self.path, "move one of the two away"))

    def _check_target(self) -> None:
        if not self._storage.exists(self.path):
            return
        folder = self._storage.is_dir(self.path)
        if folder and not self._storage.listdir(self.path):
            return
        existing = Existing(self.path, self._storage, self._manifest)
        if folder and not self._replace and existing.is_merge(self._fingerprint, self._stamp):
            self._remove_unused_work(complete=True)
            raise AlreadyCompleteError
        message, hint = existing.obstacle()
        if message or not self._replace:
            self._remove_unused_work(complete=False)
            if not message:
                message, hint = "exists", REPLACE
                if existing.manifest.get("fingerprint") == self._fingerprint:
                    message += f", and {existing.doubt()}"
            raise RecipeError(Problem("W401", message, self.path, hint))

    def _open_journal(self) -> None:
        self._journal = Journal(os.path.join(self._work, "journal"), self._storage)
        found = self._journal.header
        if found is not None and found.get("fingerprint") != self._fingerprint and not self._replace:
            done = len(self._journal.records)
            raise RecipeError(
                Problem(
                    "W403",
                    f"{self._work} holds unfinished work of another merge ({several(done, 'tensor')} done)",
                    self.path,
                    "run that command again to finish it, or pass `replace=True` to discard it",
                )
            )
        if found != self._header:
            self._fresh = True
            if self._storage.exists(self._data):
                self._storage.remove_tree(self._data)
            self._journal.restart(self._header)

    def _reserve(self) -> None:
        storage = self._storage
        if not storage.exists(self._data):
            storage.mkdir(self._data)
        paths = [os.path.join(self._data, shard.name) for shard in self._shards]
        present = sum(storage.stat_path(path).st_size for path in paths if storage.exists(path))
        needed = sum(shard.nbytes for shard in self._shards) - present
        free = storage.free_bytes(self._work)
        if needed > free:
            raise OSError(errno.ENOSPC, f"{needed:,} bytes needed, {free:,} free", self._work)
        for shard in self._shards:
            fd = storage.create(os.path.join(self._data, shard.name))
            self._fds.append(fd)
            storage.allocate(fd, shard.nbytes)
            storage.write(fd, shard.header, 0)
        storage.sync_dir(self._data)

    def _trust_finished(self, stop: threading.Event) -> None:
        assert self._journal is not None
        for record in self._journal.records:
            if stop.is_set() or self._digest(record["job"]) == record["digest"]:
                self.records[record["job"]] = {k: v for k, v in record.items() if k != "job"}
        self.resumed = len(self.records)

    def _digest(self, job: int) -> str:
        name, numel, itemsize = self._tensors[job]
        shard, offset = self._place[name]
        fd = self._fds[shard]
        return tensor_digest(
            numel, itemsize, lambda start, _, view: self._storage.read_into(fd, view, offset + start * itemsize)
        )

    # Writing

    def write(self, job: int, first: int, bits: Any) -> None:
        """Stored bits of tensor number `job` from entry `first` on."""
        name, _, itemsize = self._tensors[job]
        shard, offset = self._place[name]
        try:
            self._storage.write(self._fds[shard], bits, offset + first * itemsize)
        except OSError as error:
            raise OutputError(self._problem(error)) from error
        if self._failure is not None:
            raise self._failure
        with self._wake:
            self._unsynced.add(shard)
            self._unsynced_bytes += memoryview(bits).nbytes
            if self._unsynced_bytes >= BATCH_BYTES:
                self._wake.notify()

    def finish(self, job: int, record: dict[str, Any]) -> None:
        """Every block of the tensor is written; it will be journalled with the next batch."""
        with self._wake:
            self._pending.append((job, record))

    def _flush_loop(self) -> None:
        try:
            while True:
                with self._wake:
                    if not self._closing and self._unsynced_bytes < BATCH_BYTES:
                        self._wake.wait(BATCH_SECONDS)
                    batch, self._pending = self._pending, []
                    shards, self._unsynced, self._unsynced_bytes = self._unsynced, set(), 0
                    closing = self._closing
                self._flush(batch, shards)
                if closing and not self._pending:
                    return
        except OSError as error:
            self._failure = OutputError(self._problem(error))
        except BaseException as error:
            self._failure = error

    def _flush(self, batch: list[tuple[int, dict[str, Any]]], shards: set[int]) -> None:
        """Makes the shards durable, which have had the whole of the batch's tensors, and then journals these."""
        for shard in sorted(shards):
            self._storage.sync(self._fds[shard])
        if batch:
            assert self._journal is not None
            self._journal.append([{"job": job, **record} for job, record in batch])
            self.records.update(batch)

    def flush(self) -> None:
        """Makes durable and journals all that is finished, and stops the journal's thread."""
        if self._flusher is None:
            return
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._flusher.join()
        self._flusher = None
        if self._failure is not None:
            raise self._failure

    # Ending

    def complete(self, files: Mapping[str, bytes], manifest: bytes) -> None:
        """Adds the other files, the manifest last, and lets the folder appear. Raises `OutputError` (W405)."""
        try:
            self.flush()
            storage = self._storage
            for fd in self._fds:
                storage.sync(fd)
            for name, data in files.items():
                self._write_beside(name, data)
            self._write_beside(STAMP, self._stamp)
            self._write_beside(self._manifest, manifest)
            storage.sync_dir(self._data)
            self._appear()
            self._remove_work()
        except OSError as error:
            self.abandon(remove=False)
            raise OutputError(self._problem(error)) from error

    def _write_beside(self, name: str, data: bytes) -> None:
        folder = self._data
        for part in name.split("/")[:-1]:
            folder = os.path.join(folder, part)
            with suppress(FileExistsError):
                self._storage.mkdir(folder)
        self._storage.write_file(os.path.join(self._data, name), data)
        if folder != self._data:
            self._storage.sync_dir(folder)

    def _appear(self) -> None:
        """The rename goes over an empty folder, and fails over any other one that somebody has made meanwhile."""
        storage = self._storage
        old = os.path.join(self._work, "old")
        if self._replace and storage.exists(self.path):
            storage.rename(self.path, old)
        try:
            storage.rename(self._data, self.path)
        except OSError:
            if storage.exists(old):
                storage.rename(old, self.path)
            raise
        storage.sync_dir(os.path.dirname(self.path))

    def _remove_work(self) -> None:
        """The lock goes last: until then nobody else can begin."""
        self._close_files()
        for name in ("old", "data"):
            path = os.path.join(self._work, name)
            if self._storage.exists(path):
                self._storage.remove_tree(path)
        self._storage.unlink(os.path.join(self._work, "journal"))
        self._storage.unlink(os.path.join(self._work, "lock"))
        self._unlock()
        try:
            self._storage.rmdir(self._work)
        except OSError as error:
            # Another run may have come in as soon as the lock was free.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def _remove_unused_work(self, *, complete: bool) -> None:
        """Removes the folder of a run that does not begin, unless something can be resumed from it."""
        if "journal" in self._storage.listdir(self._work):
            self._journal = Journal(os.path.join(self._work, "journal"), self._storage)
            found = self._journal.header
            if found is not None and not (complete and found.get("fingerprint") == self._fingerprint):
                return
        self._remove_work()

    def abandon(self, *, remove: bool) -> None:
        """Lets go of everything. What is journalled stays for the next run, unless `remove`. Never fails."""
        with suppress(BaseException):
            self.flush()
        if remove and self._lock_fd is not None:
            with suppress(OSError):
                self._remove_work()
        while self._fds or self._journal is not None or self._lock_fd is not None:
            with suppress(OSError):
                self._close_files()
                self._unlock()

    def _close_files(self) -> None:
        if (journal := self._journal) is not None:
            self._journal = None
            journal.close()
        while self._fds:
            self._storage.close(self._fds.pop())

    def _unlock(self) -> None:
        if (descriptor := self._lock_fd) is not None:
            self._lock_fd = None
            self._storage.close(descriptor)

    def _problem(self, error: OSError) -> Problem:
        reason = error.strerror or str(error)
        if error.errno == errno.ENOSPC:
            return Problem(
                "W404", f"no space for {self.path}: {reason}", self.path, "free some space, or write elsewhere"
            )
        where = error.filename2 or error.filename or self.path
        return Problem("W405", f"cannot write {where}: {reason}", self.path, "mend the cause; the same command resumes")
