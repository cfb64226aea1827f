"""The safetensors format: a strict reader of headers from strangers, and the header writer.

A file is eight bytes of header length (little-endian), a JSON object, then the tensors' bytes. Stricter than the
reference reader on purpose: what two readers could understand differently is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eutectic import dtypes
from eutectic.checkpoint.extents import Extent, unreadable
from eutectic.checkpoint.source import Spec
from eutectic.checkpoint.storage import Storage
from eutectic.errors import CheckpointError, Problem, did_you_mean, listed

# The format allows 100 MB, which costs a reader 11 s and 1.25 GB before the first tensor. Ten hold 80,000 tensors.
MAX_HEADER = 10_000_000
MAX_NAME = 4096
MAX_DIMS = 16
MAX_ELEMENTS = 2**48
_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}
_AGAIN = "the file is damaged or was not written as safetensors: download or save it again"
_HINTS = {
    "C211": "save the model in several shards",
    "C214": "convert the tensor to a dtype that is known here",
    "C216": "save the model again under plain tensor names",
}


class MalformedError(ValueError):
    """Data that breaks its format; the message says how, `code` which problem it is, `hint` what to do if known."""

    def __init__(self, message: str, code: str = "C212", where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.where = where
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Header:
    """A header that passed: the place of each tensor, the string metadata, and the BLAKE2b-128 of the header in hex."""

    entries: dict[str, Extent]
    metadata: dict[str, str]
    digest: str


def strict_json(data: bytes, *, naturals_only: bool = False) -> Any:
    """Parses JSON in which no object has the same key twice.

    With `naturals_only`, numbers other than 0, 1, 2, … are refused too. Raises `MalformedError` and nothing else.
    """
    hooks: dict[str, Any] = {"parse_int": _natural, "parse_float": _natural} if naturals_only else {}
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_natural, **hooks)
    except MalformedError:
        raise
    except RecursionError:
        raise MalformedError("it is nested too deeply") from None
    except ValueError as error:
        raise MalformedError(f"it is not JSON: {error}") from None


def read_header(storage: Storage, fd: int, path: str) -> Header:
    """Reads and checks the header of an open safetensors file.

    Only the header is read; no more than `MAX_HEADER` bytes. The entries' `file` is `path`.
    Raises `CheckpointError` for anything that is not exactly the format.
    """
    try:
        size = storage.stat(fd).st_size
        raw = _raw_header(storage, fd, size)
        entries, metadata = _parse(raw, size - 8 - len(raw))
    except MalformedError as error:
        hint = error.hint or _HINTS.get(error.code, _AGAIN)
        raise CheckpointError(Problem(error.code, str(error), error.where, hint, path)) from None
    except OSError as error:
        raise unreadable(error, path) from error
    start = 8 + len(raw)
    extents = {name: Extent(path, start + begin, spec) for name, (begin, spec) in entries.items()}
    return Header(extents, metadata, header_digest(raw))


def header_digest(raw: bytes) -> str:
    """BLAKE2b-128 in hex of a header's JSON, padding included, length prefix not."""
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def write_header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The bytes that stand before the tensors, and the offset of each tensor from the start of the file.

    Tensors lie in the order of `specs` without gaps; the first one begins at a multiple of 8 bytes.
    Raises `CheckpointError` for names or metadata the format cannot hold, and for more tensors than fit one header.
    """
    begins: dict[str, int] = {}
    table: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    place = 0
    try:
        _check_metadata(dict(metadata))
        for name, spec in specs.items():
            _check_name(name)
            end = place + spec.nbytes
            code = dtypes.BY_NAME[spec.dtype].code
            table[name] = {"dtype": code, "shape": list(spec.shape), "data_offsets": [place, end]}
            begins[name], place = place, end
        raw = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        if len(raw) > MAX_HEADER:
            raise MalformedError(f"{len(specs)} tensors need a header of more than {MAX_HEADER} bytes", "C211")
    except MalformedError as error:
        hint = "a safetensors file cannot hold this: rename it, or write smaller shards"
        raise CheckpointError(Problem(error.code, str(error), error.where, hint)) from None
    start = 8 + len(raw)
    return len(raw).to_bytes(8, "little") + raw, {name: start + begin for name, begin in begins.items()}


def _raw_header(storage: Storage, fd: int, size: int) -> bytes:
    if size < 8:
        raise MalformedError(f"the file has {size} bytes, too few for a safetensors header", "C210")
    prefix = bytearray(8)
    storage.read_into(fd, memoryview(prefix), 0)
    length = int.from_bytes(prefix, "little")
    if length > size - 8:
        _check_impostor(storage, fd, size)
        raise MalformedError(f"the header claims {length} bytes and the file has {size}", "C210")
    if length > MAX_HEADER:
        raise MalformedError(f"the header has {length} bytes, more than the {MAX_HEADER} allowed here", "C211")
    raw = bytearray(length)
    storage.read_into(fd, memoryview(raw), 8)
    if not raw.startswith(b"{"):
        raise MalformedError("the header does not begin with '{'")
    if not raw.rstrip(b" ").endswith(b"}"):
        raise MalformedError("the header does not end with '}' and spaces")
    return bytes(raw)


def _check_impostor(storage: Storage, fd: int, size: int) -> None:
    """Says what was stored in place of the weights, where it is one of the usual things."""
    head = bytearray(min(size, 64))
    storage.read_into(fd, memoryview(head), 0)
    if head.startswith(b"version https://git-lfs"):
        raise MalformedError("this is a Git LFS pointer, not the weights", "C210", hint="run `git lfs pull`")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        hint = "an error or login page was saved: download the file itself"
        raise MalformedError("this is a web page (HTML), not the weights", "C210", hint=hint)


def _parse(raw: bytes, data_size: int) -> tuple[dict[str, tuple[int, Spec]], dict[str, str]]:
    table = strict_json(raw, naturals_only=True)
    metadata = _check_metadata(table.pop(_METADATA, {}))
    entries: dict[str, tuple[int, Spec]] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, entry in table.items():
        _check_name(name)
        try:
            spec, begin, end = _entry(entry)
        except MalformedError as error:
            error.where = name
            raise
        entries[name] = (begin, spec)
        ranges.append((begin, end, name))
    _check_cover(ranges, data_size)
    return entries, metadata


def _entry(entry: Any) -> tuple[Spec, int, int]:
    """The spec and the byte range of one entry of the header."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise MalformedError("an entry must have exactly dtype, shape and data_offsets", "C213")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _naturals(shape) or len(shape) > MAX_DIMS or math.prod(d or 1 for d in shape) > MAX_ELEMENTS:
        raise MalformedError(f"not a shape of up to {MAX_DIMS} dimensions and {MAX_ELEMENTS} elements", "C213")
    if not _naturals(offsets) or len(offsets) != 2:
        raise MalformedError("data_offsets must be two numbers", "C213")
    code = entry["dtype"]
    if not isinstance(code, str) or code not in dtypes.BY_CODE:
        raise MalformedError(_unknown_dtype(code), "C214")
    spec = Spec(dtypes.BY_CODE[code].name, tuple(shape))
    begin, end = offsets
    if end - begin != spec.nbytes:
        message = f"{code} of shape {listed([str(d) for d in shape], MAX_DIMS) or '()'} does not fit its data_offsets"
        raise MalformedError(message, "C213")
    return spec, begin, end


