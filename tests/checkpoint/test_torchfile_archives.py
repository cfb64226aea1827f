"""Archives from strangers: only a zip file as torch writes it is read."""

from __future__ import annotations

import io
import os
import random
import struct
import zipfile
from typing import Any

import pytest
from hostile import TENSOR, InMemory, archive, genuine, mutated, nothing_happens, problem_of, read, tensor, text

from eutectic.checkpoint import zip_records
from eutectic.checkpoint.torchfile import read_torch_index
from eutectic.errors import CheckpointError


def edited(change: Any) -> bytes:
    """An archive of torch's own with its bytes changed by `change(bytearray)`."""
    buffer = bytearray(genuine())
    change(buffer)
    return bytes(buffer)


def at_entry(data: bytes, field: int, value: bytes, record: bytes = b"archive/data/0") -> bytes:
    """The archive with a field of a record's entry in the directory replaced."""
    place = data.rindex(record) - 46
    return data[: place + field] + value + data[place + field + len(value) :]


def at_header(data: bytes, field: int, value: bytes, record: bytes = b"archive/data/0") -> bytes:
    """The archive with a field of a record's own header replaced."""
    place = data.index(record) - 30
    return data[: place + field] + value + data[place + field + len(value) :]


def twice(record: str) -> bytes:
    file = io.BytesIO(archive(TENSOR + b"."))
    with zipfile.ZipFile(file, "a") as made, pytest.warns(UserWarning, match="Duplicate"):
        made.writestr(f"archive/{record}", b"")
    return file.getvalue()


GOOD = archive(tensor())


def archives() -> dict[str, bytes]:
    size = len(GOOD)
    return {
        "deflated": archive(tensor(), kind=zipfile.ZIP_DEFLATED),
        "lzma": archive(tensor(), kind=zipfile.ZIP_LZMA),
        "one_deflated": at_entry(GOOD, 10, b"\x08\x00"),
        "secretly_deflated": at_header(GOOD, 8, b"\x08\x00"),
        "encrypted": at_entry(GOOD, 8, b"\x01\x00"),
        "secretly_encrypted": at_header(GOOD, 6, b"\x01\x00"),
        "masked": at_entry(GOOD, 8, b"\x00\x20"),
        "larger": at_entry(at_entry(GOOD, 20, b"\x00\x10\x00\x00"), 24, b"\x00\x10\x00\x00"),
        "two_sizes": at_entry(GOOD, 24, b"\x17\x00\x00\x00"),
        "other_size_in_header": at_header(GOOD, 18, b"\x17\x00\x00\x00\x17\x00\x00\x00"),
        "size_absent": at_entry(GOOD, 24, b"\xff\xff\xff\xff"),
        "offset_absent": at_entry(GOOD, 42, b"\xff\xff\xff\xff"),
        "overlap": at_entry(GOOD, 42, b"\x00\x00\x00\x00"),
        "offset_beyond": at_entry(GOOD, 42, struct.pack("<I", size)),
        "offset_off_by_one": at_entry(GOOD, 42, struct.pack("<I", GOOD.index(b"archive/data/0") - 31)),
        "other_disk": at_entry(GOOD, 34, b"\x01\x00"),
        "other_name": at_header(GOOD, 30, b"Archive/data/0"),
        "long_extra": at_header(GOOD, 28, b"\xff\xff"),
        "long_name_in_header": at_header(GOOD, 26, b"\xff\xff"),
        "long_name": at_entry(GOOD, 28, b"\xff\xff"),
        "name_no_text": at_entry(GOOD, 46, b"\xff"),
        "pickle_checksum": at_entry(GOOD, 16, b"\x01\x02\x03\x04", b"archive/data.pkl"),
        "header_signature": at_header(GOOD, 0, b"PK\x01\x02"),
        "entry_signature": at_entry(GOOD, 0, b"PK\x03\x04"),
        "directory_missing": GOOD[: GOOD.index(b"PK\x01\x02")],
        "comment": GOOD[:-2] + b"\x03\x00abc",
        "trailing": GOOD + b"\x00",
        "leading": b"PK" + GOOD,
        "cut_by_one": GOOD[:-1],
        "half": GOOD[: size // 2],
        "four_bytes": b"PK\x03\x04",
        "entry_count": GOOD[:-14] + b"\x03\x00\x03\x00" + GOOD[-10:],
        "entry_counts_differ": GOOD[:-14] + b"\x03\x00" + GOOD[-12:],
        "more_entries": GOOD[:-14] + b"\xff\x00\xff\x00" + GOOD[-10:],
        "end_on_disk_1": GOOD[:-18] + b"\x01\x00" + GOOD[-16:],
        "end64_signature": edited(lambda b: b.__setitem__(b.rindex(b"PK\x06\x06"), 0)),
        "end64_count": edited(lambda b: b.__setitem__(b.rindex(b"PK\x06\x06") + 24, 1)),
        "end64_differs": edited(lambda b: b.__setitem__(len(b) - 12, 1)),
        "end64_pointer": edited(lambda b: b.__setitem__(b.rindex(b"PK\x06\x07") + 8, 1)),
        "big_endian": archive(tensor(), byteorder=b"big"),
        "long_byte_order": archive(tensor(), byteorder=b"little" * 10),
        "second_pickle": twice("data.pkl"),
        "second_storage": twice("data/0"),
        "no_pickle": archive(tensor()).replace(b"data.pkl", b"data.txt"),
        "storage_missing": GOOD.replace(b"archive/data/0", b"archive/data/1"),
        "storage_elsewhere": archive(tensor().replace(text("0"), text("../data/0"))),
        "empty_archive": b"PK\x05\x06" + bytes(18),
    }


ARCHIVES = archives()


def test_the_archive_that_the_attacks_start_from_is_good() -> None:
    index = read(GOOD)
    extent = index.extents["w"]
    assert extent.offset == GOOD.index(b"archive/data/0") + len("archive/data/0")
    assert read(genuine()).extents["w"].spec.shape == (2, 3)


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_torch_did_not_write(name: str) -> None:
    assert problem_of(ARCHIVES[name]).code == "C231"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no torch checkpoint"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(100), "no torch checkpoint"),
        (bytes(257) + b"ustar" + bytes(300), "tar archive"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "bare pickle"),
    ],
)
def test_files_that_are_no_archive(data: bytes, message: str) -> None:
    problem = problem_of(data)
    assert problem.code == "C232"
    assert message in problem.message


