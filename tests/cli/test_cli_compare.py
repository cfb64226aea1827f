"""`eutectic compare` and `eutectic cite` as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commanding import Run

from eutectic.testing import tiny_llama


def test_compare_says_it_in_words(run: Run) -> None:
    result = run("compare", "a", "b", "--base", "base")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "merge directly"
    said = " ".join(result.stdout.split())
    for part in (
        "pair distance cosine opposed by size overlap by chance a, b 0.6",
        "task_arithmetic",
        "evaluate it on",
    ):
        assert part in said


def test_compare_looks_for_the_base(run: Run, here: Path) -> None:
    for seed, name in enumerate(("light", "other")):
        tiny_llama(here / name, seed=seed, base=here / "base", noise=1e-3)
    said = run("compare", "light", "base", "other").stdout
    assert "base is nearest to all others" in said


def test_compare_in_json(run: Run) -> None:
    result = run("compare", "a", "b", "--base", "base", "--json", "--threads", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found.keys() == {
        "models", "base", "one_run", "verdict", "structure", "whole", "matrices", "cells", "untouched", "broken",
    }  # fmt: skip
    assert found["verdict"]["answer"] == "merge directly"
    assert {cell["kind"] for cell in found["cells"]} == {"embedding", "attention", "mlp", "norm", "head"}


def test_an_answer_of_no_is_an_answer(run: Run, here: Path) -> None:
    tiny_llama(here / "wide", seed=4, layers=1, hidden=32, intermediate=16)
    result = run("compare", "a", "wide")
    assert result.exit_code == 0
    assert result.stdout.startswith("not mergeable\n- shapes differ: ")
    tiny_llama(here / "other", seed=4, layers=1, hidden=16, intermediate=16)
    assert run("compare", "a", "other").stdout.startswith("align first\n")


def test_the_report(run: Run, here: Path) -> None:
    assert run("compare", "a", "b", "--html", "r.html").exit_code == 0
    assert (here / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_foreign_names_reach_no_terminal(run: Run, here: Path) -> None:
    (here / "a").rename(here / "[red]a\x1b[31m")
    result = run("compare", "[red]a\x1b[31m", "b")
    assert "\x1b" not in result.stdout and "[red]a" in result.stdout


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("compare", 2, "Missing argument"),
        ("compare a", 2, "A801 models: there is only one model to compare"),
        ("compare a a", 2, "A801"),
        ("compare a nowhere", 1, "C200 'nowhere' does not exist"),
        ("compare a b --base bse", 1, "did you mean 'base'?"),
        ("compare a r.yml", 1, "C204"),
        ("compare a b --html out.txt", 2, "A802 --html: 'out.txt' does not end in .html"),
        ("compare a b --html no/out.html", 1, "A802 no/out.html"),
        ("compare a b --threads 0", 2, "Invalid value for '--threads'"),
        ("cite", 2, "Missing argument"),
        ("cite no.yml", 2, "R101"),
        ("cite a", 1, "V701"),
    ],
)
def test_mistakes(run: Run, command: str, code: int, said: str) -> None:
    result = run(*command.split())
    assert result.exit_code == code
    assert said in result.stderr


def test_refusals_in_json(run: Run) -> None:
    result = run("compare", "a", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["problems"][0]["code"] == "A801"


def test_cite(run: Run, here: Path) -> None:
    (here / "r.yml").write_text("merge_method: breadcrumbs_ties\nbase_model: gone\nmodels: [away]\n")
    result = run("cite", "r.yml")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("@misc{davari2023breadcrumbs,\n  author = {Davari, ")
    assert "@misc{eutectic," in result.stdout
    entries = json.loads(run("cite", "r.yml", "--json").stdout)
    assert [entry["key"] for entry in entries] == ["davari2023breadcrumbs", "yadav2023ties", "eutectic"]
    assert entries[1]["used_by"] == ["breadcrumbs_ties"]


def test_cite_of_a_method_or_a_step_by_its_name(run: Run, here: Path) -> None:
    def keys(*arguments: str) -> list[str]:
        return [entry["key"] for entry in json.loads(run("cite", *arguments, "--json").stdout)]

    assert keys("ties") == ["yadav2023ties", "eutectic"]
    assert keys("lines") == ["wang2024lines", "eutectic"]
    assert keys("norm_guard") == ["eutectic"]
    for word, hint in (("TIES", "did you mean 'ties'?"), ("zzz", "name a file")):
        refused = run("cite", word)
        assert refused.exit_code == 2 and "X901 there is no recipe" in refused.stderr and hint in refused.stderr
    # A file of that name is what is meant.
    (here / "ties").write_text("merge_method: linear\nmodels: [away, gone]\n")
    assert keys("ties") == ["wortsman2022soups", "eutectic"]
