"""Problems name arguments of Python functions; a command that meets them says its own options."""

from __future__ import annotations

import json

import pytest
import torch
import typer

import eutectic
from eutectic.cli import arguments
from eutectic.cli.commands import app
from eutectic.errors import EutecticError, Problem
from eutectic.testing import tiny_llama, write_safetensors


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        tiny_llama(name, seed=ord(name))
    write_safetensors("memory.safetensors", {"memory": torch.full((2,), torch.nan)})
    write_safetensors("other.safetensors", {"memory": torch.ones(2)})
    (tmp_path / "r.yml").write_text("merge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}\n")
    (tmp_path / "nan.yml").write_text("merge_method: linear\nmodels: [memory.safetensors, other.safetensors]\n")
    return tmp_path


def in_python(call):
    with pytest.raises(EutecticError) as caught:
        call()
    return [(problem.where, problem.hint) for problem in caught.value.problems]


def test_a_place_and_its_advice_are_those_of_who_asked(here, run):
    ((where, hint),) = in_python(lambda: eutectic.merge("r.yml", "o", options=eutectic.Options(memory=1000)))
    assert where == "memory" and hint.startswith("pass `memory=") and hint.endswith(" << 20` or more")
    said = run("merge", "r.yml", "o", "--memory", "1000").stderr
    assert "M601 --memory: " in said and "pass `--memory " in said and "MiB` or more" in said
    ((where, hint),) = in_python(lambda: eutectic.plan("r.yml", overrides=["parameters.wieght=1"]))
    assert (where, hint) == ("parameters.wieght", "did you mean 'weight'?")
    assert "R121 --set parameters.wieght: " in run("plan", "r.yml", "--set", "parameters.wieght=1").stderr
    assert in_python(lambda: eutectic.evaluate("a", "nonesuch:x", device="cpu"))[0][0] == "task"
    assert "E901 --task: " in run("evaluate", "a", "--task", "nonesuch:x").stderr
    assert in_python(lambda: eutectic.api.average(["a", "b"], "o", window="ema"))[0][0] == "decay"
    ((where, _),) = in_python(lambda: eutectic.evaluate("a", "perplexity:x", cache="r.yml"))
    assert where == "cache"
    assert "E912 r.yml --cache: " in run("evaluate", "a", "--task", "perplexity:x", "--cache", "r.yml").stderr
    assert "T713 --decay: " in run("average", "a", "b", "o", "--window", "ema").stderr


def test_json_has_the_options_too(here, run):
    (problem,) = json.loads(run("plan", "r.yml", "--json", "--set", "x").stdout)["problems"]
    assert (problem["code"], problem["file"]) == ("R140", "--set")


def test_a_tensor_that_is_called_like_an_option_is_a_tensor(here, run):
    said = run("merge", "nan.yml", "o").stderr
    assert "N501 memory: 2 values of memory.safetensors are NaN or infinite" in said
    assert "pass `--nonfinite count` to go on" in said


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        ("pass `replace=True` to go on", "pass `--replace` to go on"),
        ("use `device='cpu'`, or another", "use `--device cpu`, or another"),
        ("pass `memory=37 << 20` or more", "pass `--memory 37MiB` or more"),
        ("write `t=0.5` or `weight`", "write `t=0.5` or `weight`"),
        ("`sample=3`", "`sample=3`"),
    ],
)
def test_advice_is_translated_where_the_command_has_the_option(hint, told):
    arguments.know(typer.main.get_command(app).commands["merge"])
    assert arguments.as_options(Problem("M601", "m", "out", hint)).hint == told
