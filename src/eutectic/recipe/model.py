"""The recipe: what the user wrote, checked, frozen. No file of weights is opened and no tensor is held."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Union

from eutectic.paths import collapsed
from eutectic.recipe.located import Place as Place
from eutectic.recipe.values import Setting

# A path or hub id, a recipe in place of a model, or a live object from Python: module, mapping of tensors, source.
Model = Union[str, "Recipe", object]
_NOWHERE = Place("", None, None, "")


@dataclass(frozen=True)
class ModelEntry:
    """One input: the model, the parameters given to it alone, its statistics, and what it is aligned by.

    `statistics` is a path, or a live source that has `statistics.json` beside it. `aligned` is the path of an
    alignment, or a live one. `place` is where the entry stands.
    """

    model: Model
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    statistics: object = None
    aligned: object = None
    place: Place = field(default=_NOWHERE, compare=False)


@dataclass(frozen=True)
class PostStep:
    """One step after the method: its name, over what it takes norms, and its parameters."""

    name: str
    scope: str = "tensor"
    parameters: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A merge as asked for. Make one with `eutectic.recipe.load`, which checks it.

    Attributes:
        method: the merge method's name.
        models: the inputs in order. For methods on task vectors the base is not among them; for methods that start
            from the base (slerp) there are two and the base is the first.
        base: the base model; also the donor of config and tokenizer files.
        parameters: what holds for all models, by name. A value is looked up in the model's own, then here, then in
            the method's defaults; `Setting.at` gives None where it says nothing of a tensor.
        post: what is done with the merged change, in order.
        dtype: what inputs are cast to before merging (float16, bfloat16, float32, float64), None to keep.
        out_dtype: dtype of the result, None for that of the merge.
        name: the recipe's own name.
        seed: for random methods, 0 or more; None lets the caller choose.
        scope: `tensor`, or `model` to rank all tensors together.
        leave_out: filters on tensors that are not merged but copied from one model, the base or the first that has it.
        missing: `error`, or `copy` a tensor that some of the models lack.
        buffers_from: the model (as written there, or `base`) whose integer and boolean buffers are taken if they
            differ.
        tokenizer_source: the model (as written there, or `base`) whose tokenizer files are copied; `union` for the
            one that all models have.
        chat_template: what is written into the tokenizer's files: a Jinja text, the name of one, or `auto`.
        layer_range: first layer and the one after the last, if the recipe was written as a slice of whole models.
        folder: what relative paths may be relative to, besides the current directory: the recipe file's folder.
        file: the recipe file as named by the user, None for text and dicts.
        notes: what was accepted and has no effect, one sentence each.
        places: where each value stands, by path (`models[1].parameters.density`).
    """

    method: str
    models: tuple[ModelEntry, ...]
    base: Model | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict)
    post: tuple[PostStep, ...] = ()
    dtype: str | None = None
    out_dtype: str | None = None
    name: str | None = None
    seed: int | None = None
    scope: str = "tensor"
    leave_out: tuple[str, ...] = ()
    missing: str = "error"
    buffers_from: str | None = None
    tokenizer_source: str | None = None
    chat_template: str | None = None
    layer_range: tuple[int, int] | None = None
    folder: str | None = field(default=None, compare=False)
    file: str | None = field(default=None, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    places: Mapping[str, Place] = field(default_factory=dict, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as canonical JSON data in the recipe language: what has its default is left out.

        `load` of it gives an equal recipe, except that live objects have become their labels.
        """
        return self._plain(live=False)

    def with_live_objects(self) -> dict[str, Any]:
        """As `to_dict`, with live objects and recipes inside it as they are."""
        return self._plain(live=True)

    def _plain(self, *, live: bool) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        if self.name is not None:
            plain["name"] = self.name
        plain["merge_method"] = self.method
        if self.base is not None:
            plain["base_model"] = _model(self.base, live)
        plain |= self._inputs(live)
        parameters = _settings(self.parameters)
        if self.scope != "tensor":
            parameters["scope"] = self.scope
        if parameters:
            plain["parameters"] = parameters
        if self.post:
            plain["post"] = [_post(step) for step in self.post]
        for key in ("dtype", "out_dtype", "seed", "buffers_from", "tokenizer_source", "chat_template"):
            if getattr(self, key) is not None:
                plain[key] = getattr(self, key)
        if self.leave_out:
            plain["leave_out"] = list(self.leave_out)
        return plain | ({"missing": self.missing} if self.missing != "error" else {})

    def _inputs(self, live: bool) -> dict[str, Any]:
        entries: list[dict[str, Any]] = []
        for entry in self.models:
            plain: dict[str, Any] = {"model": _model(entry.model, live)}
            if self.layer_range is not None:
                plain["layer_range"] = list(self.layer_range)
            if entry.aligned is not None:
                plain["aligned"] = _model(entry.aligned, live)
            if entry.statistics is not None:
                plain["statistics"] = _model(entry.statistics, live)
            if entry.parameters:
                plain["parameters"] = _settings(entry.parameters)
            entries.append(plain)
        return {"models": entries} if self.layer_range is None else {"slices": [{"sources": entries}]}


def label_of(model: Model) -> str:
    """A short name for messages: what was written, a recipe's name, a source's label, or the object's type."""
    if isinstance(model, str):
        return model
    if isinstance(model, Recipe):
        return model.name or model.file or f"{model.method} recipe"
    label = getattr(model, "label", None)
    return label if isinstance(label, str) else type(model).__name__


def same_model(first: Model, second: Model) -> bool:
    """True if both are written alike (`./a` is `a`), are equal recipes, or are the same object."""
    if isinstance(first, str) and isinstance(second, str):
        return collapsed(first) == collapsed(second)
    if isinstance(first, Recipe) and isinstance(second, Recipe):
        return first == second
    return first is second


def rebased(recipe: Recipe, folder: str | None) -> Recipe:
    """The recipe for use inside one that stands in `folder`: relative paths found from its own folder are rewritten.

    A path that exists from the current directory is left as it is, as it is found first.
    """
    own = recipe.folder

    def moved(model: Any) -> Any:
        if isinstance(model, Recipe):
            return rebased(model, folder)
        if not isinstance(model, str) or own is None or os.path.isabs(model) or os.path.exists(model):
            return model
        path = os.path.join(own, model)
        return os.path.relpath(path, folder or os.curdir) if os.path.exists(path) else model

    def donor(name: str | None, *words: str) -> str | None:
        # The words are no paths, even where a folder has such a name; and a path must not become one of them.
        path = name if name in words else moved(name)
        return os.path.join(os.curdir, path) if path in words and path != name else path

    if own == folder:
        return recipe
    return replace(
        recipe,
        folder=folder,
        base=moved(recipe.base),
        models=tuple(
            replace(entry, model=moved(entry.model), statistics=moved(entry.statistics), aligned=moved(entry.aligned))
            for entry in recipe.models
        ),
        buffers_from=donor(recipe.buffers_from, "base"),
        tokenizer_source=donor(recipe.tokenizer_source, "base", "union"),
    )


def _model(model: Model, live: bool) -> Any:
    if isinstance(model, str) or live:
        return model
    return model.to_dict() if isinstance(model, Recipe) else label_of(model)


def _post(step: PostStep) -> dict[str, Any]:
    scope = {"scope": step.scope} if step.scope != "tensor" else {}
    return {step.name: scope | _settings(step.parameters)}


def _settings(parameters: Mapping[str, Setting]) -> dict[str, Any]:
    return {name: setting.to_plain() for name, setting in parameters.items()}
