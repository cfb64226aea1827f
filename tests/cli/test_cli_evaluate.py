"""`eutectic evaluate` as a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commanding import Run

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _data(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUTECTIC_CACHE", str(tmp_path / "cache"))
    rows = [" ".join(f"w{3 + (7 * i + 3 * j) % 90}" for j in range(9 + i)) for i in range(8)]
    (here / "text.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (here / "task.yml").write_text("task: perplexity\nname: held out\ndata: text.jsonl\nblock: 16\n")
    questions = [{"question": "w5 w6", "choices": ["w7", "w8"], "answer": i % 2} for i in range(6)]
    (here / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))


def test_a_table(run: Run) -> None:
    result = run("evaluate", "a", "b", "r.yml", "--task", "task.yml", "--task", "choice:choice.jsonl")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "held out: perplexity (lower is better)"
    assert lines[1].split("  ")[0] == "model" and "95 % interval" in lines[1] and "less the best" in lines[1]
    assert [line.split()[0] for line in lines[2:5]] == ["a", "b", "r"]
    assert sum(line.rstrip().endswith("best") for line in lines[2:5]) == 1
    assert lines[5:7] == ["", "choice: acc (higher is better)"]
    assert "were known" not in result.stdout
    again = run("evaluate", "a", "b", "r.yml", "--task", "task.yml", "--task", "choice:choice.jsonl")
    assert again.stdout == result.stdout + "6 of these scores were known; --no-cache measures anew\n"


def test_one_model_has_no_differences(run: Run) -> None:
    lines = run("evaluate", "a", "--eval", "task.yml").stdout.splitlines()
    assert "less the best" not in lines[1] and lines[2].split()[0] == "a"


def test_other_tokens_are_pointed_out(run: Run, here: Path) -> None:
    path = here / "b" / "tokenizer.json"
    path.write_text(path.read_text().replace('"type": "WhitespaceSplit"', '"type": "BertPreTokenizer"'))
    (here / "text.jsonl").write_text(json.dumps({"text": "w5,w6 w7"}) + "\n" + json.dumps({"text": "w5 w6"}) + "\n")
    said = run("evaluate", "a", "b", "--task", "task.yml").stdout
    assert "other items" in said and "`metric: bits_per_byte` compares them" in said


def test_what_a_plan_says_of_a_merge_is_told(run: Run, here: Path) -> None:
    path = here / "b" / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["vocab"]["new"] = data["model"]["vocab"].pop("w90")
    path.write_text(json.dumps(data))
    said = run("evaluate", "a", "r.yml", "--task", "task.yml").stdout
    assert said.count("note the tokenizers of ") == 1 and "in one only ('new', 'w90')" in said
    assert "note" not in run("evaluate", "a", "b", "--task", "task.yml").stdout


def test_json(run: Run, here: Path) -> None:
    result = run("evaluate", "a", "b", "--task", "task.yml", "--json", "--limit", 5, "--seed", 2, "--batch", 3)
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found.keys() == {"models", "tasks", "cached", "notes"} and found["models"] == ["a", "b"]
    [task] = found["tasks"]
    assert task.keys() == {"task", "best", "scores"}
    row = task["scores"][0]
    assert row.keys() == {
        "model", "task", "metric", "higher_is_better", "value", "stderr", "interval", "count", "details", "to_best",
    }  # fmt: skip
    assert row["count"] == 5 and row["details"].keys() == {"nll", "bits_per_byte", "tokens", "bytes"}
    gaps = [row["to_best"] for row in task["scores"] if row["model"] != task["best"]]
    assert gaps[0].keys() == {"value", "stderr", "interval", "better"} and gaps[0]["better"] in (None, False)


def test_where_scores_are_kept(run: Run, here: Path) -> None:
    assert run("evaluate", "a", "--task", "task.yml", "--no-cache").exit_code == 0
    assert run("evaluate", "a", "--task", "task.yml", "--cache", "kept").exit_code == 0
    assert len(list((here / "kept").glob("*.json"))) == 2
    assert "1 of these" in run("evaluate", "a", "--task", "task.yml", "--cache", "kept").stdout
    assert "of these" not in run("evaluate", "a", "--task", "task.yml", "--cache", "kept", "--no-cache").stdout


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("evaluate a", 2, "Missing option '--task'"),
        ("evaluate --task task.yml", 2, "Missing argument 'MODEL...'"),
        ("evaluate a --task nothing", 2, "E901 --task: 'nothing' is no task"),
        ("evaluate a --task choise:x", 2, "did you mean 'choice'?"),
        ("evaluate a --task perplexity:text.jsonl", 2, "E907 block: 'a' takes 128 tokens"),
        ("evaluate a --task choice:none.jsonl", 2, "E903 none.jsonl"),
        ("evaluate gone --task task.yml", 1, "C200 'gone' does not exist"),
        ("evaluate gone.yml --task task.yml", 2, "R101"),
        ("evaluate a --task task.yml --batch 0", 2, "Invalid value for '--batch'"),
        ("evaluate a --task task.yml --device tpu", 2, "M602"),
        ("evaluate a --task task.yml --cache r.yml", 1, "E912"),
        ("evaluate a --task task.yml --limit 0", 2, "Invalid value for '--limit'"),
    ],
)
def test_mistakes(run: Run, command: str, code: int, said: str) -> None:
    result = run(*command.split())
    assert result.exit_code == code
    assert said in result.stderr


@pytest.mark.parametrize(
    "command", ["evaluate a b", "soup a b out", "connect a b", "sweep r.yml --over models[0].parameters.weight=1:2:1"]
)
def test_ctrl_c_says_what_is_kept(run: Run, here: Path, command: str) -> None:
    (here / "stop.py").write_text("def now(source):\n    raise KeyboardInterrupt\n")
    for option, said in (((), "the same command goes on from the scores"), (("--no-cache",), "no score was kept")):
        result = run(*command.split(), "--task", "call:stop:now", *option)
        assert (result.exit_code, result.stdout) == (130, "") and result.stderr.startswith(f"stopped; {said}")


def test_refusals_in_json(run: Run) -> None:
    result = run("evaluate", "a", "--task", "choise:x", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["problems"][0]["code"] == "E901"


def test_foreign_names_reach_no_terminal(run: Run, here: Path) -> None:
    (here / "task.yml").write_text('task: perplexity\nname: "[red]x"\ndata: text.jsonl\nblock: 16\n')
    assert run("evaluate", "a", "--task", "task.yml").stdout.startswith("[red]x: perplexity")
