"""Sweeps and steps after a method, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

from commanding import Run

SWEEP = """merge_method: task_arithmetic
base_model: base
models: [a, b]
parameters:
  weight: 0.5
  lambda: {sweep: [0.5, 1.0]}
post:
  - lines: {alpha: 0.5, beta: 0.5}
  - norm_guard
"""


def test_a_sweep_makes_folders_that_verify(run: Run, here: Path) -> None:
    (here / "s.yml").write_text(SWEEP)
    planned = run("plan", "s.yml")
    said = " ".join(planned.stdout.split())
    assert "sweep 2 merges in one pass, 18.6 kB in all: lambda=0.5, lambda=1" in said
    assert "then lines {alpha: 0.5, beta: 0.5} norm_guard" in said
    result = run("merge", "s.yml", "out")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("merged 12 tensors") == 2
    assert sorted(path.name for path in (here / "out").iterdir()) == ["lambda=0.5", "lambda=1", "sweep.json"]
    for label in ("lambda=0.5", "lambda=1"):
        assert run("verify", f"out/{label}").exit_code == 0
    again = run("merge", "s.yml", "out")
    assert again.stdout.count("nothing to do") == 2
    assert run("merge", "s.yml", "out", "--quiet").output == ""


def test_a_sweep_from_the_command_line_as_json(run: Run) -> None:
    planned = json.loads(run("plan", "r.yml", "--set", "models[0].parameters.weight={sweep: [1, 2]}", "--json").stdout)
    assert list(planned["merges"]) == ["weight=1", "weight=2"]
    result = run("merge", "r.yml", "out", "--set", "models[0].parameters.weight={sweep: [1, 2]}", "--json")
    done = json.loads(result.stdout)
    assert list(done["merges"]) == ["weight=1", "weight=2"]
    assert done["merges"]["weight=2"]["values"] == {"models[0].parameters.weight": 2}


def test_steps_have_pages(run: Run) -> None:
    for step in ("lines", "svc", "norm_guard"):
        assert step in run("methods").stdout
        assert "post:" in run("methods", step).stdout
        assert json.loads(run("methods", step, "--json").stdout)["name"] == step
    assert "did you mean 'lines'?" in run("methods", "linse").stderr


def test_a_broken_sweep(run: Run, here: Path) -> None:
    (here / "s.yml").write_text(SWEEP.replace("[0.5, 1.0]", "[]"))
    for command in (("plan", "s.yml"), ("merge", "s.yml", "out")):
        result = run(*command)
        assert result.exit_code == 2
        assert "R128 s.yml:6:11 parameters.lambda" in result.stderr
    assert not (here / "out").exists()


def test_a_file_in_the_place_of_the_sweeps_folder(run: Run, here: Path) -> None:
    (here / "s.yml").write_text(SWEEP)
    (here / "out").write_text("mine")
    result = run("merge", "s.yml", "out")
    assert result.exit_code in (1, 2)
    assert (here / "out").read_text() == "mine"
