"""Assignments: as good as every other, and the identity where nothing speaks against it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eutectic.alignment import assignment
from eutectic.alignment.assignment import assign
from eutectic.errors import NumericError
from eutectic.kernels.assignment import assignment as bought


@pytest.fixture(params=[assignment.LARGE, 1], ids=["scipy", "compiled"], autouse=True, scope="module")
def _solver(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything below holds for small matrices and for large ones."""
    with patch.object(assignment, "LARGE", request.param):
        yield


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def value(similarity: Tensor, order: Tensor) -> float:
    return float(similarity.double()[torch.arange(len(order)), order].sum())


def best(similarity: Tensor) -> float:
    """Of all orders there are."""
    rows = similarity.double().numpy()
    n, m = rows.shape
    return max(sum(rows[u, c] for u, c in enumerate(order)) for order in permutations(range(m), n))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(0, 2), st.booleans(), st.booleans())
def test_no_order_is_better(seed: int, n: int, more: int, whole: bool, wide: bool) -> None:
    similarity = drawn(seed, n, n + more)
    if whole:  # many ties
        similarity = similarity.mul(1.5).round()
    similarity = similarity if wide else similarity.float()
    order = assign(similarity)
    assert order.dtype == torch.int64 and len(set(order.tolist())) == n
    assert value(similarity, order) == pytest.approx(best(similarity), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 3), st.integers(0, 2))
def test_the_identity_where_it_is_among_the_best(seed: int, n: int, kinds: int, more: int) -> None:
    """Units of a few kinds, each most like its own: many orders are best, and the identity is one."""
    kind = torch.randint(0, kinds, (n,), generator=torch.Generator().manual_seed(seed))
    alike = torch.cat([kind[:, None] == kind, torch.zeros(n, more, dtype=torch.bool)], dim=1)
    similarity = torch.where(alike, 2.0, drawn(seed, 1)[0].clamp(-1, 1))
    assert assign(similarity).tolist() == list(range(n))


@pytest.mark.parametrize("constant", [0.0, -3.5, 1e30])
def test_a_constant_moves_nothing(constant: float) -> None:
    assert assign(torch.full((7, 9), constant)).tolist() == list(range(7))


def test_what_is_alike_stays_while_the_others_move() -> None:
    """A planted order of eight units; the other eight are all alike."""
    planted = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    similarity = torch.zeros(16, 16, dtype=torch.float64)
    similarity[8:, 8:] = 0.5
    similarity[torch.arange(8), planted] = 1.0
    assert assign(similarity).tolist() == [*planted.tolist(), *range(8, 16)]


def test_no_unit_moves_that_may_change_with_who_is_in_its_place() -> None:
    # The first two change places; the third is as good in one as in the other, or where it is.
    similarity = torch.tensor([[0.0, 9, 9], [9, 0, 0], [0, 0, 0]])
    for order in map(list, permutations(range(3))):
        found = assign(similarity[order][:, order])
        assert int((found == torch.arange(3)).nonzero()[0]) == order.index(2)


def test_adding_to_a_row_or_a_column_changes_nothing() -> None:
    similarity = drawn(5, 40, 40)
    order = assign(similarity)
    assert torch.equal(order, assign(similarity + drawn(6, 40, 1) * 100))
    assert torch.equal(order, assign(similarity + drawn(7, 1, 40) * 100))


def test_a_planted_order_is_found_on_tensors_of_any_layout() -> None:
    planted = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    similarity = torch.eye(50)[planted] + drawn(2, 50, 50).float() * 0.1
    assert torch.equal(assign(similarity), planted)
    assert torch.equal(assign(similarity.T.contiguous().T), planted)
    assert torch.equal(assign(similarity.T), torch.argsort(planted))


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("kind", ["random", "few levels", "hubs", "low rank", "dead", "wide"])
def test_prices_prove_that_large_assignments_are_the_best(kind: str, wide: bool) -> None:
    """Duality: no assignment exceeds Σ maxⱼ(sᵢⱼ − pⱼ) + Σ p for prices p ≥ 0 that are zero where nobody buys."""
    similarity = {
        "random": drawn(1, 150, 150),
        "few levels": drawn(2, 150, 150).round(),
        "hubs": drawn(3, 150, 20) @ (drawn(4, 20, 150) * drawn(5, 1, 150).exp()),
        "low rank": drawn(6, 60, 1).abs() @ drawn(7, 1, 60).abs() + drawn(8, 60, 60) * 1e-3,
        "dead": (drawn(9, 150, 8) * (drawn(10, 150, 1) > 0)) @ (drawn(11, 8, 150) * (drawn(12, 1, 150) > 0)),
        "wide": drawn(13, 100, 130),
    }[kind].to(torch.float64 if wide else torch.float32)
    columns, prices = bought(similarity.numpy())
    bound = (similarity.double().numpy() - prices).max(1).sum() + prices.sum()
    left_over = np.setdiff1d(np.arange(similarity.shape[1]), columns)
    assert len(set(columns.tolist())) == len(similarity)
    assert (prices >= 0).all() and (prices[left_over] == 0).all()
    assert value(similarity, torch.from_numpy(columns)) == pytest.approx(bound, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 1e305])
def test_what_is_no_number_is_refused_with_its_place(wrong: float) -> None:
    similarity = drawn(1, 6, 6)
    similarity[2, 4] = wrong
    with pytest.raises(NumericError, match=r"G180 unit 2 of the first and unit 4 of the second") as error:
        assign(similarity)
    assert str(wrong) in str(error.value)


@pytest.mark.parametrize("shape", [(3, 2), (4,), (2, 2, 2)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="n ≤ m"):
        assign(torch.zeros(shape))


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="float32 or float64"):
        assign(torch.zeros(2, 2, dtype=torch.float16))


def test_nothing_to_assign() -> None:
    assert assign(torch.zeros(0, 3)).shape == (0,)
    assert np.array_equal(assign(torch.zeros(1, 1)).numpy(), [0])
