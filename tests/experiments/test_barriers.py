"""The page on barriers says what was measured, and a short run on other images finds the same."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def barriers():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments")
        yield importlib.import_module("barriers")
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def measured(barriers):
    return json.loads(barriers.PAGE.with_suffix(".json").read_text(encoding="utf-8"))


def test_the_page_shows_the_figures(barriers, measured):
    assert barriers.shown(measured) in barriers.PAGE.read_text(encoding="utf-8")
    assert barriers.PLOT.read_text(encoding="utf-8").startswith("<svg")


def test_everything_that_was_claimed_held(barriers, measured):
    assert [check.text for check in barriers.CHECKS if not check.holds(measured)] == []


@pytest.mark.parametrize(("values", "above", "holds"), [([1.0, 1.1], True, True), ([0.4, 1.6], True, False)])
def test_a_verdict_needs_a_clear_figure(barriers, values, above, holds):
    assert barriers.Check("", "a", "b", above, 0.5).holds({"a: b": values}) is holds


def test_the_same_initialisation_has_no_barrier_and_another_has(barriers, tmp_path, monkeypatch):
    """The digits of a font, with noise; nothing to fetch."""
    from eutectic.connectivity import connect
    from eutectic.evaluate import Loader, Settings

    monkeypatch.setenv("EUTECTIC_CACHE", str(tmp_path))
    digits, glyphs = importlib.import_module("digits"), importlib.import_module("glyphs")
    x, y = glyphs.images("plain", 1500, torch.Generator().manual_seed(1))
    data = digits.split(x, y, 1, 0.0, held_out=500)
    settings = Settings(loader=Loader(module=lambda: barriers.network(x.shape[1], 0)))
    first, twin, other = (
        barriers.Training(data, seed, barriers.CALM, epochs=8).go(order) for seed, order in ((1, 1), (1, 2), (2, 3))
    )
    for task in (barriers.TRAIN, barriers.TEST):
        found = [
            connect([first, one], barriers.tasks(data), points=9, refine=1, settings=settings).matrix(task)[0][1]
            for one in (twin, other)
        ]
        assert found[0] < barriers.NONE and found[1] > barriers.HIGH, found