def _unknown_dtype(code: Any) -> str:
    if not isinstance(code, str):
        return "the dtype is not a string"
    known = did_you_mean(code[:20], dtypes.BY_CODE) or f"known are {', '.join(dtypes.BY_CODE)}"
    return f"unknown dtype {code[:20]!r}; {known}"


def _check_cover(ranges: list[tuple[int, int, str]], data_size: int) -> None:
    """Refuses holes, overlaps and bytes that belong to no tensor: room to hide something else in."""
    ranges.sort()
    place = 0
    for begin, end, name in ranges:
        if begin != place:
            raise MalformedError(
                f"its bytes begin at {begin} where {place} was due: a hole or an overlap", "C215", name
            )
        place = end
    if place != data_size:
        fault = "the file is cut short" if place > data_size else "bytes that belong to no tensor"
        raise MalformedError(f"the tensors need {place} bytes and the file holds {data_size}: {fault}", "C215")


def _check_name(name: str) -> None:
    if not name or name == _METADATA or len(name) > MAX_NAME or not name.isprintable():
        message = f"not a tensor name (1 to {MAX_NAME} printable characters): {name[:60]!a}"
        raise MalformedError(message, "C216")


def _check_metadata(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedError(f"{_METADATA} must map strings to strings", "C213")
    try:
        "".join(metadata).encode()
        "".join(metadata.values()).encode()
    except UnicodeEncodeError:
        raise MalformedError(f"{_METADATA} holds half a surrogate pair, which is no character", "C213") from None
    return metadata


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)


def _natural(text: str) -> int:
    # Twenty digits hold any 64-bit number; Python would go on to thousands.
    if not text.isdigit() or len(text) > 20:
        raise MalformedError(f"{text[:30]} is not a number that a header may hold")
    return int(text)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise MalformedError(f"the key {twice[:60]!a} stands twice")
    return table
