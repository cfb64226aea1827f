"""Learned weights from the command line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from commanding import Run

import eutectic
from eutectic.errors import EutecticError
from eutectic.search import LearnStep, coefficients, doors
from eutectic.testing import tiny_llama

ARITHMETIC = "merge_method: task_arithmetic\nbase_model: base\nmodels: [a, b]\n"


@pytest.fixture(autouse=True)
def data(here: Path) -> None:
    lines = [json.dumps({"text": " ".join(f"w{3 + (i * 3 + k) % 80}" for k in range(12))}) for i in range(10)]
    (here / "dev.jsonl").write_text("\n".join(lines) + "\n")
    (here / "dev.yml").write_text("task: perplexity\ndata: dev.jsonl\nblock: 32\n")
    (here / "ta.yml").write_text(ARITHMETIC)


def test_a_recipe_with_learned_weights(run: Run, here: Path) -> None:
    arguments = ["learn", "ta.yml", "out.yml", "--data", "dev.yml", "--data", "dev.yml", "--steps", "12"]
    result = run(*arguments, "--learn", "layer", "--objective", "cross-entropy", "--html", "learn.html")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "weights by layer, cross-entropy, step 1" in result.stdout and "the rest" in result.stdout
    assert (here / "out.yml").read_text().startswith('# Weights by layer, learned from "dev", "dev" by cross-entropy')
    assert run("merge", "out.yml", "merged", "--quiet").exit_code == 0
    assert run("verify", "merged", "--quiet").exit_code == 0
    assert len((here / "out.learn.jsonl").read_text().splitlines()) == 13
    page = (here / "learn.html").read_text()
    assert page.count("<svg") == 2 and "held out" in page and "<script" not in page
    refused = run(*arguments)
    assert refused.exit_code == 2 and "W401" in refused.stderr and "`--replace`" in refused.stderr
    assert run(*arguments, "--replace", "--quiet").output == ""
    assert "Weights by task" in (here / "out.yml").read_text()


def test_as_json(run: Run) -> None:
    arguments = ["learn", "r.yml", "out.yml", "--data", "dev.yml", "--steps", "2", "--held-out", "0", "--json"]
    refused = run(*arguments)
    assert [one["code"] for one in json.loads(refused.stdout)["problems"]] == ["S810"], "its weights are 1 and 3"
    done = json.loads(run(*arguments, "--no-clamp").stdout)
    assert done["weights"][""] == pytest.approx([1, 3], abs=0.01) and done["path"] == "out.yml"
    assert done["recipe"]["models"][0]["parameters"] == {"weight": done["weights"][""][0]}
    assert [step["step"] for step in done["steps"]] == [0, 1, 2] and done["chosen"] == 2


def test_paths_start_from_the_new_recipes_folder(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "recipes").mkdir()
    for name in ("a", "b", "base"):
        shutil.move(here / name, here / "recipes" / name)
    shutil.move(here / "ta.yml", here / "recipes" / "ta.yml")
    (here / "runs").mkdir()
    arguments = ["--data", "dev.yml", "--steps", "1", "--quiet", "--set", "parameters.weight=0.5"]
    assert run("learn", "recipes/ta.yml", "runs/out.yml", *arguments).exit_code == 0
    monkeypatch.chdir(here / "runs")
    assert "model: ../recipes/a" in (here / "runs" / "out.yml").read_text()
    assert run("plan", "out.yml").exit_code == 0


ASKED: dict[str, Any] = {"data": "dev.yml", "objective": "cross-entropy", "steps": 13, "lr": 0.05}


def stopped_after(step: int, out: str = "out.yml", **options: Any) -> None:
    """A search that is stopped by Ctrl-C when it has told of a step."""

    def stop(told: LearnStep) -> None:
        if told.number == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        eutectic.learn("ta.yml", out, on_step=stop, **{**ASKED, **options})


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What gradients are computed of, from now on."""
    found: list[str] = []
    whole = coefficients.loss_gradient

    def counting(mixture: Any, losses: Any, kind: Any, run: Any, what: str) -> Any:
        found.append(what)
        return whole(mixture, losses, kind, run, what)

    monkeypatch.setattr(coefficients, "loss_gradient", counting)
    return found


