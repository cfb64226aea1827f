"""Merges that are not written are aligned as any model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import eutectic
from eutectic.testing import tiny_llama

RECIPE: dict[str, Any] = {"merge_method": "linear", "models": ["a", "tuned"]}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_llama("a", seed=1, layers=1, hidden=16, intermediate=24)
    tiny_llama("tuned", seed=2, base="a")
    tiny_llama("apart", seed=3, layers=1, hidden=16, intermediate=24)
    return tmp_path


@pytest.mark.parametrize("recipe", [RECIPE, {"merge_method": "passthrough", "models": [{"model": RECIPE}]}])
def test_a_merge_has_the_family_of_its_models(here: Path, recipe: dict[str, Any]) -> None:
    found = eutectic.align(recipe, "apart")
    assert found.symmetries.origin == "declared for llama" and found.gain > 0


def test_what_aligns_a_merge_aligns_what_is_written_of_it(here: Path) -> None:
    eutectic.align("apart", RECIPE, out="perm")
    eutectic.merge(RECIPE, "written")
    aligned = {"merge_method": "linear", "models": ["apart", {"model": "written", "aligned": "perm"}]}
    assert all(torch.isfinite(tensor).all() for tensor in eutectic.merged(aligned).values())
