"""A table that is right is believed, and one that is wrong is not, in whatever way it is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from traced_nets import Grouped, Mlp

from eutectic.alignment.proof import check
from eutectic.alignment.tracing import traced
from eutectic.checkpoint.symmetry import Axis, Factor, Gauge, Group, Symmetries, axis, fixed
from eutectic.errors import RecipeError


class Values(nn.Module):
    """Attention's values: two heads, of each a map in and a map out."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.o = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.v(x))


HEADS, CODE = Factor(2, "heads"), Factor(4, gauge="code")


def values(read: str = "in") -> Symmetries:
    """The table of `Values`; with `out` the maps out are multiplied as if they made the vectors."""
    axes: dict[str, tuple[Axis, ...]] = {
        "v.weight": (axis(HEADS, CODE), fixed(3)),
        "v.bias": (axis(HEADS, CODE),),
        "o.weight": (fixed(4), axis(HEADS, CODE, role=read)),  # type: ignore[arg-type]
        "o.bias": (fixed(4),),
    }
    return Symmetries({"heads": Group(2)}, axes, {"code": Gauge("heads", 4, "linear")})


def mlp(scale: str = "", two: str = "two") -> Symmetries:
    """The table of `Mlp`, if its arguments are as they are."""
    one, units = Factor(6, "one"), Factor(7, two)
    axes = {
        "one.weight": (axis(one), fixed(5)),
        "one.bias": (axis(one),),
        "two.weight": (axis(units), axis(one, role="in")),
        "two.bias": (axis(units),),
        "three.weight": (fixed(3), axis(Factor(7, "two"), role="in")),
        "three.bias": (fixed(3),),
    }
    return Symmetries({"one": Group(6, scale), "two": Group(7), "other": Group(7)}, axes)  # type: ignore[arg-type]


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def codes(caught: pytest.ExceptionInfo[RecipeError]) -> list[str]:
    return [problem.code for problem in caught.value.problems]


def test_a_right_table_holds() -> None:
    found = check(Mlp(), mlp("positive"), X)
    assert found.holds
    assert found.error < 1e-14
    assert found.broken == {}
    assert "hold" in str(found)


def test_gauges_hold_too() -> None:
    assert check(Values(), values(), torch.randn(2, 3)).holds


def test_a_gauge_that_is_read_as_if_it_were_made_breaks_and_is_named() -> None:
    found = check(Values(), values("out"), torch.randn(2, 3))
    assert not found.holds
    assert set(found.broken) == {"code"}
    assert "code" in str(found)


def test_units_that_two_tensors_have_in_two_groups_break() -> None:
    found = check(Mlp(), mlp(two="other"), X)
    assert set(found.broken) == {"two", "other"}


def test_a_scale_that_the_activation_does_not_let_through_breaks() -> None:
    found = check(Mlp(), mlp("sign"), X)
    assert set(found.broken) == {"one"}


def test_a_buffer_that_is_left_out_breaks_even_at_its_first_value() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    table = traced(net, X)
    assert check(net, table, X).holds
    for left_out in ("running_mean", "running_var", "weight", "bias"):
        found = check(net, replace(table, axes={**table.axes, f"1.{left_out}": (fixed(4),)}), X)
        assert set(found.broken) == {"0"}


def test_query_heads_that_leave_their_keys_break() -> None:
    net, ids = Grouped(), torch.randint(11, (2, 5))
    table = traced(net, ids)
    groups = {name: replace(group, within=None) for name, group in table.groups.items()}
    found = check(net, replace(table, groups=groups), ids)
    assert set(found.broken) == {"qkv", "qkv[1]"}


def test_each_group_is_tried_alone_with_the_units_within_it() -> None:
    net, ids = Grouped(), torch.randint(11, (2, 5))
    table = traced(net, ids)
    wrong = replace(table, axes={**table.axes, "norm2.weight": (fixed(16),)})
    assert set(check(net, wrong, ids).broken) == {"embed"}


def test_tied_tensors_that_move_apart_are_refused() -> None:
    net, ids = Grouped(), torch.randint(11, (2, 5))
    table = traced(net, ids)
    with pytest.raises(RecipeError, match=r"head\.weight.*one tensor with embed\.weight") as caught:
        check(net, replace(table, axes={**table.axes, "head.weight": (fixed(11), fixed(16))}), ids)
    assert codes(caught) == ["G150"]


@pytest.mark.parametrize("left_out", ["head.weight", "embed.weight"])
def test_a_tied_tensor_may_have_one_name_in_the_table(left_out: str) -> None:
    net, ids = Grouped(), torch.randint(11, (2, 5))
    table = traced(net, ids)
    assert check(
        net, replace(table, axes={n: a for n, a in table.axes.items() if n != left_out}), ids, elements=1
    ).holds


def test_a_table_of_another_model_is_refused_with_all_that_differs() -> None:
    with pytest.raises(RecipeError) as caught:
        check(Values(), mlp(), X)
    assert set(codes(caught)) == {"G101"}
    assert len(codes(caught)) == 10


