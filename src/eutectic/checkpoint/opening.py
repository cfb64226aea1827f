"""From what a user wrote to a Source: a path, a hub id, a live module, or a Source already."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from eutectic.checkpoint.folder import ADAPTER_HINT, open_file, open_folder
from eutectic.checkpoint.hub import fetch
from eutectic.checkpoint.memory import MemorySource
from eutectic.checkpoint.source import Source
from eutectic.checkpoint.storage import REAL, Storage
from eutectic.errors import CheckpointError, Problem
from eutectic.paths import absolute, near_path

# No hub id ends like a file of weights; a file that is not there is nothing to ask the network for.
_FILE = re.compile(r"\.(safetensors|bin|pt|pth|gguf)$", re.IGNORECASE)
_HUB = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_MODELS = "a path, a hub id, a module, a mapping of tensors, or what `eutectic.merged` makes of a recipe"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is: an existing `path`, or a hub `repo_id` at a `revision` (None: its default branch)."""

    label: str
    path: str | None = None
    repo_id: str = ""
    revision: str | None = None


def resolve(ref: str, folder: str | None = None) -> Place:
    """Finds out what a reference to a model means, without opening it and without a network.

    A path that exists wins: as written (`~` is the home folder), then from `folder`, the recipe's own. Otherwise
    `org/name` or `org/name@revision` is a hub id, unless it ends like a file of weights. Raises `CheckpointError` for
    anything else.
    """
    for base in ("", folder or ""):
        path = absolute(os.path.join(base, os.path.expanduser(ref)))
        if ref and os.path.exists(path):
            return Place(os.path.basename(path) or path, path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", ref):
        hint = "download the model yourself and name its folder, or use a hub id such as 'org/name@revision'"
        raise CheckpointError(Problem("C209", f"{ref!r} is a URL, and none is fetched", hint=hint))
    if re.fullmatch(r"[^+]+\+[^+]+", ref):
        raise CheckpointError(Problem("C205", f"{ref!r} asks for a model with a LoRA adapter", hint=ADAPTER_HINT))
    if (found := _HUB.fullmatch(ref)) and not _FILE.search(ref):
        return Place(ref, None, found[1], found[2])
    near = near_path(ref, ("", folder or ""))
    hint = near or "name a folder, a checkpoint file, or a hub id such as 'org/name@revision'"
    raise CheckpointError(Problem("C200", f"{ref!r} does not exist", hint=hint))


def open_source(ref: Any, *, label: str | None = None, folder: str | None = None, storage: Storage = REAL) -> Source:
    """Opens a model: headers are read, weights are not.

    Args:
        ref: a path or hub id as in `resolve`, a `torch.nn.Module`, a mapping name → tensor (torch or numpy), or a
            Source, which is returned as it is.
        label: the model's short name; by default the last part of the path, or the hub id with its revision.
        folder: where relative paths start when they are not found from the current folder.
        storage: the file system.

    Raises `CheckpointError` when there is no such model or it is broken or unsafe to read.
    """
    if isinstance(ref, Source):
        return ref
    if isinstance(ref, str | os.PathLike):
        return _open_place(resolve(os.fspath(ref), folder), label, folder, storage)
    if isinstance(ref, Mapping) and isinstance(ref.get("merge_method"), str):
        raise CheckpointError(Problem("C204", "a recipe is no model", hint="`eutectic.merged` makes one of it"))
    if isinstance(ref, Mapping) or callable(getattr(ref, "state_dict", None)):
        return MemorySource(label or type(ref).__name__, ref)
    message = f"a {type(ref).__name__} is no model"
    raise CheckpointError(Problem("C200", message, hint=f"give {_MODELS}"))


def _open_place(place: Place, label: str | None, folder: str | None, storage: Storage) -> Source:
    name, path = label or place.label, place.path
    if path is None:
        try:
            path = fetch(place.repo_id, place.revision)
        except CheckpointError as error:
            if near := near_path(place.label, ("", folder or "")):
                raise _with_hint(error, near) from error
            raise
    source = open_folder(path, name, storage) if os.path.isdir(path) else open_file(path, name, storage)
    if label is None and place.path is not None:
        source.path = place.path
    return source


def _with_hint(error: CheckpointError, hint: str) -> CheckpointError:
    first = error.problems[0]
    return CheckpointError(replace(first, hint=f"{first.hint}; {hint}"))
