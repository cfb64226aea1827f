"""Checkpoint folders and bare files: which files hold the weights, and that nothing in them points elsewhere."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from eutectic.checkpoint.extents import Extent, FileSource, Stamp, stamp_of, unreadable
from eutectic.checkpoint.safetensors import MalformedError, read_header, strict_json
from eutectic.checkpoint.storage import REAL, Storage
from eutectic.checkpoint.tied import HEAD, WHY, embedding_of_head
from eutectic.checkpoint.torchfile import read_torch_index
from eutectic.errors import CheckpointError, Problem, listed

MAX_INDEX = 64_000_000
_SAFETENSORS = ".safetensors"
_INDEX = ".index.json"
_TORCH = (".bin", ".pt", ".pth")
# In order of preference; each as an index or as one file.
_USUAL = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
_ADAPTER = re.compile(r"^adapter_model\.(safetensors|bin)$")
_REPAIR = "download the index again, or save the model anew"
ADAPTER_HINT = "adapters are not read yet: merge it into its base model first and name the result"


@dataclass(frozen=True, slots=True)
class _File:
    """What one file's header says."""

    name: str
    extents: dict[str, Extent]
    ties: dict[str, str]
    metadata: dict[str, str]
    stamp: Stamp
    digest: str


def open_folder(path: str, label: str, storage: Storage = REAL) -> FileSource:
    """Opens the model in a folder by reading the headers of its weight files, and no more.

    `model.safetensors` is preferred to `diffusion_pytorch_model.safetensors`, both to `pytorch_model.bin`; each may be
    one file or shards with an index. A single other safetensors file or index serves too. Raises `CheckpointError`
    when there are no weights, when it is not clear which are meant, when index and shards disagree, and when
    anything named there lies outside the folder.
    """
    chosen = _choose(path, label, storage)
    inside(path, chosen, label)
    return _open(path, chosen, label, storage, path)


def weight_files(path: str, label: str, storage: Storage = REAL) -> list[str]:
    """Names of the files that hold the weights of the model in a folder, present or not.

    Raises `CheckpointError` as `open_folder` does, as far as an index tells.
    """
    chosen = _choose(path, label, storage)
    if not chosen.endswith(_INDEX):
        return [chosen]
    return sorted(set(_weight_map(path, chosen, label, storage).values()))


def open_file(path: str, label: str, storage: Storage = REAL) -> FileSource:
    """Opens a bare `.safetensors`, `.bin`, `.pt` or `.pth` file, or an `.index.json` with its shards.

    Raises `CheckpointError` as `open_folder` does, and for any other kind of file.
    """
    folder, name = os.path.split(path)
    if not _stem(name).endswith((_SAFETENSORS, *_TORCH)):
        raise _problem(
            "C204",
            "this is not a kind of checkpoint that is read here",
            "recipes are for `eutectic plan` and `eutectic merge`; name a model's folder or file"
            if name.lower().endswith((".yml", ".yaml"))
            else "name a model's folder, or a .safetensors, .bin, .pt or .pth file; convert anything else first",
            path,
        )
    beside = (folder or os.curdir) if os.path.isfile(os.path.join(folder, "config.json")) else None
    return _open(folder, name, label, storage, beside)


def inside(folder: str, name: str, label: str) -> str:
    """The path of `name` in a model's folder, after following links.

    Links may lead to other places in the folder and, in a Hugging Face cache, to the files of the same repository.
    Raises `CheckpointError` (C208) when the file lies anywhere else. Opens nothing.
    """
    real = os.path.realpath(os.path.join(folder, name))
    if not any(real.startswith(root.rstrip(os.sep) + os.sep) for root in _roots(folder)):
        raise _problem(
            "C208",
            f"{name!r} of model {label!r} is a link that leaves the model's folder",
            "copy the file into the folder, or name the real folder as the model",
            os.path.join(folder, name),
        )
    return real


def _roots(folder: str) -> list[str]:
    real = os.path.realpath(folder)
    repository = _cached_repository(real)
    return [real, repository[0]] if repository else [real]


