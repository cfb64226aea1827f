"""`verify` finds every damage to an output and says where it is."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys

import pytest
import torch

import eutectic
from eutectic.api import Options, verify_bytes
from eutectic.errors import CheckpointError
from eutectic.report.manifest import encoded
from eutectic.testing import tiny_llama, write_safetensors
from faults import FaultStorage, contents, family


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("made")
    recipe = family(home)
    eutectic.merge(recipe, home / "out", options=Options(threads=1, shard_bytes=1500), storage=FaultStorage())
    return home / "out", contents(home / "out")


@pytest.fixture
def out(made):
    """The output, mended after each test."""
    path, whole = made
    yield path
    shutil.rmtree(path)
    path.mkdir()
    for name, data in whole.items():
        (path / name).write_bytes(data)


def problems(out, **keywords):
    try:
        return eutectic.verify(out, **keywords).problems
    except CheckpointError as error:
        return list(error.problems)


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_an_output_that_nobody_touched_is_fine(out):
    found = eutectic.verify(out)
    assert not found.problems
    assert found.stored == found.derived == len(json.loads((out / "eutectic.json").read_text())["tensors"])
    assert found.files == len(contents(out)) - 1 - len(list(out.glob("*.safetensors")))
    assert eutectic.verify(out, stored_only=True).derived == 0


def tensor_at(path, byte):
    """The tensor that a byte of a safetensors file belongs to; none for the header."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] <= byte - start < entry["data_offsets"][1]:
            return name
    return None


