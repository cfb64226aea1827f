"""Soups and evaluated sweeps from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commanding import Run

WISE = "merge_method: wise_ft\nbase_model: base\nmodels: [a]\n"


@pytest.fixture(autouse=True)
def tasks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUTECTIC_CACHE", str(here / "kept"))
    for name, step in (("dev", 3), ("test", 7)):
        lines = [json.dumps({"text": " ".join(f"w{3 + (i * step + k) % 80}" for k in range(12))}) for i in range(6)]
        (here / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        (here / f"{name}.yml").write_text(f"task: perplexity\ndata: {name}.jsonl\nblock: 32\n")
    (here / "wise.yml").write_text(WISE)


def test_a_soup(run: Run, here: Path) -> None:
    result = run("soup", "a", "b", "base", "out", "--task", "dev.yml", "--held-out", "test.yml", "--html", "soup.html")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "greedy soup: " in result.stdout and "of 3 checkpoints, dev perplexity" in result.stdout
    assert "uniform soup" in result.stdout
    assert run("verify", "out").exit_code == 0
    assert len((here / "out.soup.jsonl").read_text().splitlines()) == 5
    page = (here / "soup.html").read_text()
    assert "<svg" in page and "best ingredient" in page and "<script" not in page
    again = run("soup", "a", "b", "base", "out", "--task", "dev.yml", "--quiet")
    assert (again.exit_code, again.output) == (0, "")


def test_a_soup_as_json(run: Run) -> None:
    arguments = ["soup", "a", "b", "out", "--eval", "dev.yml", "--method", "learned", "--epochs", "1", "--json"]
    done = json.loads(run(*arguments).stdout)
    assert done["method"] == "learned" and list(done["weights"]) == [""] and len(done["weights"][""]) == 2
    assert done["merge"]["method"] == "linear"


def test_a_sweep_that_is_evaluated(run: Run, here: Path) -> None:
    arguments = ["sweep", "wise.yml", "--over", "parameters.alpha=0:1:0.5", "--task", "dev.yml", "--task", "test.yml"]
    before = sorted(path.name for path in here.iterdir())
    result = run(*arguments, "--keep", "test.nll <= base + 0.5")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "best among those that keep test.nll <= base + 0.5: alpha=" in result.stdout
    assert sorted({*before, "kept"}) == sorted(path.name for path in here.iterdir()), "nothing is written"
    shown = json.loads(run(*arguments, "--json").stdout)
    assert [row["label"] for row in shown["merges"]] == ["alpha=0", "alpha=0.5", "alpha=1"]
    assert shown["merge"] is None and shown["merges"][0]["scores"]["dev"]["to_base"]["value"] == 0
    written = run(*arguments, "--html", "sweep.html", "out")
    assert written.exit_code == 0 and "merged 12 tensors" in written.stdout
    assert (here / "sweep.html").read_text().count("<svg") == 3
    assert run("verify", "out").exit_code == 0


def test_nothing_keeps_the_constraint(run: Run, here: Path) -> None:
    arguments = ["sweep", "wise.yml", "--over", "parameters.alpha=[0.5]", "--task", "dev.yml", "--keep", "dev <= 1"]
    result = run(*arguments)
    assert result.exit_code == 0 and "none of 1 merge keeps dev <= 1" in result.stdout
    refused = run(*arguments, "out")
    assert refused.exit_code == 2 and "S808" in refused.stderr and not (here / "out").exists()


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("S801", ["soup", "a", "out", "--task", "dev.yml"]),
        ("S802", ["soup", "a", "b", "out"]),
        ("T711", ["soup", "x*", "out", "--task", "dev.yml"]),
        ("C200", ["soup", "a", "bb", "out", "--task", "dev.yml"]),
        ("E901", ["soup", "a", "b", "out", "--task", "dev.yaml"]),
        ("A802", ["soup", "a", "b", "out", "--task", "dev.yml", "--html", "no/such.html"]),
        ("S805", ["sweep", "wise.yml", "--task", "dev.yml", "--over", "parameters.alpha=0-1"]),
        ("S806", ["sweep", "wise.yml", "--task", "dev.yml", "--over", "parameters.alpha=[1]", "--keep", "tset <= 1"]),
        ("S807", ["sweep", "wise.yml", "--over", "parameters.alpha=[1]"]),
        ("R121", ["sweep", "wise.yml", "--task", "dev.yml", "--over", "parameters.alhpa=[1]"]),
    ],
)
def test_mistakes(run: Run, here: Path, code: str, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code in (1, 2) and code in result.stderr
    assert not (here / "out").exists() and not (here / "out.soup.jsonl").exists()


@pytest.mark.parametrize("method", ["uniform", "pruned", "learned"])
def test_a_report_of_each_kind(run: Run, here: Path, method: str) -> None:
    result = run("soup", "a", "b", "out", "--task", "dev.yml", "--method", method, "--epochs", "1", "--html", "s.html")
    assert (result.exit_code, result.stderr) == (0, "")
    page = (here / "s.html").read_text()
    assert page.count("<svg") == 1 and ("epoch" in page) is (method == "learned")


def test_a_uniform_soup_without_a_task(run: Run, here: Path) -> None:
    result = run("soup", "a", "b", "out", "--method", "uniform", "--html", "s.html")
    assert result.exit_code == 0 and "uniform soup: 2 of 2 checkpoints" in result.stdout
    assert "<svg" not in (here / "s.html").read_text() and not (here / "out.soup.jsonl").exists()
