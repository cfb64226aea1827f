"""The straight-through estimator finds moves with a low loss at the midpoint."""

from __future__ import annotations

import copy

import pytest
import torch
from midpoint_nets import BATCHES, TABLE, at_midpoint, loss, net, trained

from eutectic.alignment.matching import match_weights
from eutectic.alignment.moves import random_moves
from eutectic.alignment.straight_through import match_straight_through
from eutectic.checkpoint import MemorySource
from eutectic.checkpoint.symmetry import Moves
from eutectic.errors import EutecticError


def test_the_loss_is_that_of_the_midpoint_and_no_worse_than_that_of_weight_matching() -> None:
    a, b = trained(1), trained(2)
    told: list[tuple[int, float]] = []
    found = match_straight_through(
        net(), a, b, BATCHES, loss, TABLE, steps=12, lr=0.1, tell=lambda step, best: told.append((step, best))
    )
    weights = match_weights(MemorySource("a", a), MemorySource("b", b), TABLE)
    assert -found.start == pytest.approx(at_midpoint(a, b, Moves()))
    assert -found.objective[-1] == pytest.approx(at_midpoint(a, b, found.moves))
    assert -found.objective[0] == pytest.approx(min(at_midpoint(a, b, weights.moves), -found.start))
    assert list(found.objective) == sorted(found.objective) and len(found.objective) == 4
    assert told == [(4 * i, -value) for i, value in enumerate(found.objective)]
    assert found.objective[-1] > found.objective[0] >= found.start


def test_the_same_seed_gives_the_same_and_inputs_stay() -> None:
    a, b, template = trained(1), trained(2), net()
    before = [copy.deepcopy(one.state_dict()) for one in (a, b, template)]
    one, two = (match_straight_through(template, a, b, BATCHES, loss, TABLE, steps=5, lr=0.1) for _ in range(2))
    assert one.objective == two.objective and one.moves.orders.keys() == two.moves.orders.keys()
    for module, state in zip((a, b, template), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_a_scrambled_model_is_found_again() -> None:
    a = trained(1)
    b = copy.deepcopy(a)
    moves = random_moves(TABLE, 4)
    b.load_state_dict({name: TABLE.moved(name, tensor, moves) for name, tensor in a.state_dict().items()})
    found = match_straight_through(net(), a, b, BATCHES, loss, TABLE, steps=1)
    assert found.after == 0 and found.objective[-1] > found.start


def test_inference_mode_changes_nothing() -> None:
    a, b = trained(1), trained(2)
    found = match_straight_through(net(), a, b, BATCHES, loss, TABLE, steps=4)
    with torch.inference_mode():
        again = match_straight_through(
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
        match_straight_through(net(), a, a, iter(BATCHES), loss, TABLE, steps=0, lr=-1, momentum=1)
    for part in ("G220 batches", "G220 steps", "G220 lr", "G220 momentum"):
        assert part in str(caught.value)
    with pytest.raises(EutecticError, match="F101"):
        match_straight_through(net(), a, a, [], loss, TABLE, steps=1)
    with pytest.raises(EutecticError, match="G221 loss: the loss at the midpoint is nan"):
        match_straight_through(net(), a, a, BATCHES, lambda out, batch: out.sum() * torch.nan, TABLE, steps=1)
