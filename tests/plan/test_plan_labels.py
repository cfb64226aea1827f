"""What models of one name are called: by as much of their paths as tells them apart, in whatever order they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import eutectic
from eutectic.checkpoint import open_source
from eutectic.plan.labels import labels_of, unique_labels
from eutectic.testing import write_safetensors

PATHS = st.lists(
    st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts)), max_size=6
)


def labels(*paths: str, taken: Any = ()) -> list[str]:
    return unique_labels([path.rsplit("/", 1)[-1] for path in paths], paths, taken)


def test_the_shortest_end_of_a_path_that_is_no_end_of_another() -> None:
    assert labels("/r/a/final", "/r/b/final", "/r/base") == ["a/final", "b/final", "base"]
    assert labels("/r/a/x/final", "/r/a/y/final", "/r/b/y/final") == ["x/final", "a/y/final", "b/y/final"]
    assert labels("/final", "/r/final", "/r/final") == ["final", "r/final", "r/final#2"]
    assert labels("/r/s/../a/m", "/r/b/m") == ["a/m", "b/m"]
    assert labels("/stats/a", taken=["a"]) == ["stats/a"]


def test_what_has_no_path_keeps_its_name_and_is_numbered() -> None:
    assert unique_labels(["org/m", "m", "m", "dict", "dict"], ["", "/org/m", "/x/m", "", ""]) == [
        "org/m",
        "org/m#2",
        "x/m",
        "dict",
        "dict#2",
    ]


@given(PATHS, st.randoms())
def test_labels_are_unique_and_turn_with_the_models(paths: list[str], random: Any) -> None:
    found = labels(*paths)
    assert len(set(found)) == len(paths)
    plain = [label.split("#")[0] for label in found]
    assert all(path.endswith("/" + label) for path, label in zip(paths, plain, strict=True))
    order = random.sample(range(len(paths)), len(paths))
    assert labels(*dict.fromkeys(paths[i] for i in order)) == [
        dict(zip(paths, plain, strict=True))[path] for path in dict.fromkeys(paths[i] for i in order)
    ]


@pytest.fixture
def finals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import torch

    for number, name in enumerate(("base", "code", "math")):
        weights = torch.randn(40, 8, generator=torch.Generator().manual_seed(number))
        (tmp_path / name / "final").mkdir(parents=True)
        write_safetensors(tmp_path / name / "final" / "model.safetensors", {"w": weights})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_masks_and_labels_do_not_depend_on_the_order_of_listing(finals: Path) -> None:
    made = {"merge_method": "dare_linear", "base_model": "base/final", "parameters": {"density": 0.5}}
    for out, models in (("one", ["code/final", "math/final"]), ("two", ["math/final", "code/final"])):
        eutectic.merge({**made, "models": models}, out)
        assert not eutectic.verify(out).problems
    first, second = (json.loads(Path(out, "eutectic.json").read_text()) for out in ("one", "two"))
    assert [one["label"] for one in first["inputs"]] == ["base/final", "code/final", "math/final"]
    assert first["inputs"] == second["inputs"] and first["tensors"] == second["tensors"]
    # The path, which is this machine's, is no part of what names the weights.
    assert str(finals) not in Path("one/eutectic.json").read_text()


def test_every_door_gives_the_same_labels(finals: Path) -> None:
    paths = [f"{name}/final" for name in ("base", "code", "math")]
    planned = eutectic.plan({"merge_method": "linear", "models": [*reversed(paths)], "parameters": {"weight": 1}})
    assert sorted(item.label for item in planned.models) == paths
    assert sorted(item.path for item in planned.models) == [str(finals / path) for path in paths]
    assert list(eutectic.compare(paths[1:], base=paths[0]).models) == paths[1:]
    assert labels_of([open_source(path) for path in paths]) == paths
    planned.close()


def test_a_path_that_two_folders_have_is_noted(finals: Path) -> None:
    from eutectic.recipe import load

    inner = finals / "recipes"
    (inner / "base").mkdir(parents=True)
    (inner / "r.yml").write_text("merge_method: linear\nmodels: [base, ./code]\nparameters: {weight: 1}\n")
    (inner / "outer.yml").write_text("merge_method: linear\nmodels: [r.yml, math]\nparameters: {weight: 1}\n")
    told = "'base' is taken from the current folder; the recipe's own folder has another of that name"
    assert load("recipes/r.yml", methods=eutectic.methods).notes == (told,)
    nested = load("recipes/outer.yml", methods=eutectic.methods)
    assert nested.notes == () and nested.models[0].model.notes == (told,)
