"""What stands where a model is expected → a path or hub id, a recipe, or a live object."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from eutectic.errors import did_you_mean
from eutectic.paths import near_file
from eutectic.recipe.located import Faults, Live, Node, shown
from eutectic.recipe.model import Model, Recipe, rebased
from eutectic.recipe.schema import MethodTable

RECIPE_SUFFIXES = (".yml", ".yaml")
# How a model is named that is aligned and no entry of `models`.
WHOLE = "write there `{merge_method: passthrough, models: [{model: …, aligned: …}]}`"
# What may be the name of a model on the hub, org/name or org/name@revision.
_HUB = re.compile(r"\w[\w.-]*/[\w.-]+(@.+)?")
_SHAPE = "write a path, a hub id, {model: {path: ..., revision: ...}} or a recipe with merge_method"


class Nested(Protocol):
    """Recipes inside a recipe, as the reader of the outer one finds them. All return None after a problem."""

    def include(self, path: str, node: Node) -> Recipe | None:
        """The recipe in a file, named at `node`."""

    def document(self, name: str, node: Node) -> Recipe | None:
        """The document of that name in the same file, named at `node`."""

    def inline(self, node: Node) -> Recipe | None:
        """The recipe written at `node`."""


@dataclass(frozen=True)
class Context:
    """What reading one recipe needs: methods, where problems go, the file it stands in, and its neighbours."""

    methods: MethodTable
    faults: Faults
    nested: Nested
    file: str | None = None
    folder: str | None = None
    documents: Mapping[str, object] = field(default_factory=dict)


def model_at(node: Node, context: Context) -> Model | None:
    """The model at `node`; None after a problem."""
    data = node.data
    if isinstance(data, Live):
        return rebased(data.value, context.folder) if isinstance(data.value, Recipe) else data.value
    if isinstance(data, str):
        return _text(data, node, context)
    if isinstance(data, dict):
        if "merge_method" in data:
            return context.nested.inline(node)
        return _mapping(node, context)
    hint = "put it in quotes" if isinstance(data, bool | int | float) else _SHAPE
    context.faults.add("R130", node.place, f"must name a model, not {shown(data)}", hint)
    return None


def artefact_at(node: Node, context: Context, what: str, made_by: str) -> object:
    """What is named beside a model: a path, or a live object; None after a problem.

    `what` and `made_by` say what it should be and which command makes it, for the message.
    """
    if isinstance(node.data, Live):
        return node.data.value
    hint = f"write the folder that `{made_by}` made"
    if isinstance(node.data, str) and node.data.strip():
        if not _exists(node.data, context):
            _note_absent(node.data, node, context, hint)
        return node.data
    context.faults.add("R130", node.place, f"must name {what}, not {shown(node.data)}", hint)
    return None


def _text(text: str, node: Node, context: Context) -> Model | None:
    if text in context.documents:
        return context.nested.document(text, node)
    if text.lower().endswith(RECIPE_SUFFIXES):
        return context.nested.include(text, node)
    if not text.strip():
        context.faults.add("R130", node.place, "the name of the model is empty", _SHAPE)
        return None
    if _exists(text, context):
        return text
    if "://" in text:
        message = f"{shown(text)} is an address"
        context.faults.add("R130", node.place, message, "write the hub id (org/name) or download it and give its path")
    elif "+" in text:
        message = f"the LoRA input {shown(text)} is not supported yet"
        context.faults.add("R113", node.place, message, "merge the adapter into its base first")
    elif "/" not in text and (hint := did_you_mean(text, context.documents)):
        context.faults.add("R130", node.place, f"no document of this file has the name {shown(text)}", hint)
    else:
        _note_absent(text, node, context, _SHAPE)
        return text
    return None


def _exists(text: str, context: Context) -> bool:
    return any(os.path.exists(os.path.join(base, os.path.expanduser(text))) for base in ("", context.folder or ""))


def shadowed(recipe: Recipe) -> Iterator[str]:
    """Notes of paths that are found from the current folder, which wins, while the recipe's own has another."""
    named = [recipe.base, *(one for entry in recipe.models for one in (entry.model, entry.aligned, entry.statistics))]
    for path in dict.fromkeys(one for one in named if isinstance(one, str)):
        here = os.path.expanduser(path)
        beside = os.path.join(recipe.folder or "", here)
        if os.path.exists(here) and os.path.exists(beside) and not os.path.samefile(here, beside):
            yield f"{shown(path)} is taken from the current folder; the recipe's own folder has another of that name"


