"""Local files of items → checked rows: text, JSON lines and tab-separated tables. Every bad line is told at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from eutectic.errors import Problem, RecipeError, listed, several
from eutectic.evaluate.content import digest_of_bytes
from eutectic.evaluate.options import Checked, option
from eutectic.paths import near_file
from eutectic.recipe.located import shown

# Told of one file; the rest is counted.
_TOLD = 10
_STARTS = "a task file's paths start from its own folder; on the command line from the current one"
Row = dict[str, Any]


@dataclass(frozen=True)
class DataTask(Checked):
    """A task whose items lie in one local file, read once."""

    data: str = option(path=True)

    @cached_property
    def content(self) -> bytes:
        """The file. Raises `RecipeError` (E903) where it cannot be read."""
        try:
            with open(os.path.expanduser(self.data), "rb") as file:
                return file.read()
        except OSError as error:
            folder = os.path.isdir(os.path.expanduser(self.data))
            hint = "name one file" if folder else near_file(self.data) or _STARTS
            raise RecipeError(
                Problem("E903", f"the data cannot be read: {error.strerror}", "data", hint, self.data)
            ) from error

    def identity(self) -> dict[str, Any]:
        """The kind, its version, every option, and the digest of the data."""
        kind = {"task": getattr(self, "kind"), "version": getattr(self, "version", 1)}  # noqa: B009
        return {**kind, **self.options(), "data": digest_of_bytes(self.content)}

    def label(self) -> str:
        """The file's name without its ending: what the task is called where it has no name."""
        return os.path.splitext(os.path.basename(self.data))[0]

    @cached_property
    def text(self) -> str:
        """The file as text. Raises `RecipeError` (E904) where it is not UTF-8."""
        try:
            return self.content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            message = f"byte {error.start} is not UTF-8"
            raise RecipeError(Problem("E904", message, "data", file=self.data)) from error

    def rows(self, reader: Callable[[Row], Row]) -> list[Row]:
        """Every row, as `reader` understands it. It raises `ValueError` with what is wrong with one.

        Raises `RecipeError` (E904) with what is wrong with which lines, and for data without a single row.
        """
        wrong: dict[str, list[int]] = {}
        found: list[Row] = []
        lines = self.text.split("\n")
        table = self.data.lower().endswith(".tsv")
        head = lines[0].rstrip("\r").split("\t") if table else []
        for number, line in enumerate(lines, 1):
            if not line.strip() or (table and number == 1):
                continue
            try:
                found.append(reader(_cells(head, line) if table else _object(line)))
            except ValueError as error:
                wrong.setdefault(str(error), []).append(number)
        problems = [self._wrong(message, at) for message, at in list(wrong.items())[:_TOLD]]
        if rest := sum(map(len, list(wrong.values())[_TOLD:])):
            told = several(rest, "more line", "is", "are")
            problems.append(Problem("E904", f"and {told} wrong", file=self.data))
        if not problems and not found:
            problems = [Problem("E904", "there is no item in it", "data", file=self.data)]
        if problems:
            raise RecipeError(problems)
        return found

    def _wrong(self, message: str, lines: Sequence[int]) -> Problem:
        """What is wrong with a line, told once for all of which the same is."""
        if more := [str(line) for line in lines[1:]]:
            message = f"{message}; and so in {several(len(more), 'more line')}: {listed(more)}"
        return Problem("E904", message, file=self.data, line=lines[0], column=1)

    def all_texts(self, field: str) -> list[str]:
        """The documents: one a row under `field`, or the whole file. Raises `RecipeError` (E904) for wrong lines."""
        if not self.data.lower().endswith((".jsonl", ".json", ".tsv")):
            return [self.text]
        return [row["text"] for row in self.rows(lambda row: {"text": text_of(row, field, empty=True)})]

    def texts(self, field: str) -> list[str]:
        """Those of `all_texts` that are more than white space. Raises `RecipeError` (E904) as it does, and for none."""
        return self.with_text(self.all_texts(field))

    def with_text(self, documents: Sequence[str]) -> list[str]:
        """The documents that are more than white space. Raises `RecipeError` (E904) if there is none."""
        found = [text for text in documents if text.strip()]
        if not found:
            raise RecipeError(Problem("E904", "there is no text in it", "data", file=self.data))
        return found


def _object(line: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}; one object a line is expected") from error
    if not isinstance(row, dict):
        raise ValueError(f"must be an object, not {shown(row)}")
    return row


def _cells(head: Sequence[str], line: str) -> Row:
    cells = line.rstrip("\r").split("\t")
    if len(cells) != len(head):
        raise ValueError(f"has {several(len(cells), 'column')}, the first line has {len(head)}")
    return dict(zip(head, cells, strict=True))


def text_of(row: Row, *keys: str, empty: bool = False) -> str:
    """The text under the first of `keys` that is there. Raises `ValueError` for anything else."""
    for key in keys:
        if key in row:
            if not isinstance(row[key], str) or not (empty or row[key].strip()):
                raise ValueError(f"{key!r} must be text, not {shown(row[key])}")
            return str(row[key])
    raise ValueError(f"has no {' or '.join(map(repr, keys))}; it has {', '.join(map(repr, row)) or 'no key'}")
