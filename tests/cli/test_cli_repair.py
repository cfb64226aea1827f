"""REPAIR from the command line: whole or not at all, and the manifest says what was changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commanding import Run
from safetensors.torch import load_file, save_file

import eutectic
from eutectic.testing import tiny_llama

ASK = ["--parent", "one", "--parent", "two", "--data", "text.jsonl"]


@pytest.fixture(autouse=True)
def merge(here: Path, run: Run) -> None:
    """Two models that were trained apart, the second aligned, and their merge."""
    for number, name in enumerate(("one", "two"), 5):
        tiny_llama(here / name, seed=number, layers=1, hidden=16, intermediate=16)
    lines = [json.dumps({"text": " ".join(f"w{3 + (i * 7 + k) % 80}" for k in range(4 + 3 * i))}) for i in range(8)]
    (here / "text.jsonl").write_text("\n".join(lines) + "\n")
    eutectic.align("one", "two", out="perm")
    (here / "m.yml").write_text("merge_method: linear\nmodels: [one, {model: two, aligned: perm}]\n")
    assert run("merge", "m.yml", "merged", "--quiet").exit_code == 0


def test_a_merge_is_repaired_and_its_manifest_says_how(run: Run, here: Path) -> None:
    done = run("repair", "merged", "out", *ASK, "--alignment", "perm")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "repaired 7 of 12 tensors" in done.stdout and "lm_head" in done.stdout and "RMSNorm" in done.stdout
    manifest = json.loads((here / "out" / "eutectic.json").read_text())
    (said,) = manifest["inputs"]
    assert said["repaired"]["how"] == "sequential" and said["repaired"]["parents"][1]["aligned"]["to"] == "one"
    up = "model.layers.0.mlp.up_proj.weight"
    assert manifest["tensors"][up]["reason"].startswith("REPAIR: gains ")
    assert "reason" not in manifest["tensors"]["lm_head.weight"]
    before, after = eutectic.open("merged"), eutectic.open("out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name, entry in manifest["tensors"].items() if "REPAIR" in entry.get("reason", "")}
    gains = (after[up].float() / before[up].float())[before[up] != 0].reshape(-1)
    assert float(gains.min()) > 0.5 and float(gains.max()) > 1.05
    assert run("verify", "out", "--stored-only", "--quiet").exit_code == 0
    again = run("verify", "out")
    assert again.exit_code == 1 and "V704" in again.stderr and "`--stored-only`" in again.stderr


def test_a_parent_that_was_aligned_and_comes_as_it_is_stored_is_noted(run: Run, here: Path) -> None:
    done = run("repair", "merged", "out", *ASK)
    said = "'two' was aligned for the merge, and its channels stand here as they are stored: give the alignment"
    assert (done.exit_code, said in " ".join(done.stdout.split())) == (0, True)
    (here / "moved.yml").write_text("merge_method: passthrough\nmodels: [{model: two, aligned: perm}]\n")
    moved = [word.replace("two", "moved.yml") for word in ASK]
    assert "was aligned" not in run("repair", "merged", "other", *moved).stdout


def test_of_parents_of_one_name_the_aligned_one_is_noted(run: Run, here: Path) -> None:
    for name in ("one", "two"):
        (here / "runs" / name).mkdir(parents=True)
        (here / name).rename(here / "runs" / name / "final")
    models = "[runs/one/final, {model: runs/two/final, aligned: perm}]"
    (here / "finals.yml").write_text(f"merge_method: linear\nmodels: {models}\n")
    assert run("merge", "finals.yml", "finals", "--quiet").exit_code == 0
    ask = [f"runs/{word}/final" if word in ("one", "two") else word for word in ASK]
    told = run("repair", "finals", "out", *ask).stdout
    assert "'two/final' was aligned" in told and "'one/final' was" not in told


def test_json_the_closed_form_and_a_recipe_in_place_of_the_merge(run: Run, here: Path) -> None:
    done = run(
        "repair", "m.yml", "out", *ASK, "--alignment", "perm", "--how", "closed_form", "--samples", "3", "--json"
    )
    found = json.loads(done.stdout)
    assert found["path"] == str(here / "out") and len(found["changed"]) == 7
    assert list(found["left"]) == ["lm_head", "model.embed_tokens"]


def test_an_alignment_moves_its_own_model_whatever_others_have_in_common_with_that(run: Run, here: Path) -> None:
    tiny_llama(here / "three", seed=7, layers=1, hidden=16, intermediate=16)
    # The smallest tensors, in which both differ from the first.
    for name in ("two", "three"):
        model = load_file(here / name / "model.safetensors")
        model |= {key: torch.full_like(tensor, 2.0) for key, tensor in model.items() if tensor.dim() == 1}
        save_file(model, here / name / "model.safetensors", {"format": "pt"})
    eutectic.align("one", "two", out="moved")
    asked = [*ASK[:2], "--parent", "three", *ASK[2:], "--alignment", "moved", "--json"]
    done = run("repair", "merged", "out", *asked)
    assert done.exit_code == 0, done.stderr
    said = json.loads((here / "out" / "eutectic.json").read_text())["inputs"][0]["repaired"]
    assert ["aligned" in parent for parent in said["parents"]] == [False, False, True]


def test_the_whole_weight_on_one_parent_changes_nothing(run: Run) -> None:
    done = run("repair", "one", "out", *ASK, "--weight", "1", "--weight", "0", "--quiet")
    assert (done.exit_code, done.output) == (0, "")
    before, after = eutectic.open("one"), eutectic.open("out")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_cannot_be_is_said_before_long_work(run: Run, here: Path) -> None:
    def refused(*arguments: str) -> str:
        result = run("repair", "merged", *arguments)
        assert result.exit_code != 0 and not list(here.glob("out*"))
        return str(result.stderr)

    assert "G212" in refused("out", "--parent", "one", "--data", "text.jsonl", "--alignment", "perm")
    assert "G211 weights: 1 weight for 2 parents" in refused("out", *ASK, "--weight", "1")
    tiny_llama(here / "wide", seed=1, layers=1, hidden=32, intermediate=16)
    other = refused("out", "--parent", "one", "--parent", "wide", *ASK[4:], "--weight", "0", "--weight", "0")
    assert "G210 parents[1]: 'wide' differs from the merge in lm_head.weight" in other and "G211 weights" in other
    assert "one: exists" in refused("one", *ASK)
    assert "W406" in refused("merged/deeper", *ASK)
    assert "E903" in refused("out", *ASK[:4], "--data", "nothing.jsonl")
    assert "M602" in refused("out", *ASK, "--device", "tpu")
    (here / "merged" / "config.json").unlink()
    assert "E905" in refused("out", *ASK)
