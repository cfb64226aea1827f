"""YAML text → documents: plain data with positions. Nothing is executed, and nothing expands without bound."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from eutectic.errors import Problem, RecipeError
from eutectic.recipe import scalars
from eutectic.recipe.located import Document, Faults, Place, Trail, path_of, shown

MAX_CHARACTERS = 1_000_000
MAX_ALIASES = 100
MAX_NODES = 100_000
MAX_DEPTH = 50
MAX_DOCUMENTS = 100
_MERGE = "<<"
# What YAML excludes: control characters, lone surrogates, and byte order marks inside the text.
_UNREADABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(slots=True, eq=False)
class _Raw:
    """A composed value: a scalar, a list of `_Raw`, or a dict of key → (position of the key, `_Raw`).

    `size` counts the values in it with aliases expanded, `height` its levels of nesting.
    """

    value: Any
    mark: tuple[int, int]
    size: int = 1
    height: int = 1


def compose(text: str, file: str = "", faults: Faults | None = None, key: str = "") -> list[Document]:
    """The non-empty documents of a YAML stream.

    Raises `RecipeError` with every problem of the text: syntax errors, duplicate keys, tags, keys that are not text,
    numbers that are not finite, more than 100 aliases, 100,000 values or 50 levels. Where `faults` are given, problems
    that leave the rest of the text readable go there, and what is read is returned. `key` is that of a recipe whose
    value the text is, if it is no recipe.
    """
    if len(text) > MAX_CHARACTERS:
        message = f"the recipe has {len(text)} characters, the most is {MAX_CHARACTERS}"
        raise RecipeError(Problem("R105", message, file=file))
    text = text.removeprefix("\ufeff")
    if found := _UNREADABLE.search(text):
        message = f"the character U+{ord(found[0]):04X} is not allowed in YAML"
        line, column = _position(text, found.start())
        raise RecipeError(Problem("R102", message, file=file, line=line, column=column))
    composer = _Composer(text, file, key)
    documents: list[Document] | None = None
    try:
        documents = composer.documents()
    except _GiveUpError:
        pass
    except yaml.MarkedYAMLError as error:
        composer.syntax(error)
    problems = composer.faults.error().problems
    # An alias of nothing may stand for anything: what is missing without it is not known.
    if documents is None or (problems and faults is None) or any(problem.code == "R102" for problem in problems):
        raise RecipeError(problems)
    if faults is not None:
        faults.spoilt(problems)
    return documents


class _GiveUpError(Exception):
    """The rest of the text cannot be read; the reason is among the faults."""


def _position(text: str, offset: int) -> tuple[int, int]:
    before = text[:offset]
    return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1


class _Composer:
    def __init__(self, text: str, file: str, key: str) -> None:
        self.text = text
        self.file = file
        self.stands_under = key
        self.faults = Faults()
        self.aliases = 0
        self.nodes = 0
        self.anchors: dict[str, _Raw | None] = {}
        self.events: Iterator[Any] = yaml.parse(text, Loader=_Loader)

    def documents(self) -> list[Document]:
        found: list[Document] = []
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                self.anchors = {}
                raw = self.node(next(self.events), ())
                document = Document(None, self.file)
                document.data = _expand(raw, (), document)
                if document.data is not None:
                    found.append(document)
                if len(found) > MAX_DOCUMENTS:
                    raise self.give_up(_mark(event), (), f"more than {MAX_DOCUMENTS} documents")
        return found

    def syntax(self, error: yaml.MarkedYAMLError) -> None:
        mark = error.problem_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        lines = self.text.splitlines()
        here = lines[line] if line < len(lines) else ""
        place = Place(self.file, line + 1, column + 1, "")
        if "\t" in here[column : column + 1] or "\t" in here[: len(here) - len(here.lstrip())]:
            self.faults.add("R102", place, "a tab cannot indent YAML", "use spaces")
            return
        message = f"not valid YAML: {error.problem}"
        if error.context and error.context_mark:
            message += f" {error.context} from line {error.context_mark.line + 1}"
        hint = "put text with a colon in quotes, or check the indentation" if "mapping values" in message else ""
        if "unexpected ':'" in message:
            hint = "write a blank after the colon, as in {sweep: [1, 2]}"
        elif "cannot start any token" in message:
            hint = f"put text that begins with {here[column : column + 1]} in quotes"
        self.faults.add("R102", place, message, hint)

    def fault(self, code: str, event: Any, trail: Trail, message: str, hint: str = "") -> None:
        self.faults.add(code, Place(self.file, *_mark(event), path_of(trail)), message, hint)

    def give_up(self, mark: tuple[int, int], trail: Trail, message: str) -> _GiveUpError:
        # A path 50 levels deep tells less than its beginning.
        self.faults.add("R105", Place(self.file, *mark, path_of(trail[:4])), message)
        return _GiveUpError()

    def node(self, event: Any, trail: Trail) -> _Raw:
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, trail)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.fault("R104", event, trail, f"the tag {shown(tag)} is not allowed", "remove it")
        if isinstance(event, yaml.ScalarEvent):
            raw = self.scalar(event, trail)
        elif isinstance(event, yaml.SequenceStartEvent):
            raw = self.sequence(event, trail)
        else:
            raw = self.mapping(event, trail)
        if event.anchor is not None:
            self.anchors[event.anchor] = raw
        return raw

    def count(self, mark: tuple[int, int], trail: Trail, size: int = 1, height: int = 1) -> None:
        self.nodes += size
        if self.nodes > MAX_NODES:
            raise self.give_up(mark, trail, f"more than {MAX_NODES} values")
        if len(trail) + height > MAX_DEPTH:
            raise self.give_up(mark, trail, f"nested more than {MAX_DEPTH} levels deep")

    def alias(self, event: Any, trail: Trail) -> _Raw:
        self.aliases += 1
        if self.aliases > MAX_ALIASES:
            raise self.give_up(_mark(event), trail, f"more than {MAX_ALIASES} uses of aliases")
        raw = self.anchors.get(event.anchor)
        if raw is None:
            known = event.anchor in self.anchors
            message = f"the alias *{event.anchor} " + ("stands inside its own anchor" if known else "has no anchor")
            self.fault("R102", event, trail, message)
            return _Raw(None, _mark(event))
        self.count(_mark(event), trail, raw.size, raw.height)
        return raw

    def scalar(self, event: Any, trail: Trail) -> _Raw:
        self.count(_mark(event), trail)
        value = scalars.plain_scalar(event.value) if event.implicit[0] else event.value
        if reason := scalars.fault(value, trail[-1] if trail else self.stands_under):
            self.fault("R106", event, trail, reason)
            value = None
        return _Raw(value, _mark(event))

    def sequence(self, event: Any, trail: Trail) -> _Raw:
        self.count(_mark(event), trail)
        items: list[_Raw] = []
        while not isinstance(inner := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(inner, (*trail, len(items))))
        return _sized(_Raw(items, _mark(event)), items)

    def mapping(self, event: Any, trail: Trail) -> _Raw:
        self.count(_mark(event), trail)
        pairs: dict[str, tuple[tuple[int, int], _Raw]] = {}
        merged: list[_Raw] = []
        while not isinstance(inner := next(self.events), yaml.MappingEndEvent):
            key = self.key(inner, trail)
            here = trail if key is None else (*trail, key)
            repeated = key in pairs
            raw = self.node(next(self.events), here)
            if key == _MERGE and inner.implicit[0]:
                merged.append(raw)
            elif repeated:
                self.fault("R103", inner, here, "the key stands twice in this mapping", "remove one")
            elif key is not None:
                pairs[key] = (_mark(inner), raw)
        for raw in merged:
            self.merge(raw, pairs, trail)
        return _sized(_Raw(pairs, _mark(event)), [raw for _, raw in pairs.values()])

    def key(self, event: Any, trail: Trail) -> str | None:
        """The key that begins with this event; None, and a problem, if it is not text."""
        scalar = isinstance(event, yaml.ScalarEvent)
        raw = self.node(event, trail if scalar else (*trail, "?"))
        if scalar and isinstance(raw.value, str):
            return raw.value
        self.fault("R106", event, trail, f"a key must be text, not {shown(raw.value)}", "put it in quotes")
        return None

    def merge(self, raw: _Raw, pairs: dict[str, tuple[tuple[int, int], _Raw]], trail: Trail) -> None:
        """YAML's `<<`: the keys of a mapping, or of a list of them, that are not given here."""
        for part in raw.value if isinstance(raw.value, list) else [raw]:
            if not isinstance(part.value, dict):
                line, column = part.mark
                place = Place(self.file, line, column, path_of((*trail, _MERGE)))
                self.faults.add("R102", place, "`<<` needs a mapping or a list of mappings")
                continue
            for key, pair in part.value.items():
                self.count(raw.mark, (*trail, key), pair[1].size, pair[1].height)
                pairs.setdefault(key, pair)


def _mark(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _sized(raw: _Raw, children: list[_Raw]) -> _Raw:
    raw.size = 1 + sum(child.size for child in children)
    raw.height = 1 + max((child.height for child in children), default=0)
    return raw


def _expand(raw: _Raw, trail: Trail, document: Document) -> Any:
    """Plain data of `raw`, aliases expanded; positions go into `document`."""
    document.values[trail] = raw.mark
    if isinstance(raw.value, list):
        return [_expand(item, (*trail, index), document) for index, item in enumerate(raw.value)]
    if isinstance(raw.value, dict):
        for key, (mark, _) in raw.value.items():
            document.keys[(*trail, key)] = mark
        return {key: _expand(item, (*trail, key), document) for key, (_, item) in raw.value.items()}
    return raw.value