def test_every_flipped_bit_of_the_weights_is_found_and_the_tensor_named(out):
    rng = random.Random(3)
    for path in sorted(out.glob("*.safetensors")):
        whole = path.read_bytes()
        for _ in range(max(4, 60 // len(list(out.glob("*.safetensors"))))):
            bit = rng.randrange(8 * len(whole))
            name = tensor_at(path, bit // 8)
            flip(path, bit)
            found = problems(out, stored_only=True)
            assert found, f"bit {bit} of {path.name}"
            if name is not None:
                assert [(problem.code, problem.where) for problem in found] == [("V702", name)]
            else:
                assert path.name in " ".join(map(str, found))
            path.write_bytes(whole)


@pytest.mark.parametrize("name", ["eutectic.json", "config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_every_flipped_bit_of_the_other_files_is_found(out, name):
    path, rng = out / name, random.Random(4)
    whole = path.read_bytes()
    for _ in range(50):
        bit = rng.randrange(8 * len(whole))
        flip(path, bit)
        found = problems(out, stored_only=True)
        assert found and all(problem.code in {"V701", "V702"} for problem in found), f"bit {bit}"
        assert name in " ".join(map(str, found))
        path.write_bytes(whole)


def test_a_changed_digest_in_the_manifest_names_its_tensor(out):
    path = out / "eutectic.json"
    manifest = json.loads(path.read_text())
    name = next(iter(manifest["tensors"]))
    digest = manifest["tensors"][name]["digest"]
    path.write_text(path.read_text().replace(digest, digest[:-1] + ("0" if digest[-1] != "0" else "1"), 1))
    assert {problem.where for problem in problems(out)} == {"eutectic.json", name}


@pytest.mark.parametrize(
    "damage", ["{}", "[]", "null", '{"tensors": {}}', '{"tensors": {"a": 1}}', "", "\xff", "{" * 9000, "[" * 99999]
)
def test_a_manifest_that_is_none_is_refused(out, damage):
    (out / "eutectic.json").write_text(damage, encoding="latin-1")
    with pytest.raises(CheckpointError, match="V701"):
        eutectic.verify(out)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("found_from", 5), ("found_from", [5]), ("weights", {"model.safetensors": 5}), ("files", [])),
        *(("inputs", 5), ("inputs", [5])),
    ],
)
def test_a_forged_manifest_of_another_form_is_refused(out, key, value):
    path = out / "eutectic.json"
    path.write_bytes(encoded(json.loads(path.read_bytes()) | {key: value}))
    with pytest.raises(CheckpointError, match=r"V701.*this is no manifest of a merge"):
        eutectic.verify(out)


def test_a_name_that_no_file_can_have_is_named(out):
    path = out / "eutectic.json"
    manifest = json.loads(path.read_bytes())
    path.write_bytes(encoded(manifest | {"files": manifest["files"] | {"a\0b": "0"}}))
    assert [problem.where for problem in problems(out)] == ["a\0b"]


def test_missing_and_added_files_and_tensors_are_named(out):
    shards = sorted(out.glob("*.safetensors"))
    kept = shards[0].read_bytes()
    shards[0].unlink()
    assert any(shards[0].name in str(problem) for problem in problems(out))
    shards[0].write_bytes(kept)
    (out / "config.json").unlink()
    assert [problem.where for problem in problems(out)] == ["config.json"]
    source = eutectic.open(str(out))
    tensors = {name: source[name] for name in source}
    for shard in shards:
        shard.unlink()
    (out / "model.safetensors.index.json").unlink()
    name = next(iter(tensors))
    write_safetensors(
        out / "model.safetensors", {k: t for k, t in tensors.items() if k != name} | {"new": tensors[name]}
    )
    named = {problem.where for problem in problems(out, stored_only=True)}
    assert {name, "new", "model.safetensors.index.json"} <= named


def test_files_that_do_no_harm_by_themselves_are_noted(out):
    assert eutectic.verify(out).added == []
    (out / "chat_template.jinja").write_text("{{ messages }}")
    (out / "images").mkdir()
    (out / "images" / "flow.svg").write_text("<svg/>")
    found = eutectic.verify(out)
    assert not found.problems and sorted(found.added) == ["chat_template.jinja", "images/flow.svg"]
    shutil.rmtree(out / "images")


def test_a_changed_and_a_missing_model(tmp_path):
    recipe = family(tmp_path)
    eutectic.merge(recipe, tmp_path / "out")
    model = tmp_path / "tuned-0"
    shutil.rmtree(model)
    tiny_llama(model, base=tmp_path / "base", seed=99, shards=2)
    found = problems(tmp_path / "out")
    assert found and {problem.code for problem in found} == {"V703"}
    assert "tuned-0 changed since the merge" in found[0].message
    assert {problem.where for problem in found[1:]} <= set(eutectic.open(str(tmp_path / "out")).specs)
    assert not problems(tmp_path / "out", stored_only=True)
    shutil.rmtree(model)
    assert {problem.code for problem in problems(tmp_path / "out")} == {"V704"}
    assert not problems(tmp_path / "out", stored_only=True)


def test_a_sample_is_merged_again_and_everything_is_compared(out):
    steps = []
    found = eutectic.verify(out, sample=3, progress=steps.append)
    manifest = json.loads((out / "eutectic.json").read_text())
    assert (found.stored, found.derived, found.problems) == (len(manifest["tensors"]), 3, [])
    assert sum(steps[: found.stored]) == verify_bytes(out, stored_only=True) == verify_bytes(out) // 2
    assert eutectic.verify(out, sample=10**6).derived == found.stored


def test_a_header_of_another_size_is_named(out):
    path = sorted(out.glob("*.safetensors"))[0]
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    path.write_bytes((size + 8).to_bytes(8, "little") + raw[8 : 8 + size] + b" " * 8 + raw[8 + size :])
    assert [(p.where, p.message) for p in problems(out)] == [(path.name, "has another size or header than was written")]


def test_a_manifest_of_other_dtypes_is_told_from_the_weights(out):
    path = out / "eutectic.json"
    manifest = json.loads(path.read_bytes())
    name, entry = next(iter(manifest["tensors"].items()))
    entry["dtype"] = "float64"
    path.write_bytes(encoded(manifest))
    (found,) = problems(out)
    assert found.where == name and found.message.endswith(f"the manifest says float64 {entry['shape']}")


def test_models_of_other_tensors_give_other_tensors(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_safetensors(tmp_path / name / "model.safetensors", {"w": torch.ones(2), "v": torch.ones(2)})
    recipe = {"merge_method": "linear", "models": [str(tmp_path / "a"), str(tmp_path / "b")]}
    eutectic.merge(recipe, tmp_path / "out")
    for name in ("a", "b"):
        write_safetensors(tmp_path / name / "model.safetensors", {"w": torch.ones(2).half(), "u": torch.ones(2)})
    found = problems(tmp_path / "out")
    assert [(problem.code, problem.where) for problem in found] == [
        *[("V703", name) for name in ("w", "u")],
        ("V703", str(tmp_path / "out")),
    ]
    write_safetensors(tmp_path / "b" / "model.safetensors", {"w": torch.ones(3)})
    assert {problem.code for problem in problems(tmp_path / "out")} == {"V704"}


def test_models_that_lived_in_memory_cannot_be_merged_again(tmp_path):
    models = [{"model": {"x": torch.full((4,), float(i))}} for i in range(2)]
    eutectic.merge({"merge_method": "linear", "models": models}, tmp_path / "out")
    assert {problem.code for problem in problems(tmp_path / "out")} == {"V704"}
    assert not problems(tmp_path / "out", stored_only=True)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take names in UTF-8 alone")
def test_folders_whose_names_are_not_text(tmp_path, monkeypatch):
    folder = os.path.join(os.fsencode(tmp_path), b"\xff")
    os.mkdir(folder)
    tiny_llama(os.fsdecode(os.path.join(folder, b"a")), seed=1)
    tiny_llama(tmp_path / "b", seed=2)
    monkeypatch.chdir(os.fsdecode(folder))
    eutectic.merge({"merge_method": "linear", "models": ["a", "../b"]}, "../out")
    monkeypatch.chdir(tmp_path)
    assert not problems(tmp_path / "out")


def test_relative_models_are_found_through_links_and_after_a_move(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    recipe = family(tmp_path / "work")
    recipe["base_model"] = "base"
    for i, entry in enumerate(recipe["models"]):
        entry["model"] = f"tuned-{i}"
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "work" / "results").symlink_to(tmp_path / "disk" / "deep")
    eutectic.merge(recipe, "results/out")
    assert not problems("results/out")
    monkeypatch.chdir(tmp_path)
    assert not problems("work/results/out")
    assert not problems("disk/deep/out")


def test_a_manifest_stands_for_its_folder(out, monkeypatch):
    assert not eutectic.verify(out / "eutectic.json", stored_only=True).problems
    assert verify_bytes(out / "eutectic.json") == verify_bytes(out)
    monkeypatch.chdir(out)
    assert not eutectic.verify("eutectic.json", stored_only=True).problems


def test_a_damaged_manifest_is_told_from_none(out):
    (out / "eutectic.json").write_text("{")
    (found,) = problems(out)
    assert "the manifest is damaged" in found.message and "Copy the folder again" in found.hint
    (out / "eutectic.json").unlink()
    (found,) = problems(out)
    assert "there is no eutectic.json" in found.message and "`eutectic merge` made" in found.hint


def test_files_that_were_renamed_removed_or_added_are_told_apart(tmp_path):
    for name in "ab":
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": torch.ones(3)})
    out = tmp_path / "out"
    eutectic.merge({"merge_method": "linear", "models": [str(tmp_path / f"{name}.safetensors") for name in "ab"]}, out)
    os.rename(out / "model.safetensors", out / "other.safetensors")
    (found,) = problems(out)
    assert (found.where, found.message) == ("model.safetensors", "is called other.safetensors now")
    write_safetensors(out / "other.safetensors", {"w": torch.ones(3), "v": torch.ones(1)})
    assert [(p.where, p.message.split(":")[0]) for p in problems(out)] == [
        ("model.safetensors", "is missing"),
        ("other.safetensors", "is in the folder, and the manifest does not name it"),
        ("v", "is in a file, and the manifest does not name it"),
    ]


def test_a_merge_of_live_models_is_refused_in_one_line(tmp_path):
    models = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]
    eutectic.merge({"merge_method": "linear", "models": models}, tmp_path / "out")
    (found,) = problems(tmp_path / "out")
    assert (found.code, found.where) == ("V704", "")
    assert "models in memory (Linear, Linear#2)" in found.message and "`stored_only=True`" in found.hint
