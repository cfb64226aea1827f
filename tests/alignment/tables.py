"""Tables of symmetries for tests, made by hand, and weights that fit them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from eutectic.checkpoint.memory import MemorySource
from eutectic.checkpoint.symmetry import Axis, Factor, Gauge, Group, Moves, Symmetries, axis, fixed

Scale = Literal["", "sign", "positive", "any"]


def chain(sizes: Sequence[int], scale: Scale = "") -> Symmetries:
    """Linear layers one behind the other, `0.weight`, `0.bias`, …; inputs and outputs are fixed."""
    last = len(sizes) - 2
    groups = {f"h{layer}": Group(size, scale) for layer, size in enumerate(sizes[1:-1])}
    axes: dict[str, tuple[Axis, ...]] = {}
    for layer, (less, more) in enumerate(itertools.pairwise(sizes)):
        made = fixed(more) if layer == last else axis(Factor(more, f"h{layer}"))
        read = axis(Factor(less, f"h{layer - 1}"), role="in") if layer else fixed(less)
        axes |= {f"{layer}.weight": (made, read), f"{layer}.bias": (made,)}
    return Symmetries(groups, axes)


def attention(keys: Literal["linear", "rotary"], heads: int = 4, shared: int = 2, size: int = 4) -> Symmetries:
    """A layer and embeddings: a signed residual stream, query heads within those of keys and values, gauges."""
    stream = Factor(12, "stream")
    kv, q = Factor(shared, "kv"), Factor(heads, "q")
    code, place = Factor(size, gauge="values"), Factor(size, gauge="keys")
    return Symmetries(
        {"stream": Group(12, "sign"), "kv": Group(shared), "q": Group(heads, within="kv")},
        {
            "embed": (fixed(30), axis(stream)),
            "gain": (axis(stream, role="order"),),
            "q": (axis(q, place, role="in"), axis(stream, role="in")),
            "k": (axis(kv, place), axis(stream, role="in")),
            "v": (axis(kv, code), axis(stream, role="in")),
            "v.bias": (axis(kv, code),),
            "o": (axis(stream), axis(q, code, role="in")),
        },
        {"keys": Gauge("kv", size, keys), "values": Gauge("kv", size, "linear")},
    )


def weights(table: Symmetries, seed: int = 0) -> dict[str, Tensor]:
    """Normal float64 tensors, by the names of the table."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {name: [sum(part.size for part in parts) for parts in axes] for name, axes in table.axes.items()}
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}


def after(table: Symmetries, tensors: Mapping[str, Tensor], moves: Moves) -> dict[str, Tensor]:
    """The tensors as moves make them."""
    return {name: table.made(name, tensors.__getitem__, moves) for name in tensors}


def source(label: str, tensors: Mapping[str, Tensor]) -> MemorySource:
    """Tensors as a model."""
    return MemorySource(label, tensors)


def experts(count: int = 3, hidden: int = 5) -> Symmetries:
    """Experts with a router between fixed inputs and outputs, the hidden units of each in an order of their own."""
    axes: dict[str, tuple[Axis, ...]] = {"router": (axis(Factor(count, "experts")), fixed(7))}
    for unit in range(count):
        units = Factor(hidden, f"expert.{unit}")
        axes |= {f"up.{unit}": (axis(units), fixed(7)), f"down.{unit}": (fixed(7), axis(units, role="in"))}
    groups = {"experts": Group(count), **{f"expert.{unit}": Group(hidden) for unit in range(count)}}
    return Symmetries(groups, axes, stacks={"experts": ("up.{}", "down.{}")})


def recurrent(size: int = 6) -> Symmetries:
    """A layer of ReLU units that reads itself, between fixed inputs and outputs."""
    units = Factor(size, "units")
    made, read = axis(units), axis(units, role="in")
    axes = {"in": (made, fixed(4)), "again": (made, read), "bias": (made,), "out": (fixed(3), read)}
    return Symmetries({"units": Group(size, "positive")}, axes)


def nested() -> Symmetries:
    """Units within units within units."""
    groups = {"outer": Group(2), "middle": Group(4, within="outer"), "inner": Group(12, "any", within="middle")}
    axes = {
        "outer": (axis(Factor(2, "outer")), fixed(5)),
        "middle": (axis(Factor(4, "middle")), fixed(5)),
        "up": (axis(Factor(12, "inner")), fixed(5)),
        "down": (fixed(5), axis(Factor(12, "inner"), role="in")),
    }
    return Symmetries(groups, axes)
