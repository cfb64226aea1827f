"""A chat template is part of a merge: in the files, in the manifest, for `verify`, for resuming and for `--replace`."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import eutectic
from eutectic.api import Options
from eutectic.errors import OutputError, RecipeError
from eutectic.recipe.tokenizers import TEMPLATES
from eutectic.testing import tiny_llama
from faults import FaultStorage, contents

REPLACE = Options(replace=True)
OWN = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    models = [tiny_llama(tmp_path / name, seed=5, layers=1, hidden=16, intermediate=16) for name in "ab"]
    return {"merge_method": "linear", "models": models, "chat_template": OWN}


def written(out: str | os.PathLike[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(out, "tokenizer_config.json").read_text())
    return found


def test_it_is_written_recorded_and_verified(recipe: dict[str, Any], tmp_path: Path) -> None:
    plain = eutectic.merge({**recipe, "chat_template": None}, tmp_path / "plain").path
    done = eutectic.merge(recipe, tmp_path / "out")
    assert written(done.path) == {**written(plain), "chat_template": OWN}
    before, after = (json.loads(Path(out, "eutectic.json").read_text()) for out in (plain, done.path))
    changed = {name for name in before["files"] if before["files"][name] != after["files"][name]}
    assert changed == {"tokenizer_config.json"} and before["tensors"] == after["tensors"]
    assert after["recipe"]["chat_template"] == OWN
    assert eutectic.verify(done.path).problems == []
    Path(done.path, "tokenizer_config.json").write_text(json.dumps(written(plain)))
    (problem,) = eutectic.verify(done.path).problems
    assert (problem.code, problem.where) == ("V702", "tokenizer_config.json")


def test_another_template_is_another_merge(recipe: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    eutectic.merge(recipe, out)
    assert eutectic.merge(recipe, out).already_complete
    other = {**recipe, "chat_template": "chatml"}
    with pytest.raises(RecipeError, match="W401"):
        eutectic.merge(other, out)
    eutectic.merge(other, out, options=REPLACE)
    assert written(out)["chat_template"] == TEMPLATES["chatml"]
    # The merge may be started again from its folder, with a change.
    again = eutectic.merge(out, tmp_path / "again", overrides=["chat_template=llama3"])
    assert written(again.path)["chat_template"] == TEMPLATES["llama3"]


def test_an_interrupted_merge_goes_on_with_its_own_template_only(recipe: dict[str, Any], tmp_path: Path) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out, options = tmp_path / "out", Options(threads=1)
    counted = FaultStorage(counted=("write",))
    eutectic.merge(recipe, out, options=options, storage=counted)
    expected = contents(out)
    shutil.rmtree(out)
    broken = FaultStorage(len(counted.log) - 3, full, counted=("write",))
    with pytest.raises(OutputError):
        eutectic.merge(recipe, out, options=options, storage=broken)
    with pytest.raises(RecipeError, match="W403"):
        eutectic.merge({**recipe, "chat_template": "chatml"}, out, options=options)
    done = eutectic.merge(recipe, out, options=options)
    assert done.resumed > 0 and contents(out) == expected


def test_a_merge_inside_a_merge_hands_its_template_on(recipe: dict[str, Any], tmp_path: Path) -> None:
    outer = {"merge_method": "linear", "models": [{"model": recipe}, recipe["models"][0]]}
    assert written(eutectic.merge(outer, tmp_path / "out").path)["chat_template"] == OWN
    other = {**outer, "tokenizer_source": recipe["models"][0]}
    assert "chat_template" not in written(eutectic.merge(other, tmp_path / "other").path)


def test_a_live_merge_hands_its_tokenizer_on(recipe: dict[str, Any], tmp_path: Path) -> None:
    a, b = map(Path, recipe["models"])
    (b / "tokenizer_config.json").write_text(json.dumps({"of": "b"}))
    for given in ({**recipe, "tokenizer_source": str(b)}, {**recipe, "models": [b, a], "chat_template": OWN}):
        with eutectic.merged(given) as live:
            done = eutectic.merge({"merge_method": "linear", "models": [live, a]}, tmp_path / "out", options=REPLACE)
        assert written(done.path) == {"of": "b", "chat_template": OWN}


def test_a_live_merge_has_the_template_that_a_written_one_has(recipe: dict[str, Any], tmp_path: Path) -> None:
    from eutectic.evaluate.content import files_of

    out = Path(eutectic.merge(recipe, tmp_path / "out").path)
    with eutectic.merged(recipe) as live:
        found = files_of(live)
    assert found["tokenizer_config.json"] == (out / "tokenizer_config.json").read_bytes()


def test_a_template_may_be_longer_than_other_texts(recipe: dict[str, Any], tmp_path: Path) -> None:
    text = "{{ 'x' }}" + "y" * 60_000
    path = tmp_path / "recipe.yml"
    path.write_text(json.dumps({**recipe, "chat_template": text}))
    for source in (path, json.loads(path.read_text())):
        with eutectic.plan(source) as plan:
            assert plan.chat_template == text
    with eutectic.plan({**recipe, "chat_template": None}, overrides=[f'chat_template="{text}"']) as plan:
        assert plan.chat_template == text
    with pytest.raises(RecipeError, match=r"R140 .*the most is 65536"):
        eutectic.plan(recipe, overrides=[f'chat_template="{text * 2}"'])
    longer = {**recipe, "chat_template": text * 2}
    for source in (longer, {**recipe, "name": text}, json.dumps({"a": 1}) + "\n---\n" + json.dumps(longer)):
        with pytest.raises(RecipeError, match=r"R106 .*(the most is 65536|the most is 4096)"):
            eutectic.plan(source)
