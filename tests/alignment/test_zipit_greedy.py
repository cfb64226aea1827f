"""Which units are merged: the greedy algorithm, its limits, and what a partition makes of matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from torch import Tensor

from eutectic.alignment.zipit import Partition, greedy
from eutectic.errors import NumericError, RecipeError

SHARES = st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0])
CASES = st.tuples(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 6), SHARES, SHARES)


def correlations(seed: int, size: int, rows: int = 12) -> Tensor:
    """Of so many columns; every other time in steps, so that many are equal."""
    x = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = torch.corrcoef(x.T).reshape(size, size)
    return (found * 4).round() / 4 if seed % 2 else found


def oracle(c: np.ndarray, models: int, alpha: float, beta: float) -> np.ndarray | None:
    """The best of all pairs, each time; None where budgets leave no pair."""
    size, n = len(c), len(c) // models
    sets, room = {i: [i] for i in range(size)}, [int((models - 1) * n * beta / models + 1e-4)] * models
    while len(sets) > n:
        both = {(i, j): {u // n for u in sets[i]} & {u // n for u in sets[j]} for i in sets for j in sets if i < j}
        pairs = [pair for pair, lost in both.items() if all(room[m] for m in lost)]
        if not pairs:
            return None
        i, j = max(pairs, key=lambda pair: c[pair])
        room = [left - (m in both[i, j]) for m, left in enumerate(room)]
        row = np.minimum(c[i], c[j])
        c[i] = c[:, i] = np.where(row > 0, alpha * row, row)
        sets[i] += sets.pop(j)
    return np.array([next(min(s) for s in sets.values() if u in s) for u in range(size)])


@settings(max_examples=150, deadline=None)
@given(CASES)
def test_it_takes_the_best_of_all_pairs_each_time(case: tuple[int, int, int, float, float]) -> None:
    seed, models, units, alpha, beta = case
    similarity = correlations(seed, models * units)
    found = greedy(similarity, models, alpha=alpha, beta=beta)
    if (wanted := oracle(similarity.numpy().copy(), models, alpha, beta)) is not None:
        np.testing.assert_array_equal(found.into.reshape(-1), np.unique(wanted, return_inverse=True)[1])


@settings(max_examples=150, deadline=None)
@given(CASES)
def test_every_model_keeps_within_its_budget(case: tuple[int, int, int, float, float]) -> None:
    seed, models, units, alpha, beta = case
    found = greedy(correlations(seed, models * units), models, alpha=alpha, beta=beta)
    assert max(found.folded) <= (models - 1) * units * beta / models + 1e-4
    assert found.counts.sum(0).min() >= 1 and found.counts.sum() == models * units


@settings(max_examples=50, deadline=None)
@given(CASES)
def test_merging_undoes_unmerging(case: tuple[int, int, int, float, float]) -> None:
    seed, models, units, alpha, beta = case
    found = greedy(correlations(seed, models * units), models, alpha=alpha, beta=beta)
    torch.testing.assert_close(found.merge @ found.unmerge, torch.eye(units, dtype=torch.float64), rtol=0, atol=1e-15)
    assert torch.equal(found.unmerge.sum(1), torch.ones(models * units, dtype=torch.float64))


@pytest.mark.parametrize("models", [2, 3, 5])
def test_without_a_budget_no_two_units_of_a_model_are_merged(models: int) -> None:
    # Of three models on, the best pairs alone can end in a corner: two sets without a third model to make one of them.
    for seed in range(0, 40, 2):
        assert (greedy(correlations(seed, models * 6), models, beta=0).counts == 1).all()


def test_a_corner_is_left_by_taking_the_smallest_set_apart() -> None:
    # A0B0, B1C0 and C1A1 are merged first; each of A1 and C1 then goes where its own model is not.
    c = torch.full((6, 6), 0.1, dtype=torch.float64)
    for (i, j), value in {(0, 2): 0.9, (3, 4): 0.8, (1, 5): 0.7, (5, 0): 0.5, (5, 2): 0.5, (1, 3): 0.3}.items():
        c[i, j] = c[j, i] = value
    assert greedy(c, 3, beta=0).into.tolist() == [[0, 1], [0, 1], [1, 0]]


def test_copies_go_together() -> None:
    x = torch.randn(50, 7, dtype=torch.float64)
    order = torch.randperm(7)
    found = greedy(torch.corrcoef(torch.cat([x, x[:, order]], 1).T), 2, alpha=1, beta=1)
    assert torch.equal(found.into, torch.stack([torch.arange(7), order]))


def test_with_whole_shares_it_is_complete_linkage() -> None:
    x = torch.rand(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    c = (1 + torch.corrcoef((x + 0.5 * x[:1]).T)) / 2
    found = greedy(c, 2, alpha=1, beta=1)
    tree = hierarchy.linkage(squareform(1 - c.numpy(), checks=False), "complete")
    wanted = hierarchy.fcluster(tree, 20, "maxclust")
    assert max(found.folded) < 10, "no budget was in the way"
    joint = found.into.reshape(-1)
    assert np.array_equal(joint[:, None] == joint, wanted[:, None] == wanted)


def test_without_alpha_a_merged_unit_waits_for_all_others() -> None:
    c = torch.tensor([[1, 0.9, 0.8, 0.1], [0.9, 1, 0.7, 0.2], [0.8, 0.7, 1, 0.15], [0.1, 0.2, 0.15, 1]])
    assert greedy(c, 2, alpha=1, beta=1).into.tolist() == [[0, 0], [0, 1]]
    assert greedy(c, 2, alpha=0, beta=1).into.tolist() == [[0, 0], [1, 1]]


def test_a_penalty_makes_no_opposite_units_more_alike() -> None:
    c = torch.full((4, 4), -0.5)
    c[0, 2] = c[2, 0] = 0.9
    c[1, 3] = c[3, 1] = -0.4
    assert greedy(c, 2, alpha=0.1, beta=1).into.tolist() == [[0, 1], [0, 1]]


def test_a_partition_as_models_stand_is_an_average() -> None:
    found = Partition.standing(3, 4)
    assert torch.equal(found.merge, torch.eye(4, dtype=torch.float64).repeat(1, 3) / 3) and found.folded == (0, 0, 0)


def test_how_close_merged_units_are() -> None:
    found = Partition(torch.tensor([[0, 0], [0, 1]]))
    c = torch.arange(16.0).reshape(4, 4)
    assert found.closeness(c) == pytest.approx(float(c[[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]].mean()))


def test_what_is_no_share_or_no_matrix_is_refused() -> None:
    with pytest.raises(RecipeError) as error:
        greedy(torch.eye(4), 2, alpha=1.5, beta=-1)
    assert [(one.code, one.where) for one in error.value.problems] == [("G240", "alpha"), ("G240", "beta")]
    for matrix, models in ((torch.eye(5), 2), (torch.eye(4)[:3], 2), (torch.eye(4), 1), (torch.zeros(0, 0), 2)):
        with pytest.raises(RecipeError, match="G240"):
            greedy(matrix, models)
    broken = torch.eye(4)
    broken[0, 3] = torch.nan
    with pytest.raises(NumericError, match="G241 similarity: 1 similarities are NaN"):
        greedy(broken, 2)