def test_the_module_stays_as_it_is() -> None:
    net = Mlp().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    check(net, mlp(), X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(part.training for part in net.modules())
    assert next(net.parameters()).dtype == torch.float32


class Narrow(Mlp):
    """Computes in float32 in between, whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float().to(self.one.weight.dtype)).softmax(-1, dtype=torch.float32)


def test_what_is_done_in_float32_is_done_in_float64() -> None:
    found = check(Narrow(), mlp(), X.double())
    assert found.holds
    assert found.error < 1e-14


class Constant(Mlp):
    """Gives the same whatever its weights."""

    def __init__(self, made: Tensor) -> None:
        super().__init__()
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        return self.made


class Through(Mlp):
    """An MLP whose outputs go through a function."""

    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(super().forward(x))


BLIND: list[tuple[nn.Module, str]] = [
    (Constant(torch.ones(3)), "do not depend"),
    (Constant(torch.tensor([1.0, torch.nan])), "not finite"),
    (Constant(torch.zeros(0)), "no number"),
    (Through(lambda made: (made * 100).round()), "whole numbers"),
    (Through(lambda made: made + torch.rand_like(made)), "others in each run"),
]


@pytest.mark.parametrize(("module", "due"), BLIND)
def test_outputs_that_prove_nothing_are_refused(module: nn.Module, due: str) -> None:
    with pytest.raises(RecipeError, match=due) as caught:
        check(module, mlp(), X)
    assert codes(caught) == ["G151"]


@pytest.mark.parametrize("mask", [-1e9, 1e12])
def test_a_mask_beside_the_outputs_hides_nothing(mask: float) -> None:
    table = mlp()
    wrong = replace(table, axes={**table.axes, "one.bias": (fixed(6),)})
    module = Through(lambda made: torch.cat([made, made[:, :1] * 0 + mask, made + mask * torch.eye(3)[0]], 1))
    assert check(module, table, X).holds
    assert not check(module, wrong, X).holds


class Routed(nn.Module):
    """Two experts, of which a router chooses one for each row; their maps are slices of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Parameter(torch.randn(2, 3))
        self.up, self.down = nn.Parameter(torch.randn(2, 3, 5)), nn.Parameter(torch.randn(2, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = (x @ self.router.T).softmax(-1).max(-1)
        inner = torch.einsum("bi,bij->bj", x, self.up[chosen]).relu()
        return torch.einsum("bj,bjk->bk", inner, self.down[chosen]) * share[:, None]


def test_units_that_no_input_reaches_are_told_of_and_not_said_to_be_proved() -> None:
    groups = {f"expert.{number}": Group(5) for number in range(2)}
    axes: dict[str, tuple[Axis, ...]] = {"router": (axis(Factor(2, "experts")), fixed(3))}
    for number, name in enumerate(groups):
        units = Factor(5, name)
        axes |= {f"up[{number}]": (fixed(3), axis(units)), f"down[{number}]": (axis(units, role="in"), fixed(4))}
    stacks = {"experts": ("up[{}]", "down[{}]")}
    table = Symmetries({**groups, "experts": Group(2)}, axes, stacks=stacks)
    one = check(Routed(), table, X[:1, :3])
    assert one.holds and len(one.unreached) == 1 and groups.keys() > {*one.unreached}
    assert str(one).endswith(f"; nothing is proved of {one.unreached[0]}: no input reaches them")
    many = check(Routed(), table, torch.randn(64, 3, generator=torch.Generator().manual_seed(0)))
    assert many.holds and many.unreached == ()


@pytest.mark.parametrize("elements", [0, -1])
def test_nothing_is_proved_by_no_element(elements: int) -> None:
    with pytest.raises(RecipeError, match=r"G116 elements: must be a whole number from 1 on"):
        check(Mlp(), mlp(), X, elements=elements)


def test_a_module_that_gives_no_gradients_is_proved_all_the_same() -> None:
    module = Through(lambda made: made.detach())
    found = check(module, mlp(), X, elements=1)
    assert found.holds and found.unreached == ()


@pytest.mark.parametrize("inputs", [X, (X,), [X], {"x": X}])
def test_inputs_are_a_tensor_arguments_or_a_mapping(inputs: Any) -> None:
    assert check(Mlp(), mlp(), inputs, elements=1).holds


def test_a_check_is_plain_data_and_the_same_for_a_seed() -> None:
    found = [check(Mlp(), mlp("sign"), X, seed=seed).as_json() for seed in (0, 0, 1)]
    torch.manual_seed(0)
    net = Mlp()
    same = [check(net, mlp("sign"), X, seed=seed).as_json() for seed in (0, 0, 1)]
    assert json.dumps(same[0]) == json.dumps(same[1])
    assert same[0]["error"] != same[2]["error"]
    assert set(found[0]) == {"holds", "error", "tolerance", "elements", "groups", "gauges", "broken", "unreached"}


def test_a_broken_weight_is_named_where_outputs_are_not_finite() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    table = traced(net, torch.randn(2, 3))
    net[2].weight.data[0, 0] = torch.nan
    with pytest.raises(RecipeError, match=r"G151 inputs: .* not finite; NaN or infinity is in 2\.weight"):
        check(net, table, torch.randn(2, 3))
