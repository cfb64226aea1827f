"""Steps of a search as they are taken, one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Self

from eutectic.errors import OutputError, Problem


class Log:
    """A file that is made with its first line: what is refused before it leaves nothing behind.

    It begins anew each time, as a search that is run again takes the same steps, with scores from the cache.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        """Makes nothing yet; None is no log. Raises `OutputError` (S809) for a place where no file can be."""
        self._path = None if path is None else os.fspath(path)
        self._file: IO[str] | None = None
        if self._path is None:
            return
        if os.path.isdir(self._path) or not os.path.isdir(os.path.dirname(self._path) or os.curdir):
            raise OutputError(_problem(self._path, "its folder does not exist, or it is one"))

    def write(self, line: dict[str, Any]) -> None:
        """Writes a line, which is on its way to the disk when this returns. Raises `OutputError` (S809)."""
        if self._path is None:
            return
        try:
            if self._file is None:
                self._file = open(self._path, "w", encoding="utf-8")  # noqa: SIM115
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(_problem(self._path, f"it cannot be written: {error.strerror or error}")) from error

    def telling(self, on_step: Callable[[Any], None] | None) -> Callable[[Any], None]:
        """A function that writes a step (anything with `as_json`), and calls `on_step` with it."""

        def told(step: Any) -> None:
            self.write(step.as_json())
            if on_step is not None:
                on_step(step)

        return told

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


def _problem(path: str, message: str) -> Problem:
    return Problem("S809", message, path, "name another file")
