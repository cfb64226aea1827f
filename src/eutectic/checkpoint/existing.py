"""A folder where an output should go -> is it this very merge, and did merges write all that is in it?"""

from __future__ import annotations

import json
import os
from functools import cached_property
from typing import Any

from eutectic.checkpoint.storage import REAL, Storage
from eutectic.errors import OutputError, Problem, RecipeError, listed

MANIFEST = "eutectic.json"
# Which files, on this machine, the output was made from: lets the same command see that nothing changed since. Not part
# of the manifest, which any machine would write alike.
STAMP = ".eutectic-stamp"
# Lists the merges of a sweep, in the folder that theirs stand in.
SWEEP = "sweep.json"
# What to do where something is that may be replaced.
REPLACE = "choose another name, or replace it (`--replace`; in Python `replace`)"


class Existing:
    """What stands at an output's path. Raises `OSError` as the file system does."""

    def __init__(self, path: str, storage: Storage, manifest: str = MANIFEST) -> None:
        self._path, self._storage, self._name = path, storage, manifest

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Its manifest; empty if there is none that can be read."""
        try:
            found = json.loads(self._storage.read_bytes(os.path.join(self._path, self._name), 1 << 30))
        except (OSError, ValueError, RecursionError):
            return {}
        tables = [found.get(key, {}) for key in ("files", "weights")] if isinstance(found, dict) else [None]
        return found if all(isinstance(table, dict) for table in tables) else {}

    def is_merge(self, fingerprint: str, stamp: bytes) -> bool:
        """The same plan, from the very files that are there now, with every file of weights at its full size."""
        manifest = self.manifest
        at = os.path.join(self._path, STAMP)
        if manifest.get("fingerprint") != fingerprint or not self._storage.exists(at):
            return False
        if self._storage.read_bytes(at, 1 << 10) != stamp:
            return False
        for name, said in manifest.get("weights", {}).items():
            path = os.path.join(self._path, name)
            if not self._storage.exists(path) or self._storage.stat_path(path).st_size != said["size"]:
                return False
        return True

    def doubt(self) -> str:
        """Why what was made of the same plan may be another all the same, if `is_merge` says so."""
        if not self._storage.exists(os.path.join(self._path, STAMP)):
            return f"its {STAMP} is missing, without which nothing says that its models are still the same"
        return "it or a model it was made from may have changed since"

    def strangers(self) -> list[str]:
        """Files that its manifest does not list; all of them where there is none.

        Replacing removes the old folder, which must never be somebody's project or a model made elsewhere.
        """
        manifest = self.manifest
        ours = {self._name, STAMP, *manifest.get("files", {}), *manifest.get("weights", {})} if manifest else set()
        return [name for name in self._files(self._path, "") if name not in ours]

    def obstacle(self) -> tuple[str, str]:
        """Why what is here is never replaced, and what to do; two empty texts where it may be."""
        if not self._storage.is_dir(self._path):
            return "exists and is not a folder", "choose another name"
        strangers = self.strangers()
        if SWEEP in strangers:
            return "exists and holds a sweep", "choose another name, or remove the sweep yourself"
        if strangers:
            whose = "no merge wrote" if self._name == MANIFEST else f"does not belong to {self._name}"
            message = f"exists and holds what {whose} ({listed(strangers)}), so it is never replaced"
            return message, "choose another name, or move these files away yourself"
        return "", ""

    def _files(self, folder: str, prefix: str) -> list[str]:
        """Every file below, relative; links are named and not followed."""
        found = []
        for name in self._storage.listdir(folder):
            path = os.path.join(folder, name)
            if self._storage.is_dir(path) and not self._storage.is_link(path):
                found += self._files(path, f"{prefix}{name}/")
            else:
                found.append(prefix + name)
        return found


def refuse_parent(path: str, shown: str, storage: Storage) -> None:
    """Raises `OutputError` (W405) where the folder above an output is missing. `shown` is the path as it was given."""
    parent = os.path.dirname(path)
    if not storage.exists(parent):
        raise OutputError(Problem("W405", f"the folder {parent} does not exist", shown, "make it first"))


def refuse_place(
    out: str | os.PathLike[str], *, replace: bool, manifest: str = MANIFEST, storage: Storage = REAL
) -> None:
    """Raises before long work what an `Output` would raise after it: W405 without a folder above, W401.

    A folder with a manifest, if it is not to be replaced, may hold the very same, which is seen once that is known.
    """
    path, shown = os.path.realpath(out), os.fspath(out)
    refuse_parent(path, shown, storage)
    if not storage.exists(path):
        return
    existing = Existing(path, storage, manifest)
    if replace or not existing.manifest:
        message, hint = existing.obstacle()
        if message:
            raise RecipeError(Problem("W401", message, shown, hint))
