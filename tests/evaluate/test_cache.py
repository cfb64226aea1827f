"""Scores are found again by content, and only then; the folder survives processes and damage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import eutectic
from eutectic.errors import OutputError
from eutectic.evaluate import Call, Perplexity, Settings, evaluate_models
from eutectic.testing import write_safetensors

pytest.importorskip("transformers")
TASK = {"task": "perplexity", "data": "text.jsonl", "block": 16}


def known(model: Any, task: Any = TASK, **settings: Any) -> bool:
    """Whether a score comes from the cache."""
    return evaluate_models([model], [task], settings=Settings(**settings)).cached == 1


def test_a_score_is_measured_once(here: Path) -> None:
    assert not known("a")
    assert known("a")
    first = eutectic.evaluate("a", TASK)
    assert first.as_json(items=True) == eutectic.evaluate("a", TASK, cache=False).as_json(items=True)
    assert not known("b")


def test_what_makes_another_score(here: Path) -> None:
    assert not known("a")
    assert not known("a", {**TASK, "block": 8})
    assert not known("a", {**TASK, "metric": "bits_per_byte"})
    assert not known("a", batch=3)
    assert not known("a", limit=3)
    assert not known("a", limit=3, seed=1)
    with (here / "text.jsonl").open("a") as file:
        file.write('{"text": "w5 w6"}\n')
    assert not known("a")
    assert known("a", {**TASK, "name": "another label"})


def test_content_counts_and_not_the_place(here: Path) -> None:
    assert not known("a")
    shutil.copytree("a", "elsewhere")
    assert known("elsewhere")
    shutil.copy("text.jsonl", "again.jsonl")
    assert known("a", {**TASK, "data": "again.jsonl"})


def test_other_weights_under_the_same_header_are_another_model(here: Path) -> None:
    assert not known("a")
    state = dict(eutectic.open("a"))
    state["lm_head.weight"] = state["lm_head.weight"] * 2
    write_safetensors(here / "a" / "model.safetensors", state, {"format": "pt"})
    assert not known("a") and known("a")


def test_weights_that_were_overwritten_with_their_times_put_back(here: Path) -> None:
    """As by archives and `rsync --inplace --times`: same inode, size and time of change."""
    assert not known("a")
    path = here / "a" / "model.safetensors"
    before = path.stat()
    with path.open("r+b") as file:
        file.write((here / "b" / "model.safetensors").read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert not known("a") and known("b")


def test_config_and_tokenizer_count(here: Path) -> None:
    assert not known("a")
    config = json.loads((here / "a" / "config.json").read_text()) | {"rms_norm_eps": 1e-3}
    (here / "a" / "config.json").write_text(json.dumps(config))
    assert not known("a")
    tokens = (here / "a" / "tokenizer.json").read_text()
    (here / "a" / "tokenizer.json").write_text(tokens.replace('"w95"', '"w96"'))
    assert not known("a")


def test_merges_are_known_by_plan_and_inputs(here: Path) -> None:
    assert not known("recipe.yml") and known("recipe.yml")
    text = (here / "recipe.yml").read_text()
    (here / "other.yml").write_text("# the same\n" + text)
    assert known("other.yml")
    (here / "other.yml").write_text(text.replace("0.3", "0.4"))
    assert not known("other.yml")
    state = {name: tensor + 1 for name, tensor in eutectic.open("b").items()}
    write_safetensors(here / "b" / "model.safetensors", state, {"format": "pt"})
    assert not known("recipe.yml")


def test_live_modules_are_never_known(here: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained("a")
    first = eutectic.evaluate(model, TASK, tokenizer="a").value
    assert first == eutectic.evaluate("a", TASK, cache=False).value
    # The same tensors, which do something else.
    hook = model.lm_head.register_forward_hook(lambda module, inputs, logits: logits * 2)
    assert eutectic.evaluate(model, TASK, tokenizer="a").value != first
    hook.remove()
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert eutectic.evaluate(model, TASK, tokenizer="a").value != first


def test_functions_are_never_known(here: Path) -> None:
    task = Call(lambda source: 1.0, name="one")
    assert not known("a", task) and not known("a", task)
    assert eutectic.evaluate("a", task).value == 1.0


def test_a_factory_of_ones_own_is_never_known(here: Path) -> None:
    import transformers

    def fresh() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained("b")

    first = eutectic.evaluate("a", TASK, module=fresh, tokenizer="a")
    assert not [name for name in os.listdir(os.environ["EUTECTIC_CACHE"]) if not name.startswith("digest")]
    assert first.value == eutectic.evaluate("a", TASK).value


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"score": {}}', '{"score": null}', '{"digest": 3}'])
def test_damage_is_measured_anew(here: Path, damage: str) -> None:
    first = eutectic.evaluate("a", TASK)
    for path in Path(os.environ["EUTECTIC_CACHE"]).iterdir():
        path.write_text(damage)
    assert eutectic.evaluate("a", TASK).as_json(items=True) == first.as_json(items=True)
    assert known("a")


def test_two_processes_at_once(here: Path) -> None:
    code = f"import eutectic; print(eutectic.evaluate('a', {TASK}).value)"
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    values = {run.communicate()[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0] and len(values) == 1
    assert not list(Path(os.environ["EUTECTIC_CACHE"]).glob("*.tmp"))


def test_folders_that_cannot_be_used(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "file").write_text("")
    with pytest.raises(OutputError, match=r"^E912 .*file cache: no score can be kept here"):
        eutectic.evaluate("a", TASK, cache=here / "file")
    monkeypatch.setenv("EUTECTIC_CACHE", str(here / "file"))
    with pytest.raises(OutputError, match="E912"):
        eutectic.evaluate("a", TASK)
    # Nobody asked for the usual place: without it scores are measured each time.
    monkeypatch.delenv("EUTECTIC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "file"))
    assert eutectic.evaluate("a", TASK).value > 0


def test_the_usual_place(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUTECTIC_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(here / "home"))
    eutectic.evaluate("a", Perplexity("text.jsonl", block=16))
    assert len(list((here / "home" / ".cache" / "eutectic" / "scores").glob("*.json"))) == 2


def test_a_known_score_needs_no_torch(here: Path) -> None:
    code = f"import sys, eutectic; eutectic.evaluate('a', {TASK}); print('transformers' in sys.modules)"
    said = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)]
    assert said == ["True\n", "False\n"]
