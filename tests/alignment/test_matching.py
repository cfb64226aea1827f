"""Weight matching: what was scrambled is found, the objective never falls, and small cases are the best of all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import after, attention, chain, experts, nested, recurrent, source, weights
from torch import Tensor

from eutectic.alignment import reading
from eutectic.alignment.matching import match_weights
from eutectic.alignment.model import Match
from eutectic.alignment.moves import inverse, random_moves
from eutectic.checkpoint.symmetry import Factor, Gauge, Group, Moves, Symmetries, axis, fixed
from eutectic.errors import NumericError, RecipeError

CHAIN, SCALED = chain([6, 9, 8, 7, 4]), chain([6, 9, 8, 7, 4], "any")
TABLES = {
    "orders": CHAIN,
    "signs": chain([6, 9, 8, 7, 4], "sign"),
    "positive": chain([6, 9, 8, 7, 4], "positive"),
    "any": SCALED,
    "rotary": attention("rotary"),
    "linear": attention("linear"),
    "as many keys": attention("linear", heads=3, shared=3),
    "one key": attention("rotary", heads=3, shared=1),
    "experts": experts(),
    "nested": nested(),
    "recurrent": recurrent(),
}
seeds = st.integers(0, 2**32)


def matched(table: Symmetries, a: Mapping[str, Tensor], b: Mapping[str, Tensor], **options: object) -> Match:
    return match_weights(source("a", a), source("b", b), table, **options)  # type: ignore[arg-type]


def same(one: Moves, other: Moves) -> bool:
    pairs = [(one.orders, other.orders), (one.scales, other.scales), (one.matrices, other.matrices)]
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


def objective(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(float((a[name] * b[name]).sum()) for name in a)


@pytest.mark.parametrize("kind", TABLES)
@given(seeds)
@settings(max_examples=4, deadline=None)
def test_a_scrambled_model_is_found_again(kind: str, seed: int) -> None:
    table = TABLES[kind]
    a = weights(table, seed)
    b = after(table, a, random_moves(table, seed + 1))
    found = matched(table, a, b)
    for name, tensor in after(table, b, found.moves).items():
        torch.testing.assert_close(tensor, a[name], rtol=0, atol=1e-6, check_dtype=False)
    assert found.gain == pytest.approx(1)
    assert found.after == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orders_are_found_in_every_dtype(dtype: torch.dtype) -> None:
    a = {name: tensor.to(dtype) for name, tensor in weights(CHAIN).items()}
    b = after(CHAIN, a, random_moves(CHAIN, 1))
    back = after(CHAIN, b, matched(CHAIN, a, b).moves)
    assert all(torch.equal(back[name], a[name]) for name in a)


@pytest.mark.parametrize("kind", TABLES)
def test_the_objective_never_falls_and_the_moves_reach_it(kind: str) -> None:
    table = TABLES[kind]
    found = matched(table, weights(table, 1), weights(table, 2))
    steps = [found.start, *found.objective]
    assert all(later >= earlier for earlier, later in itertools.pairwise(steps))
    assert found.objective[-1] > found.start


def test_the_objective_is_the_inner_product_of_all_weights() -> None:
    a, b = weights(CHAIN, 1), weights(CHAIN, 2)
    found = matched(CHAIN, a, b)
    assert found.start == pytest.approx(objective(a, b), rel=1e-12)
    assert found.objective[-1] == pytest.approx(objective(a, after(CHAIN, b, found.moves)), rel=1e-12)
    distance = sum(float((a[name] - b[name]).square().sum()) for name in a)
    assert found.before == pytest.approx(distance, rel=1e-12)
    assert found.after == pytest.approx(distance - 2 * (found.objective[-1] - found.start), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_one_layer_is_as_good_as_the_best_of_all_orders(seed: int) -> None:
    table = chain([3, 5, 2])
    a, b = weights(table, seed), weights(table, seed + 100)
    orders = (torch.tensor(order) for order in itertools.permutations(range(5)))
    best = max(objective(a, after(table, b, Moves({"h0": order}))) for order in orders)
    assert matched(table, a, b).objective[-1] == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_two_layers_with_restarts_are_as_good_as_the_best_of_all_orders(seed: int) -> None:
    table = chain([2, 3, 4, 2])
    a, b = weights(table, seed), weights(table, seed + 100)
    best = max(
        objective(a, after(table, b, Moves({"h0": torch.tensor(one), "h1": torch.tensor(two)})))
        for one in itertools.permutations(range(3))
        for two in itertools.permutations(range(4))
    )
    assert matched(table, a, b, restarts=20).objective[-1] == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_experts_are_the_best_of_all_orders(seed: int) -> None:
    """With noise of 0.7 of the weights' size: what sketches and routers propose is what all hidden orders would say."""
    table = experts(3, 3)
    a, noise = weights(table, seed), weights(table, seed + 100)
    b = {name: one + 0.7 * noise[name] for name, one in after(table, a, random_moves(table, seed)).items()}
    hidden = list(itertools.permutations(range(3)))
    best = -np.inf
    for order in itertools.permutations(range(3)):
        total = float((a["router"] * b["router"][list(order)]).sum())
        for u, v in enumerate(order):
            similar = a[f"up.{u}"] @ b[f"up.{v}"].T + a[f"down.{u}"].T @ b[f"down.{v}"]
            total += max(float(similar[range(3), one].sum()) for one in hidden)
        best = max(best, total)
    assert matched(table, a, b).objective[-1] == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_signs_and_orders_together_are_the_best_of_all(seed: int) -> None:
    table = chain([3, 4, 2], "sign")
    a, b = weights(table, seed), weights(table, seed + 100)
    best = max(
        objective(a, after(table, b, Moves({"h0": torch.tensor(order)}, {"h0": torch.tensor(signs).double()})))
        for order in itertools.permutations(range(4))
        for signs in itertools.product((-1, 1), repeat=4)
    )
    assert matched(table, a, b).objective[-1] == pytest.approx(best, rel=1e-12)


