"""Everything that can be refused: problems with a code, a place and advice, and the exceptions that carry them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: what, where, and what to do about it.

    `where` is a path inside a recipe (`models[1].parameters.densty`), a tensor or a file; `line` and `column`
    count from 1 and are set when the problem stands in a recipe file.
    """

    code: str
    message: str
    where: str = ""
    hint: str = ""
    file: str = ""
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = self.file
        if self.line is not None:
            place = f"{place or 'recipe'}:{self.line}:{self.column}"
        place = f"{place}:" if place and not self.where else place
        parts = [self.code, place, f"{self.where}:" if self.where else "", self.message]
        text = " ".join(part for part in parts if part)
        return f"{text}; {self.hint}" if self.hint else text

    def as_json(self) -> dict[str, object]:
        """The problem as plain data, for `--json`."""
        return {
            "code": self.code,
            "where": self.where,
            "message": self.message,
            "hint": self.hint,
            "file": self.file,
            "line": self.line,
            "column": self.column,
        }


class EutecticError(Exception):
    """Base of every error Eutectic raises on purpose. Carries one or more problems; the exit code says whose fault."""

    exit_code = 1

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class RecipeError(EutecticError):
    """The request is wrong: a recipe, an option or a combination of inputs that cannot be merged."""

    exit_code = 2


class CheckpointError(EutecticError):
    """An input is missing, broken, unsafe to read or changed while it was read."""


class OutputError(EutecticError):
    """The output cannot be written: it exists, is locked, or the disk refuses."""


class NumericError(EutecticError):
    """A value that must not be passed on: NaN or infinity, in an input or produced."""


class ResourceError(EutecticError):
    """The memory bound or the device cannot hold what the merge needs."""


class InterruptedMergeError(EutecticError):
    """Stopped by a signal; what was finished is kept and the same command resumes. Exit code 128 + signal."""

    def __init__(self, problems: Problem | Iterable[Problem], signal_number: int = 2) -> None:
        super().__init__(problems)
        self.exit_code = 128 + signal_number


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """A hint such as ``did you mean 'density'?``, or an empty string when nothing is near.

    Case makes no difference, and the first word of one candidate alone is near to it: `base` to `base_model`.
    """
    lower, by_lower = str(name).lower(), {str(c).lower(): str(c) for c in candidates}
    near = difflib.get_close_matches(lower, by_lower, n=1, cutoff=0.6)
    near = near or [one for one in by_lower if one.startswith(f"{lower}_")]
    return f"did you mean {by_lower[near[0]]!r}?" if len(near) == 1 else ""


def several(count: int, noun: str, verb: str = "", verbs: str = "") -> str:
    """``1 value``, ``2,000 values``, ``1 batch``; with its verb ``1 value is``, ``0 values are``."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "ch")) else "s"
    return f"{count:,} {noun}{ending} {verb if count == 1 else verbs}".rstrip()


def listed(names: Sequence[str], limit: int = 4) -> str:
    """Names for a message: ``a, b, c, d and 12 more``."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
