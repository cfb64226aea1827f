"""What people get wrong on the command line: one clear message each, the right exit code, never a traceback."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import struct
from pathlib import Path
from typing import Any

import pytest
from commanding import Run

# command → exit code and what standard error says, in order.
MISTAKES: dict[str, tuple[int, list[str]]] = {
    "merg r.yml out": (2, ["No such command 'merg'", "merge"]),
    "merge": (2, ["Missing argument", "RECIPE"]),
    "merge r.yml": (2, ["Missing argument", "OUT"]),
    "merge r.yml out more": (2, ["unexpected extra argument", "more"]),
    "merge r.yml out --sed 3": (2, ["No such option: --sed", "--seed"]),
    "plan r.yml --quiet": (2, ["No such option: --quiet"]),
    "merge r.yml out --seed": (2, ["--seed", "requires an argument"]),
    "merge r.yml out --seed x": (2, ["Invalid value for '--seed'", "valid integer"]),
    "merge r.yml out --seed -1": (2, ["Invalid value for '--seed'"]),
    "merge r.yml out --seed 1.5": (2, ["Invalid value for '--seed'"]),
    "merge r.yml out --threads 0": (2, ["Invalid value for '--threads'"]),
    "merge r.yml out --threads many": (2, ["Invalid value for '--threads'", "valid integer"]),
    "merge r.yml out --memory lots": (2, ["M603 --memory: 'lots' is no size", "2GiB, 500MB or 5G"]),
    "merge r.yml out --memory 0": (2, ["M603 --memory: '0' must be at least one byte"]),
    "merge r.yml out --memory -1GB": (2, ["M603 --memory: '-1GB' is no size"]),
    "merge r.yml out --shard-size 5XB": (2, ["M603 --shard-size: '5XB' is no size"]),
    f"merge r.yml out --shard-size {'9' * 400}": (2, ["M603 --shard-size", "less than 8 EiB"]),
    "merge r.yml out --memory 1MB": (
        1,
        ["M601 --memory: the merge needs ", "MiB at least, the bound is 1,000,000 bytes", "--memory "],
    ),
    "plan r.yml --memory lots": (2, ["M603 --memory: 'lots' is no size"]),
    "plan r.yml --memory 1MB": (1, ["M601 --memory: the merge needs "]),
    "merge r.yml out --device tpu": (2, ["M602 --device: 'tpu' is no device", "use cpu, cuda or cuda:N"]),
    "plan r.yml --device tpu": (2, ["M602 --device: 'tpu' is no device"]),
    "merge r.yml out --device cuda:x": (2, ["M602 --device: 'cuda:x' is no device"]),
    "merge r.yml out --device cuda:": (2, ["M602 --device: 'cuda:' is no device"]),
    "merge r.yml out --device cpu:0": (2, ["M602 --device: 'cpu:0' is no device"]),
    "merge r.yml out --device cuda:99": (1, ["M602 --device: torch ", " sees no cuda:99", "use `--device cpu`"]),
    "merge r.yml out --dtype int8": (2, ["R112 --dtype: must be one of bfloat16, float16", "'int8'"]),
    "merge r.yml out --dtype bf16": (2, ["R112 --dtype: must be one of", "'bf16'", "did you mean 'bfloat16'"]),
    "merge r.yml out --nonfinite go": (2, ["Invalid value for '--nonfinite'", "stop", "count"]),
    "plan r.yml --set parameters.normalise=false": (
        2,
        ["R121 --set parameters.normalise", "did you mean 'normalize'?"],
    ),
    "plan r.yml --set parameters": (2, ["R140 --set: 'parameters' is not an override", "write KEY=VALUE"]),
    "plan r.yml --set models[7].parameters.weight=1": (2, ["R140 --set models[7]: leads nowhere", "0 to 1"]),
    "plan r.yml --set parameters.weight=[": (2, ["R140 --set parameters.weight: the value '[' cannot be read"]),
    "plan r.yml --set parameters.weight=heavy": (2, ["R123 --set parameters.weight", "must be a number", "'heavy'"]),
    "plan r.yml --set merge_method=slurp": (2, ["R120 --set merge_method", "'slurp'", "did you mean 'slerp'?"]),
    "plan r.yml --set seed=-1 --set nmae=x": (2, ["R110 --set nmae", "did you mean 'name'?", "R112 --set seed"]),
    "plan recipe.yml": (2, ["R101 the recipe 'recipe.yml' does not exist", "did you mean"]),
    "plan no/r.yml": (2, ["R101 the recipe 'no/r.yml' does not exist", "nor does the folder 'no'"]),
    "plan a": (2, ["R101 the recipe 'a' cannot be read: it is not a regular file", "a recipe is a YAML file"]),
    "merge a/model.safetensors out": (2, ["R101", "is not UTF-8", "`eutectic inspect` shows what a model holds"]),
    "plan a/config.json": (2, ["R110 a/config.json:", "unknown key"]),
    "plan empty.yml": (2, ["R107 empty.yml: the recipe is empty"]),
    "plan broken.yml": (2, ["R102 broken.yml:3:"]),
    "plan loud.yml": (
        2,
        ["R120 loud.yml:1:15 merge_method", "did you mean 'ties'?", "R110 loud.yml:2:1 base", "mean 'base_model'?"],
    ),
    "plan typo.yml": (1, ["C200 typo.yml:2:10 models[0]: 'aa' does not exist", "did you mean 'a'?"]),
    "plan two.yml": (1, ["C200 two.yml:2:10", "'aa' does not exist", "C200 two.yml:2:14", "'bb' does not exist"]),
    "merge r.yml a": (2, ["W406 a: 'a' overlaps the input a", "choose another output folder"]),
    "merge r.yml a/out": (2, ["W406 a/out: 'a/out' overlaps the input a"]),
    "merge r.yml .": (2, ["W406 .: '.' overlaps the input a"]),
    "merge r.yml ''": (2, ["M603 out: must be the folder to make, not ''"]),
    "merge r.yml taken": (
        2,
        ["W401", "taken: exists and holds what no merge wrote (precious)"],
    ),
    "merge r.yml r.yml": (2, ["W401", "r.yml: exists and is not a folder"]),
    "merge r.yml no/such/folder": (1, ["W405", "such does not exist", "make it first"]),
    "verify a": (1, ["V701 a: there is no eutectic.json in this folder", "name a folder that `eutectic merge` made"]),
    "verify nowhere": (1, ["V701 nowhere: there is no such folder", "name a folder that `eutectic merge` made"]),
    "verify hollo": (1, ["V701 hollo: there is no such folder", "did you mean 'hollow'?"]),
    "verify r.yml": (1, ["V701 r.yml: this is a file", "name a folder that `eutectic merge` made"]),
    "compare a b --html no/x.html": (1, ["A802 no/x.html: the folder no does not exist", "make it first"]),
    "compare a b --html page.html": (1, ["A802 page.html: is a folder", "name a file in it"]),
    "verify out --sample 0": (2, ["Invalid value for '--sample'"]),
    "inspect aa": (1, ["C200 'aa' does not exist", "did you mean 'a'?"]),
    "inspect r.yml": (1, ["C204", "not a kind of checkpoint", "recipes are for `eutectic plan` and `eutectic merge`"]),
    "inspect hollow": (1, ["C201", "hollow: the folder of model 'hollow' holds no weights", "it is empty"]),
    "inspect cut.safetensors": (1, ["C210", "cut.safetensors: the header claims 1000 bytes"]),
    "inspect words.safetensors": (1, ["C210", "this is a Git LFS pointer", "run `git lfs pull`"]),
    "inspect evil.bin": (1, ["evil.bin"]),
    "inspect https://example.org/model": (1, ["C209 'https://example.org/model' is a URL"]),
    "inspect a+lora": (1, ["C205 'a+lora' asks for a model with a LoRA adapter"]),
    "inspect ''": (1, ["C200 '' does not exist"]),
    "methods tise": (2, ["X901 there is no method 'tise'", "did you mean 'ties'?"]),
    "methods TIES": (2, ["X901 there is no method 'TIES'", "did you mean 'ties'?"]),
    "methods zzz": (2, ["X901 there is no method 'zzz'", "`eutectic methods` lists them"]),
    "explain P320": (2, ["X902 there is no code 'P320'", "did you mean 'P312'?"]),
    "explain ''": (2, ["X902 there is no code ''"]),
}


class Evil:
    """Its pickle would make a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