HEADS = Symmetries(
    {"kv": Group(2), "q": Group(4, within="kv")},
    {
        "v": (axis(Factor(2, "kv"), Factor(3, gauge="values")), fixed(12)),
        "o": (fixed(12), axis(Factor(4, "q"), Factor(3, gauge="values"), role="in")),
    },
    {"values": Gauge("kv", 3, "linear")},
)


def heads(seed: int) -> dict[str, Tensor]:
    """Weights of `HEADS` in the form of least norm: what makes and what reads a head's vectors is orthonormal."""
    raw = weights(HEADS, seed)
    made = [torch.linalg.qr(rows.T)[0].T for rows in raw["v"].view(2, 3, 12)]
    read = [torch.linalg.qr(columns.reshape(24, 3))[0] for columns in raw["o"].view(12, 2, 6).unbind(1)]
    return {"v": torch.cat(made), "o": torch.cat([one.reshape(12, 6) for one in read], 1)}


def test_heads_are_matched_with_the_best_queries_and_bases_of_all() -> None:
    a, b = heads(3), heads(4)
    va, vb = (one["v"].view(2, 3, 12).numpy() for one in (a, b))
    oa, ob = (one["o"].view(12, 2, 2, 3).numpy() for one in (a, b))
    totals = []
    for order in itertools.permutations(range(2)):
        for inner in itertools.product(itertools.permutations(range(2)), repeat=2):
            crosses = [
                va[u] @ vb[v].T + sum(oa[:, u, x].T @ ob[:, v, y] for x, y in enumerate(inner[u]))
                for u, v in enumerate(order)
            ]
            totals.append(np.linalg.svd(crosses, compute_uv=False).sum())
    found = matched(HEADS, a, b)
    assert found.objective[-1] == pytest.approx(max(totals), rel=1e-9)


