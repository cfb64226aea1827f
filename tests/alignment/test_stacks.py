"""Units that are tensors, or slices of one: experts change places as wholes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from eutectic.checkpoint.source import Spec
from eutectic.checkpoint.symmetry import Factor, Gauge, Group, Moves, Symmetries, axis, fixed

ROUTER = (axis(Factor(3, "experts")), fixed(2))
UP = {f"up.{unit}": (axis(Factor(4, f"hidden.{unit}")), fixed(2)) for unit in range(3)}
DOWN = {f"down[{unit}]": (fixed(2), axis(Factor(4, f"hidden.{unit}"), role="in")) for unit in range(3)}
TABLE = Symmetries(
    {"experts": Group(3), **{f"hidden.{unit}": Group(4, "any") for unit in range(3)}},
    {"router": ROUTER, **UP, **DOWN},
    stacks={"experts": ("up.{}", "down[{}]")},
)
SHAPES = {"router": (3, 2), **dict.fromkeys(UP, (4, 2)), "down": (3, 2, 4)}
SPECS = {name: Spec("float32", shape) for name, shape in SHAPES.items()}
DRAW = torch.Generator().manual_seed(0)
TENSORS = {name: torch.randn(shape, generator=DRAW) for name, shape in SHAPES.items()}
CYCLE = torch.tensor([2, 0, 1])


def test_experts_take_each_others_places() -> None:
    moves = Moves({"experts": CYCLE})
    assert TABLE.problems(SPECS) == []
    assert [TABLE.taker(f"up.{unit}", moves) for unit in range(3)] == ["up.2", "up.0", "up.1"]
    assert TABLE.taker("router", moves) == "router"
    made = {name: TABLE.made(name, TENSORS.__getitem__, moves) for name in TENSORS}
    assert torch.equal(made["router"], TENSORS["router"][CYCLE])
    assert torch.equal(made["down"], TENSORS["down"][CYCLE])
    assert torch.equal(made["up.0"], TENSORS["up.2"])


def test_what_moves_within_an_expert_belongs_to_its_place() -> None:
    inside = torch.tensor([1, 2, 3, 0])
    moves = Moves({"experts": CYCLE, "hidden.0": inside}, {"hidden.1": torch.full((4,), 2.0)})
    assert torch.equal(TABLE.made("up.0", TENSORS.__getitem__, moves), TENSORS["up.2"][inside])
    down = TABLE.made("down", TENSORS.__getitem__, moves)
    assert down.dtype == torch.float64
    assert torch.equal(down[0], TENSORS["down"][2][:, inside].double())
    assert torch.equal(down[1], TENSORS["down"][0].double() / 2)
    assert torch.equal(down[2], TENSORS["down"][1].double())


def test_slices_are_named_apart() -> None:
    apart = TABLE.apart(SPECS)
    assert list(apart)[-3:] == ["down[0]", "down[1]", "down[2]"]
    assert apart["down[1]"] == Spec("float32", (2, 4))
    assert Symmetries.from_json(TABLE.as_json()) == TABLE


@pytest.mark.parametrize(
    ("table", "specs", "code", "words"),
    [
        (replace(TABLE, stacks={"expert": ("up.{}",)}), SPECS, "G103", "no such group"),
        (replace(TABLE, axes={"router": ROUTER, **UP}), SPECS, "G103", "its axes are not given"),
        (
            replace(TABLE, axes={**TABLE.axes, "up.2": (fixed(5), fixed(2))}),
            {**SPECS, "up.2": Spec("float32", (5, 2))},
            "G103",
            "another shape than 'up.0'",
        ),
        (replace(TABLE, groups={**TABLE.groups, "hidden.0": Group(4, within="experts")}), SPECS, "G103", "be divided"),
        (replace(TABLE, groups={**TABLE.groups, "hidden.0": Group(4, within="none")}), SPECS, "G103", "be divided"),
        (replace(TABLE, gauges={"basis": Gauge("none", 2, "linear")}), SPECS, "G103", "'none', and there is no such"),
        (TABLE, {**SPECS, "down": Spec("float32", (2, 2, 4))}, "G101", "do not name this tensor"),
        (TABLE, {name: spec for name, spec in SPECS.items() if name != "up.1"}, "G101", "the model has no such tensor"),
        (TABLE, {**SPECS, "down": Spec("float32", (3, 2, 5))}, "G102", "[2, 5]"),
    ],
)
def test_a_stack_that_does_not_fit(table: Symmetries, specs: dict[str, Spec], code: str, words: str) -> None:
    assert [one.code for one in table.problems(specs) if words in one.message][:1] == [code]