@pytest.fixture
def traps(here: Path) -> Path:
    """Files and folders that are not what they should be."""
    (here / "empty.yml").write_text("")
    (here / "broken.yml").write_text("merge_method: linear\nmodels: [a\nb: c]: d\n")
    (here / "typo.yml").write_text("merge_method: linear\nmodels: [aa, b]\n")
    (here / "two.yml").write_text("merge_method: linear\nmodels: [aa, bb]\n")
    (here / "loud.yml").write_text("merge_method: TIES\nbase: a\nmodels: [a, b]\n")
    for folder in ("taken", "hollow", "page.html"):
        (here / folder).mkdir()
    (here / "taken" / "precious").write_text("mine")
    (here / "cut.safetensors").write_bytes(struct.pack("<Q", 1000) + b"{")
    (here / "words.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    (here / "evil.bin").write_bytes(pickle.dumps({"w": Evil()}))
    return here


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake(run: Run, traps: Path, command: str) -> None:
    code, parts = MISTAKES[command]
    before = sorted(path.name for path in traps.iterdir())
    result = run(*shlex.split(command))
    assert result.exit_code == code
    said = " ".join(result.stderr.replace("│", " ").split())
    at = 0
    for part in parts:
        assert part in said[at:], said
        at = said.index(part, at)
    # Nothing is left behind, and nothing was run.
    assert sorted(path.name for path in traps.iterdir()) == before
    assert (traps / "taken" / "precious").read_text() == "mine"


@pytest.mark.parametrize("command", [c for c, (code, _) in MISTAKES.items() if c.split()[0] in ("plan", "inspect")])
def test_a_mistake_as_json(run: Run, traps: Path, command: str) -> None:
    code, _ = MISTAKES[command]
    result = run(*shlex.split(command), "--json")
    assert result.exit_code == code
    assert result.stderr == ""
    problems = json.loads(result.stdout)["problems"]
    if "--memory" in command:
        assert problems[0]["where"] == "--memory"
    for problem in problems:
        assert problem.keys() == {"code", "where", "message", "hint", "file", "line", "column"}


@pytest.mark.parametrize(
    ("command", "where", "message", "program"),
    [
        ("mrege r.yml", "", "no such command 'mrege'. Did you mean 'merge'?", "eutectic"),
        ("merge r.yml", "OUT", "missing argument 'OUT'", "eutectic merge"),
        (
            "merge r.yml out --sed 3",
            "--sed",
            "no such option: --sed",
            "eutectic merge",
        ),
        ("merge r.yml out more", "", "got unexpected extra argument", "eutectic merge"),
        ("merge r.yml out --threads many", "--threads", "invalid value for '--threads'", "eutectic merge"),
        ("collect grma", "", "no such command 'grma'. Did you mean 'gram'?", "eutectic collect"),
        ("collect gram a", "OUT", "missing argument 'OUT'", "eutectic collect gram"),
    ],
)
def test_a_wrong_command_line_as_json(run: Run, command: str, where: str, message: str, program: str) -> None:
    result = run(*shlex.split(command), "--json")
    assert result.exit_code == 2 and result.stderr == ""
    (problem,) = json.loads(result.stdout)["problems"]
    assert (problem["code"], problem["where"]) == ("X903", where)
    assert problem["message"].startswith(message)
    assert problem["hint"] == f"`{program} --help` says what it takes"


def test_under_json_help_stays_text(run: Run) -> None:
    result = run("merge", "--help", "--json")
    assert result.exit_code == 0 and result.stdout.strip().startswith("Usage: ")


def test_every_message_names_the_code_to_explain(run: Run) -> None:
    stderr = run("plan", "none.yml").stderr
    assert stderr.splitlines()[-1] == "eutectic explain R101 tells more"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--cuda", "write --device cuda"),
        ("--copy-tokenizer", "leave it out"),
        ("--resume", "leave it out: the same command resumes"),
    ],
)
def test_options_of_elsewhere(run: Run, option: str, said: str) -> None:
    result = run("merge", "r.yml", "out", option)
    words = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2 and f"No such option: {option}; {said}" in words and "Possible" not in words


