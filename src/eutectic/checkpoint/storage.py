"""The one seam to the file system. Every byte read or written passes here, so that a test can make any of it fail."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
from contextlib import suppress
from typing import Any

# Open files that a process may have: asked for when its own limit is reached. The second is the most that macOS takes.
_FILES = (1 << 20, 10_240)


def _descriptor(path: str, flags: int, mode: int = 0o777) -> int:
    """`os.open`. A merge of many models of many shards has more files open than most systems allow unasked."""
    try:
        return os.open(path, flags | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        _allow_more_files()
        return os.open(path, flags | os.O_CLOEXEC, mode)


def _allow_more_files() -> None:
    """Raises the process's limit of open files as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in _FILES:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):
            if soft < most:
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return


class Storage:
    """The real file system in about twenty primitives, each safe to call from any thread.

    Errors are `OSError`s with the path filled in; callers turn them into problems.
    """

    # Reading

    def open_read(self, path: str) -> int:
        """A descriptor for a regular file. Pipes, devices and folders raise `OSError` (EINVAL), without blocking."""
        fd = _descriptor(path, os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", path)
        return fd

    def stat(self, fd: int) -> os.stat_result:
        """Size, time and identity of an open file."""
        return os.fstat(fd)

    def stat_path(self, path: str) -> os.stat_result:
        """Size, time and identity of what a path leads to."""
        return os.stat(path)

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> None:
        """Fills `buffer` from `offset`. Raises `OSError` (EIO) when the file ends before."""
        done = 0
        while done < len(buffer):
            count = os.preadv(fd, [buffer[done:]], offset + done)
            if count == 0:
                raise OSError(errno.EIO, "the file ended early")
            done += count

    def read_bytes(self, path: str, limit: int) -> bytes:
        """The whole of a small regular file. Raises `OSError` (EFBIG) beyond `limit` bytes."""
        fd = self.open_read(path)
        try:
            size = self.stat(fd).st_size
            if size > limit:
                raise OSError(errno.EFBIG, f"{size} bytes, more than the {limit} allowed here", path)
            data = bytearray(size)
            self.read_into(fd, memoryview(data), 0)
            return bytes(data)
        except OSError as error:
            error.filename = error.filename or path
            raise
        finally:
            self.close(fd)

    def listdir(self, path: str) -> list[str]:
        """Names in a folder, sorted."""
        return sorted(os.listdir(path))

    # Writing

    def create(self, path: str) -> int:
        """A descriptor for reading and writing, the file made if missing; mode by umask, as any program's."""
        return _descriptor(path, os.O_RDWR | os.O_CREAT, 0o666)

    def allocate(self, fd: int, size: int) -> None:
        """Reserves `size` bytes, so that a full disk is an error now and not in an hour; sets the file's length."""
        try:
            if hasattr(os, "posix_fallocate") and size:
                os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        os.ftruncate(fd, size)

    def write(self, fd: int, data: Any, offset: int) -> None:
        """Writes all of `data` at `offset`."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += os.pwrite(fd, view[done:], offset + done)

    def sync(self, fd: int) -> None:
        """Returns when the file's bytes are on the disk."""
        if hasattr(os, "fdatasync"):
            os.fdatasync(fd)
        else:
            os.fsync(fd)

    def truncate(self, fd: int, size: int) -> None:
        """Cuts the file to `size` bytes."""
        os.ftruncate(fd, size)

    def close(self, fd: int) -> None:
        """Closes a descriptor."""
        os.close(fd)

    def sync_dir(self, path: str) -> None:
        """Makes creations and renames in a folder durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def mkdir(self, path: str) -> None:
        """Makes a folder; its parent must exist. Raises `FileExistsError`."""
        os.mkdir(path)

    def rename(self, old: str, new: str) -> None:
        """Renames within one file system, atomically."""
        os.rename(old, new)

    def unlink(self, path: str) -> None:
        """Removes a file; a missing one is no error."""
        with suppress(FileNotFoundError):
            os.unlink(path)

    def rmdir(self, path: str) -> None:
        """Removes an empty folder; a missing one is no error."""
        with suppress(FileNotFoundError):
            os.rmdir(path)

    def exists(self, path: str) -> bool:
        """True if something (even a broken link) has this name. Raises `OSError` when that cannot be known."""
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_dir(self, path: str) -> bool:
        """True for a folder itself, False for anything else, a link to a folder and a missing name included."""
        try:
            return stat.S_ISDIR(os.lstat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def is_link(self, path: str) -> bool:
        """True for a symbolic link, wherever it leads."""
        return os.path.islink(path)

    def free_bytes(self, path: str) -> int:
        """Bytes an ordinary user may still write on the file system of `path`."""
        info = os.statvfs(path)
        return info.f_bavail * info.f_frsize

    def lock(self, path: str) -> int:
        """An exclusive lock held until `close`. Raises `BlockingIOError` when somebody else has it."""
        fd = self.create(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd

    # Composed of the above, so that a fault in any part is a fault of these

    def write_file(self, path: str, data: bytes) -> None:
        """A small file, whole or not at all: temporary name, sync, rename."""
        temporary = f"{path}.tmp"
        fd = self.create(temporary)
        try:
            self.truncate(fd, 0)
            self.write(fd, data, 0)
            self.sync(fd)
        finally:
            self.close(fd)
        self.rename(temporary, path)

    def remove_tree(self, path: str) -> None:
        """Removes a folder and what is in it; links are removed, never followed."""
        if self.is_dir(path):
            for name in self.listdir(path):
                self.remove_tree(os.path.join(path, name))
            self.rmdir(path)
        else:
            self.unlink(path)


REAL = Storage()