def test_the_same_seed_gives_the_same_moves_whatever_is_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    table = TABLES["rotary"]
    a, b = weights(table, 1), weights(table, 2)
    first = matched(table, a, b, seed=3, restarts=2)
    assert same(first.moves, matched(table, a, b, seed=3, restarts=2, memory=0).moves)
    monkeypatch.setattr(reading, "BLOCK", 24)
    # Rows of embeddings in several blocks are added up in another order, and no more.
    again = matched(table, a, b, seed=3, restarts=2)
    assert again.objective[-1] == pytest.approx(first.objective[-1], rel=1e-12)
    assert all(torch.equal(first.moves.orders[name], order) for name, order in again.moves.orders.items())


def test_restarts_can_only_gain() -> None:
    a, b = weights(CHAIN, 1), weights(CHAIN, 2)
    assert matched(CHAIN, a, b, restarts=5).objective[-1] >= matched(CHAIN, a, b).objective[-1]


@pytest.mark.parametrize("kind", TABLES)
def test_fine_tunes_of_one_base_stay_where_they_are(kind: str) -> None:
    table = TABLES[kind]
    base = weights(table)
    one, two = ({name: base[name] + 0.03 * noise for name, noise in weights(table, seed).items()} for seed in (1, 2))
    found = matched(table, one, two)
    assert same(found.moves, Moves())
    assert found.gain == 0
    assert all(change.moved == 0 and change.before == change.after for change in found.changes.values())


def test_a_model_is_where_it_is() -> None:
    for table in TABLES.values():
        a = weights(table)
        found = matched(table, a, a)
        assert same(found.moves, Moves())
        assert found.notes == ()
        assert (found.before, found.after, found.gain) == (0, 0, 0)


def test_dead_units_and_heads_stay_and_others_are_found() -> None:
    for table in (SCALED, TABLES["rotary"], TABLES["linear"]):
        a = weights(table)
        for name in ("0.weight", "0.bias"):
            if name in a:
                a[name][[2, 5]] = 0
        if "v" in a:
            a["v"][:4] = a["v.bias"][:4] = 0
            a["k"][4:] = 0
        b = after(table, a, random_moves(table, 1))
        found = matched(table, a, b)
        parts = [found.moves.orders, found.moves.scales, found.moves.matrices]
        assert all(tensor.isfinite().all() for part in parts for tensor in part.values())
        assert found.gain > 0.5


def test_what_is_wholly_zero_stays() -> None:
    for table in TABLES.values():
        zeros = {name: torch.zeros_like(tensor) for name, tensor in weights(table).items()}
        assert same(matched(table, zeros, zeros).moves, Moves())
        found = matched(table, zeros, weights(table))
        assert found.moves.orders == {}
        assert found.after <= found.before


def test_units_on_both_sides_of_a_tensor() -> None:
    """A map of a stream onto itself: a step is taken as if the other side stayed, and only if it gains."""
    stream = Factor(8, "stream")
    axes = {"w": (axis(stream), axis(stream, role="in")), "b": (axis(stream),)}
    table = Symmetries({"stream": Group(8, "sign")}, axes)
    a, b = weights(table, 1), weights(table, 2)
    scrambled = after(table, a, random_moves(table, 5))
    assert matched(table, a, scrambled).gain == pytest.approx(1)
    found = matched(table, a, b, restarts=3)
    assert found.objective[-1] == pytest.approx(objective(a, after(table, b, found.moves)), rel=1e-12)
    assert sorted(found.objective) == list(found.objective)


def test_statistics_move_and_do_not_vote() -> None:
    channels = Factor(6, "c")
    axes = {"weight": (axis(channels), fixed(3)), "norm.running_var": (axis(channels),), "norm.num_batches_tracked": ()}
    table = Symmetries({"c": Group(6)}, axes)
    a = weights(table) | {"norm.num_batches_tracked": torch.tensor(3)}
    b = after(table, a, Moves({"c": torch.tensor([3, 4, 5, 0, 1, 2])}))
    b["norm.running_var"] = b["norm.running_var"].flip(0) * 1000
    found = matched(table, a, b)
    assert found.moves.orders["c"].tolist() == [3, 4, 5, 0, 1, 2]
    assert found.before == pytest.approx(float((a["weight"] - b["weight"]).square().sum()))


