"""Standard output that cannot be written: said once, while the command goes on to its end."""

from __future__ import annotations

import os
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any


class _Patient(FileIO):
    """A file whose failure is noted and not raised: no work is lost for a text that nobody can read."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error
                self._tell(error)
        return memoryview(data).nbytes

    def _tell(self, error: OSError) -> None:
        # A reader that goes away (`head`) has read enough; and what standard error cannot say is not said.
        if isinstance(error, BrokenPipeError) or self.fileno() != 1:
            return
        code = "W408"
        sys.stderr.write(
            f"error {code} standard output cannot be written: {error.strerror}\n"
            "      → what was asked for is done to its end, and only its text is lost\n"
        )


_guarded: dict[str, _Patient] = {}


def guard() -> None:
    """Makes standard output and error patient; a character that they cannot show is its number."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        settings: dict[str, Any] = {}
        if stream is None:
            # Closed from the start: held by what cannot be written, or the first file that is opened would take its
            # number.
            nowhere = os.open(os.devnull, os.O_RDONLY)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
        elif isinstance(stream, TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            settings = {"encoding": stream.encoding, "line_buffering": stream.line_buffering}
            settings["write_through"] = stream.write_through
        else:
            # Of a program that put it there.
            continue
        file = _Patient(descriptor)
        _guarded[name] = file
        setattr(sys, name, TextIOWrapper(BufferedWriter(file), errors="backslashreplace", **settings))


def lost() -> bool:
    """Whether standard output cannot be written; a pipe whose reader went away is none of that."""
    if "stdout" not in _guarded:
        return False
    sys.stdout.flush()
    return not isinstance(_guarded["stdout"].failure, BrokenPipeError | None)
