"""`eutectic connect` as a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commanding import Run

from eutectic.testing import tiny_llama

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _data(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUTECTIC_CACHE", str(tmp_path / "cache"))
    rows = [" ".join(f"w{3 + (7 * i + 3 * j) % 90}" for j in range(9 + i)) for i in range(6)]
    (here / "text.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (here / "task.yml").write_text("task: perplexity\nname: held out\ndata: text.jsonl\nblock: 16\n")
    questions = [{"question": "w5 w6", "choices": ["w7", "w8"], "answer": i % 2} for i in range(4)]
    (here / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))


SHORT = ("--eval", "task.yml", "--points", 3, "--refine", 0)


def test_a_table(run: Run) -> None:
    result = run("connect", "a", "b", *SHORT, "--task", "choice:choice.jsonl")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "held out: log perplexity"
    assert lines[1].split("  ")[0] == "path" and "above the higher end" in lines[1]
    assert lines[2].startswith("a → b  ")
    assert lines[3:5] == ["", "choice: nll"]


def test_layers_plane_and_report(run: Run, here: Path) -> None:
    result = run("connect", "a", "b", "base", *SHORT, "--layerwise", "--plane", 2, "--html", "r.html")
    assert (result.exit_code, result.stderr) == (0, "")
    said = result.stdout
    assert "a with one layer of b" in said and "model.layers.0" in said and "on the plane the loss is" in said
    assert (here / "r.html").read_text(encoding="utf-8").count('class="curves"') == 3


def test_before_and_after_an_alignment(run: Run, here: Path) -> None:
    tiny_llama(here / "apart", seed=9, layers=1, hidden=16, intermediate=16)
    result = run("connect", "base", "a", "apart", *SHORT, "--align", "--html", "r.html")
    assert (result.exit_code, result.stderr) == (0, "")
    paths = [line.split("  ")[0] for line in result.stdout.splitlines()[2:]]
    assert paths[:4] == ["base → a", "base → apart", "a → apart", "base → apart aligned"]
    assert "aligned a to base: distance²" in result.stdout and "nothing moves" in result.stdout
    assert "aligned apart to base: distance²" in result.stdout
    assert "<h2>Alignments</h2>" in (here / "r.html").read_text(encoding="utf-8")


def test_json(run: Run) -> None:
    result = run("connect", "a", "r.yml", *SHORT, "--json", "--no-cache")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found.keys() == {"models", "tasks", "barriers", "layers", "planes", "alignments", "notes"}
    [one] = found["barriers"]
    assert one["ends"] == ["a", "r"] and one["decides"] == {"quantity": "loss", "definition": "entezari"}
    assert one["loss"]["barrier"].keys() == {"entezari", "frankle", "freeman"}
    assert [point["t"] for point in one["loss"]["points"]] == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("connect a b", 2, "Missing option '--task'"),
        ("connect a --task task.yml", 2, "L811 models: a path needs two different models, not 1"),
        ("connect a ./a --task task.yml", 2, "L811"),
        ("connect a b --task task.yml --plane 3", 2, "L811 models: a plane goes through three models, not 2"),
        ("connect a b --task task.yml --points 2", 2, "Invalid value for '--points'"),
        ("connect a nowhere --task task.yml", 1, "C200 'nowhere' does not exist"),
        ("connect a b --task tsk.yml", 2, "did you mean 'task.yml'?"),
        ("connect a b --task task.yml --html out.txt", 2, "A802 --html"),
        ("connect a b --task task.yml --device cuda:99", 1, "M602"),
    ],
)
def test_mistakes(run: Run, command: str, code: int, said: str) -> None:
    result = run(*command.split())
    assert result.exit_code == code, result.stderr
    assert said in result.stderr


def test_models_that_do_not_fit_are_refused_as_a_merge_is(run: Run, here: Path) -> None:
    from eutectic.testing import tiny_llama

    tiny_llama(here / "wide", seed=4, layers=1, hidden=32, intermediate=16)
    result = run("connect", "a", "b", "wide", "--task", "task.yml")
    assert result.exit_code == 2 and "P301" in result.stderr
