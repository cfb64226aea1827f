"""The report on what lies between models: one page, well-formed, whatever the names are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from eutectic import api
from eutectic.connectivity import connect
from eutectic.errors import RecipeError
from eutectic.report.connect_html import page, path_chart


def models() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"layers.0.w": torch.randn(4, generator=generator), "head": torch.randn(2, generator=generator)}
        for _ in range(3)
    ]


def loss(weights: Any) -> Any:
    return weights["layers.0.w"] ** 2


def test_everything_is_on_the_page(tmp_path: Path) -> None:
    def accuracy(weights: Any) -> float:
        return float(weights["head"][0].sigmoid())

    from eutectic.evaluate import Call

    tasks = [loss, Call(accuracy, name="<b>held & out</b>", metric="accuracy")]
    found = connect(models(), tasks, points=5, refine=1, layerwise=True, plane=3)
    text = page(found)
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert not re.search(r"(?:src|href)=|<script|<b>held", text)
    assert text.count('class="curves"') == 2 * 3  # loss and error of three pairs
    assert text.count("<figure>") == 6 + 2 + 2 + 2  # and matrices, layers and planes of both tasks
    for name in ("entezari", "frankle", "freeman", "layers.0", "&lt;b&gt;held", "measures no loss", "The plane"):
        assert name in text
    place = tmp_path / "r.html"
    api.write_connection(found, place)
    assert place.read_text(encoding="utf-8") == text
    with pytest.raises(RecipeError, match="A802"):
        api.write_connection(found, tmp_path / "r.txt")


def test_two_models_have_no_matrix() -> None:
    found = connect(models()[:2], [loss], points=3, refine=0)
    text = page(found)
    assert text.count("<figure>") == 1 and "The plane" not in text and "Layer by layer" not in text
    assert path_chart([found.barriers["loss"][0, 1]], "error") == ""
