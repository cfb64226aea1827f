"""Many models aligned: each to the first, by moves that agree with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise, permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from torch import Tensor

import eutectic
from eutectic.alignment import many
from eutectic.alignment.comparing import Pair
from eutectic.alignment.finding import symmetries_of
from eutectic.alignment.many import METHODS, align_many
from eutectic.alignment.matching import match_weights
from eutectic.alignment.model import Match
from eutectic.alignment.moves import compose, essential, inverse, random_moves
from eutectic.alignment.universe import Relaxation, Soft, highest
from eutectic.checkpoint.memory import MemorySource
from eutectic.checkpoint.source import Source
from eutectic.checkpoint.symmetry import Factor, Group, Moves, Symmetries, axis, fixed
from eutectic.errors import NumericError, RecipeError
from eutectic.testing import tiny_llama

Tensors = Mapping[str, Tensor]
WIDTHS = (5, 5, 5, 3)


def table(widths: Sequence[int] = WIDTHS, scale: str = "") -> Symmetries:
    """Of a perceptron."""
    groups = {f"h{layer}": Group(width, scale) for layer, width in enumerate(widths[1:-1])}  # type: ignore[arg-type]
    axes = {}
    for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
        out = fixed(fan_out) if layer == len(widths) - 2 else axis(Factor(fan_out, f"h{layer}"))
        into = fixed(fan_in) if layer == 0 else axis(Factor(fan_in, f"h{layer - 1}"), role="in")
        axes |= {f"{layer}.weight": (out, into), f"{layer}.bias": (out,)}
    return Symmetries(groups, axes)


def perceptron(seed: int, widths: Sequence[int] = WIDTHS) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
        made[f"{layer}.weight"] = torch.randn(fan_out, fan_in, generator=draw, dtype=torch.float64)
        made[f"{layer}.bias"] = torch.randn(fan_out, generator=draw, dtype=torch.float64)
    return made


def sources(all_tensors: Sequence[Tensors]) -> list[Source]:
    return [MemorySource(f"model {number}", tensors) for number, tensors in enumerate(all_tensors)]


def moved(symmetries: Symmetries, tensors: Tensors, moves: Moves) -> dict[str, Tensor]:
    return {name: symmetries.made(name, tensors.__getitem__, moves) for name in tensors}


def in_common(models: Sequence[Tensors]) -> float:
    """Σ ⟨model i, model j⟩ over pairs."""
    return sum(float((a[name] * b[name]).sum()) for a, b in combinations(models, 2) for name in a)


def aligned(symmetries: Symmetries, models: Sequence[Tensors], found: Sequence[Match]) -> list[dict[str, Tensor]]:
    return [moved(symmetries, one, match.moves) for one, match in zip(models, found, strict=True)]


def check_recovered(symmetries: Symmetries, original: Tensors, method: str) -> None:
    """Three copies, two of them scrambled: all come back to the first, and so does their mean."""
    models = [original, *(moved(symmetries, original, random_moves(symmetries, seed)) for seed in (1, 2))]
    found = align_many(sources(models), symmetries, method=method)  # type: ignore[arg-type]
    assert found[1].before > 1e-3
    for back in aligned(symmetries, models, found):
        for name, tensor in original.items():
            torch.testing.assert_close(back[name], tensor, rtol=1e-6, atol=1e-7, check_dtype=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", ["", "sign", "positive", "any"])
def test_scrambled_copies_are_recovered(scale: str, method: str) -> None:
    check_recovered(table(scale=scale), perceptron(0), method)


@pytest.mark.parametrize("method", METHODS)
def test_scrambled_heads_bases_and_residual_streams_are_recovered(method: str, tmp_path: Path) -> None:
    with eutectic.open(
        tiny_llama(tmp_path / "a", seed=1, dtype="float32", hidden=16, layers=1, intermediate=16, vocab=24)
    ) as source:
        check_recovered(symmetries_of(source), {name: source[name].double() for name in source.specs}, method)


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 4))
@settings(max_examples=10, deadline=None)
def test_the_sum_over_pairs_never_falls(method: str, seed: int, count: int) -> None:
    models = [perceptron(seed + number) for number in range(count)]
    found = align_many(sources(models), table(), method=method)  # type: ignore[arg-type]
    trace = (found[0].start, *found[0].objective)
    assert trace[0] == pytest.approx(in_common(models))
    assert all(after >= before for before, after in pairwise(trace))
    assert trace[-1] == pytest.approx(in_common(aligned(table(), models, found)))
    assert {match.objective for match in found} == {found[0].objective}


@pytest.mark.parametrize("method", METHODS)
def test_no_other_order_of_one_group_of_one_model_is_better(method: str) -> None:
    symmetries, models = table(), [perceptron(seed) for seed in (3, 4, 5)]
    best = aligned(symmetries, models, align_many(sources(models), symmetries, method=method))  # type: ignore[arg-type]
    reached = in_common(best)
    for number, group in [(number, group) for number in range(3) for group in symmetries.groups]:
        for order in permutations(range(5)):
            other = moved(symmetries, best[number], Moves({group: torch.tensor(order)}))
            assert in_common([*best[:number], other, *best[number + 1 :]]) <= reached + 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_the_first_model_stays_and_cycles_lead_back(method: str) -> None:
    symmetries = table(scale="sign")
    found = align_many(sources([perceptron(seed) for seed in range(3)]), symmetries, method=method)  # type: ignore[arg-type]
    assert essential(found[0].moves) == Moves()
    ways = [
        compose(inverse(found[to].moves, symmetries), found[start].moves, symmetries)
        for start, to in ((0, 1), (1, 2), (2, 0))
    ]
    around = compose(ways[2], compose(ways[1], ways[0], symmetries), symmetries)
    assert essential(around) == Moves()


@pytest.mark.parametrize("method", METHODS)
def test_fine_tunes_of_one_base_do_not_move(method: str) -> None:
    base = perceptron(0)
    tuned = [{name: one + 0.05 * perceptron(seed)[name] for name, one in base.items()} for seed in (1, 2, 3)]
    for match in align_many(sources(tuned), table(scale="sign"), method=method):  # type: ignore[arg-type]
        assert match.moves == Moves() and match.gain == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_gives_one_result(method: str) -> None:
    models = sources([perceptron(seed) for seed in range(4)])
    first, second = (align_many(models, table(), method=method, seed=7) for _ in range(2))  # type: ignore[arg-type]
    for one, other in zip(first, second, strict=True):
        assert one.objective == other.objective
        assert {name: order.tolist() for name, order in one.moves.orders.items()} == {
            name: order.tolist() for name, order in other.moves.orders.items()
        }


def test_two_models_are_matched_as_a_pair() -> None:
    a, b = sources([perceptron(1), perceptron(2)])
    pair, (_, match) = match_weights(a, b, table()), align_many([a, b], table(), method="mean")
    assert match.objective[-1] == pytest.approx(pair.objective[-1])


@pytest.mark.parametrize(("method", "of"), [("universe", 100), ("mean", 2)])
def test_progress_names_the_round_and_what_is_done_in_it(method: str, of: int) -> None:
    told = list[tuple[int, int, int]]()
    models = sources([perceptron(seed) for seed in (1, 2, 3)])
    align_many(models, table(), method=method, progress=lambda *now: told.append(now))  # type: ignore[arg-type]
    begun = [one for one in told if one[0] == 0]
    assert begun == [(0, number, of) for number in range(1, len(begun) + 1)] and len(begun) > 1
    assert told[len(begun) : len(begun) + 3] == [(1, 1, 3), (1, 2, 3), (1, 3, 3)]


def relaxed(count: int, scale: str = "") -> Relaxation:
    models = sources([perceptron(seed) for seed in range(count)])
    pairs = [Pair(models[0], one, table(scale=scale), 1 << 20) for one in models[1:]]
    index = pairs[0].index
    readings = [pairs[0].a, *(pair.b for pair in pairs)]
    return Relaxation(readings, index, [Moves()] * count, index.families, index.tensors)


def soft_tensors(element: Soft, tensors: Tensors) -> dict[str, Tensor]:
    """P W Pᵀ written out for three layers."""
    one, two = ((element.signed or element.places)[group] for group in ("h0", "h1"))
    into = [torch.eye(WIDTHS[0]).double(), one, two]
    out = [one, two, torch.eye(WIDTHS[-1]).double()]
    made = {f"{layer}.weight": out[layer] @ tensors[f"{layer}.weight"] @ into[layer].T for layer in range(3)}
    return made | {f"{layer}.bias": out[layer] @ tensors[f"{layer}.bias"] for layer in range(3)}


@pytest.mark.parametrize("scale", ["", "sign"])
def test_the_objective_between_elements_is_the_polynomial_that_is_maximised(scale: str) -> None:
    problem, symmetries = relaxed(3, scale), table(scale=scale)
    starts, ends = (
        [problem.centre(), *(problem.vertex(random_moves(symmetries, seed)) for seed in seeds)]
        for seeds in ((1, 2), (3, 4))
    )
    curve = problem.curve(starts, ends)
    for step in (0.0, 0.3, 1.0):
        at = [one.towards(end, step) for one, end in zip(starts, ends, strict=True)]
        direct = in_common([soft_tensors(element, perceptron(seed)) for seed, element in enumerate(at)])
        assert curve(step) == pytest.approx(direct, rel=1e-10)


@pytest.mark.parametrize("scale", ["", "sign"])
def test_no_vertex_rises_faster_than_the_answer(scale: str) -> None:
    problem, symmetries = relaxed(3, scale), table(scale=scale)
    here = [problem.vertex(Moves()), problem.centre(), problem.centre()]
    answer = problem.curve(here, [here[0], *problem.answers(here)]).deriv()(0.0)
    for seed in range(50):
        others = [problem.vertex(random_moves(symmetries, seed * 2 + number)) for number in range(2)]
        assert problem.curve(here, [here[0], *others]).deriv()(0.0) <= answer + 1e-9


def test_the_nearest_element_of_one_that_is_not_soft_is_itself() -> None:
    problem, symmetries = relaxed(2, "sign"), table(scale="sign")
    moves = random_moves(symmetries, 3)
    found = problem.nearest(problem.vertex(moves))
    assert all(torch.equal(found.orders[name], order) for name, order in moves.orders.items())
    assert all(torch.equal(found.scales[name], scale) for name, scale in moves.scales.items())


@pytest.mark.parametrize(
    ("coefficients", "where"),
    [([0, 0.6, -1], 0.3), ([1, 2], 1), ([1, -2], 0), ([5], 0), ([0], 0), ([0, 1, -3, 2], 0.2113), ([0, -1, 0, 1], 0)],
)
def test_a_step_ends_where_the_polynomial_is_highest(coefficients: list[float], where: float) -> None:
    assert highest(Polynomial(coefficients)) == pytest.approx(where, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_beginning_that_lowers_the_sum_is_not_taken(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Moves({"h0": torch.roll(torch.arange(5), 1)})
    monkeypatch.setattr(many, "universe", lambda *given: [Moves(), away, Moves()])
    monkeypatch.setattr(many.Ascent, "guess", lambda ascent: setattr(ascent, "moves", away))
    monkeypatch.setattr(many.Ascent, "climb", lambda *given: None)
    found = align_many(sources([perceptron(1)] * 3), table(), method=method)  # type: ignore[arg-type]
    assert [match.moves for match in found] == [Moves()] * 3 and found[0].objective == (found[0].start,)


def test_one_model_and_an_unknown_method_are_refused_together() -> None:
    with pytest.raises(RecipeError) as error:
        align_many(sources([perceptron(0)]), table(), method="univers")  # type: ignore[arg-type]
    assert [problem.code for problem in error.value.problems] == ["G181", "G182"]
    assert "did you mean 'universe'?" in str(error.value)


def test_all_models_that_differ_are_named() -> None:
    models = sources([perceptron(0), perceptron(1, (5, 7, 5, 3)), perceptron(2, (5, 5, 5, 4))])
    with pytest.raises(RecipeError) as error:
        align_many(models, table())
    assert {problem.code for problem in error.value.problems} == {"G170"}
    assert "model 1" in str(error.value) and "model 2" in str(error.value)


def test_weights_that_are_no_numbers_are_refused() -> None:
    broken = perceptron(1)
    broken["1.bias"][2] = float("nan")
    with pytest.raises(NumericError, match=r"G172 1\.bias"):
        align_many(sources([perceptron(0), broken]), table())
