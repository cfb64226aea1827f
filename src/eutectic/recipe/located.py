"""Plain data that knows where it was written: places, documents, and a cursor that walks them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from eutectic.errors import Problem, RecipeError

Trail = tuple[str | int, ...]
# Whence a value came that stands in no file: the argument in Python.
OVERRIDE, OVER = "overrides", "over"
MAX_PROBLEMS = 200


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands. `line` and `column` count from 1 and are None outside of files and YAML text.

    `file` is empty for text and dicts, `overrides` or `over` for what these change; `path` reads
    `models[1].parameters.density`.
    """

    file: str
    line: int | None
    column: int | None
    path: str


@dataclass(frozen=True, slots=True)
class Live:
    """An object given from Python that is no plain data: a module, a mapping of tensors, a source, a `Recipe`."""

    value: Any


def path_of(trail: Trail) -> str:
    """`("models", 1, "model")` → `models[1].model`."""
    text = ""
    for step in trail:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def shown(data: object) -> str:
    """A value for a message, at most a line long."""
    if data is None:
        return "nothing"
    if isinstance(data, bool):
        return str(data).lower()
    if isinstance(data, Live):
        return f"a {type(data.value).__name__} object"
    if isinstance(data, dict | list):
        return "a mapping" if isinstance(data, dict) else "a list"
    text = repr(data)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(slots=True)
class Document:
    """One recipe as plain data, with the line and column of every value and key, and what an option put there."""

    data: Any
    file: str = ""
    values: dict[Trail, tuple[int, int]] = field(default_factory=dict)
    keys: dict[Trail, tuple[int, int]] = field(default_factory=dict)
    overridden: dict[Trail, str] = field(default_factory=dict)

    def place(self, trail: Trail, *, key: bool = False) -> Place:
        """Where the value at `trail` stands, or with `key` the key that leads to it."""
        for length in range(len(trail), -1, -1) if self.overridden else ():
            if (option := self.overridden.get(trail[:length])) is not None:
                return Place(option, None, None, path_of(trail))
        mark = (self.keys.get(trail) if key else None) or self.values.get(trail)
        line, column = mark or (None, None)
        return Place(self.file, line, column, path_of(trail))

    def places(self) -> dict[str, Place]:
        """Every path of the document and where its value stands."""
        found = {path_of(trail): self.place(trail) for trail in self.values if trail}
        return found | {path_of(trail): self.place(trail) for trail in self.overridden}


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a document, and the way to it."""

    document: Document
    data: Any
    trail: Trail = ()

    @property
    def place(self) -> Place:
        """Where the value stands."""
        return self.document.place(self.trail)

    @property
    def key_place(self) -> Place:
        """Where the key of the value stands; the value itself for items of a list."""
        return self.document.place(self.trail, key=True)

    def get(self, key: str) -> Node | None:
        """What stands under `key`; None if it is absent or null, or if this is no mapping."""
        value = self.data.get(key) if isinstance(self.data, dict) else None
        return None if value is None else Node(self.document, value, (*self.trail, key))

    def items(self) -> Iterator[tuple[str, Node]]:
        """The keys and values of a mapping, in the order written."""
        for key, value in self.data.items():
            yield key, Node(self.document, value, (*self.trail, key))

    def elements(self) -> Iterator[Node]:
        """The items of a list."""
        for index, value in enumerate(self.data):
            yield Node(self.document, value, (*self.trail, index))


class Faults:
    """Collects problems, so that all can be told at once; each once, and at most `MAX_PROBLEMS`."""

    def __init__(self) -> None:
        self._problems: dict[Problem, None] = {}
        self._absent: dict[Problem, None] = {}
        self._spoilt: set[tuple[str, int | None, int | None]] = set()

    def __len__(self) -> int:
        return len(self._problems)

    def add(self, code: str, place: Place, message: str, hint: str = "") -> None:
        """Notes a problem that stands at `place`. Raises `RecipeError` when there are too many to go on."""
        if place.line is None or (place.file, place.line, place.column) not in self._spoilt:
            self.extend([Problem(code, message, place.path, hint, place.file, place.line, place.column)])

    def spoilt(self, problems: Sequence[Problem]) -> None:
        """Notes problems of the text. What is said later of the same places is not noted: nothing was read there."""
        self._spoilt |= {(problem.file, problem.line, problem.column) for problem in problems}
        self.extend(problems)

    def absent(self, place: Place, name: str, hint: str) -> None:
        """Notes that nothing has this name. No problem by itself, as who opens it will tell; told beside others."""
        message = f"{name!r} does not exist"
        self._absent[Problem("C200", message, place.path, hint, place.file, place.line, place.column)] = None

    def extend(self, problems: Iterable[Problem]) -> None:
        """Notes problems found elsewhere; as `add`."""
        self._problems.update(dict.fromkeys(problems))
        if len(self) >= MAX_PROBLEMS:
            raise self.error()

    def error(self) -> RecipeError:
        """The problems by file, in the order the files were met, and by line; those without a line as they came."""
        found = self._problems | self._absent
        order = {name: at for at, name in enumerate(dict.fromkeys(p.file for p in found))}
        return RecipeError(sorted(found, key=lambda p: (order[p.file], p.line or 0, p.column or 0)))
