"""Hub ids: from a cache folder made here, and what is said when the hub cannot serve. No network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import save

from eutectic.checkpoint import hub, open_source
from eutectic.checkpoint.codes import CODES
from eutectic.errors import CheckpointError

COMMIT = "c0ffee" + "0" * 34


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no way out."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fill(cache: Path, files: dict[str, bytes]) -> Path:
    """A cached `org/name` as the client lays it out: blobs, links to them, and a ref for the branch."""
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for i, (name, data) in enumerate(files.items()):
        (repository / "blobs" / str(i)).write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{i}")
    return snapshot


WEIGHTS = save({"a": torch.ones(3)})


def test_a_cached_model(cache: Path) -> None:
    snapshot = fill(cache, {"config.json": b"{}", "model.safetensors": WEIGHTS})
    assert hub.fetch("org/name", None) == str(snapshot)
    assert hub.fetch("org/name", COMMIT) == str(snapshot)
    source = open_source("org/name@main")
    assert source.label == "org/name@main" and source["a"].tolist() == [1, 1, 1]
    assert source.identity()["revision"] == COMMIT and source.folder() == str(snapshot)


def refused(code: str, *words: str, repo: str = "org/name", revision: str | None = None) -> None:
    with pytest.raises(CheckpointError) as caught:
        hub.fetch(repo, revision)
    (problem,) = caught.value.problems
    assert problem.code == code and code in CODES and problem.hint, problem
    for word in words:
        assert word in str(problem)


def test_not_cached_and_offline(cache: Path) -> None:
    refused("C253", "'org/name' is not in the local cache", "download it")
    with pytest.raises(CheckpointError, match="C253"):
        open_source("org/name")
    fill(cache, {"model.safetensors": WEIGHTS})
    refused("C253", "'org/name@v2'", revision="v2")


def test_an_unfinished_download_is_not_a_cached_model(cache: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    snapshot = fill(cache, {"model.safetensors.index.json": json.dumps(index).encode(), "model-1.safetensors": WEIGHTS})
    refused("C253")
    (snapshot / "model-2.safetensors").write_bytes(save({"b": torch.ones(1)}))
    assert sorted(open_source("org/name")) == ["a", "b"]


def test_a_broken_cached_index_is_reported_not_downloaded_again(cache: Path) -> None:
    fill(cache, {"model.safetensors.index.json": b"{"})
    with pytest.raises(CheckpointError, match="C207"):
        open_source("org/name")


def test_a_near_folder_is_suggested(cache: Path) -> None:
    (cache / "models" / "model_a").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"C253 .*; did you mean 'models/model_a'\?"):
        open_source("models/modelA")


def test_the_extra_is_named_when_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("C250", "pip install 'eutectic[hub]'")


class Hub:
    """Stands for the client: nothing cached, these files on the hub."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: list[str], error: Exception | None = None) -> None:
        self.names, self.error = names, error
        self.asked: dict[str, Any] = {}
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def model_info(self, repo_id: str, revision: str | None = None) -> Any:
        if self.error:
            raise self.error
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.names])

    def snapshot_download(self, repo_id: str, **options: Any) -> str:
        if options.get("local_files_only"):
            raise errors.LocalEntryNotFoundError("nothing here")
        self.asked = options
        return "there"


def test_what_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    text = ["*.json", "*.txt", "*.model", "*.jinja"]
    client = Hub(monkeypatch, ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.safetensors"])
    assert hub.fetch("org/name", "v1") == "there"
    assert client.asked == {"revision": "v1", "allow_patterns": [*text, "model.safetensors"]}
    client = Hub(monkeypatch, ["pytorch_model.bin", "training_args.bin", "model[1].py"])
    hub.fetch("org/name", None)
    assert client.asked["allow_patterns"] == [*text, "pytorch_model.bin"]
    Hub(monkeypatch, ["README.md", "model.gguf"])
    refused("C201", "holds no safetensors or torch weights")


def http(kind: type[Exception]) -> Exception:
    # Made without its constructor, which wants a response of the HTTP library of the day.
    return kind.__new__(kind, "it failed")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (http(errors.GatedRepoError), "C252", "is gated"),
        (http(errors.RepositoryNotFoundError), "C251", "there is no hub model 'org/name'"),
        (http(errors.RevisionNotFoundError), "C251", "has no such revision"),
        (errors.HFValidationError("bad"), "C251", "there is no hub model"),
        (errors.OfflineModeIsEnabled("offline"), "C253", "cannot be asked"),
        (TimeoutError("timed out\nat length"), "C254", "could not be had: timed out; try again"),
        (ValueError(), "C254", "could not be had: ValueError"),
    ],
)
def test_what_the_hub_may_answer(monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, words: str) -> None:
    Hub(monkeypatch, [], error)
    refused(code, words)
