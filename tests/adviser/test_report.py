"""The report: one file that needs nothing else, whatever the names in it are."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import eutectic
from eutectic import api
from eutectic.adviser import Comparison
from eutectic.errors import OutputError, RecipeError
from eutectic.report.compare_html import page
from eutectic.report.heatmap import heatmap
from eutectic.testing import tiny_llama

VOID = {"meta", "rect"}


class Checked(HTMLParser):
    """Every element is closed in turn; keeps what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        assert not {"src", "href", "onload"} & {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(found: Comparison) -> Checked:
    text = page(found)
    assert "http" not in text and "@import" not in text and "url(" not in text and "<script" not in text
    reader = Checked()
    reader.feed(text)
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    home = tmp_path_factory.mktemp("report")
    base = tiny_llama(home / "base", seed=1)
    return [base, *(tiny_llama(home / name, seed=i, base=base, noise=1e-3) for i, name in enumerate("abc", 2))]


def test_the_whole_report(models: list[str]) -> None:
    found = eutectic.compare(models[1:], base=models[0])
    reader = parsed(found)
    for part in (*found.verdict.reasons, *found.verdict.cautions, *(why for _, why in found.verdict.methods)):
        assert part in reader.text
    for word in ("merge directly", "model.layers.1", "embedding", "attention", "mlp", "norm", "head", "a · b · c"):
        assert word in reader.text
    # Three statistics of three models, four of their pairs twice, the distances.
    assert reader.seen["svg"] == 3 * 3 + 4 + 4 + 1
    assert page(found) == page(eutectic.compare(models[1:], base=models[0], threads=1))


def test_reports_with_less_in_them(models: list[str]) -> None:
    assert parsed(eutectic.compare(models[1:3])).seen["svg"] == 1
    assert parsed(eutectic.compare(models[1:2], base=models[0])).seen["svg"] == 3 + 1
    assert "svg" not in parsed(eutectic.compare([{"a": torch.ones(2)}, {"a": torch.ones(3)}])).seen
    broken = eutectic.compare([{"a": torch.ones(2), "b": torch.ones(2)}, {"a": torch.full((2,), torch.nan)}])
    assert "NaN" in parsed(broken).text


def test_untouched_layers_are_told_together() -> None:
    base = {f"layers.{n}.norm": torch.ones(3) for n in range(20)} | {
        "head.weight": torch.ones(2),
        "w": torch.ones(4, 4),
    }
    found = eutectic.compare([base | {"w": base["w"] + 0.1 * by} for by in (1, 2)], base=base)
    text = parsed(found).text
    assert "layers.*.norm (20 tensors), head.weight" in text and "layers.7.norm" not in text
    assert len(found.as_json()["untouched"]["dict"]) == 21


def test_names_are_only_text() -> None:
    evil = "<img src=x onerror=alert(1)>&\"'\u202e\x1b[31m"
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(9, 9, generator=generator)
    models = [{evil: base + 1e-3 * k, f"layers.0.{evil}": base} for k in (1, 2)]
    found = eutectic.compare(models, base={evil: base, f"layers.0.{evil}": base.clone()})
    found.models = (evil, "b")
    reader = parsed(found)
    assert "img" not in reader.seen
    assert "\x1b" not in page(found) and "\u202e" not in page(found)


def test_every_cell_says_its_number() -> None:
    drawn = heatmap("t", ["r"], ["a", "b", "c"], [[0.0, None, 2.0]], "{:.1f}".format, low=0.0, high=1.0)
    assert re.findall(r"<title>(.*?)</title>", drawn) == ["r, a: 0.0", "r, c: 2.0"]
    fills = re.findall(r'fill="(#\w{6})"', drawn)
    # Dark with white ink at one end, light with black ink at the other; values beyond take the end.
    assert fills == ["#440154", "#fde725"]
    assert re.findall(r'fill="(#\w{3})"', drawn) == ["#fff", "#000"]
    same = heatmap("t", ["r"], ["a"], [[0.0]], "{:.1f}".format, low=0.0, high=0.0)
    assert "#440154" in same


def test_the_report_is_written_whole(models: list[str], tmp_path: Path) -> None:
    found = eutectic.compare(models[1:3])
    target = tmp_path / "r.html"
    for _ in range(2):
        api.write_report(found, target)
    assert target.read_text(encoding="utf-8") == page(found)
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_places_that_cannot_be(models: list[str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"A802 path: .* does not end in \.html"):
        api.check_report_place(tmp_path / "r.txt")
    (tmp_path / "d.html").mkdir()
    for wrong in (tmp_path / "none" / "r.html", tmp_path / "d.html"):
        with pytest.raises(OutputError, match="A802"):
            api.check_report_place(wrong)
    long = tmp_path / ("n" * 300 + ".html")
    with pytest.raises(OutputError, match=r"A802 .*cannot be written"):
        api.write_report(eutectic.compare(models[1:3]), long)
