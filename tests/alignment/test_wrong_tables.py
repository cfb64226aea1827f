"""What looks like a symmetry of a transformer and is none: each is caught, and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("transformers")

from family_nets import TOKENS, transformer, tried

from eutectic.alignment.proof import check
from eutectic.checkpoint.symmetry import Gauge, Part, Symmetries

Change = Callable[[Symmetries], Symmetries]


def scaled(group: str, scale: Any) -> Change:
    """Multiplies units that may not be."""

    def change(table: Symmetries) -> Symmetries:
        return replace(table, groups={**table.groups, group: replace(table.groups[group], scale=scale)})

    return change


def roles(tensor: str, role: Any) -> Change:
    """Gives the rows of a tensor another role."""

    def change(table: Symmetries) -> Symmetries:
        rows, *others = table.axes[tensor]
        made = tuple(Part(part.factors, role) for part in rows)
        return replace(table, axes={**table.axes, tensor: (made, *others)})

    return change


def across(table: Symmetries) -> Symmetries:
    """Lets query heads leave those that share their key."""
    group = replace(table.groups["layers.0.queries"], within=None)
    return replace(table, groups={**table.groups, "layers.0.queries": group})


def gauged(kind: Any) -> Change:
    """Changes the bases of keys and queries by matrices of another kind."""

    def change(table: Symmetries) -> Symmetries:
        gauge = Gauge("layers.0.heads", 4, kind)
        return replace(table, gauges={**table.gauges, "layers.0.keys": gauge})

    return change


def turned(table: Symmetries) -> Symmetries:
    """Gives normalised queries and keys the gauge that they would have without their norm."""
    axes = dict(table.axes)
    for name, role in (("q", "in"), ("k", "out")):
        tensor = f"model.layers.0.self_attn.{name}_proj.weight"
        (part,), columns = axes[tensor]
        heads, vectors = part.factors
        axes[tensor] = ((Part((heads, replace(vectors, gauge="layers.0.keys")), role),), columns)  # type: ignore[arg-type]
    gauges = {**table.gauges, "layers.0.keys": Gauge("layers.0.heads", 4, "rotary")}
    return replace(table, axes=axes, gauges=gauges)


def two_orders(table: Symmetries) -> Symmetries:
    """Moves the heads of values apart from those of keys."""
    text = table.as_json()
    text["groups"]["others"] = text["groups"]["layers.0.heads"]
    text["groups"]["theirs"] = [*text["groups"]["layers.0.queries"][:2], "others"]
    text["gauges"].pop("layers.0.values")
    for name, old, new in (("v", "layers.0.heads", "others"), ("o", "layers.0.queries", "theirs")):
        for axis in text["axes"][f"model.layers.0.self_attn.{name}_proj.weight"]:
            for part in axis:
                part[1:] = [[size, new if group == old else group, None] for size, group, _ in part[1:]]
    return Symmetries.from_json(text)


WRONG: list[tuple[str, Mapping[str, Any], Change, str]] = [
    ("llama", {}, roles("model.layers.0.mlp.gate_proj.weight", "out"), "layers.0.mlp"),
    ("llama", {}, across, "layers.0.queries"),
    ("llama", {}, gauged("linear"), "layers.0.keys"),
    ("llama", {}, gauged("orthogonal"), "layers.0.keys"),
    ("llama", {}, roles("model.layers.0.self_attn.q_proj.weight", "out"), "layers.0.keys"),
    ("llama", {}, roles("model.norm.weight", "out"), "residual"),
    ("llama", {}, scaled("residual", "positive"), "residual"),
    ("llama", {}, two_orders, "layers.0.queries"),
    ("qwen2", {}, roles("model.layers.0.self_attn.v_proj.bias", "order"), "layers.0.values"),
    ("qwen3", {"head_dim": 4}, turned, "layers.0.keys"),
    ("olmo2", {}, turned, "layers.0.keys"),
    ("stablelm", {}, scaled("residual", "sign"), "residual"),
    ("starcoder2", {}, scaled("layers.0.mlp", "positive"), "layers.0.mlp"),
]


@pytest.mark.parametrize(("kind", "sizes", "change", "name"), WRONG)
def test_what_is_no_symmetry_is_caught(kind: str, sizes: Mapping[str, Any], change: Change, name: str) -> None:
    module = transformer(kind, **sizes)
    table = tried(module).symmetries
    assert table is not None
    proof = check(module, change(table), TOKENS)
    assert not proof.holds
    assert proof.error > 1e-3
    assert name in proof.broken
