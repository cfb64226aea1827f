"""`eutectic average` as a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commanding import Run

from eutectic.testing import tiny_llama


@pytest.fixture
def training(here: Path) -> Path:
    for step in (100, 200, 1000):
        tiny_llama(here / "run" / f"checkpoint-{step}", base=here / "base", seed=step)
    return here


def test_it_shows_the_plan_and_makes_what_verifies(run: Run, training: Path) -> None:
    result = run("average", "run/checkpoint-*", "out", "--window", "exponential", "--decay", 0.5)
    assert (result.exit_code, result.stderr) == (0, "")
    said = " ".join(result.stdout.split())
    assert "weight: checkpoint-1000=1 checkpoint-200=0.5 checkpoint-100=0.25" in said
    assert "merged 12 tensors" in said
    assert run("verify", "out").exit_code == 0
    assert (
        "nothing to do" in run("average", "run/checkpoint-*", "out", "--window", "exponential", "--decay", 0.5).stdout
    )


def test_json_and_quiet(run: Run, training: Path) -> None:
    result = run("average", "run/checkpoint-100", "run/checkpoint-200", "out", "--json")
    assert json.loads(result.stdout)["method"] == "linear"
    assert run("average", "run/checkpoint-*", "other", "--last", 2, "--dtype", "float32", "--quiet").output == ""


def test_fewer_checkpoints_than_asked_for_are_told(run: Run, training: Path) -> None:
    told = "there are 3 checkpoints, not 9: all are taken"
    assert told in " ".join(run("average", "run/checkpoint-*", "out", "--last", 9).stdout.split())
    before = run("average", "run/checkpoint-*", "early", "--last", 9, "--until", 200, "--json")
    assert json.loads(before.stdout)["notes"] == ["there are 2 checkpoints up to step 200, not 9: all are taken"]
    assert "all are taken" not in run("average", "run/checkpoint-*", "latest", "--last", 3).stdout


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("average", 2, "Missing argument"),
        ("average run/checkpoint-100 out", 2, "T711 checkpoints: there is only one checkpoint"),
        ("average run out", 2, "name them as 'run/checkpoint-*'"),
        ("average rn/checkpoint-* out", 2, "T711 checkpoints: 'rn/checkpoint-*' matches nothing"),
        ("average a b out --last 2", 2, "T712 checkpoints: last needs an order"),
        ("average run/checkpoint-* out --window ema", 2, "T713 --decay: ema needs one"),
        ("average run/checkpoint-* out --window emma", 2, "Invalid value for '--window'"),
        ("average run/checkpoint-* out --last 1", 2, "T713 --last: must be a whole number from 2 on"),
        ("average run/checkpoint-* nowhere out", 1, "C200 models[3]: 'nowhere' does not exist"),
        ("average run/checkpoint-100 run/checkpoint-200 run/checkpoint-1000 --replace", 2, "W401"),
        ("average run/checkpoint-* out --memory 1MiB", 1, "M601"),
    ],
)
def test_mistakes(run: Run, training: Path, command: str, code: int, said: str) -> None:
    result = run(*command.split())
    assert (result.exit_code, said in result.stderr) == (code, True), result.stderr
    refused = run(*command.split(), "--json")
    assert "Missing" in said or "Invalid" in said or json.loads(refused.stdout)["problems"]
