"""The page on averages says what was measured, and a short run finds the same order."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
# What the papers claim and these images do not bear out; the page says so.
FAILED = {
    ("Digits of a font", "SWA with recomputed statistics is more accurate than with stale ones"),
    ("Digits of a font", "stale statistics have more loss"),
    ("Digits of a font", "the last weights' loss rises more than SWA's"),
    ("Digits of a font", "the loss of a rate that falls to zero rises more than SWA's"),
}


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
    page = swa.PAGE.read_text(encoding="utf-8")
    assert measured and all(swa.shown(title, rows) in page for title, rows in measured.items())


def test_verdicts(swa, measured):
    failed = {
        (title, check.text)
        for title, rows in measured.items()
        for name, checks in swa.CHECKS.items()
        for check in checks
        if not check.holds(swa.column(rows, name))
    }
    assert failed == FAILED


def test_the_order_of_the_means(swa):
    """On the images that need not be fetched."""
    found = swa.measure(swa.FONT, (1, 2))
    for name, better, worse in (
        (swa.ACCURACY, "SWA", "last weights"),
        (swa.ACCURACY, "EMA", "last weights"),
        (swa.LOSS, "last weights", "SWA"),
    ):
        rows = swa.column(found, name)
        assert sum(rows[better]) > sum(rows[worse]), (name, better, worse, rows)


def test_the_plots_have_every_row(swa):
    data, _ = swa.load(swa.FONT, 1)
    drawn = swa.charts(data, 1, 4)
    assert len(drawn) == len(swa.PLOTS)
    for picture, name in zip(drawn, swa.PLOTS, strict=True):
        assert all(f">{row}</text>" in picture for row in ("last weights", "SWA", "EMA"))
        assert f"({name})" in swa.PAGE.read_text(encoding="utf-8") and swa.PAGE.with_name(name).exists()


def test_swa_is_flatter_on_the_handwritten_digits(swa):
    if importlib.import_module("digits").place() is None:
        pytest.skip("the images are fetched by `make experiments`")
    rows = swa.column(swa.measure(swa.HANDWRITTEN, (1,)), swa.RISE)
    assert rows["last weights"] > rows["SWA"]


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
