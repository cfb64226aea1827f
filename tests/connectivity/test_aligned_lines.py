"""Barriers before and after an alignment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from networks import data, network
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from eutectic.alignment import Aligned, Factor, Group, Moves, Symmetries, axis, fixed, random_moves
from eutectic.checkpoint import MemorySource
from eutectic.connectivity import connect

UNITS = Factor(8, "units")
TABLE = Symmetries(
    {"units": Group(8, "positive")},
    {
        "0.weight": (axis(UNITS), fixed(4)),
        "0.bias": (axis(UNITS),),
        "2.weight": (fixed(3), axis(UNITS, role="in")),
        "2.bias": (fixed(3),),
    },
)
MODULE = network()
INPUTS, _ = data()
WEIGHTS = {name: 4 * one.detach() for name, one in network(1).state_dict().items()}
# What the first network says, so that it is right.
CLASSES = functional_call(MODULE, WEIGHTS, INPUTS).argmax(dim=1)


def loss(weights: Mapping[str, Tensor]) -> Any:
    return cross_entropy(functional_call(MODULE, dict(weights), INPUTS), CLASSES, reduction="none")


def test_what_was_scrambled_has_a_barrier_before_and_none_after() -> None:
    a = MemorySource("a", WEIGHTS)
    b = MemorySource("b", dict(Aligned(a, TABLE, random_moves(TABLE, 0))))
    found = connect([a, b], [loss], points=5, refine=0, align={"symmetries": TABLE})
    assert found.models == ("a", "b", "b aligned")
    lines = found.barriers["loss"]
    assert lines.keys() == {(0, 1), (0, 2)}
    assert lines[0, 1].value > 0.1 and lines[0, 2].value == pytest.approx(0, abs=1e-6)
    assert found.matrix("loss")[1][2] is None
    assert found.as_json()["alignments"][0]["gain"] == pytest.approx(1)


def test_models_that_are_aligned_are_measured_with_each_other_too() -> None:
    a = MemorySource("a", WEIGHTS)
    b, c = (MemorySource(label, dict(Aligned(a, TABLE, random_moves(TABLE, k)))) for k, label in enumerate("bc"))
    found = connect([a, b, c], [loss], points=3, refine=0, align={"symmetries": TABLE})
    assert [*found.barriers["loss"]] == [(0, 1), (0, 2), (1, 2), (0, 3), (0, 4), (3, 4)]
    assert found.barriers["loss"][3, 4].value == pytest.approx(0, abs=1e-6)


def test_where_nothing_moves_nothing_is_measured_twice() -> None:
    a = MemorySource("a", WEIGHTS)
    b = MemorySource("b", {name: one + 1e-3 * torch.ones_like(one) for name, one in WEIGHTS.items()})
    found = connect([a, b], [loss], points=3, refine=0, align={"symmetries": TABLE})
    assert found.models == ("a", "b") and found.alignments[0].moves == Moves()
    assert "nothing moves" in found.alignments[0].notes[-1]
