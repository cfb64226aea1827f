"""Models that are nothing but headers, and recipes planned over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

import eutectic.methods
from eutectic.checkpoint import Source, Spec
from eutectic.errors import CheckpointError, Problem, RecipeError
from eutectic.plan import Plan, make_plan
from eutectic.recipe import load

WEIGHT = ("float32", 4, 4)


class Header(Source):
    """A model whose weights cannot be read: planning must not try."""

    def __init__(
        self,
        label: str,
        specs: Mapping[str, Sequence[Any]],
        *,
        ties: Mapping[str, str] | None = None,
        implied: Mapping[str, str] | None = None,
        ignored: Mapping[str, str] | None = None,
        size: int = 0,
    ) -> None:
        self.label = label
        self.specs = {name: Spec(dtype, tuple(shape)) for name, (dtype, *shape) in specs.items()}
        self.ties, self.metadata = dict(ties or {}), {}
        self.implied, self.ignored = dict(implied or {}), dict(ignored or {})
        self.size = size
        self.closed = 0

    def read_into(self, name: str, start: int, stop: int, out: memoryview) -> None:
        raise AssertionError("a plan reads no weight")

    def identity(self) -> dict[str, Any]:
        return {"label": self.label, "size": self.size}

    def close(self) -> None:
        self.closed += 1


def llama(label: str, layers: int = 3, **changes: Any) -> Header:
    """Two matrices a layer, embeddings, norm and head; `changes` as for `Header`, with `specs` on top."""
    extra = changes.pop("specs", {})
    specs: dict[str, Sequence[Any]] = {"model.embed_tokens.weight": ("float32", 8, 4)}
    for layer in range(layers):
        specs[f"model.layers.{layer}.self_attn.q_proj.weight"] = WEIGHT
        specs[f"model.layers.{layer}.mlp.up_proj.weight"] = WEIGHT
    specs |= {"model.norm.weight": ("float32", 4), "lm_head.weight": ("float32", 8, 4)}
    return Header(label, {**specs, **extra}, **changes)


def plan_of(recipe: Any, *models: Header, overrides: Sequence[str] = ()) -> Plan:
    """The plan of a recipe (dict or YAML) whose models are named by their labels."""
    by_label = {model.label: model for model in models}

    def opener(model: Any, folder: str | None) -> Source:
        if isinstance(model, Source):
            return model
        if model not in by_label:
            raise CheckpointError(Problem("C200", f"{model!r} does not exist"))
        return by_label[model]

    return make_plan(load(recipe, overrides=overrides, methods=eutectic.methods), opener)


def refused(recipe: Any, *models: Header) -> list[str]:
    """The problems of a plan, one line each."""
    with pytest.raises(RecipeError) as caught:
        plan_of(recipe, *models)
    assert all(model.closed for model in models), "a refused plan leaves nothing open"
    return str(caught.value).splitlines()


def linear(*models: Any, **more: Any) -> dict[str, Any]:
    """A linear merge of equal weights."""
    return {"merge_method": "linear", "models": [{"model": model} for model in models], **more}


def ties_of(base: str, *models: Any, **more: Any) -> dict[str, Any]:
    """A ties merge."""
    return {"merge_method": "ties", "base_model": base, "models": [{"model": model} for model in models], **more}
