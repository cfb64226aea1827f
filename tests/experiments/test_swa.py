"""The page on averages says what was measured, and a short run on other images finds the same order."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def swa():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments")
        yield importlib.import_module("swa")
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def measured(swa):
    return json.loads(swa.PAGE.with_suffix(".json").read_text(encoding="utf-8"))


def test_the_page_shows_the_figures(swa, measured):
    assert swa.shown(measured) in swa.PAGE.read_text(encoding="utf-8")


def test_everything_that_was_claimed_held(swa, measured):
    assert all(check.holds(swa.column(measured, name)) for name, checks in swa.CHECKS.items() for check in checks)


def test_the_order_of_the_means(swa):
    """The digits of a font, with noise and wrong labels; nothing to fetch."""
    digits, glyphs = importlib.import_module("digits"), importlib.import_module("glyphs")
    found: dict[str, list[float]] = {}
    for seed in (1, 2):
        x, y = glyphs.images("plain", 3000, torch.Generator().manual_seed(seed))
        for row, value in swa.run(digits.split(x, y, seed, 0.2, held_out=1000), seed, epochs=16).items():
            found.setdefault(row, []).append(value)
    for name, better, worse in (
        (swa.ACCURACY, "SWA", "last weights"),
        (swa.ACCURACY, "EMA", "last weights"),
        (swa.LOSS, "last weights", "SWA"),
    ):
        rows = swa.column(found, name)
        assert sum(rows[better]) > sum(rows[worse]), (name, better, worse, rows)


def test_the_handwritten_digits(swa):
    digits = importlib.import_module("digits")
    if digits.place() is None:
        with pytest.raises(FileNotFoundError, match="pip download"):
            digits.load(1)
        return
    one, noisy = digits.load(1), digits.load(1, wrong=0.2)
    assert one.x.shape == (1300, 64) and one.x_test.shape == (497, 64)
    assert float(one.x.min()) == 0 and float(one.x.max()) == 1
    assert torch.equal(one.x, noisy.x) and torch.equal(one.y_test, noisy.y_test)
    assert 0.1 < float((one.y != noisy.y).float().mean()) < 0.25
