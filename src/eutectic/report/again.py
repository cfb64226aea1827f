"""A finished output in the place of a recipe -> the recipe in its manifest, its models found from where they were."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from eutectic.checkpoint.existing import MANIFEST
from eutectic.report.verify import read_manifest

# Keys of a recipe whose text may be a path.
_PATHS = ("model", "base_model", "statistics", "aligned")
# The same, and the words that are no paths there, even where a folder has such a name.
_DONORS = {"buffers_from": ("base",), "tokenizer_source": ("base", "union")}


def recipe_in(source: Any) -> Any:
    """What is in the manifest, for its path or the folder of an output; anything else as it is.

    Paths are tried from where the merge was run, as `verify` does. Raises `CheckpointError` (V701) for a manifest that
    cannot be read.
    """
    if not isinstance(source, str | os.PathLike):
        return source
    path = os.fspath(source)
    if not isinstance(path, str) or "\0" in path or "\n" in path:
        return source
    folder, name = os.path.split(path) if not os.path.isdir(path) else (path, MANIFEST)
    if name != MANIFEST or not os.path.isfile(os.path.join(folder, name)):
        return source
    found = read_manifest(folder)
    home = os.path.realpath(folder)
    return _moved(found["recipe"], [os.path.normpath(os.path.join(home, one)) for one in found.get("found_from", [])])


def _moved(written: Any, folders: Sequence[str]) -> Any:
    """A recipe, or a part of it, with every relative path that leads to something made absolute."""
    if not isinstance(written, dict):
        return written
    moved = dict(written)
    for key in (*_PATHS, *_DONORS):
        if key in moved and moved[key] not in _DONORS.get(key, ()):
            moved[key] = _found(moved[key], folders)
    if isinstance(moved.get("models"), list):
        moved["models"] = [_found(one, folders) for one in moved["models"]]
    return moved


def _found(written: Any, folders: Sequence[str]) -> Any:
    if not isinstance(written, str):
        return _moved(written, folders)
    if os.path.isabs(written):
        return written
    places = (os.path.join(folder, os.path.expanduser(written)) for folder in folders)
    return next(filter(os.path.exists, places), written)
