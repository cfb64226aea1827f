"""Tasks of lm-evaluation-harness, where it is installed; and what is said where it is not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import eutectic
from eutectic.errors import EutecticError
from eutectic.evaluate import Harness

YAML = """task: toy
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


@pytest.mark.parametrize(
    ("package", "task"), [("lm_eval", "harness:arc_easy"), ("transformers", "choice:choice.jsonl")]
)
def test_a_missing_package_names_its_extra(
    here: Path, monkeypatch: pytest.MonkeyPatch, package: str, task: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EutecticError) as caught:
        eutectic.evaluate("a", task, cache=False)
    extra = {"lm_eval": "eval", "transformers": "transformers"}[package]
    assert str(caught.value) == f"E910 this task needs the package {package}; pip install 'eutectic[{extra}]'"


@pytest.fixture
def yaml(here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (here / "toy.yaml").write_text(YAML.replace("DATA", str(here / "choice.jsonl")))
    return "toy.yaml"


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_the_harness_agrees_with_our_own(yaml: str, metric: str) -> None:
    ours = eutectic.evaluate("a", {"task": "choice", "data": "choice.jsonl", "metric": metric}, cache=False)
    theirs = eutectic.evaluate("a", Harness(yaml, metric=metric), cache=False)
    assert theirs.items.tolist() == ours.items.tolist()
    assert (theirs.metric, theirs.value, theirs.interval) == (metric, ours.value, ours.interval)


def test_live_equals_written_and_is_known(yaml: str, here: Path) -> None:
    out = eutectic.merge("recipe.yml", here / "out").path
    task = Harness(yaml)
    live, written = (eutectic.evaluate(one, task) for one in ("recipe.yml", out))
    assert live.as_json(items=True) == written.as_json(items=True)
    again = eutectic.evaluate("recipe.yml", f"harness:{yaml}")
    assert again.as_json(items=True) == live.as_json(items=True) | {"task": "toy"}


def test_a_limit(yaml: str) -> None:
    whole = eutectic.evaluate("a", Harness(yaml), cache=False)
    few = eutectic.evaluate("a", Harness(yaml), cache=False, limit=5, seed=3)
    ours = eutectic.evaluate("a", "choice:choice.jsonl", cache=False, limit=5, seed=3)
    assert len(few.items) == 5 < len(whole.items) and few.items.tolist() == ours.items.tolist()


def test_mistakes(yaml: str, here: Path) -> None:
    (here / "gone.yaml").write_text(YAML.replace("DATA", "/nowhere.jsonl").replace("toy", "gone"))
    (here / "twin.yaml").write_text(YAML)
    (here / "empty.yaml").write_text("output_type: multiple_choice\n")
    for task, said in (
        (Harness(yaml, metric="f1"), "E913 metric: 'toy.yaml' has no metric 'f1'; it has acc, acc_norm"),
        (Harness("gone.yaml"), "E913 harness: 'gone.yaml' cannot be loaded"),
        (Harness("empty.yaml"), "E913 empty.yaml harness: has no line `task: NAME`"),
        (Harness("twin.yaml"), "E913 twin.yaml harness: the task 'toy' is also in toy.yaml; rename one"),
        (Harness("none.yaml"), "E913 none.yaml harness: cannot be read"),
    ):
        with pytest.raises(EutecticError) as caught:
            eutectic.evaluate("a", task, cache=False)
        assert said in str(caught.value)


def test_the_data_are_part_of_the_task(yaml: str, here: Path) -> None:
    before = Harness(yaml).identity()
    assert json.loads(json.dumps(before)) == before
    (here / "more.jsonl").write_text((here / "choice.jsonl").read_text() * 2)
    (here / yaml).write_text(YAML.replace("DATA", str(here / "more.jsonl")))
    assert Harness(yaml).identity()["tasks"] != before["tasks"]


def test_the_examples_before_a_question_are_part_of_the_task(yaml: str, here: Path) -> None:
    (here / "shots.jsonl").write_text((here / "choice.jsonl").read_text())
    both = YAML.replace("{test: DATA}", f"{{test: {here / 'choice.jsonl'}, train: {here / 'shots.jsonl'}}}")
    (here / yaml).write_text(both + "fewshot_split: train\nnum_fewshot: 2\n")
    before, none = Harness(yaml).identity(), Harness(yaml, num_fewshot=0).identity()
    rows = (here / "shots.jsonl").read_text().splitlines(keepends=True)
    (here / "shots.jsonl").write_text("".join(rows[::-1]))
    assert Harness(yaml).identity() != before
    assert Harness(yaml, num_fewshot=0).identity() == none


def test_a_task_with_functions_of_its_own_is_never_known(yaml: str, here: Path) -> None:
    (here / "helpers.py").write_text("SIGN = ' '\ndef text(doc):\n    return SIGN + doc['question']\n")
    (here / yaml).write_text(
        YAML.replace("DATA", str(here / "choice.jsonl")).replace('"{{question}}"', "!function helpers.text")
    )
    first = eutectic.evaluate("a", Harness(yaml))
    assert Harness(yaml).identity() is None
    assert first.items.tolist() == eutectic.evaluate("a", Harness(yaml), cache=False).items.tolist()
