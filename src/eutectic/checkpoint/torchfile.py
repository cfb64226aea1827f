"""torch files (`.bin`, `.pt`, `.pth`): where their tensors lie, found without running what is written in them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from eutectic import dtypes
from eutectic.checkpoint.extents import Extent, unreadable
from eutectic.checkpoint.pickle_reader import StorageRef, TensorRef, read_pickle, shown
from eutectic.checkpoint.safetensors import MAX_ELEMENTS, MAX_NAME
from eutectic.checkpoint.source import Spec
from eutectic.checkpoint.storage import Storage
from eutectic.checkpoint.zip_records import ZipRecords
from eutectic.errors import CheckpointError, Problem

MAX_PICKLE = 64_000_000
MAX_DEPTH = 32
_CONVERT = "load it with torch where you trust it, and save its state dict as safetensors"

CODES: dict[str, tuple[str, str]] = {
    "C230": (
        "a pickle asks for more than tensors",
        "A torch file holds a pickle, which can name any function of any module to be called on loading. Eutectic "
        "never runs it: it reads the few instructions that describe tensors and plain values, and stops at "
        "anything else. Training checkpoints often hold objects beside the weights (optimisers, configurations); "
        "such a file is harmless but must be opened where you trust it, and its state dict saved as safetensors. "
        "A file from a stranger that names functions such as posix.system should be deleted.",
    ),
    "C231": (
        "a torch file is not a plain archive",
        "torch writes an uncompressed zip archive with little-endian numbers. This one is compressed, encrypted, "
        "cut short, has records that overlap, stand twice or are missing, or was written on a big-endian machine. "
        "Fetch it again, or open it with torch where you trust it and save it again.",
    ),
    "C232": (
        "an old or foreign kind of torch file",
        "Before version 1.6 torch wrote a bare pickle or a tar archive, and can still be told to. The places of "
        "tensors are not known in such files without running them. Load the file where you trust it and save its "
        "state dict as safetensors.",
    ),
    "C233": (
        "a broken pickle",
        "The pickle in a torch file ends early, is of a later protocol, contradicts itself, or is larger than any "
        "checkpoint needs. Fetch the file again, or save it again with torch.",
    ),
    "C234": (
        "a kind of tensor that cannot be merged",
        "Complex, quantised, sparse and nested tensors, tensors of classes of their own and tensors that are to be "
        "conjugated or negated on loading are refused by name. Convert them to dense tensors of a usual dtype.",
    ),
    "C235": (
        "a tensor does not fit its storage",
        "A tensor's offset, shape and strides must stay inside the bytes that the file holds, and no two of its "
        "elements may share a place, as they do after `expand`. Save `tensor.contiguous()` in place of such a view.",
    ),
    "C236": (
        "a torch file without one mapping of tensors",
        "A torch file must hold exactly one dictionary from names to tensors, at the top or within other "
        "dictionaries. With several (a model and its moving average, or the state of an optimiser) the choice would "
        "be a guess. Save the one to be merged by itself.",
    ),
}


@dataclass(frozen=True, slots=True)
class TorchIndex:
    """What a torch file holds: the place of each stored tensor, and what names these weights.

    Attributes:
        extents: name → place in the file, in the order of the file. Strides count elements.
        ties: other name → stored name, for tensors that share storage, offset, shape and strides.
        digest: the BLAKE2b-128 of the pickle, in hex.
    """

    extents: dict[str, Extent]
    ties: dict[str, str]
    digest: str


def read_torch_index(storage: Storage, path: str) -> TorchIndex:
    """Finds the tensors of a file written by `torch.save`, reading only its directory and its pickle.

    The file holds a mapping of names to tensors, or one such mapping among plain values. Its pickle is read as data
    (see `pickle_reader`): nothing is imported, nothing is called.
    Raises `CheckpointError`: C221 where the file cannot be read, otherwise one of `CODES`.
    """
    try:
        fd = storage.open_read(path)
    except OSError as error:
        raise unreadable(error, path) from error
    try:
        _check_magic(storage, fd, path)
        archive = ZipRecords(storage, fd, path)
        prefix = _prefix(archive)
        pickle = archive.read(archive.records[f"{prefix}data.pkl"], MAX_PICKLE)
        tensors = _tensors(read_pickle(pickle, path), path)
        extents, ties = _Places(archive, prefix, path).of(tensors)
    finally:
        storage.close(fd)
    return TorchIndex(extents, ties, hashlib.blake2b(pickle, digest_size=16).hexdigest())


def _check_magic(storage: Storage, fd: int, path: str) -> None:
    """Tells the old formats from a zip archive, so that they get advice of their own."""
    try:
        head = bytearray(min(storage.stat(fd).st_size, 512))
        storage.read_into(fd, memoryview(head), 0)
    except OSError as error:
        raise unreadable(error, path) from error
    if head.startswith(b"PK"):
        return
    if head[257:262] == b"ustar":
        kind = "a tar archive, as the first versions of torch wrote it"
    elif head.startswith(b"\x80"):
        kind = "a bare pickle, as torch wrote it before version 1.6"
    else:
        kind = "no torch checkpoint: it does not begin as a zip archive"
    raise CheckpointError(Problem("C232", f"this file is {kind}", file=path, hint=_CONVERT))


def _prefix(archive: ZipRecords) -> str:
    """The folder in the archive that holds everything, with its slash. Checks the byte order noted there."""
    found = [name for name in archive.records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(found) != 1:
        archive.refuse(f"the archive has {len(found)} records NAME/data.pkl, and a torch checkpoint has one")
    prefix = found[0].removesuffix("data.pkl")
    order = archive.records.get(f"{prefix}byteorder")
    if order and archive.read(order, 16) != b"little":
        archive.refuse("the archive was not written with little-endian numbers", order.name)
    return prefix


# The way to a value: the way to what holds it, and its key there. Made into text only for a message.
_Way = tuple["_Way", object] | None


def _shown_way(way: _Way) -> str:
    keys: list[str] = []
    while way is not None:
        way, key = way
        keys.append(shown(key) if isinstance(key, str) else ascii(key))
    return ".".join(reversed(keys)) or "the top level"


def _children(container: object) -> Iterator[tuple[object, object]]:
    if isinstance(container, dict):
        yield from container.items()
    elif isinstance(container, list | tuple):
        yield from enumerate(container)


def _tensors(root: object, path: str) -> dict[str, TensorRef]:
    """The one mapping of names to tensors in what a pickle described. Raises `CheckpointError` (C233, C236)."""
    homes: list[tuple[_Way, object]] = []
    seen = {id(root)}
    level: list[tuple[_Way, object]] = [(None, root)]
    for _ in range(MAX_DEPTH):
        below: list[tuple[_Way, object]] = []
        for way, container in level:
            direct = False
            for key, value in _children(container):
                if isinstance(value, TensorRef | StorageRef):
                    direct = True
                elif isinstance(value, dict | list | tuple) and value and id(value) not in seen:
                    seen.add(id(value))
                    below.append(((way, key), value))
            if direct:
                homes.append((way, container))
        level = below
    if level:
        problem = Problem("C233", f"this pickle is nested more than {MAX_DEPTH} deep", file=path, hint=_CONVERT)
        raise CheckpointError(problem)
    if isinstance(root, TensorRef | StorageRef) or len(homes) != 1:
        _refuse_choice([way for way, _ in homes], path)
    return _checked_mapping(*homes[0], path)


def _refuse_choice(homes: list[_Way], path: str) -> NoReturn:
    if homes:
        shown_homes = ", ".join(map(_shown_way, homes[:4])) + (f" and {len(homes) - 4} more" if len(homes) > 4 else "")
        message = f"this file holds tensors in several places: {shown_homes}"
        hint = "save the one state dict that is to be merged by itself"
    else:
        message, hint = "this file holds no mapping of names to tensors", "save the state dict of the model"
    raise CheckpointError(Problem("C236", message, file=path, hint=hint))


def _checked_mapping(way: _Way, mapping: object, path: str) -> dict[str, TensorRef]:
    """The tensors of a mapping without the plain values beside them. Raises `CheckpointError` (C236)."""
    where, hint = _shown_way(way), "save the state dict of the model by itself"
    if not isinstance(mapping, dict):
        message = f"the tensors of this file stand in a {type(mapping).__name__} and have no names"
        raise CheckpointError(Problem("C236", message, where, hint, path))
    tensors: dict[str, TensorRef] = {}
    for name, value in mapping.items():
        if isinstance(value, StorageRef):
            message = f"{shown(str(name))} is a bare storage without a shape"
            raise CheckpointError(Problem("C236", message, where, hint, path))
        if isinstance(value, TensorRef):
            if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
                message = f"not a tensor name (1 to {MAX_NAME} printable characters): {ascii(name)[:60]}"
                raise CheckpointError(Problem("C236", message, where, hint, path))
            tensors[name] = value
    return tensors


class _Places:
    """Finds the bytes of tensors in the archive."""

    def __init__(self, archive: ZipRecords, prefix: str, path: str) -> None:
        self._archive, self._prefix, self._path = archive, prefix, path
        self._begins: dict[str, int] = {}

    def of(self, tensors: dict[str, TensorRef]) -> tuple[dict[str, Extent], dict[str, str]]:
        """The extents of the tensors, and the ties among those that are the same bytes in the same way."""
        extents: dict[str, Extent] = {}
        ties: dict[str, str] = {}
        stored: dict[tuple[str, Extent], str] = {}
        for name, tensor in tensors.items():
            extent = self._extent(name, tensor)
            first = stored.setdefault((tensor.storage.key, extent), name)
            if first == name:
                extents[name] = extent
            else:
                ties[name] = first
        return extents, ties

    def _extent(self, name: str, tensor: TensorRef) -> Extent:
        shape, strides, width = tensor.shape, tensor.strides, dtypes.itemsize(tensor.dtype)
        if math.prod(length or 1 for length in shape) > MAX_ELEMENTS:
            self._misfit(name, f"its shape has more than {MAX_ELEMENTS} elements")
        empty = 0 in shape
        reach = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        end = (tensor.offset + (0 if empty else reach + 1)) * width
        if end > tensor.storage.nbytes:
            self._misfit(name, f"it ends at byte {end:,} of a storage of {tensor.storage.nbytes:,}")
        place = self._begin(name, tensor.storage) + tensor.offset * width
        spec = Spec(tensor.dtype, shape)
        if empty or _is_contiguous(shape, strides):
            return Extent(self._path, place, spec)
        if _overlaps(shape, strides):
            self._misfit(name, f"elements share their place in memory (shape {shape}, strides {strides})")
        return Extent(self._path, place, spec, strides)

    def _begin(self, name: str, storage: StorageRef) -> int:
        """The place of a storage's first byte."""
        if storage.key not in self._begins:
            record = self._archive.records.get(f"{self._prefix}data/{storage.key}")
            if record is None:
                self._archive.refuse(f"the record of storage {shown(storage.key)} is missing; {name} lies in it")
            self._begins[storage.key] = self._archive.begin(record)
        record = self._archive.records[f"{self._prefix}data/{storage.key}"]
        if record.size != storage.nbytes:
            message = f"its storage has {storage.nbytes:,} bytes, and the record of it {record.size:,}"
            self._misfit(name, message)
        return self._begins[storage.key]

    def _misfit(self, name: str, message: str) -> NoReturn:
        hint = "save contiguous tensors, or fetch the file again if it was not you who saved it"
        raise CheckpointError(Problem("C235", message, name, hint, self._path))


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """True if the elements lie in row-major order without gaps; the stride of a dimension of one is of no account."""
    due = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != due:
            return False
        due *= length
    return True


def _overlaps(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """True unless each dimension steps over all that the finer ones reach. Every slice and transposition does."""
    reach = 0
    for stride, length in sorted(zip(strides, shape, strict=True)):
        if length > 1:
            if stride <= reach:
                return True
            reach += (length - 1) * stride
    return False
