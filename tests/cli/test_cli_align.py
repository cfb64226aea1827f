"""`eutectic align` as a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commanding import Run

from eutectic.testing import tiny_llama

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _apart(here: Path) -> None:
    tiny_llama(here / "apart", seed=9, layers=1, hidden=16, intermediate=16)
    (here / "text.jsonl").write_text("".join(json.dumps({"text": f"w{3 + k} w{9 + k} w5"}) + "\n" for k in range(6)))


def test_a_table_and_a_folder_that_a_recipe_takes(run: Run, here: Path) -> None:
    result = run("align", "base", "apart", "--out", "perm")
    assert (result.exit_code, result.stderr) == (0, "")
    cost, *lines = (line.rstrip() for line in result.stdout.splitlines())
    assert cost.startswith("matching") and "GFLOP" in cost and cost.endswith("beside --memory")
    assert lines[0].startswith("matched by  weights; declared for llama")
    assert lines[1:3] == ["stays       base", "moves       apart"]
    assert "before" in lines[3] and "less" in lines[3] and lines[4].startswith("objective")
    assert [line.split("  ")[0] for line in lines[6:]][:4] == [
        "units",
        "residual",
        "layers.*.heads",
        "layers.*.queries",
    ]
    assert any(line.startswith("layers.*.values (bases)") for line in lines)
    assert lines[-1] == "perm  `aligned: perm` beside the model in a recipe"
    (here / "aligned.yml").write_text("merge_method: linear\nmodels:\n- base\n- model: apart\n  aligned: perm\n")
    shown = run("plan", "aligned.yml").stdout
    assert any(line.startswith("model") and line.rstrip().endswith("aligned to base") for line in shown.splitlines())
    assert run("merge", "aligned.yml", "out", "--quiet").exit_code == 0
    assert run("verify", "out").exit_code == 0
    assert json.loads(run("plan", "aligned.yml", "--json").stdout)["inputs"][0]["aligned"]["to"] == "base"


def test_the_same_command_again_and_another_one(run: Run, here: Path) -> None:
    assert run("align", "base", "apart", "--out", "perm", "--quiet").stdout == ""
    assert run("align", "base", "apart", "--out", "perm").exit_code == 0
    result = run("align", "base", "apart", "--out", "perm", "--seed", 1)
    assert result.exit_code == 2 and "W401 perm: exists" in result.stderr
    assert run("align", "base", "apart", "--out", "perm", "--seed", 1, "--replace", "--restarts", 1).exit_code == 0


def test_json(run: Run, here: Path) -> None:
    found = json.loads(run("align", "base", "a", "--json").stdout)
    assert (found["path"], found["method"], found["reference"], found["model"]) == (None, "weights", "base", "a")
    assert found["gain"] == 0 and found["changes"]["residual"]["moved"] == 0
    assert found["notes"][-1].startswith("nothing moves")


def test_activations(run: Run, here: Path) -> None:
    options = ("--method", "activations", "--data", "text.jsonl", "--samples", 4, "--batch-size", 2)
    result = run("align", "base", "apart", *options, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["method"] == "activations" and found["settings"]["data"]["samples"] == 4


def test_a_proof(run: Run, here: Path) -> None:
    result = run("align", "--check", "base")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("proved declared for llama: ")
    found = json.loads(run("align", "--check", "base", "--json").stdout)
    assert found["holds"] and found["error"] < found["tolerance"]


def test_several_models_have_a_folder_each(run: Run, here: Path) -> None:
    result = run("align", "base", "apart", "a", "--out", "perms")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("matched by  universe; declared for llama")
    assert "`aligned: perms/MODEL` beside each model in a recipe" in result.stdout
    recipe = "merge_method: linear\nmodels:\n- base\n" + "".join(
        f"- {{model: {name}, aligned: perms/{name}}}\n" for name in ("apart", "a")
    )
    (here / "all.yml").write_text(recipe)
    assert run("merge", "all.yml", "merged", "-q").exit_code == 0 and run("verify", "merged").exit_code == 0
    found = json.loads(run("align", "base", "apart", "a", "--out", "perms", "--json").stdout)
    assert (found["path"], list(found["alignments"])) == ("perms", ["apart", "a"])
    assert found["alignments"]["apart"]["method"] == "universe"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("align base", 2, "M603 A B: two models are needed"),
        ("align base a --check base", 2, "M603 --check: proves one model and aligns none"),
        ("align --check base --out perm", 2, "M603 --out: has no effect with --check"),
        ("align --check base --restarts 2 --data text.jsonl", 2, "M603 --data: has no effect with --check"),
        ("align base a --samples 3", 2, "M603 --samples: has no effect without --data"),
        ("align base a --replace", 2, "M603 --replace: has no effect without --out"),
        ("align base a --method activations --data text.jsonl --restarts 2", 2, "G116 --restarts: activations uses no"),
        ("align base a --method activations", 2, "G116 --data: activations needs data"),
        ("align base a --data text.jsonl", 2, "G116 --data: weights uses no data"),
        ("align base a --method mean", 2, "M603 --method: mean takes three models or more, not 2"),
        ("align base a b --method weights", 2, "M603 --method: weights takes two models, not 3"),
        ("align base a b --restarts 2", 2, "M603 --restarts: has no effect with more than two models"),
        ("align base a b --out no/where", 1, "W405 no/where: the folder"),
        ("align --check base --method mean", 2, "M603 --method: has no effect with --check"),
        ("align base gone", 1, "C200 'gone' does not exist"),
        ("align base a --out b", 2, "W401 b: exists and holds what does not belong to alignment.json (config.json, "),
        ("align base a --out b --replace", 2, "W401 b: exists and holds what does not belong"),
        ("align gone gone --out no/where/perm", 1, "W405 no/where/perm: the folder"),
        ("align base a --memory much", 2, "M603 --memory: 'much' is no size"),
        ("align base a --device tpu", 2, "M602"),
        ("align --check gone", 1, "C200"),
    ],
)
def test_refusals(run: Run, command: str, code: int, said: str) -> None:
    result = run(*command.split())
    assert result.exit_code == code and said in result.stderr