def _note_absent(text: str, node: Node, context: Context, hint: str) -> None:
    """Notes a path to nothing, if it is no hub id; with a name beside it that is nearly the same, or a hint."""
    if _HUB.fullmatch(text):
        return
    near = near_file(os.path.join(context.folder or "", os.path.expanduser(text)))
    context.faults.absent(node.place, text, near or hint)


def written_at(node: Node, faults: Faults) -> str | None:
    """The name of a model as it stands at `node`, the long form as `path@revision`; None after a problem."""
    inner = _inner(node, faults) if isinstance(node.data, dict) else node
    if inner is None:
        return None
    if isinstance(inner.data, dict):
        parts = _parts(inner, faults)
        return None if parts is None else f"{parts[0].data}{parts[1]}"
    if isinstance(inner.data, str) and inner.data:
        return inner.data
    hint = "put it in quotes" if isinstance(inner.data, bool | int | float) else ""
    faults.add("R112", inner.place, f"must name a model, not {shown(inner.data)}", hint)
    return None


def _mapping(node: Node, context: Context) -> Model | None:
    """mergekit's long form: `{model: {path, revision}, lora, override_architecture}`, or only the inner part."""
    inner = _inner(node, context.faults)
    if inner is None:
        return None
    if isinstance(inner.data, str | Live):
        return model_at(inner, context)
    parts = _parts(inner, context.faults)
    if parts is None:
        return None
    path, revision = parts
    return f"{path.data}{revision}" if revision else _text(path.data, path, context)


def _inner(node: Node, faults: Faults) -> Node | None:
    """What names the model in the long form: text, a live object, or a mapping with `path`."""
    outer = node if "model" in node.data else None
    if outer is not None:
        _check_keys(outer, ("model", "lora", "override_architecture"), faults)
        if lora := outer.get("lora"):
            hint = "merge the adapter into its base first"
            faults.add("R113", lora.key_place, "LoRA inputs are not supported yet", hint)
    inner = node.get("model") if outer is not None else node
    if inner is None or not (
        isinstance(inner.data, str | Live) or (isinstance(inner.data, dict) and "path" in inner.data)
    ):
        faults.add("R130", (inner or node).place, "this mapping names no model", _SHAPE)
        return None
    return inner


def _parts(inner: Node, faults: Faults) -> tuple[Node, str] | None:
    """The path of the long form, and `@revision` where there is one."""
    _check_keys(inner, ("path", "revision"), faults)
    path, revision = inner.get("path"), inner.get("revision")
    for part in (path, revision):
        if part is not None and not isinstance(part.data, str):
            faults.add("R112", part.place, f"must be text, not {shown(part.data)}", "put it in quotes")
            return None
    if path is None:
        faults.add("R130", inner.place, "this mapping names no model", _SHAPE)
        return None
    return path, "" if revision is None else f"@{revision.data}"


def _check_keys(node: Node, known: tuple[str, ...], faults: Faults) -> None:
    for key, item in node.items():
        if key == "aligned":
            message = "stands beside a model in the list `models` alone"
            faults.add("R136", item.key_place, message, f"for any other, {WHOLE}")
        elif key not in known:
            faults.add("R110", item.key_place, "unknown key", did_you_mean(key, known) or f"known: {', '.join(known)}")
