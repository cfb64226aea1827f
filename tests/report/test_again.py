"""A finished merge in the place of a recipe: its models are found from where the merge was run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import eutectic
from eutectic.errors import CheckpointError
from eutectic.testing import tiny_llama


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A merge run in `work` of models beside its recipe in `work/recipes`, seen from a third folder."""
    home = tmp_path / "work" / "recipes"
    home.mkdir(parents=True)
    for seed, name in enumerate(("base", "a", "b")):
        tiny_llama(home / name, seed=seed, layers=1, hidden=16, intermediate=16)
    inner = {"merge_method": "linear", "models": ["a", "b"]}
    recipe = {"merge_method": "ties", "base_model": "base", "models": ["b", {"model": inner}], "buffers_from": "base"}
    (home / "r.yml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path / "work")
    eutectic.merge("recipes/r.yml", "out", overrides=["parameters.density=0.5"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "work" / "out"


@pytest.mark.parametrize("name", ["", "eutectic.json"])
def test_a_finished_merge_is_the_recipe_that_it_records(out: Path, name: str) -> None:
    tiny_llama("a", seed=9)  # another model of that name, where this is run
    assert eutectic.merge(out / name, out).already_complete
    assert eutectic.plan(out / name, overrides=["parameters.density=0.3"]).jobs[0].parameters["density"] == [0.3, 0.3]
    assert [one.key for one in eutectic.cite(out / name)] == [
        one.key for one in eutectic.cite(out.parent / "recipes/r.yml")
    ]


def test_a_manifest_that_cannot_be_read_is_no_recipe(out: Path) -> None:
    (out / "eutectic.json").write_text("{")
    with pytest.raises(CheckpointError, match="V701"):
        eutectic.plan(out)
