"""Closed forms of bases: against numpy, and what makes them the best."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import after, attention, chain, recurrent, source, weights

from eutectic.alignment import gauges
from eutectic.alignment.balance import balanced
from eutectic.alignment.comparing import Pair
from eutectic.alignment.gauges import Kind, balance, best, cross, matrices, most
from eutectic.alignment.moves import compose, random_moves
from eutectic.checkpoint.symmetry import Moves, Symmetries

EYE = torch.eye(4, dtype=torch.float64)
KINDS: list[Kind] = ["linear", "orthogonal", "rotary"]
seeds = st.integers(0, 2**32)


def vectors(seed: int, units: int = 2, size: int = 4, rest: int = 9) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(units, size, rest, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@given(seeds)
@settings(max_examples=10, deadline=None)
def test_the_best_rotation_is_one_and_gives_the_most(kind: Kind, seed: int) -> None:
    a, b = vectors(seed), vectors(seed + 1)
    crossed = cross(kind, a, b)
    rotation = best(kind, crossed)
    turned = matrices(kind, rotation)
    assert torch.allclose(turned @ turned.mT, EYE, atol=1e-12)
    for i in range(2):
        for j in range(2):
            reached = float((a[i] * (turned[i, j] @ b[j])).sum())
            assert reached == pytest.approx(float(most(kind, crossed)[i, j]), rel=1e-9)
            assert reached == pytest.approx(float(gauges.given(kind, rotation, crossed)[i, j]), rel=1e-9)
            for other in (EYE, turned[j, i], turned[1 - i, j]):
                assert reached >= float((a[i] * (other @ b[j])).sum()) - 1e-9


def test_a_linear_cross_is_the_product_in_numpy() -> None:
    a, b = vectors(1), vectors(2)
    expected = np.einsum("iar,jbr->ijab", a.numpy(), b.numpy())
    np.testing.assert_allclose(cross("linear", a, b), expected, rtol=1e-12)


def test_a_rotary_cross_is_the_complex_product_in_numpy() -> None:
    a, b = vectors(1).numpy(), vectors(2).numpy()
    left, right = (one[:, :2] + 1j * one[:, 2:] for one in (a, b))
    np.testing.assert_allclose(
        cross("rotary", vectors(1), vectors(2)), np.einsum("ipr,jpr->ijp", left.conj(), right), rtol=1e-12
    )


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_is_in_common_nothing_turns(kind: Kind) -> None:
    a = vectors(1)
    a[:, [1, 3]] = 0
    nothing = matrices(kind, best(kind, cross(kind, a * 0, a)))
    assert torch.equal(nothing, EYE.expand_as(nothing))
    itself = matrices(kind, best(kind, cross(kind, a, a)))[0, 0]
    assert torch.allclose(itself, EYE, atol=1e-9)


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_balanced_bases_have_equal_grams_on_both_sides(seed: int) -> None:
    made, read = ((one @ one.mT) for one in (vectors(seed), vectors(seed + 1)))
    change = balance("linear", made, read)
    back = torch.linalg.inv(change)
    assert torch.allclose(change @ made @ change, back @ read @ back, rtol=1e-9, atol=1e-9)
    assert torch.allclose(change, change.mT)


def test_bases_that_are_not_spanned_stay() -> None:
    flat = vectors(1)
    flat[0, 2] = flat[0, 1]
    made, read = flat @ flat.mT, vectors(2) @ vectors(2).mT
    assert torch.equal(balance("linear", made, read)[0], EYE)
    assert not torch.allclose(balance("linear", made, read)[1], EYE)
    assert torch.equal(balance("linear", made * 0, read), EYE.expand(2, 4, 4))
    assert torch.equal(balance("rotary", made * 0, read), EYE.expand(2, 4, 4))


@pytest.mark.parametrize(
    "table", [chain([5, 6, 7, 8, 3], "positive"), recurrent(), attention("rotary"), attention("linear")]
)
def test_the_form_of_least_norm_is_the_same_for_equivalent_models(table: Symmetries) -> None:
    a = weights(table)
    b = after(table, a, random_moves(table, 3))
    pair = Pair(source("a", a), source("b", b), table, 1 << 20)
    norms = []
    for tensors, reading in ((a, pair.a), (b, pair.b)):
        form = balanced(reading, pair.index)
        norms.append(norm(after(table, tensors, form)))
        for seed in range(3):
            away = random_moves(table, seed)
            sizes = {name: scale.abs() ** 0.01 for name, scale in away.scales.items()}
            near = compose(Moves({}, sizes, away.matrices), form, table)
            assert norm(after(table, tensors, near)) > norms[-1]
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)
    assert norms[0] < norm(a) < norm(b)


def norm(tensors: Mapping[str, torch.Tensor]) -> float:
    return sum(float(one.square().sum()) for one in tensors.values())
