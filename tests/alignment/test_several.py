"""Several models by name -> alignments of all to the first, in folders that recipes name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import eutectic
from eutectic.alignment import align, align_all, align_many, several, symmetries_of
from eutectic.alignment.moves import random_moves
from eutectic.checkpoint import Alignment, MemorySource, open_source, read_alignment
from eutectic.errors import EutecticError
from eutectic.testing import tiny_llama

Problems = list[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three models that were never in one basin, and one of another width."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        tiny_llama(tmp_path / name, seed=seed, layers=1, hidden=16, intermediate=16)
    tiny_llama(tmp_path / "wide", seed=4, layers=1, hidden=16, intermediate=24)
    return tmp_path


def refused(*models: Any, **options: Any) -> Problems:
    with pytest.raises(EutecticError) as caught:
        align_all(models or ["a", "b", "c"], **options)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("method", ["universe", "mean"])
def test_it_is_align_many_of_the_models(method: Any, here: Path) -> None:
    found = align_all(["a", "b", "c"], method=method, seed=3)
    assert list(found) == ["b", "c"] and {one.reference.label for one in found.values()} == {"a"}
    sources = [open_source(name) for name in "abc"]
    for one, match in zip(
        found.values(), align_many(sources, symmetries_of(sources[0]), method=method, seed=3)[1:], strict=True
    ):
        assert one.distance == (match.before, match.after) and one.objective == (match.start, *match.objective)
        assert all(torch.equal(order, match.moves.orders[name]) for name, order in one.moves.orders.items())


def test_folders_are_what_recipes_name_and_come_back(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = align_all(["a", "b", "c"], out="perms")
    for name, one in found.items():
        with open_source(here / "perms" / name) as source:
            assert read_alignment(source).as_json() == one.as_json()
    entries = [{"model": "a"}, *({"model": name, "aligned": f"perms/{name}"} for name in found)]
    merged = eutectic.merged({"merge_method": "linear", "models": entries})
    views = [open_source("a"), *(one.source(name) for name, one in found.items())]
    due = sum(view["model.norm.weight"].float() for view in views) / 3
    torch.testing.assert_close(merged["model.norm.weight"].float(), due, atol=2e-2, rtol=2e-2)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(several, "align_many", never)
    again = align_all(["a", "b", "c"], out="perms")
    assert {name: one.as_json() for name, one in again.items()} == {name: one.as_json() for name, one in found.items()}


def test_copies_whose_units_were_moved_come_back(here: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    table = symmetries_of(MemorySource("net", net))
    moved = [
        {name: table.made(name, net.state_dict().__getitem__, random_moves(table, seed)) for name in table.axes}
        for seed in (1, 2)
    ]
    for one in align_all([net, *moved], symmetries=table).values():
        assert isinstance(one, Alignment) and one.gain == pytest.approx(1)


def test_what_cannot_be_is_refused_before_anything_is_written(here: Path) -> None:
    assert refused("a", method="men") == [
        "G181 models: two models or more can be aligned, not 1",
        "G182 method: there is no method 'men' for many models; did you mean 'mean'?",
    ]
    assert refused("a", "wide", "b", out="perms")[0].startswith(
        "G170 3 of 12 tensors have other shapes in 'a' and 'wide'"
    )
    assert refused("a", "gone", "lost")[0].startswith("C200") and len(refused("a", "gone", "lost")) == 2
    assert refused(out="no/perms")[0].startswith("W405 no/perms: the folder")
    assert refused(out="a")[0].startswith("W401 a: exists and holds what is no alignment (config.json")
    assert refused(out="a/perms")[0].startswith("W406")
    assert not (here / "perms").exists()


def test_other_alignments_are_replaced_if_that_is_asked_for(here: Path) -> None:
    align_all(["a", "b"], out="perms")
    align_all(["a", "c"], out="perms")
    assert sorted(path.name for path in (here / "perms").iterdir()) == ["b", "c"]
    told = refused(out="perms")
    assert [line.split(";")[0] for line in told] == ["W401 perms/b: exists", "W401 perms/c: exists"]
    found = align_all(["a", "b", "c"], out="perms", replace=True)
    (here / "perms" / "b.partial").mkdir()
    assert align_all(["a", "b", "c"], out="perms").keys() == found.keys()
    (here / "file").write_text("mine")
    assert refused(out="file") == ["W401 file: exists and is not a folder; choose another name"]


def test_one_model_is_not_aligned_twice_nor_to_itself(here: Path) -> None:
    (here / "link").symlink_to("a")
    assert refused("a", "b", "a") == ["R133 models: 'a' is named twice; name each model once"]
    other = ["R133 models: 'link' is the model 'a' by another name; name each model once"]
    assert refused("a", "link", "b") == other
    with pytest.raises(EutecticError) as caught:
        align("a", "link")
    assert [str(problem) for problem in caught.value.problems] == other


def test_folders_of_models_of_one_name_are_not_nested(here: Path) -> None:
    for run, model in zip(("one", "two"), ("b", "c"), strict=True):
        (here / run).mkdir()
        (here / model).rename(here / run / "final")
    found = align_all(["a", "one/final", "two/final"], out="perms")
    assert [*found] == ["one/final", "two/final"]
    assert sorted(path.name for path in (here / "perms").iterdir()) == ["one--final", "two--final"]
    assert align_all(["a", "one/final", "two/final"], out="perms").keys() == found.keys()
