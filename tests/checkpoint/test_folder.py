"""Folders and files: what is found, what is preferred, and everything that is refused."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from eutectic.checkpoint import Spec, inside, open_file, open_folder
from eutectic.checkpoint.codes import CODES
from eutectic.errors import CheckpointError

INDEX = "model.safetensors.index.json"


def tensors(*names: str, value: float = 1.0) -> dict[str, torch.Tensor]:
    return {name: torch.full((2, 3), value) for name in names}


def write_index(folder: Path, weight_map: Any, name: str = INDEX) -> None:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 48.0}, "weight_map": weight_map}))


def sharded(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors("a", "b"), folder / "model-00001-of-00002.safetensors")
    save_file(tensors("c", value=2), folder / "model-00002-of-00002.safetensors")
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    write_index(folder, {"a": first, "b": first, "c": second})
    return folder


def refused(folder: Path, code: str, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_folder(str(folder), "m")
    (problem,) = caught.value.problems
    assert problem.code == code, problem
    assert code in CODES and problem.hint and problem.file.startswith(str(folder))
    for word in words:
        assert word in str(problem)


# Finding


def test_one_file(tmp_path: Path) -> None:
    save_file(tensors("a"), tmp_path / "model.safetensors", metadata={"format": "pt"})
    source = open_folder(str(tmp_path), "m")
    assert dict(source.specs) == {"a": Spec("float32", (2, 3))}
    assert source["a"].tolist() == [[1.0] * 3] * 2
    assert source.metadata == {"format": "pt"} and source.folder() == str(tmp_path)
    identity = json.loads(json.dumps(source.identity()))
    (file,) = identity["files"]
    assert identity["label"] == "m" and file["name"] == "model.safetensors"
    assert file["size"] == (tmp_path / "model.safetensors").stat().st_size and len(file["header"]) == 32


def test_shards(tmp_path: Path) -> None:
    save_file(tensors("old"), sharded(tmp_path) / "model-00003-of-00003.safetensors")
    source = open_folder(str(tmp_path), "m")
    assert sorted(source) == ["a", "b", "c"]
    assert source["c"].sum() == 12
    source.check_unchanged()


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "other.safetensors"], "model.safetensors"),
        (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"], None),
        (["consolidated.safetensors", "config.json"], "consolidated.safetensors"),
    ],
)
def test_what_is_preferred(tmp_path: Path, names: list[str], chosen: str | None) -> None:
    for name in names:
        save_file(tensors(name), tmp_path / name)
    assert list(open_folder(str(tmp_path), "m")) == [chosen or names[0]]


def test_a_single_index_of_another_name(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).rename(tmp_path / "unet.safetensors.index.json")
    assert len(open_folder(str(tmp_path), "m")) == 3


def test_an_index_beside_the_one_file_it_names(tmp_path: Path) -> None:
    save_file(tensors("a"), tmp_path / "model.safetensors")
    write_index(tmp_path, {"a": "model.safetensors"})
    assert list(open_folder(str(tmp_path), "m")) == ["a"]


def test_ambiguous_folders(tmp_path: Path) -> None:
    save_file(tensors("a"), tmp_path / "x.safetensors")
    save_file(tensors("a"), tmp_path / "y.safetensors")
    refused(tmp_path, "C202", "x.safetensors, y.safetensors")
    save_file(tensors("a"), sharded(tmp_path) / "model.safetensors")
    refused(tmp_path, "C202", INDEX)
    assert list(open_file(str(tmp_path / "model.safetensors"), "m")) == ["a"]
    assert len(open_file(str(tmp_path / INDEX), "m")) == 3


def test_folders_without_weights(tmp_path: Path) -> None:
    refused(tmp_path, "C201", "it is empty")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "\x1b[2J").write_text("")
    refused(tmp_path, "C201", "config.json", "'\\x1b[2J'")
    save_file(tensors("a"), tmp_path / "adapter_model.safetensors")
    refused(tmp_path, "C205", "LoRA")
    save_file(tensors("a"), tmp_path / "model-00001-of-00002.safetensors")
    refused(tmp_path, "C201", "without an index")
    refused(tmp_path / "missing", "C221", "No such file")


def test_bare_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(tensors("a"), tmp_path / "x.safetensors")
    assert open_file(str(tmp_path / "x.safetensors"), "x").folder() is None
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert open_file("x.safetensors", "x").folder() == "."
    with pytest.raises(CheckpointError, match=r"C204 x.gguf: .*not a kind of checkpoint"):
        open_file("x.gguf", "x")
    with pytest.raises(CheckpointError, match=r"C221 y.safetensors: .*'x' cannot be read: No such file"):
        open_file("y.safetensors", "x")


def test_torch_files(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": weight, "tied": weight, "t": weight.T}, tmp_path / "first.bin")
    torch.save({"c": weight.bfloat16()}, tmp_path / "second.bin")
    index = "pytorch_model.bin.index.json"
    write_index(tmp_path, {"a": "first.bin", "tied": "first.bin", "t": "first.bin", "c": "second.bin"}, index)
    source = open_folder(str(tmp_path), "m")
    assert source.ties == {"tied": "a"}
    assert torch.equal(source["tied"], weight) and torch.equal(source["t"], weight.T)
    assert torch.equal(source["c"], weight.bfloat16())
    assert [file["name"] for file in source.identity()["files"]] == ["first.bin", "second.bin"]
    assert list(open_file(str(tmp_path / "second.bin"), "m")) == ["c"]


def test_ties_stand_in_the_metadata(tmp_path: Path) -> None:
    metadata = {"head": "embed", "format": "pt", "embed": "embed", "x": "gone", "a\nb": "embed"}
    save_file(tensors("embed"), tmp_path / "model.safetensors", metadata=metadata)
    source = open_folder(str(tmp_path), "m")
    assert source.ties == {"head": "embed"}
    assert source["head"].sum() == 6


def test_an_index_may_list_a_tied_name(tmp_path: Path) -> None:
    save_file(tensors("embed"), tmp_path / "1.safetensors", metadata={"head": "embed"})
    save_file(tensors("b"), tmp_path / "2.safetensors")
    write_index(tmp_path, {"embed": "1.safetensors", "head": "1.safetensors", "b": "2.safetensors"})
    assert open_folder(str(tmp_path), "m").ties == {"head": "embed"}


# Index and shards


def test_index_and_shards_disagree(tmp_path: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    sharded(tmp_path)
    write_index(tmp_path, {"a": first, "b": second, "c": second})
    refused(tmp_path, "C206", first, "holds b, which", "does not place there")
    write_index(tmp_path, {"a": first, "b": first, "c": second, "d": second})
    refused(tmp_path, "C206", f"{second!r} holds d, and it does not")
    save_file(tensors("a", "c"), tmp_path / second)
    write_index(tmp_path, {"a": first, "b": first, "c": second})
    refused(tmp_path, "C206", f"{second!r} of model 'm' holds a, which")
    (tmp_path / second).unlink()
    refused(tmp_path, "C206", second, "is missing", "finish the download")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[]", "no weight_map"),
        ("{}", "no weight_map"),
        ('{"weight_map": []}', "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": {"a": 1}}', "without a name"),
        ('{"weight_map": {"a": null}}', "without a name"),
        ('{"weight_map": {"a": ["x.safetensors"]}}', "without a name"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' stands twice"),
        ('{"weight_map": {}, "weight_map": {"a": "x.safetensors"}}', "stands twice"),
        ('{"weight_map": {"a": "evil.bin"}}', "not a .safetensors file"),
        ('{"weight_map": {"a": "x"}}', "not a .safetensors file"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_indexes(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / INDEX).write_text(text)
    refused(tmp_path, "C207", words)


OUTSIDE = [
    "../x",
    "/etc/x",
    "a/../../x",
    "./x",
    "a//x",
    "..\\x",
    "C:\\x",
    "x\0",
    "",
    "a/./x",
    "../../secret/x",
    "\x1bx",
]
OUTSIDE += ["http://a/x", "file:///x", "//a/x", "\u202ex"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_cannot_name_a_file_elsewhere(tmp_path: Path, name: str) -> None:
    write_index(tmp_path, {"a": name and f"{name}.safetensors"})
    opened = audit(lambda: refused(tmp_path, "C208", "not a plain path"))
    assert opened == {str(tmp_path / INDEX)}


_listeners: list[set[str]] = []


def _listen(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _listeners and isinstance(args[0], str):
        _listeners[-1].add(args[0])


sys.addaudithook(_listen)


def audit(action: Any) -> set[str]:
    """Every path that the interpreter opened during `action`, of those in a temporary folder."""
    _listeners.append(set())
    try:
        action()
    finally:
        opened = _listeners.pop()
    return {path for path in opened if "pytest-of" in path}


# Links and special files


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    secret, model = tmp_path / "secret", tmp_path / "model"
    secret.mkdir()
    model.mkdir()
    save_file(tensors("a"), secret / "model.safetensors")
    link = model / "model.safetensors"
    link.symlink_to(secret / "model.safetensors")
    opened = audit(lambda: refused(model, "C208", "a link that leaves"))
    assert not opened
    link.unlink()
    link.symlink_to("nowhere/../../gone")
    refused(model, "C208")
    link.unlink()
    (model / "sub").symlink_to(secret)
    write_index(model, {"a": "sub/model.safetensors"})
    refused(model, "C208")
    (model / INDEX).unlink()
    (secret / INDEX).write_text("{}")
    (model / INDEX).symlink_to(secret / INDEX)
    refused(model, "C208")


def test_a_sibling_with_the_same_prefix_is_outside(tmp_path: Path) -> None:
    for name in ("model", "model2"):
        (tmp_path / name).mkdir()
    save_file(tensors("a"), tmp_path / "model2" / "x.safetensors")
    (tmp_path / "model" / "model.safetensors").symlink_to("../model2/x.safetensors")
    refused(tmp_path / "model", "C208")


def test_links_within_the_folder_and_to_the_folder(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "data").mkdir(parents=True)
    save_file(tensors("a"), model / "data" / "x.safetensors")
    (model / "model.safetensors").symlink_to("data/x.safetensors")
    (tmp_path / "alias").symlink_to(model)
    assert list(open_folder(str(tmp_path / "alias"), "m")) == ["a"]
    (model / "model.safetensors").unlink()
    write_index(model, {"a": "data/x.safetensors"})
    assert list(open_folder(str(model), "m")) == ["a"]


def test_link_loops_and_dangling_links(tmp_path: Path) -> None:
    link = tmp_path / "model.safetensors"
    link.symlink_to("model.safetensors")
    refused(tmp_path, "C221", "symbolic links")
    link.unlink()
    link.symlink_to("gone")
    refused(tmp_path, "C221", "No such file")


def test_a_hub_cache_is_made_of_links(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    save_file(tensors("a"), repository / "blobs" / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    source = open_folder(str(snapshot), "m")
    assert source.identity()["repository"] == "org/name" and source.identity()["revision"] == "c0ffee"
    assert inside(str(snapshot), "model.safetensors", "m") == str((repository / "blobs" / "123").resolve())
    other = tmp_path / "models--org--other"
    other.mkdir()
    save_file(tensors("a"), other / "123")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../../models--org--other/123")
    refused(snapshot, "C208")


def test_special_files_do_not_block(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    began = time.monotonic()
    os.mkfifo(path)
    refused(tmp_path, "C221", "not a regular file")
    path.unlink()
    path.mkdir()
    refused(tmp_path, "C221", "not a regular file")
    path.rmdir()
    os.mkfifo(tmp_path / INDEX)
    refused(tmp_path, "C221", "not a regular file")
    (tmp_path / INDEX).unlink()
    with socket.socket(socket.AF_UNIX) as server:
        place = os.open(tmp_path, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{place}/model.safetensors")
        os.close(place)
        refused(tmp_path, "C221")
    assert time.monotonic() - began < 60


def test_a_device_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"C221 .*not a regular file"):
        open_file(str(tmp_path / "x.safetensors"), "m")
