"""A source with some of its tensors replaced is otherwise what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eutectic.alignment.moves import random_moves
from eutectic.checkpoint import MemorySource, open_source
from eutectic.checkpoint.aligned import Aligned
from eutectic.checkpoint.overlay import Overlaid
from eutectic.checkpoint.symmetry import Factor, Group, Symmetries, axis
from eutectic.testing import check_source, tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(tiny_llama(tmp_path / "model", seed=1, layers=1, hidden=16, intermediate=16))


def test_it_reads_what_was_replaced_and_the_rest(folder: Path) -> None:
    with open_source(folder) as source:
        name = "model.layers.0.mlp.up_proj.weight"
        values = torch.randn(source.specs[name].shape)
        view = Overlaid(source, {name: values}, {"repaired": {"how": "sequential"}}, "model repaired")
        assert torch.equal(view[name], values.bfloat16())
        assert all(torch.equal(view[other], source[other]) for other in source if other != name)
        assert view.identity() == {**source.identity(), "repaired": {"how": "sequential"}}
        assert view.folder() == source.folder() and view.beside("config.json") == source.beside("config.json")
        assert view.files() is None and view.stamp() != view.stamp()
        check_source(view)  # which closes it


def test_a_source_that_is_computed_as_it_is_read_stays_one() -> None:
    units = Factor(2, "units")
    table = Symmetries({"units": Group(2, "any")}, {"x": (axis(units),), "y": (axis(units, role="in"),)})
    model = MemorySource("m", {"x": torch.ones(2).bfloat16(), "y": torch.ones(2).bfloat16()})
    source = Aligned(model, table, random_moves(table, 0))
    view = Overlaid(source, {"x": torch.zeros(2)}, {}, "m")
    assert view.rounds == source.rounds == {"x": "bfloat16", "y": "bfloat16"}
    assert view.working_bytes() == source.working_bytes() > 0


def test_tied_names_are_replaced_as_one() -> None:
    weight = torch.randn(3, 2)
    view = Overlaid(MemorySource("m", {"embed": weight, "head": weight}), {"head": torch.ones(3, 2)}, {}, "m")
    assert bool((view["embed"] == 1).all()) and torch.equal(view["embed"], view["head"])


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x is of shape \(2,\)"):
        Overlaid(MemorySource("m", {"x": torch.zeros(3)}), {"x": torch.zeros(2)}, {}, "m")
