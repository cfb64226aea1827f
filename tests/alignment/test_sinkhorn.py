"""Soft orders, moved by gradient, lead to moves with a low loss at the midpoint."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from midpoint_nets import BATCHES, TABLE, at_midpoint, loss, net, trained

from eutectic.alignment.matching import match_weights
from eutectic.alignment.moves import random_moves
from eutectic.alignment.sinkhorn import match_sinkhorn, sinkhorn
from eutectic.checkpoint import MemorySource
from eutectic.checkpoint.symmetry import Group, Moves, Symmetries
from eutectic.errors import EutecticError


def test_rows_and_columns_sum_to_one() -> None:
    scores = torch.randn(7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    soft = sinkhorn(scores)
    assert (soft > 0).all()
    torch.testing.assert_close(soft.sum(0), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(soft.sum(1), torch.ones(7, dtype=torch.float64), rtol=0, atol=1e-3)


def test_at_low_temperatures_a_soft_order_is_the_best_assignment() -> None:
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    scores = torch.eye(6, dtype=torch.float64)[order] + 0.3 * torch.rand(6, 6, dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores / 1e-3), torch.eye(6, dtype=torch.float64)[order])


def test_the_loss_is_that_of_the_midpoint_and_falls() -> None:
    a, b = trained(1), trained(2)
    told: list[tuple[int, float]] = []
    found = match_sinkhorn(
        net(), a, b, BATCHES, loss, TABLE, steps=40, tell=lambda step, best: told.append((step, best))
    )
    weights = match_weights(MemorySource("a", a), MemorySource("b", b), TABLE)
    assert -found.start == pytest.approx(at_midpoint(a, b, Moves()))
    assert -found.objective[0] == pytest.approx(min(at_midpoint(a, b, weights.moves), -found.start))
    assert -found.objective[-1] == pytest.approx(at_midpoint(a, b, found.moves))
    assert all(after >= before for before, after in pairwise(found.objective))
    assert found.objective[-1] > found.objective[0]
    assert [step for step, _ in told] == list(range(4, 41, 4)) and found.notes == ()


def test_the_same_gives_the_same_and_inputs_stay() -> None:
    a, b, template = trained(1), trained(2), net()
    before = [copy.deepcopy(one.state_dict()) for one in (a, b, template)]
    one, two = (match_sinkhorn(template, a, b, BATCHES, loss, TABLE, steps=9) for _ in range(2))
    assert one.objective == two.objective
    for module, state in zip((a, b, template), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_a_scrambled_model_is_found_again() -> None:
    a = trained(1)
    b = copy.deepcopy(a)
    moves = random_moves(TABLE, 4)
    b.load_state_dict({name: TABLE.moved(name, tensor, moves) for name, tensor in a.state_dict().items()})
    found = match_sinkhorn(net(), a, b, BATCHES, loss, TABLE, steps=4)
    assert found.after == 0 and found.objective[-1] > found.start


def test_fine_tunes_do_not_move() -> None:
    a = trained(1)
    b = copy.deepcopy(a)
    with torch.no_grad():
        for parameter in b.parameters():
            parameter.mul_(1.001)
    assert match_sinkhorn(net(), a, b, BATCHES, loss, TABLE, steps=4).moves == Moves()


def test_groups_that_are_more_than_an_order_stay_and_are_counted() -> None:
    a, b = trained(1), trained(2)
    nested = Symmetries({**TABLE.groups, "pairs": Group(5), "0": Group(10, within="pairs")}, TABLE.axes)
    found = match_sinkhorn(net(), a, b, BATCHES, loss, nested, steps=4)
    assert found.notes == ("matched by weights alone: 2 groups",)


def test_without_an_order_to_soften_it_is_weight_matching() -> None:
    a, b = trained(1), trained(2)
    halves = {f"half of {name}": Group(group.size // 2) for name, group in TABLE.groups.items()}
    nested = {name: Group(group.size, within=f"half of {name}") for name, group in TABLE.groups.items()}
    table = Symmetries({**halves, **nested}, TABLE.axes)
    found = match_sinkhorn(net(), a, b, BATCHES, loss, table, steps=4)
    weights = match_weights(MemorySource("a", a), MemorySource("b", b), table)
    assert len(found.objective) == 1 and found.after == weights.after < weights.before


def test_inference_mode_changes_nothing() -> None:
    a, b = trained(1), trained(2)
    found = match_sinkhorn(net(), a, b, BATCHES, loss, TABLE, steps=4)
    with torch.inference_mode():
        again = match_sinkhorn(
            net(),
            copy.deepcopy(a),
            copy.deepcopy(b),
            [[one.clone() for one in batch] for batch in BATCHES],
            loss,
            TABLE,
            steps=4,
        )
    assert again.objective == found.objective


def test_bad_requests_are_answered_together() -> None:
    a = trained(1)
    with pytest.raises(EutecticError) as caught:
        match_sinkhorn(net(), a, a, iter(BATCHES), loss, TABLE, steps=0, lr=-1, temperature=0)
    for part in ("G220 batches", "G220 steps", "G220 lr", "G220 temperature"):
        assert part in str(caught.value)
