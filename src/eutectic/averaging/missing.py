"""What is raised when a callback's training library is not installed."""

from __future__ import annotations

from eutectic.errors import EutecticError, Problem


class MissingLibraryError(EutecticError, ImportError):
    """A callback was imported without the library that it is for; names the extra that installs it."""

    def __init__(self, extra: str, library: str) -> None:
        hint = f"pip install 'eutectic[{extra}]'"
        super().__init__(Problem("T705", f"the callback for {library} needs {library}", hint=hint))