def _cached_repository(folder: str) -> tuple[str, str, str] | None:
    """Folder, id and commit of the Hugging Face cache entry that `folder` lies in (`models--org--name/snapshots/…`)."""
    parts = folder.split(os.sep)
    for i in range(len(parts) - 2):
        if parts[i].startswith("models--") and parts[i + 1] == "snapshots":
            return os.sep.join(parts[: i + 1]), parts[i].removeprefix("models--").replace("--", "/"), parts[i + 2]
    return None


def _stem(name: str) -> str:
    return name.removesuffix(_INDEX)


def _choose(path: str, label: str, storage: Storage) -> str:
    """The file or index that holds the folder's weights."""
    try:
        names = storage.listdir(path)
    except OSError as error:
        raise unreadable(error, path, label) from error
    for usual in _USUAL:
        index = usual + _INDEX
        if index in names and usual in names:
            if set(_weight_map(path, index, label, storage).values()) != {usual}:
                raise _ambiguous(path, label, [index, usual])
            return usual
        if index in names or usual in names:
            return index if index in names else usual
    others = [name for name in names if _stem(name).endswith(_SAFETENSORS) and not _ADAPTER.search(name)]
    candidates = [name for name in others if not _SHARD.search(name)]
    if len(candidates) > 1:
        raise _ambiguous(path, label, candidates)
    if candidates:
        return candidates[0]
    raise _nothing(path, label, names, others)


def _ambiguous(path: str, label: str, candidates: list[str]) -> CheckpointError:
    message = f"the folder of model {label!r} holds several sets of weights: {_shown(candidates)}"
    return _problem("C202", message, "name the one you mean by its file, or move the others away", path)


def _shown(names: list[str]) -> str:
    """File names for a message, with nothing in them that a terminal would obey."""
    return listed([name if name.isprintable() else ascii(name) for name in names])


def _nothing(path: str, label: str, names: list[str], shards: list[str]) -> CheckpointError:
    if shards:
        message = f"the folder of model {label!r} holds shards without an index: {_shown(shards)}"
        return _problem("C201", message, "add the model.safetensors.index.json that came with them", path)
    if any(_ADAPTER.search(name) for name in names):
        return _problem("C205", f"{label!r} is a LoRA adapter, not a model", ADAPTER_HINT, path)
    message = f"the folder of model {label!r} holds no weights"
    found = f"it has {_shown(names)}" if names else "it is empty"
    return _problem("C201", message, f"{found}; wanted is model.safetensors, its index, or pytorch_model.bin", path)


def _open(folder: str, chosen: str, label: str, storage: Storage, beside: str | None) -> FileSource:
    if chosen.endswith(_INDEX):
        files = _shards(folder, chosen, label, storage)
    else:
        files = [_read(folder, chosen, label, storage)]
    extents = {name: extent for file in files for name, extent in file.extents.items()}
    metadata = {key: text for file in reversed(files) for key, text in file.metadata.items()}
    identity: dict[str, Any] = {
        "files": [{"name": file.name, "size": file.stamp.size, "header": file.digest} for file in files]
    }
    if repository := _cached_repository(os.path.realpath(folder)):
        identity |= {"repository": repository[1], "revision": repository[2]}
    specs = {name: extent.spec for name, extent in extents.items()}
    embedding = embedding_of_head(_config(beside, label, storage), specs) if beside is not None else None
    ignored = {HEAD: WHY.format(embedding)} if embedding is not None and extents.pop(HEAD, None) is not None else {}
    ties = _ties(files, extents)
    if embedding is not None and ignored:
        ties[HEAD] = embedding
    return FileSource(
        label,
        extents,
        ties=ties,
        implied={HEAD: embedding} if embedding is not None and HEAD not in ties else {},
        ignored=ignored,
        metadata=metadata,
        folder=beside,
        identity=identity,
        stamps={os.path.join(folder, file.name): file.stamp for file in files},
        storage=storage,
    )


def _config(folder: str, label: str, storage: Storage) -> Any:
    """The content of config.json, or None: one that is missing, or is no JSON, says nothing about the weights."""
    path = os.path.join(folder, "config.json")
    try:
        if not storage.exists(path):
            return None
        inside(folder, "config.json", label)
        return json.loads(storage.read_bytes(path, MAX_INDEX))
    except (ValueError, RecursionError):
        return None
    except OSError as error:
        raise unreadable(error, path, label) from error


