"""The journal: what is finished and on the disk, a line a tensor, so that the same command goes on where it stopped."""

from __future__ import annotations

import json
import zlib
from typing import Any

from eutectic.checkpoint.storage import Storage

_LIMIT = 1 << 30


class Journal:
    """Append-only lines of JSON, each with its CRC; a torn tail is cut off when the journal is opened.

    The first line says what the work is for; a journal for other work is not used.

    Attributes:
        header: the first line; None if there is none.
        records: those after it.
        foreign: there is something, and no line of a journal at its beginning.
    """

    def __init__(self, path: str, storage: Storage) -> None:
        self._storage = storage
        self._fd = storage.create(path)
        self._end = 0
        lines = self._read(path)
        self.header: dict[str, Any] | None = lines[0] if lines else None
        self.records: list[dict[str, Any]] = lines[1:]
        self.foreign = self.header is None and storage.stat(self._fd).st_size > 0

    def _read(self, path: str) -> list[dict[str, Any]]:
        lines = []
        for line in self._storage.read_bytes(path, _LIMIT).splitlines(keepends=True):
            checksum, _, body = line.rstrip(b"\n").partition(b" ")
            whole = line.endswith(b"\n") and body.startswith(b"{")
            if not whole or checksum != b"%08x" % zlib.crc32(body):
                break
            lines.append(json.loads(body))
            self._end += len(line)
        return lines

    def restart(self, header: dict[str, Any]) -> None:
        """Forgets everything and begins with `header`."""
        self._end = 0
        self.records = []
        self.header = header
        self.append([header])

    def append(self, records: list[dict[str, Any]]) -> None:
        """Adds lines; when this returns they are on the disk."""
        lines = []
        for record in records:
            body = json.dumps(record, sort_keys=True).encode()
            lines.append(b"%08x %s\n" % (zlib.crc32(body), body))
        data = b"".join(lines)
        self._storage.truncate(self._fd, self._end)
        self._storage.write(self._fd, data, self._end)
        self._storage.sync(self._fd)
        self._end += len(data)

    def close(self) -> None:
        """Closes the file; its lines stay."""
        self._storage.close(self._fd)
