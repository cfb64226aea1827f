"""Artefacts that are small enough to be written at once: tensors, and a JSON file that says what they are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eutectic import dtypes
from eutectic._version import __version__
from eutectic.checkpoint.layout import lay_out
from eutectic.checkpoint.output import AlreadyCompleteError, Output
from eutectic.checkpoint.source import Source
from eutectic.checkpoint.storage import REAL, Storage
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

# What the JSON file says besides, which follows from the rest.
_FOLLOWS = ("fingerprint", "weights", "files")


def fingerprint_of(said: Mapping[str, Any]) -> str:
    """SHA-256 of what an artefact's JSON file says; digests of its tensors are part of that."""
    decides = {key: value for key, value in said.items() if key not in _FOLLOWS}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def write_artefact(
    out: str | os.PathLike[str],
    source: Source,
    body: Mapping[str, Any],
    *,
    about: str,
    replace: bool = False,
    storage: Storage = REAL,
) -> None:
    """Writes a folder of tensors. It appears whole or not at all.

    Args:
        out: the folder to make. Where it is there and has the same content, nothing is done.
        source: its tensors.
        body: what the JSON file says beside the version, and the digests under `tensors`.
        about: name of that file.
        replace: whether another artefact of the kind that is there may be replaced.
        storage: the file system.

    Raises `RecipeError` (W401) if the folder exists, `OutputError` if it cannot be written.
    """
    shards = lay_out(source.specs, {"format": "pt"}, max(1, sum(spec.nbytes for spec in source.specs.values())))
    digests = {name: source.digest(name) for name in source.specs}
    body = {**body, "eutectic": __version__, "tensors": digests}
    fingerprint = fingerprint_of(body)
    output = Output(
        os.fspath(out),
        shards,
        [(name, spec.numel, dtypes.itemsize(spec.dtype)) for name, spec in source.specs.items()],
        fingerprint=fingerprint,
        stamps=None,
        replace=replace,
        manifest=about,
        storage=storage,
    )
    try:
        output.open()
    except AlreadyCompleteError:
        return
    try:
        for number, name in enumerate(source.specs):
            output.write(number, 0, source[name].reshape(-1).view(torch.uint8).numpy().data)
            output.finish(number, {"digest": digests[name]})
        output.flush()
        weights = {shard.name: shard.identity() for shard in shards}
        said = {**body, "fingerprint": fingerprint, "weights": weights, "files": {}}
        output.complete({}, (json.dumps(said, indent=1) + "\n").encode())
    except BaseException:
        output.abandon(remove=True)
        raise