@pytest.mark.parametrize("by", ["task", "tensor"])
@pytest.mark.parametrize("stop", [0, 6, 10, 12])
def test_the_same_command_goes_on_and_leaves_the_same_bytes(
    by: str, stop: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(stop, by=by)
    assert not (here / "out.yml").exists()
    (here / "out.learn.partial").open("ab").write(b"torn")
    computed = counted(monkeypatch)
    found = eutectic.learn("ta.yml", "out.yml", by=by, **ASKED)
    assert (found.resumed, len(computed)) == (stop + 1, 13 - stop - 1)
    assert not (here / "out.learn.partial").exists()
    whole = eutectic.learn("ta.yml", "whole.yml", by=by, **ASKED)
    assert whole.resumed == 0 and found.as_json() | {"resumed": 0} == whole.as_json()
    for ending in (".yml", ".learn.jsonl"):
        assert (here / f"out{ending}").read_bytes() == (here / f"whole{ending}").read_bytes()


def test_steps_of_another_search_are_finished_or_thrown_away(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(4)
    another = r"W403 .*holds 5 steps of another search; run that command again"
    with monkeypatch.context() as early:
        # Told before data are read.
        early.setattr(doors, "training_data", None)
        with pytest.raises(EutecticError, match=another):
            eutectic.learn("ta.yml", "out.yml", **{**ASKED, "lr": 0.1})
    (here / "dev.jsonl").write_text((here / "dev.jsonl").read_text().replace("w5", "w6"))
    with pytest.raises(EutecticError, match=another):
        eutectic.learn("ta.yml", "out.yml", **ASKED)
    assert eutectic.learn("ta.yml", "out.yml", replace=True, **ASKED).resumed == 0
    stopped_after(4, replace=True)
    told = run("learn", "ta.yml", "out.yml", "--data", "dev.yml", "--objective", "cross-entropy", "--steps", 13,
               "--lr", 0.05, "--replace")  # fmt: skip
    assert "5 steps are from the interrupted run" in told.stdout


AGAIN = ["learn", "ta.yml", "out.yml", "--data", "dev.yml", "--objective", "cross-entropy", "--steps", "3"]


def test_a_finished_search_is_not_made_again(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = json.loads(run(*AGAIN, "--json").stdout)
    computed = counted(monkeypatch)
    monkeypatch.setattr(coefficients, "mean_loss", None)
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in here.iterdir()}
    again = run(*AGAIN)
    assert (again.exit_code, again.stdout) == (0, "nothing to do: out.yml has these weights already\n")
    assert json.loads(run(*AGAIN, "--json").stdout) == first | {"already_complete": True}
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in here.iterdir()} == before
    assert run(*AGAIN, "--html", "learn.html", "--quiet").exit_code == 0 and (here / "learn.html").exists()
    assert not computed


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("steps", "another search wrote it"),
        ("data", "another search wrote it, or models or data are others since"),
        ("model", "another search wrote it, or models or data are others since"),
        ("log", "out.learn.jsonl does not have its steps"),
        ("torn log", "out.learn.jsonl does not have its steps"),
        ("recipe", "it was changed since it was written"),
    ],
)
def test_what_another_search_left_is_refused(run: Run, here: Path, change: str, why: str) -> None:
    assert run(*AGAIN, "--quiet").exit_code == 0
    log, out, data = here / "out.learn.jsonl", here / "out.yml", here / "dev.jsonl"
    if change == "data":
        data.write_text(data.read_text().replace("w5", "w6"))
    elif change == "model":
        tiny_llama(here / "a", base=here / "base", seed=2, layers=1)
    elif change == "log":
        log.unlink()
    elif change == "torn log":
        log.write_text(log.read_text()[:-30])
    elif change == "recipe":
        out.write_text(out.read_text() + "name: mine\n")
    left = out.read_bytes()
    refused = run(*AGAIN, *(["--lr", "0.1"] if change == "steps" else []))
    assert refused.exit_code == 2 and f"error W401 out.yml: exists, and {why}" in refused.stderr
    assert "`--replace`" in refused.stderr
    assert out.read_bytes() == left and not (here / "out.learn.partial").exists()


