"""Scores that were measured before: a folder of small JSON files, named by what decides the score."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from eutectic._version import __version__
from eutectic.checkpoint import Source
from eutectic.errors import OutputError, Problem, RecipeError
from eutectic.evaluate.content import Memo, content_of, digest_of_json
from eutectic.evaluate.model import Score, Settings, Task

VARIABLE = "EUTECTIC_CACHE"


class Cache:
    """Keeps scores by weights, task and settings. Safe for several processes: files appear whole or not at all.

    The version of Eutectic and of torch and the kind of device are part of the name, since rounding may differ. What is
    damaged or cannot be written is as if it were not there.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Makes the folder.

        Args:
            folder: None for `EUTECTIC_CACHE`, or `~/.cache/eutectic/scores`.

        Raises `OutputError` (E912) where a folder that was asked for cannot be made or written to, `RecipeError` for
        what is no path.
        """
        if not isinstance(folder, str | os.PathLike | None):
            raise RecipeError(Problem("E912", f"must be True, False or a folder, not {folder!r}", "cache"))
        asked = folder if folder is not None else os.environ.get(VARIABLE)
        home = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
        self.folder = os.path.expanduser(os.fspath(asked or os.path.join(home, "eutectic", "scores")))
        try:
            os.makedirs(self.folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            if asked:
                message = f"no score can be kept here: {error.strerror}"
                raise OutputError(Problem("E912", message, "cache", "name another folder", self.folder)) from error

    def known(self, source: Source, task: Task, run: Settings) -> Score | None:
        """The score, if it can be found without reading a weight: those of the files were read before."""
        try:
            key = self.key(source, task, run, memo=self._recalled)
        except KeyError:
            return None
        return None if key is None else self.get(key, task.name)

    def key(self, source: Source, task: Task, run: Settings, memo: Memo | None = None) -> str | None:
        """The name of a score, or None for one that is never kept. Reads all weights that it has not seen."""
        what = task.identity()
        how = run.loader.identity(source)
        if what is None or how is None:
            return None
        import torch

        settings = [run.device.partition(":")[0], run.batch, run.limit, run.seed]
        versions = [__version__, torch.__version__, _version("transformers")]
        content = content_of(source, memo or self._remembered)
        return digest_of_json([content, how, what, task.metric, settings, versions])

    def get(self, key: str, name: str) -> Score | None:
        """The score of that key, under the task's present name; None if it is not there or damaged."""
        try:
            return replace(Score.from_json(self._read(key)["score"]), task=name)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None

    def put(self, key: str, score: Score) -> None:
        """Keeps a score; a disk that refuses is no reason to lose it."""
        self._write(key, {"score": score.as_json(items=True)})

    def _recalled(self, stamp: Any, _make: Callable[[], str]) -> str:
        """The digest of weights in files of this size, time and inode. Raises `KeyError` where it is not known."""
        try:
            return str(self._read(_digest_key(stamp))["digest"])
        except (OSError, ValueError, TypeError) as error:
            raise KeyError(stamp) from error

    def _remembered(self, stamp: Any, make: Callable[[], str]) -> str:
        """The same, computed where it is not known. Tensors in memory have no stamp and are read each time."""
        if stamp is None:
            return make()
        try:
            return self._recalled(stamp, make)
        except KeyError:
            found = make()
            self._write(_digest_key(stamp), {"digest": found})
            return found

    def _read(self, key: str) -> Any:
        with open(os.path.join(self.folder, f"{key}.json"), encoding="utf-8") as file:
            return json.load(file)

    def _write(self, key: str, data: Any) -> None:
        with suppress(OSError):
            handle, path = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(data, file)
                os.replace(path, os.path.join(self.folder, f"{key}.json"))
            except BaseException:
                os.unlink(path)
                raise


def _digest_key(stamp: Any) -> str:
    return f"digest-{digest_of_json(stamp)}"


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""
