"""What is no model, no batch or no number: one clear error, wherever it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from eutectic.alignment import (
    Symmetries,
    align,
    align_many,
    check,
    fixed,
    match_activations,
    match_orthogonal,
    match_sinkhorn,
    match_straight_through,
    match_weights,
    symmetries_of,
    traced,
)
from eutectic.alignment.zipit import zipit
from eutectic.checkpoint import MemorySource, Source, open_source
from eutectic.errors import EutecticError, NumericError, RecipeError
from eutectic.testing import tiny_llama

NET = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
STATE = dict(NET.state_dict())
TABLE = symmetries_of(MemorySource("net", NET))
ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def larger(source: Source, factor: float, dtype: torch.dtype) -> MemorySource:
    """The model with all weights multiplied."""
    return MemorySource(source.label, {name: source[name].to(dtype) * factor for name in source.specs})


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(lambda: match_activations(STATE, NET, [ROWS], TABLE), id="activations"),  # type: ignore[arg-type]
        pytest.param(lambda: check(STATE, TABLE, ROWS), id="check"),  # type: ignore[arg-type]
        pytest.param(lambda: traced(STATE, ROWS), id="traced"),  # type: ignore[arg-type]
        *(
            pytest.param(lambda by=by: by(STATE, NET, NET, [ROWS], lambda out, _: out.mean(), TABLE, steps=1), id=name)
            for name, by in (("straight through", match_straight_through), ("sinkhorn", match_sinkhorn))
        ),
    ],
)
def test_a_state_dict_is_no_module(run: Callable[[], Any]) -> None:
    with pytest.raises(RecipeError, match=r"G173 (a|module): must be a live module, not a dict; load the weights"):
        run()


@pytest.mark.parametrize("match", [match_weights, match_orthogonal, lambda a, b, table: align_many([a, b], table)])
@pytest.mark.parametrize(("factor", "dtype"), [(1e200, torch.float64), (1e25, torch.float32)])
def test_weights_whose_products_overflow_are_refused(
    match: Callable[..., Any], factor: float, dtype: torch.dtype, tmp_path: Any
) -> None:
    with open_source(tiny_llama(tmp_path / "model", seed=1, layers=1, hidden=16, intermediate=16)) as source:
        model = larger(source, factor, dtype)
        with pytest.raises(NumericError) as error:
            match(model, model, symmetries_of(source))
    first = error.value.problems[0]
    assert first.code == "G172"
    assert match is match_orthogonal or "whose products overflow; divide the weights" in str(first)


def test_a_mask_that_does_not_move_may_hold_the_lowest_number() -> None:
    chain = {**STATE, "mask": torch.full((4,), torch.finfo(torch.float32).min)}
    source = MemorySource("net", chain)
    table = Symmetries(TABLE.groups, {**TABLE.axes, "mask": (fixed(4),)})
    assert match_weights(source, source, table).gain == 0


def test_single_samples_are_no_batches() -> None:
    with pytest.raises(EutecticError, match=r"G243 .*are samples the first axis of a batch\? one alone is sample"):
        zipit([NET, NET], list(ROWS))


def test_three_models_are_for_another_door() -> None:
    with pytest.raises(RecipeError, match=r"G116 align: aligns two models, not 3; `eutectic\.alignment\.align_all"):
        align(STATE, STATE, STATE)