@pytest.mark.parametrize("content", [b"mine\n", b'{"request": 1}\n', b"\0" * 9])
@pytest.mark.parametrize("replace", [False, True])
def test_a_file_that_no_search_wrote_stays(content: bytes, replace: bool, here: Path) -> None:
    own = here / "out.learn.partial"
    own.write_bytes(content)
    with pytest.raises(EutecticError, match=r"^W401 .*where steps are kept, holds what no search wrote"):
        eutectic.learn("ta.yml", "out.yml", replace=replace, **ASKED)
    assert own.read_bytes() == content and not (here / "out.yml").exists()


def test_a_pipe_is_not_waited_for(run: Run, here: Path) -> None:
    os.mkfifo(here / "out.yml")
    refused = run(*AGAIN)
    assert refused.exit_code == 2 and "W401 out.yml: exists" in refused.stderr


def test_a_model_that_changed_begins_anew(here: Path) -> None:
    stopped_after(4)
    tiny_llama(here / "a", base=here / "base", seed=2, layers=1)
    assert eutectic.learn("ta.yml", "out.yml", **ASKED).resumed == 0


def test_one_search_at_a_time(here: Path) -> None:
    def again(step: LearnStep) -> None:
        with pytest.raises(EutecticError, match=r"W402 .*another run is writing"):
            eutectic.learn("ta.yml", "out.yml", **ASKED)

    eutectic.learn("ta.yml", "out.yml", on_step=again, **{**ASKED, "steps": 1})


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("S811", ["learn", "ta.yml", "out.yml", "--data", "dev.yml", "--set", "merge_method=sce"]),
        ("R128", ["learn", "ta.yml", "out.yml", "--data", "dev.yml", "--set", "parameters.lambda={sweep: [1, 2]}"]),
        ("S810", ["learn", "ta.yml", "out.txt", "--data", "dev.yml"]),
        ("S810", ["learn", "ta.yml", "out.yml", "--data", "dev.yml", "--init", "2"]),
        ("S810", ["learn", "ta.yml", "out.yml", "--data", "dev.yml", "--held-out", "1"]),
        ("S804", ["learn", "ta.yml", "out.yml", "--data", "choice:dev.jsonl"]),
        ("E901", ["learn", "ta.yml", "out.yml", "--data", "dve.yml"]),
        ("E903", ["learn", "ta.yml", "out.yml", "--data", "dve.jsonl"]),
        ("E907", ["learn", "ta.yml", "out.yml", "--data", "dev.jsonl"]),
        ("S812", ["learn", "ta.yml", "out.yml", "--data", "dev.yml", "--limit", "1", "--held-out", "0.9"]),
        ("M601", ["learn", "ta.yml", "out.yml", "--data", "dev.yml", "--memory", "100MiB"]),
        ("M602", ["learn", "ta.yml", "out.yml", "--data", "dev.yml", "--device", "cdua"]),
        ("M603", ["learn", "ta.yml", "out.yml", "--data", "dev.yml", "--memory", "much"]),
        ("A802", ["learn", "ta.yml", "out.yml", "--data", "dev.yml", "--html", "no/such.html"]),
        ("W405", ["learn", "ta.yml", "no/out.yml", "--data", "dev.yml"]),
        ("R101", ["learn", "at.yml", "out.yml", "--data", "dev.yml"]),
    ],
)
def test_mistakes(run: Run, here: Path, code: str, arguments: list[str]) -> None:
    before = sorted(path.name for path in here.iterdir())
    result = run(*arguments)
    assert result.exit_code in (1, 2) and code in result.stderr
    assert sorted(path.name for path in here.iterdir()) == before


def test_a_model_without_tokenizer(run: Run, here: Path) -> None:
    for name in ("a", "b", "base"):
        for path in (here / name).glob("*token*"):
            path.unlink()
    result = run("learn", "ta.yml", "out.yml", "--data", "dev.yml")
    assert result.exit_code == 1 and "E906" in result.stderr and not (here / "out.yml").exists()
