"""What the tests of hostile torch files share: a watch on the interpreter, files in memory, pickles made by hand."""

from __future__ import annotations

import io
import os
import random
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from eutectic.checkpoint.storage import Storage
from eutectic.checkpoint.torchfile import CODES, TorchIndex, read_torch_index
from eutectic.errors import CheckpointError

WATCHED = (
    "import",
    "exec",
    "compile",
    "os.",
    "subprocess.",
    "socket.",
    "ctypes.",
    "marshal.",
    "pickle.",
    "code.",
    "sys._",
)
_events: list[str] = []
_armed = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    # Codecs are imported by the interpreter at their first use; which ones is fixed by `pickletools`.
    if _armed and event.startswith(WATCHED) and not str(arguments[:1]).startswith("('encodings"):
        _events.append(f"{event} {arguments[:1]}")


sys.addaudithook(_hook)


@contextmanager
def nothing_happens() -> Iterator[None]:
    """Fails if anything is imported, compiled, executed or started inside, as the interpreter itself reports it."""
    global _armed
    _events.clear()
    _armed = True
    try:
        yield
    finally:
        _armed = False
    assert not _events


class InMemory(Storage):
    """One file that is never on a disk."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def open_read(self, path: str) -> int:
        return 0

    def stat(self, fd: int) -> os.stat_result:
        return os.stat_result((0, 0, 0, 0, 0, 0, len(self.data), 0, 0, 0))

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]

    def close(self, fd: int) -> None:
        pass


def archive(stream: bytes, *, kind: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    """An archive like torch's around a pickle, with one storage of 24 bytes."""
    file = io.BytesIO()
    records = {"data.pkl": stream, "byteorder": b"little", "data/0": bytes(24), "version": b"3\n", **more}
    with zipfile.ZipFile(file, "w", kind) as made:
        for name, data in records.items():
            made.writestr(f"archive/{name}", data)
    return file.getvalue()


def read(data: bytes) -> TorchIndex:
    return read_torch_index(InMemory(data), "m.bin")


def problem_of(data: bytes) -> Any:
    with pytest.raises(CheckpointError) as caught, nothing_happens():
        read(data)
    (problem,) = caught.value.problems
    assert problem.code in CODES
    assert problem.hint and str(problem).isprintable() and len(str(problem)) < 500
    return problem


def genuine(value: object = None) -> bytes:
    file = io.BytesIO()
    torch.save({"w": torch.arange(6.0).reshape(2, 3)} if value is None else value, file)
    return file.getvalue()


def pickle_in(data: bytes) -> bytes:
    return zipfile.ZipFile(io.BytesIO(data)).read("archive/data.pkl")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


TENSOR_ARGUMENTS = (
    b"(("
    + text("storage")
    + b"ctorch\nFloatStorage\n"
    + text("0")
    + text("cpu")
    + b"K\x06tQK\x00K\x02K\x03\x86K\x03K\x01\x86"
    b"\x89}t"
)
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n" + TENSOR_ARGUMENTS + b"R"


def in_dictionary(value: bytes, name: bytes = text("w")) -> bytes:
    return b"\x80\x02}" + name + value + b"s."


def tensor(
    storage: bytes = b"K\x06", offset: bytes = b"K\x00", shape: bytes = b"K\x06\x85", strides: bytes = b"K\x01\x85"
) -> bytes:
    head = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    )
    return in_dictionary(head + storage + b"tQ" + offset + shape + strides + b"\x89}tR")


def mutated(data: bytes, dice: random.Random) -> bytes:
    buffer = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 3, 8))):
        place = dice.randrange(len(buffer) + 1)
        match dice.randrange(6):
            case 0:
                buffer[place : place + 1] = bytes([dice.randrange(256)])
            case 1:
                buffer[place:place] = bytes([dice.choice(b"().0]}acbQRotuqh\x81\x85\x86\x87\x93\x94\x82iP")])
            case 2:
                del buffer[place : place + dice.randrange(1, 9)]
            case 3:
                other = dice.randrange(len(buffer) + 1)
                buffer[place:place] = buffer[other : other + dice.randrange(1, 40)]
            case 4:
                buffer[place : place + 4] = dice.choice((b"\xff" * 4, b"\xff\xff\xff\x7f", bytes(4)))
            case _:
                del buffer[place:]
    return bytes(buffer)
