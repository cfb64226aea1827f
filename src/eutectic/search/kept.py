"""Steps of a descent on the disk, so that the same command goes on where it was stopped."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from eutectic._version import __version__
from eutectic.checkpoint import REAL
from eutectic.checkpoint.journal import Journal
from eutectic.errors import NumericError, OutputError, Problem, RecipeError, several
from eutectic.evaluate.content import digest_of_json


class KeptSteps:
    """What a step saw, a line each: the gradient above all, by which Adam takes the very same way again.

    Attributes:
        found: the steps of a run that was stopped, in order.
        search: digest of all that decides the steps, with the models' files as they are; empty where none are kept.
    """

    def __init__(self, path: str | None = None, *, replace: bool = False) -> None:
        """Opens nothing.

        Args:
            path: of the file; None: nothing is kept.
            replace: whether steps of another search may be thrown away.
        """
        self._path, self._replace = path, replace
        self._journal: Journal | None = None
        self._lock: int | None = None
        self._request = ""
        self.found: list[dict[str, Any]] = []
        self.search = ""
        self._empty = False  # nothing in the file is worth keeping

    @property
    def opened(self) -> bool:
        """Whether steps are kept."""
        return self._journal is not None

    def open(self, request: Any) -> None:
        """Looks at what is there, before data are read.

        Args:
            request: plain data of what is asked for, without the data's content.

        Raises `OutputError` (W402: another run is at it; W405), `RecipeError` (W403) for steps of another search, or
        W401 for a file that holds none, even where it may be replaced.
        """
        if self._path is None:
            return
        self._request = digest_of_json([__version__, request])
        try:
            self._lock = REAL.lock(self._path)
            self._journal = Journal(self._path, REAL)
        except BlockingIOError:
            message = f"another run is writing {self._path}"
            raise OutputError(Problem("W402", message, self._path, "wait for it, or choose another name")) from None
        except OSError as error:
            raise OutputError(self._problem(error)) from error
        self._refuse_strangers()
        self._empty = not self._journal.records
        self._refuse("request", self._request)

    def _refuse_strangers(self) -> None:
        """Every search writes its request first: a file that begins otherwise is somebody's own."""
        assert self._journal is not None and self._path is not None
        there = self._journal.header
        if self._journal.foreign or (there is not None and "request" not in there):
            message = f"{self._path}, where steps are kept, holds what no search wrote"
            hint = "choose another name, or move this file away yourself"
            raise RecipeError(Problem("W401", message, self._path, hint))

    def take(self, data: Any, stamps: Any) -> None:
        """Takes up what is there, once it is opened.

        Args:
            data: plain data of the content that decides every step, with the request.
            stamps: of the files that go in; steps that were taken with other ones are of no use.

        Raises `OutputError` (W405), `RecipeError` (W403) for steps of another search.
        """
        assert self._journal is not None
        fingerprint = digest_of_json([self._request, data])
        self._refuse("fingerprint", fingerprint)
        header = {"request": self._request, "fingerprint": fingerprint, "inputs": stamps}
        self.search = digest_of_json(header)
        try:
            if self._journal.header != header:
                self._journal.restart(header)
        except OSError as error:
            raise OutputError(self._problem(error)) from error
        self.found = self._journal.records
        self._empty = not self.found

    def _refuse(self, key: str, wanted: str) -> None:
        assert self._journal is not None and self._path is not None
        there = self._journal.header
        if there is not None and there.get(key) != wanted and not self._replace:
            message = f"{self._path} holds {several(len(self._journal.records), 'step')} of another search"
            hint = "run that command again to finish it, or discard it (`--replace`; in Python `replace`)"
            raise RecipeError(Problem("W403", message, self._path, hint))

    def keep(self, record: dict[str, Any]) -> None:
        """Adds a step, which is on the disk when this returns. Raises `OutputError` (W405)."""
        if self._journal is not None:
            try:
                self._journal.append([record])
                self._empty = False
            except OSError as error:
                raise OutputError(self._problem(error)) from error

    def forget(self) -> None:
        """Removes the file: what it was for is done."""
        if self._journal is not None and self._path is not None:
            REAL.unlink(self._path)

    def _problem(self, error: OSError) -> Problem:
        message = f"cannot be written: {error.strerror or error}"
        return Problem("W405", message, self._path or "", "mend the cause; the same command resumes")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # The same steps would lead to the same NaN.
        if self._empty or (kind is not None and issubclass(kind, NumericError)):
            self.forget()
        if self._journal is not None:
            self._journal.close()
        if self._lock is not None:
            REAL.close(self._lock)