def test_a_start_and_fixed_groups() -> None:
    a = weights(CHAIN)
    element = random_moves(CHAIN, 2)
    b = after(CHAIN, a, element)
    wrong = Moves({"h1": torch.roll(torch.arange(8), 1)})
    found = matched(CHAIN, a, b, start=wrong, fixed=["h1"], restarts=2)
    assert torch.equal(found.moves.orders["h1"], wrong.orders["h1"])
    assert found.start == pytest.approx(objective(a, after(CHAIN, b, wrong)), rel=1e-12)
    there = inverse(element, CHAIN)
    found = matched(CHAIN, a, b, start=there, fixed=list(CHAIN.groups))
    assert same(found.moves, there)
    assert (found.start, found.gain) == (pytest.approx(objective(a, a), rel=1e-12), pytest.approx(1))


def test_sweeps_end_an_ascent_and_progress_is_told() -> None:
    told: list[tuple[int, int, int]] = []
    a, b = weights(CHAIN, 1), weights(CHAIN, 2)
    found = matched(CHAIN, a, b, sweeps=1, progress=lambda *done: told.append(done))
    assert len(found.objective) == 1
    outwards = [one for one in told if one[0] == 0]
    assert outwards == [(0, done, len(outwards)) for done in range(1, len(outwards) + 1)]
    rest = told[len(outwards) :]
    assert rest == [(1, done, len(rest)) for done in range(1, len(rest) + 1)]
    assert outwards and rest


def test_what_differs_is_refused_all_at_once() -> None:
    a, b = weights(CHAIN), weights(chain([6, 9, 5, 7, 4]))
    del b["3.bias"]
    with pytest.raises(RecipeError) as refused:
        matched(CHAIN, a, b)
    names, shapes = refused.value.problems
    assert names.code == "G171" and names.message == "'a' has 1 of its 8 tensors, which 'b' has not: 3.bias"
    assert shapes.code == "G170" and shapes.message == (
        "3 of 7 tensors have other shapes in 'a' and 'b': "
        "1.weight is [8, 9] and [5, 9], 1.bias is [8] and [5], 2.weight is [7, 8] and [7, 5]"
    )


def test_another_architecture_is_one_line() -> None:
    a = weights(chain([4] * 30))
    b = {f"h.{name}": tensor for name, tensor in a.items()}
    with pytest.raises(RecipeError) as refused:
        matched(chain([4] * 30), a, b)
    (problem,) = refused.value.problems
    assert problem.message == (
        "'a' has 58 of its 58 tensors, which 'b' has not: 0.weight, 0.bias, 1.weight, 1.bias and 54 more; "
        "'b' has 58 of its 58 tensors, which 'a' has not: h.0.weight, h.0.bias, h.1.weight, h.1.bias and 54 more"
    )
    assert problem.hint.startswith("models of one architecture can be aligned")


def test_a_table_of_another_model_is_refused() -> None:
    with pytest.raises(RecipeError, match="G102"):
        matched(chain([6, 9, 5, 7, 4]), weights(CHAIN), weights(CHAIN))


def test_weights_that_are_not_finite_are_refused() -> None:
    a, b = weights(CHAIN, 1), weights(CHAIN, 2)
    a["0.weight"][0, 0] = torch.nan
    b["2.bias"][1] = torch.inf
    with pytest.raises(NumericError) as refused:
        matched(CHAIN, a, b)
    assert [problem.where for problem in refused.value.problems] == ["0.weight", "2.bias"]


def test_arguments_that_cannot_be_are_refused_all_at_once() -> None:
    with pytest.raises(RecipeError) as refused:
        matched(CHAIN, weights(CHAIN), weights(CHAIN), restarts=-1, sweeps=0, fixed=["h11"])
    assert [problem.where for problem in refused.value.problems] == ["restarts", "sweeps", "fixed"]
    assert "did you mean 'h1'" in str(refused.value)
    with pytest.raises(RecipeError) as refused:
        matched(CHAIN, weights(CHAIN), weights(CHAIN), restarts=True, sweeps=1.5)
    assert [problem.where for problem in refused.value.problems] == ["restarts", "sweeps"]