def test_a_choice_that_is_none(run: Run) -> None:
    said = " ".join(run("merge", "r.yml", "out", "--nonfinite", "ignore").stderr.replace("│", " ").split())
    assert "Invalid value for '--nonfinite': 'ignore' is not one of 'stop', 'count'" in said


def test_a_dtype_by_another_name(run: Run) -> None:
    assert "R112 --dtype: must be one of" in run("plan", "r.yml", "--dtype", "fp16").stderr
    assert "did you mean 'float16'?" in run("plan", "r.yml", "--dtype", "fp16").stderr
    assert "--set out_dtype" in run("plan", "r.yml", "--set", "out_dtype=fp16").stderr


def test_a_path_is_read_as_the_system_reads_it(run: Run, here: Path) -> None:
    (here / "far" / "deep").mkdir(parents=True)
    (here / "a").rename(here / "far" / "a")
    (here / "link").symlink_to("far/deep")
    (here / "nowhere").symlink_to("gone")
    assert run("inspect", "link/../a").exit_code == 0
    (here / "l.yml").write_text("merge_method: linear\nmodels: [link/../a, b]\n")
    assert run("merge", "l.yml", "linked", "-q").exit_code == 0
    assert run("verify", "linked").exit_code == 0
    assert "did you mean 'nowhere'" not in run("inspect", "nowhere").stderr


def test_interrupting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import eutectic.api

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    commands = {
        "plan": ("plan r.yml", "stopped; nothing was written\n"),
        "verify_bytes": ("verify out", "stopped; nothing was written\n"),
        "compare": ("compare code math", "stopped; nothing was written\n"),
        "align": ("align code math", "stopped; nothing was written\n"),
        "merge": ("merge r.yml out", "stopped; the same command resumes\n"),
        "collect": (
            "collect gram code out --data text.txt",
            "stopped; the same command resumes\n",
        ),
    }
    for function, (command, said) in commands.items():
        monkeypatch.setattr(eutectic.api, function, stop)
        done = run(*command.split())
        assert (done.exit_code, done.stderr) == (130, said)
