"""Steps of a search as they are taken, one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from eutectic.errors import OutputError, Problem


@contextmanager
def log_to(path: str | os.PathLike[str]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes a line, which is on its way to the disk when it returns.

    The file begins anew: a search that is run again takes the same steps, with scores from the cache. Raises
    `OutputError` (S809) where it cannot be written.
    """
    where = os.fspath(path)
    try:
        file = open(where, "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise OutputError(_problem(where, error)) from error
    with file:

        def write(line: dict[str, Any]) -> None:
            try:
                file.write(json.dumps(line) + "\n")
                file.flush()
            except OSError as error:
                raise OutputError(_problem(where, error)) from error

        yield write


def _problem(where: str, error: OSError) -> Problem:
    return Problem("S809", f"it cannot be written: {error.strerror or error}", where, "name another file")
