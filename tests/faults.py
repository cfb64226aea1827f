"""A file system that fails, or kills the process, at its k-th operation; and what tests of the writer share."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eutectic.checkpoint.output import STAMP
from eutectic.checkpoint.storage import Storage
from eutectic.testing import tiny_llama

# Every primitive of the seam. `read_bytes`, `write_file` and `remove_tree` are made of these.
READING = ("open_read", "stat", "stat_path", "read_into", "listdir", "exists", "is_dir", "free_bytes")
WRITING = (
    "create",
    "allocate",
    "write",
    "sync",
    "truncate",
    "close",
    "sync_dir",
    "mkdir",
    "rename",
    "unlink",
    "rmdir",
    "lock",
)
EVERYTHING = READING + WRITING

# What happens at an operation: (name, arguments, the real operation) -> its result.
Action = Callable[[str, tuple[Any, ...], Callable[..., Any]], Any]


class FaultStorage(Storage):
    """Counts the operations named in `counted`, from 0, and does `action` instead of number `at`.

    `log` has the name of each counted operation; with `at=None` nothing fails. With `lasting`, every counted operation
    from `at` on is done by `action`, as on a disk that stays full. Syncing is counted and not done: no test here cuts
    the power, and the disk would take most of the time.
    """

    def __init__(
        self,
        at: int | None = None,
        action: Action | None = None,
        *,
        counted: tuple[str, ...] = EVERYTHING,
        lasting: bool = False,
    ) -> None:
        self.log: list[str] = []
        self._at, self._action, self._lasting = at, action, lasting
        self._guard = threading.Lock()
        for name in counted:
            setattr(self, name, self._counting(name, getattr(self, name)))

    def sync(self, fd: int) -> None:
        """Nothing."""

    def sync_dir(self, path: str) -> None:
        """Nothing."""

    def _counting(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any) -> Any:
            with self._guard:
                number = len(self.log)
                self.log.append(name)
            hit = self._at is not None and (number >= self._at if self._lasting else number == self._at)
            return self._action(name, args, real) if hit and self._action else real(*args)

        return operation


def die(name: str, args: tuple[Any, ...], real: Callable[..., Any]) -> Any:
    """Power off: nothing is cleaned up. Half of a write has happened."""
    if name == "write":
        tear(args, real)
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int) -> Action:
    """Raises this errno. Half of a write has happened, and a descriptor is closed all the same, as Linux does it."""

    def action(name: str, args: tuple[Any, ...], real: Callable[..., Any]) -> Any:
        if name == "write" and number == errno.ENOSPC:
            tear(args, real)
        if name == "close":
            real(*args)
        raise OSError(number, os.strerror(number), *(arg for arg in args[:1] if isinstance(arg, str)))

    return action


def tear(args: tuple[Any, ...], real: Callable[..., Any]) -> None:
    """Does the first half of a write."""
    fd, data, offset = args
    view = memoryview(data).cast("B")
    real(fd, view[: len(view) // 2], offset)


def in_child(action: Callable[[], object]) -> int:
    """Runs `action` in a fork: 0 done, 1 an exception, or minus the signal that killed it. Kernels stay compiled."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def contents(folder: str | os.PathLike[str]) -> dict[str, bytes]:
    """Every file below a folder by its relative path, but for the stamp, which tells which files were merged here."""
    home = Path(folder)
    files = [path for path in sorted(home.rglob("*")) if path.is_file() and path.name != STAMP]
    return {str(path.relative_to(home)): path.read_bytes() for path in files}


def left_in(folder: str | os.PathLike[str]) -> list[str]:
    """Names in a folder, sorted."""
    return sorted(os.listdir(folder))


def family(home: Path, *, models: int = 2, shards: int = 2, **sizes: Any) -> dict[str, Any]:
    """A base and its fine-tunes in `home`, as small as they come, and a TIES recipe over them."""
    sizes = {"hidden": 8, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 12, "vocab": 24} | sizes
    base = tiny_llama(home / "base", seed=1, shards=shards, **sizes)
    tuned = [tiny_llama(home / f"tuned-{i}", base=base, seed=10 + i, shards=shards) for i in range(models)]
    return {
        "merge_method": "ties",
        "base_model": base,
        "models": [{"model": path, "parameters": {"weight": 0.4 + 0.3 * i}} for i, path in enumerate(tuned)],
        "parameters": {"density": 0.5},
    }


def an_old_output(folder: Path) -> dict[str, bytes]:
    """Makes what a merge may have left there long ago; returns its contents."""
    folder.mkdir()
    files = {
        "config.json": b"mine",
        "model.safetensors": b"old weights",
        "eutectic.json": b'{"files": {"config.json": ""}, "weights": {"model.safetensors": {}}}',
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files