def test_archives_with_too_many_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_records, "MAX_RECORDS", 3)
    assert "4 records in " in problem_of(GOOD).message


def test_large_values_are_taken_from_the_zip64_field() -> None:
    place = GOOD.rindex(b"archive/data/0") - 46
    entry = bytearray(GOOD[place : place + 46])
    size, packed, header = (int.from_bytes(entry[at : at + 4], "little") for at in (24, 20, 42))
    for field in (20, 24, 42):
        entry[field : field + 4] = b"\xff" * 4
    extra = b"FB\x01\x00Z" + struct.pack("<HH3Q", 1, 24, size, packed, header)
    entry[30:32] = struct.pack("<H", len(extra))
    name_end = place + 46 + len("archive/data/0")
    data = GOOD[:place] + bytes(entry) + GOOD[place + 46 : name_end] + extra + GOOD[name_end:]
    old = int.from_bytes(GOOD[-10:-6], "little")
    data = data[:-10] + struct.pack("<I", old + len(extra)) + data[-6:]
    assert read(data).extents == read(GOOD).extents


class Failing(InMemory):
    """Answers the first calls; the one numbered `failing` and later ones are read errors."""

    def __init__(self, data: bytes, failing: int) -> None:
        super().__init__(data)
        self.calls_left = failing

    def stat(self, fd: int) -> os.stat_result:
        self.count_down()
        return super().stat(fd)

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> None:
        self.count_down()
        super().read_into(fd, buffer, offset)

    def count_down(self) -> None:
        if self.calls_left == 0:
            raise OSError(5, "input/output error")
        self.calls_left -= 1


def test_read_errors_at_every_call_name_the_file() -> None:
    for failing in range(1000):
        try:
            read_torch_index(Failing(GOOD, failing), "m.bin")
        except CheckpointError as error:
            assert str(error).startswith("C221 m.bin: this file cannot be read: input/output error")
        else:
            break
    assert 10 < failing < 1000


def test_two_thousand_mutated_archives() -> None:
    dice = random.Random(20240602)
    seeds = [genuine(), GOOD]
    refused = 0
    with nothing_happens():
        for _ in range(2000):
            data = dice.choice(seeds)
            directory = data.index(b"PK\x01\x02")
            data = data[:directory] + mutated(data[directory:], dice) if dice.random() < 0.7 else mutated(data, dice)
            try:
                read(data)
            except CheckpointError:
                refused += 1
    assert refused > 1200
