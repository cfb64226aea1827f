"""Laws of the group: what moves do to tensors is what products and inverses of moves say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.alignment.moves import compose, essential, inverse, random_moves
from eutectic.checkpoint.symmetry import Factor, Gauge, Group, Moves, Part, Symmetries, axis, fixed

KV, Q, STREAM, UNITS = Factor(2, "kv"), Factor(6, "q"), Factor(5, "stream", "basis"), Factor(7, "units")
CODE, PLANES = Factor(4, gauge="code"), Factor(4, gauge="planes")
TABLE = Symmetries(
    {
        "kv": Group(2),
        "q": Group(6, within="kv"),
        "inner": Group(12, within="q"),
        "stream": Group(5, "sign"),
        "units": Group(7, "positive"),
        "loose": Group(3, "any"),
        "experts": Group(3),
        "hidden.0": Group(4, "any"),
        "hidden.1": Group(4, "any"),
        "hidden.2": Group(4, "any"),
    },
    {
        "embed": (fixed(3), axis(STREAM)),
        "q": (axis(Q, PLANES, role="in"), axis(STREAM, role="in")),
        "k": (axis(KV, PLANES), axis(STREAM, role="in")),
        "v": (axis(KV, CODE), axis(STREAM, role="in")),
        "o": (axis(STREAM), axis(Q, CODE, role="in")),
        "gain": (axis(STREAM, role="order"),),
        "up": (axis(UNITS), axis(STREAM, role="in")),
        "router": (axis(Factor(3, "experts")), axis(STREAM, role="in")),
        **{f"up.{n}": (axis(Factor(4, f"hidden.{n}")), axis(STREAM, role="in")) for n in range(3)},
        **{f"down[{n}]": (axis(STREAM), axis(Factor(4, f"hidden.{n}"), role="in")) for n in range(3)},
        "both": ((Part((UNITS,)), Part((Factor(3, "loose"),))), axis(Factor(12, "inner"))),
    },
    {"code": Gauge("kv", 4, "linear"), "planes": Gauge("kv", 4, "rotary"), "basis": Gauge(None, 5, "orthogonal")},
    stacks={"experts": ("up.{}", "down[{}]")},
)
SHAPES = {name: tuple(sum(part.size for part in parts) for parts in axes) for name, axes in TABLE.axes.items()}
# Whatever moves without its parent breaks what "within" promises.
NO_PARENTS = [name for name in [*TABLE.groups, *TABLE.gauges] if name not in {"kv", "q"}]
seeds = st.integers(0, 2**32)


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in SHAPES.items()}


def after(*elements: Moves) -> dict[str, torch.Tensor]:
    made = tensors()
    for moves in elements:
        made = {name: TABLE.made(name, made.__getitem__, moves) for name in made}
    return made


def near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=1e-12, atol=1e-12) for name in one)


def only_orders(moves: Moves) -> Moves:
    return Moves(moves.orders)


@given(seeds, seeds)
@settings(max_examples=10, deadline=None)
def test_a_product_does_one_after_the_other(one: int, two: int) -> None:
    first, second = random_moves(TABLE, one), random_moves(TABLE, two)
    assert near(after(compose(second, first, TABLE)), after(first, second))


@given(seeds, seeds)
@settings(max_examples=10, deadline=None)
def test_a_product_of_orders_is_exact(one: int, two: int) -> None:
    first, second = only_orders(random_moves(TABLE, one)), only_orders(random_moves(TABLE, two))
    made, due = after(compose(second, first, TABLE)), after(first, second)
    assert all(torch.equal(made[name], due[name]) for name in due)


@given(seeds, seeds, st.lists(st.sampled_from(NO_PARENTS), unique=True))
@settings(max_examples=10, deadline=None)
def test_what_an_element_does_not_name_stays(one: int, two: int, left_out: list[str]) -> None:
    whole, second = random_moves(TABLE, one), random_moves(TABLE, two)
    first = Moves(*({k: v for k, v in part.items() if k not in left_out} for part in vars(whole).values()))
    assert near(after(compose(second, first, TABLE)), after(first, second))
    assert near(after(compose(first, second, TABLE)), after(second, first))
    assert near(after(first, inverse(first, TABLE)), tensors())


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_an_inverse_undoes_on_both_sides(seed: int) -> None:
    moves = random_moves(TABLE, seed)
    back = inverse(moves, TABLE)
    assert near(after(moves, back), tensors())
    assert near(after(back, moves), tensors())


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_an_inverse_of_orders_is_exact_and_essentially_nothing(seed: int) -> None:
    moves = only_orders(random_moves(TABLE, seed))
    assert all(torch.equal(tensor, tensors()[name]) for name, tensor in after(moves, inverse(moves, TABLE)).items())
    assert essential(compose(inverse(moves, TABLE), moves, TABLE)) == Moves()


def test_the_identity_moves_nothing() -> None:
    some = random_moves(TABLE, 0)
    orders = {name: torch.arange(len(order)) for name, order in some.orders.items()}
    scales = {name: torch.ones_like(scale) for name, scale in some.scales.items()}
    matrices = {name: torch.eye(one.shape[-1]).to(one).expand_as(one) for name, one in some.matrices.items()}
    identity = Moves(orders, scales, matrices)
    assert orders and scales and matrices and essential(identity) == Moves()
    assert all(torch.equal(tensor, tensors()[name]) for name, tensor in after(identity).items())


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_units_stay_with_those_they_are_within(seed: int) -> None:
    orders = random_moves(TABLE, seed).orders
    assert torch.equal(orders["q"].reshape(2, 3) // 3, orders["kv"][:, None].expand(2, 3))
    assert torch.equal(orders["inner"].reshape(6, 2) // 2, orders["q"][:, None].expand(6, 2))
    assert all(torch.equal(one.sort().values, torch.arange(len(one))) for one in orders.values())


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_every_group_moves(seed: int) -> None:
    moves = random_moves(TABLE, seed)
    assert set(essential(moves).orders) == set(TABLE.groups)
    inner = moves.orders["q"].reshape(2, 3) - 3 * moves.orders["kv"][:, None]
    assert not torch.all(inner == torch.arange(3))


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_scales_and_matrices_are_of_their_kind(seed: int) -> None:
    moves = random_moves(TABLE, seed)
    assert set(moves.scales) == {name for name, group in TABLE.groups.items() if group.scale}
    assert torch.all(moves.scales["stream"].abs() == 1)
    assert torch.all((moves.scales["units"] >= 0.5) & (moves.scales["units"] <= 2))
    basis = moves.matrices["basis"][0]
    assert torch.allclose(basis @ basis.T, torch.eye(5, dtype=torch.float64))
    assert torch.linalg.cond(moves.matrices["code"]).max() <= 4 + 1e-9
    planes = moves.matrices["planes"].reshape(2, 2, 2, 2, 2)  # unit, half and plane of a row, those of a column
    assert torch.equal(planes[:, 0, :, 0], planes[:, 1, :, 1]) and torch.equal(planes[:, 0, :, 1], -planes[:, 1, :, 0])
    assert torch.all(planes[:, :, 0, :, 1] == 0) and torch.all(planes[:, :, 1, :, 0] == 0)


def test_elements_depend_on_the_seed_and_not_on_the_order_of_the_table() -> None:
    backwards = Symmetries(dict(reversed(TABLE.groups.items())), TABLE.axes, dict(reversed(TABLE.gauges.items())))
    for one, other in zip(
        vars(random_moves(TABLE, 3)).values(), vars(random_moves(backwards, 3)).values(), strict=True
    ):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(random_moves(TABLE, 3).orders["units"], random_moves(TABLE, 4).orders["units"])


def test_groups_within_none_that_there_is_are_refused() -> None:
    with pytest.raises(ValueError, match="within"):
        random_moves(Symmetries({"a": Group(2, within="b")}, {}), 0)
