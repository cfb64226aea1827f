"""A task as users write it → a task: a YAML file, `KIND:DATA` on the command line, or an object already."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Any

from eutectic.errors import Problem, RecipeError, did_you_mean
from eutectic.evaluate import options
from eutectic.evaluate.model import Task
from eutectic.paths import collapsed, near_file
from eutectic.recipe.compose import compose
from eutectic.recipe.located import Document, Faults, Node, Place, shown

# kind → module and class. `classification` needs a loader, which no file can hold.
KINDS = {
    "perplexity": ("perplexity", "Perplexity"),
    "choice": ("choice", "Choice"),
    "exact_match": ("exact_match", "ExactMatch"),
    "similarity": ("similarity", "Similarity"),
    "harness": ("harness", "Harness"),
    "call": ("call", "Call"),
}
_SUFFIXES = (".yml", ".yaml")
_MOST = 1_000_000


def task_of(task: Any) -> Task:
    """A task from what a user gave: a task, a path of a YAML file, `KIND:DATA`, or a dict of what such a file holds.

    Raises `RecipeError` (E901, E902) with every problem, and those of YAML.
    """
    if isinstance(task, Mapping):
        return _read(Document(dict(task)), os.curdir)
    if isinstance(task, str | os.PathLike):
        return _from_text(os.fspath(task))
    if isinstance(task, Task) and not isinstance(task, type):
        return task
    hint = "give a task, a path, 'KIND:DATA' or a dict; a loader goes into `eutectic.evaluate.Classification`"
    if isinstance(task, type):
        raise RecipeError(Problem("E901", f"{task.__name__} is a class", "task", "make one: give it data"))
    if callable(task):
        hint = (
            "a function goes into `eutectic.evaluate.Call(function, takes=..., higher_is_better=...)`, which says "
            "what it is given, and which way is better"
        )
    raise RecipeError(Problem("E901", f"a {type(task).__name__} is no task", "task", hint))


def _from_text(text: str) -> Task:
    kind, colon, data = text.partition(":")
    if text.lower().endswith(_SUFFIXES) and kind not in KINDS:
        documents = compose(_content(text), text)
        if len(documents) != 1:
            raise RecipeError(Problem("E901", f"holds {len(documents)} documents, a task file is one", file=text))
        folder, file = os.path.split(text)
        return _read(documents[0], folder or os.curdir, os.path.splitext(file)[0])
    if kind not in KINDS or not data:
        hint = did_you_mean(kind, KINDS) if colon else f"write KIND:DATA or name a .yml file; {', '.join(KINDS)}"
        hint = hint or f"the kinds are {', '.join(KINDS)}"
        raise RecipeError(Problem("E901", f"{text!r} is no task", "task", hint))
    made = _class(kind)
    first = next(one.name for one in fields(made) if one.default is MISSING)
    return made(**{first: data})  # type: ignore[no-any-return]


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(_MOST + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        near = near_file(path) if isinstance(error, FileNotFoundError) else ""
        problem = Problem("E901", f"the task cannot be read: {reason}", hint=near, file=path)
        raise RecipeError(problem) from error


def task_data(path: str) -> str | None:
    """The data of a task file, empty where it names none; None for any other file. The task need not be a good one."""
    if not path.lower().endswith(_SUFFIXES):
        return None
    try:
        documents = compose(_content(path), path)
    except RecipeError:
        return None
    task = documents[0].data if len(documents) == 1 else None
    if not isinstance(task, dict) or not isinstance(task.get("task"), str):
        return None
    data = task.get("data")
    return _from(os.path.dirname(path) or os.curdir, data) if isinstance(data, str) else ""


def _class(kind: str) -> Any:
    module, name = KINDS[kind]
    return getattr(import_module(f"eutectic.evaluate.{module}"), name)


def _read(document: Document, folder: str, name: str = "") -> Task:
    """The task in a document, paths taken from `folder`; it has this `name` where it gives itself none."""
    faults = Faults()
    root = Node(document, document.data)
    if not isinstance(document.data, dict):
        faults.add("E901", root.place, f"a task is a mapping with the key task, not {shown(document.data)}")
        raise faults.error()
    kind = root.get("task")
    if kind is None or not isinstance(kind.data, str) or kind.data not in KINDS:
        place = root.place if kind is None else kind.place
        said = "has no key `task`" if kind is None else f"there is no kind of task {shown(kind.data)}"
        hint = did_you_mean(kind.data, KINDS) if kind is not None else ""
        if kind is None and root.get("merge_method") is not None:
            said, hint = "this is a recipe and no task", "name it with the models; --task is what they are scored by"
        faults.add("E901", place, said, hint or f"the kinds are {', '.join(KINDS)}")
        raise faults.error()
    made = _class(kind.data)
    given = {key: value for key, value in document.data.items() if key != "task" and value is not None}
    for key, message, hint in options.faults(made, given):
        faults.add("E902", _place(root, key), message, hint)
    if faults:
        raise faults.error()
    paths = {one.name for one in fields(made) if one.metadata.get("path")}
    if str(given.get("harness", "")).lower().endswith(_SUFFIXES):
        paths.add("harness")
    if "folder" in paths:
        given.setdefault("folder", os.curdir)
    full = {key: _from(folder, value) if key in paths else value for key, value in given.items()}
    full["name"] = given.get("name") or name
    try:
        return made(**full)  # type: ignore[no-any-return]
    except RecipeError as error:
        # What only the options together show.
        for problem in error.problems:
            faults.add(problem.code, _place(root, problem.where), problem.message, problem.hint)
        raise faults.error() from error


def _place(root: Node, key: str) -> Place:
    found = root.get(key)
    return root.place if found is None else found.key_place


def _from(folder: str, path: str) -> str:
    path = os.path.expanduser(path)
    return path if folder == os.curdir and path != os.curdir else collapsed(os.path.join(folder, path))
