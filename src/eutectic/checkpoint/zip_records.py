"""Where the records of an uncompressed zip archive lie. Strict: only what `torch.save` writes, nothing to unpack.

Every number in the archive is checked against the size of the file before anything is read or allocated by it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from eutectic.checkpoint.extents import unreadable
from eutectic.checkpoint.storage import Storage
from eutectic.errors import CheckpointError, Problem

MAX_RECORDS = 250_000
MAX_DIRECTORY = 64_000_000

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_SIZES_FOLLOW = 1 << 3
_ABSENT = 0xFFFF_FFFF  # the value stands in a zip64 field


@dataclass(frozen=True, slots=True)
class Record:
    """One record as the directory lists it: where its header begins, and the byte before which it must end."""

    name: bytes
    header: int
    size: int
    crc: int
    limit: int


class ZipRecords:
    """The directory of an open archive. Reads by position only; the descriptor stays the caller's to close."""

    def __init__(self, storage: Storage, fd: int, path: str) -> None:
        """Reads and checks the directory.

        Raises `CheckpointError`: C221 where the file cannot be read, C231 where it is not a plain archive.
        """
        self._storage, self._fd, self._path = storage, fd, path
        try:
            self._size = storage.stat(fd).st_size
        except OSError as error:
            raise unreadable(error, path) from error
        self.records: dict[str, Record] = self._directory()

    def begin(self, record: Record) -> int:
        """The place in the file of the record's first byte. Raises `CheckpointError` if its own header disagrees."""
        header = self.bytes_at(record.header, _LOCAL.size)
        signature, _, flags, method, _, _, _, packed, size, name_size, extra_size = _LOCAL.unpack(header)
        if signature != b"PK\x03\x04":
            self.refuse("a record is not where the directory of the archive says", record.name)
        if self.bytes_at(record.header + _LOCAL.size, name_size) != record.name:
            self.refuse("a record has another name than in the directory of the archive", record.name)
        if method or flags & _ENCRYPTED:
            self.refuse("a record is compressed or encrypted, and the directory of the archive denies it", record.name)
        if not flags & _SIZES_FOLLOW and not {packed, size} <= {record.size, _ABSENT}:
            self.refuse("a record has another size than in the directory of the archive", record.name)
        begin = record.header + _LOCAL.size + name_size + extra_size
        if begin + record.size > record.limit:
            self.refuse("a record reaches into what follows it", record.name)
        return int(begin)

    def read(self, record: Record, cap: int) -> bytes:
        """The bytes of a record of at most `cap` bytes. Raises `CheckpointError`, also if its checksum is wrong."""
        if record.size > cap:
            self.refuse(f"a record has {record.size:,} bytes, more than the {cap:,} allowed here", record.name)
        data = self.bytes_at(self.begin(record), record.size)
        # torch writes 0 when it is told to compute no checksums.
        if record.crc not in (0, zlib.crc32(data)):
            self.refuse("a record does not match its checksum", record.name)
        return data

    def bytes_at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`. Raises `CheckpointError` where the file does not hold them."""
        if offset + count > self._size:
            self.refuse(f"bytes {offset:,} to {offset + count:,} are needed, and the file has {self._size:,}")
        data = bytearray(count)
        try:
            self._storage.read_into(self._fd, memoryview(data), offset)
        except OSError as error:
            raise unreadable(error, self._path) from error
        return bytes(data)

    def refuse(self, what: str, record: bytes = b"") -> NoReturn:
        """Raises the `CheckpointError` (C231) for an archive that is not as torch writes it."""
        hint = "fetch the file again; if it is whole, open it with torch where you trust it and save it again"
        where = ascii(record.decode("utf-8", "replace")[:100]) if record else ""
        raise CheckpointError(Problem("C231", what, where, hint, self._path))

    def _directory(self) -> dict[str, Record]:
        count, size, offset = self._end()
        if not 0 < count <= MAX_RECORDS or size > MAX_DIRECTORY:
            self.refuse(
                f"the archive has {count:,} records in {size:,} bytes; from 1 to {MAX_RECORDS:,} are allowed here"
            )
        found = sorted(self._entries(self.bytes_at(offset, size), count), key=lambda entry: entry[1])
        limits = [header for _, header, _, _ in found[1:]] + [offset]
        records: dict[str, Record] = {}
        for (name, header, length, crc), limit in zip(found, limits, strict=True):
            if header + _LOCAL.size + len(name) + length > limit:
                self.refuse("a record overlaps another, or lies outside the file", name)
            text = self._text(name)
            if text in records:
                self.refuse("a record stands twice in the archive", name)
            records[text] = Record(name, header, length, crc, limit)
        return records

    def _end(self) -> tuple[int, int, int]:
        """How many records there are, and the size and place of the directory."""
        end = self._size - _END.size
        if end < 0:
            self.refuse(f"the file has {self._size} bytes, too few for an archive")
        signature, *disks, here, count, size, offset, comment = _END.unpack(self.bytes_at(end, _END.size))
        if signature != b"PK\x05\x06" or comment:
            self.refuse("the file does not end as an archive: it is cut short, or something was added to it")
        large = self._end64(end - _LOCATOR.size)
        if large:
            for value, short, absent in zip(large[1:], (count, size, offset), (0xFFFF, _ABSENT, _ABSENT), strict=True):
                if short not in (value, absent):
                    self.refuse("the two ends of the archive disagree")
            end, count, size, offset = large
            here = count
        if any(disks) or here != count or offset + size != end:
            self.refuse("the directory of the archive is not where its end says")
        return count, size, offset

    def _end64(self, locator: int) -> tuple[int, int, int, int] | None:
        """Where the zip64 end begins and what it says, if the archive has one; its locator would be at `locator`."""
        place = locator - _END64.size
        if place < 0:
            return None
        signature, disk, pointed, total = _LOCATOR.unpack(self.bytes_at(locator, _LOCATOR.size))
        if signature != b"PK\x06\x07":
            return None
        fields = _END64.unpack(self.bytes_at(place, _END64.size))
        signature, length, _, _, *disks, here, count, size, offset = fields
        sound = signature == b"PK\x06\x06" and length == _END64.size - 12 and pointed == place
        if not sound or disk or total > 1 or any(disks) or here != count:
            self.refuse("the end of the archive is damaged")
        return place, count, size, offset

    def _entries(self, data: bytes, count: int) -> Iterator[tuple[bytes, int, int, int]]:
        """Name, place of the header, size and checksum of each record, as the directory `data` has them."""
        place = 0
        for _ in range(count):
            if place + _ENTRY.size > len(data):
                self.refuse("the directory of the archive is cut short")
            entry = _ENTRY.unpack_from(data, place)
            signature, _, _, flags, method, _, _, crc, packed, size, *lengths, disk, _, _, header = entry
            place += _ENTRY.size
            name, extra = data[place : place + lengths[0]], data[place + lengths[0] : place + sum(lengths[:2])]
            place += sum(lengths)
            if signature != b"PK\x01\x02" or place > len(data) or disk:
                self.refuse("the directory of the archive is damaged")
            if method or flags & _ENCRYPTED:
                kind = "encrypted" if flags & _ENCRYPTED else "compressed"
                self.refuse(f"a record is {kind}, and torch writes its records as they are", name)
            size, packed, header = self._large(name, extra, (size, packed, header))
            if packed != size:
                self.refuse("a record that is not compressed has two sizes", name)
            yield name, header, size, crc
        if place != len(data):
            self.refuse("the directory of the archive holds more than its records")

    def _large(self, name: bytes, extra: bytes, values: tuple[int, ...]) -> list[int]:
        """The values with those that are absent taken from the zip64 field, in its order."""
        wide: list[int] = []
        while len(extra) >= 4:
            kind, length = struct.unpack_from("<HH", extra)
            field, extra = extra[4 : 4 + length], extra[4 + length :]
            if kind == 1:
                wide = [value for (value,) in struct.iter_unpack("<Q", field[: length // 8 * 8])]
        if values.count(_ABSENT) > len(wide):
            self.refuse("a record has no size or place", name)
        return [wide.pop(0) if value == _ABSENT else value for value in values]

    def _text(self, name: bytes) -> str:
        try:
            return name.decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("a record has a name that is not text", name)