def _shards(folder: str, index: str, label: str, storage: Storage) -> list[_File]:
    """The files of a sharded model, each holding exactly what the index places there."""
    weight_map = _weight_map(folder, index, label, storage)
    names = sorted(set(weight_map.values()))
    for name in names:
        inside(folder, name, label)
    files = [_read(folder, name, label, storage, index) for name in names]
    mapped: dict[str, set[str]] = {name: set() for name in names}
    for tensor, name in weight_map.items():
        mapped[name].add(tensor)
    ties = _ties(files, {tensor for file in files for tensor in file.extents})
    for file in files:
        stored = file.extents.keys()
        missing, unlisted = sorted(mapped[file.name] - stored - ties.keys()), sorted(stored - mapped[file.name])
        if missing:
            message = f"{index!r} of model {label!r} says that {file.name!r} holds {listed(missing)}, and it does not"
        elif unlisted:
            message = f"{file.name!r} of model {label!r} holds {listed(unlisted)}, which {index!r} does not place there"
        else:
            continue
        hint = "index and shards are not of one piece: download them again"
        raise _problem("C206", message, hint, os.path.join(folder, file.name))
    return files


def _ties(files: list[_File], stored: Container[str]) -> dict[str, str]:
    """Other name → stored name. In safetensors they stand in the metadata, among whatever else is there."""
    pairs = (pair for file in files for pair in (file.ties | file.metadata).items())
    return {name: kept for name, kept in pairs if kept in stored and name not in stored and name.isprintable()}


def _read(folder: str, name: str, label: str, storage: Storage, index: str = "") -> _File:
    """The header of one file. `index` is the one that names it, if any."""
    path = os.path.join(folder, name)
    try:
        stamp = stamp_of(storage, path)
        if not name.endswith(_SAFETENSORS):
            found = read_torch_index(storage, path)
            return _File(name, found.extents, found.ties, {}, stamp, found.digest)
        fd = storage.open_read(path)
        try:
            header = read_header(storage, fd, path)
        finally:
            storage.close(fd)
        return _File(name, header.entries, {}, header.metadata, stamp, header.digest)
    except FileNotFoundError as error:
        if not index:
            raise unreadable(error, path, label) from error
        message = f"{index!r} of model {label!r} names {name!r}, which is missing"
        raise _problem("C206", message, "finish the download", path) from error
    except OSError as error:
        raise unreadable(error, path, label) from error


def _weight_map(folder: str, index: str, label: str, storage: Storage) -> dict[str, str]:
    """Tensor name → shard, from an index whose every path was checked."""
    path = os.path.join(folder, index)
    inside(folder, index, label)
    try:
        table = strict_json(storage.read_bytes(path, MAX_INDEX))
    except MalformedError as error:
        raise _problem("C207", f"the index of model {label!r} is broken: {error}", _REPAIR, path) from None
    except OSError as error:
        raise unreadable(error, path, label) from error
    weight_map = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _problem("C207", f"the index of model {label!r} has no weight_map", _REPAIR, path)
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise _problem("C207", f"the index of model {label!r} places tensors in files without a name", _REPAIR, path)
    for shard in sorted(set(weight_map.values())):
        _check_shard_name(shard, os.path.splitext(_stem(index))[1], label, path)
    return weight_map


def _check_shard_name(shard: str, suffix: str, label: str, path: str) -> None:
    parts = shard.split("/")
    if not shard.isprintable() or "\\" in shard or {"", ".", ".."} & set(parts):
        message = f"the index of model {label!r} names {shard!a:.60}, which is not a plain path in its folder"
        raise _problem("C208", message, "do not trust this model: an index has no reason to point elsewhere", path)
    if not shard.endswith(suffix):
        message = f"the index of model {label!r} names {shard!a:.60}, which is not a {suffix} file"
        raise _problem("C207", message, _REPAIR, path)


def _problem(code: str, message: str, hint: str, path: str) -> CheckpointError:
    return CheckpointError(Problem(code, message, hint=hint, file=path))
