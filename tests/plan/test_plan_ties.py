"""Tied tensors: merged once where all models tie them, each by itself where one does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from planning import Header, linear, llama, plan_of, refused

import eutectic
from eutectic.testing import tiny_llama, write_safetensors

HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"
TIED = {"ties": {HEAD: EMBED}}


def tied(label: str) -> Header:
    return without_head(label, **TIED)


def without_head(label: str, **more: Any) -> Header:
    header = llama(label, **more)
    del header.specs[HEAD]
    return header


def test_tied_everywhere_is_merged_once() -> None:
    plan = plan_of(linear("a", "b"), tied("a"), tied("b"))
    assert plan.ties == {HEAD: EMBED}
    assert HEAD not in plan.specs and len(plan.jobs) == 8


def test_tied_under_the_other_name() -> None:
    b = llama("b", ties={EMBED: HEAD})
    del b.specs[EMBED]
    plan = plan_of(linear("a", "b"), tied("a"), b)
    assert plan.ties == {HEAD: EMBED}
    assert plan.jobs[0].inputs == ((0, EMBED), (1, HEAD))
    # And where only the other name is known at all.
    b.ties = {}
    assert plan_of(linear("a", "b"), tied("a"), b).jobs[0].inputs == ((0, EMBED), (1, HEAD))


def test_tied_in_one_model_only() -> None:
    plan = plan_of(linear("a", "b"), tied("a"), llama("b"))
    assert plan.ties == {}
    jobs = {job.name: job for job in plan.jobs}
    assert jobs[HEAD].inputs == ((0, EMBED), (1, HEAD))
    assert jobs[EMBED].inputs == ((0, EMBED), (1, EMBED))


def test_tied_to_different_tensors() -> None:
    specs: dict[str, Any] = {"x": ("float32", 2), "y": ("float32", 2)}
    a, b = Header("a", specs, ties={"z": "x"}), Header("b", specs, ties={"z": "y"})
    plan = plan_of(linear("a", "b"), a, b)
    assert plan.ties == {}
    assert {job.name: job.inputs for job in plan.jobs}["z"] == ((0, "x"), (1, "y"))


def test_what_config_json_ties_counts_as_present() -> None:
    plan = plan_of(linear("a", "b"), llama("a"), without_head("b", implied={HEAD: EMBED}))
    assert {job.name: job.inputs for job in plan.jobs}[HEAD] == ((0, HEAD), (1, EMBED))
    assert refused(linear("a", "b"), llama("a"), without_head("b"))[0].startswith(f"P302 {HEAD}: ")
    # Where no model stores the head, nobody needs it.
    models = [without_head(label, implied={HEAD: EMBED}) for label in "ab"]
    plan = plan_of(linear("a", "b"), *models)
    assert (plan.ties, HEAD in plan.specs) == ({}, False)


def config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    tiny_llama(tmp_path / "a", seed=1, layers=1)
    tiny_llama(tmp_path / "b", seed=2, layers=1, base=tmp_path / "a")
    return tmp_path / "a", tmp_path / "b"


def test_config_json_ties_a_head_that_is_stored(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        config(folder, tie_word_embeddings=True)
    source = eutectic.open(folders[0])
    assert dict(source.ties) == {HEAD: EMBED}
    assert HEAD not in source.specs
    assert torch.equal(source[HEAD], source[EMBED])
    source.close()
    plan = eutectic.plan(linear(*map(str, folders)))
    assert plan.ties == {HEAD: EMBED}
    why = f"config.json ties it to {EMBED}; if it is a head of its own, set tie_word_embeddings to false there"
    assert plan.notes == tuple(f"{label}: the stored {HEAD} is not merged: {why}" for label in "ab")
    assert plan.dropped == tuple((label, HEAD, why) for label in "ab")
    plan.close()


def test_a_head_that_one_model_ties_is_untied_in_the_output(folders: tuple[Path, Path], tmp_path: Path) -> None:
    config(folders[0], tie_word_embeddings=True)
    done = eutectic.merge(linear(*map(str, folders)), tmp_path / "out")
    assert HEAD in done.plan.specs and done.plan.ties == {}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    note = f"{HEAD} is not tied in every model, so it is merged by itself and config.json unties it"
    assert done.notes[-1] == note
    assert not eutectic.verify(tmp_path / "out").problems


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ('{"tie_word_embeddings": false}', (4, 2)),
        ('{"tie_word_embeddings": 1}', (4, 2)),
        ("[]", (4, 2)),
        ("{", (4, 2)),
        ("[" * 5000, (4, 2)),
        ('{"tie_word_embeddings": true}', (5, 2)),
    ],
)
def test_config_that_ties_nothing(tmp_path: Path, text: str, head: tuple[int, int]) -> None:
    write_safetensors(tmp_path / "model.safetensors", {EMBED: torch.zeros(4, 2), HEAD: torch.zeros(head)})
    (tmp_path / "config.json").write_text(text)
    assert HEAD in eutectic.open(tmp_path).specs


@pytest.mark.parametrize("name", ["transformer.wte.weight", "a.word_embeddings.weight", "gpt_neox.embed_in.weight"])
def test_names_of_embeddings(tmp_path: Path, name: str) -> None:
    write_safetensors(tmp_path / "model.safetensors", {name: torch.zeros(4, 2), HEAD: torch.zeros(4, 2)})
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    assert dict(eutectic.open(tmp_path).ties) == {HEAD: name}
    assert dict(eutectic.open(tmp_path / "model.safetensors").ties) == {HEAD: name}


def test_two_embeddings_are_not_guessed_between(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(4, 2) for name in ("a.embed_tokens.weight", "b.embed_tokens.weight", HEAD)}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    assert HEAD in eutectic.open(tmp_path).specs


def test_ties_of_live_models_and_of_metadata(tmp_path: Path) -> None:
    shared = torch.ones(4, 2)
    live = {EMBED: shared, HEAD: shared}
    write_safetensors(tmp_path / "m.safetensors", {EMBED: torch.zeros(4, 2)}, {HEAD: EMBED})
    torch.save({EMBED: shared, HEAD: shared}, tmp_path / "t.bin")
    plan = eutectic.plan(linear(live, str(tmp_path / "m.safetensors"), str(tmp_path / "t.bin")))
    assert plan.ties == {HEAD: EMBED}
    assert len(plan.jobs) == 1
    plan.close()
