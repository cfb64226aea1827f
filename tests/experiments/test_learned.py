"""The page on learned weights says what was measured, and a short run finds the same order."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
# What the paper would have one expect and these images do not bear out; the page says so.
FAILED = {
    ("Two specialists", "entropy, by tensor, beats λ 0.3, where it began"),
    ("Two specialists", "entropy, by tensor, beats the best λ"),
    ("Two specialists", "cross-entropy, by task, beats the best λ"),
    ("Four specialists", "entropy, by tensor, beats λ 0.3, where it began"),
    ("Four specialists", "entropy, by tensor, beats the best λ"),
}


@pytest.fixture(scope="module")
def learned():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments")
        yield importlib.import_module("learned")
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def measured(learned):
    return json.loads(learned.PAGE.with_suffix(".json").read_text(encoding="utf-8"))


def test_the_page_shows_the_figures(learned, measured):
    page = learned.PAGE.read_text(encoding="utf-8")
    assert measured.keys() == learned.COUNTS.keys()
    assert all(learned.shown(title, rows) in page for title, rows in measured.items())
    assert learned.PLOT.read_text(encoding="utf-8").startswith("<svg")


def test_verdicts(learned, measured):
    failed = {
        (title, check.text) for title, rows in measured.items() for check in learned.CHECKS if not check.holds(rows)
    }
    assert failed == FAILED


def test_labels_teach_what_entropy_does_not(learned, monkeypatch):
    """Fewer steps, one seed, four specialists."""
    monkeypatch.setattr(learned, "STEPS", 40)
    monkeypatch.setattr(learned, "IMAGES", 320)
    found, chart = learned.measure([learned.Seed(3)], 4)
    figures = {name: value for name, (value,) in found.items()}
    assert "entropy by step" in chart
    assert figures["cross-entropy, by tensor"] > figures["base"]
    assert figures["entropy, by tensor"] < figures["task arithmetic, λ 0.3"] < figures["each by itself"]
    assert figures["entropy, by tensor"] < figures["cross-entropy, by tensor"]
