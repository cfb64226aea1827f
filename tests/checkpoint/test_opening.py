"""What a reference to a model means."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eutectic.checkpoint import MemorySource, Place, open_source, resolve
from eutectic.checkpoint.codes import CODES
from eutectic.errors import CheckpointError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def model(path: Path, value: float = 1.0) -> Path:
    path.mkdir(parents=True)
    save_file({"a": torch.full((2,), value)}, path / "model.safetensors")
    return path


def test_an_existing_path_wins(here: Path) -> None:
    path = model(here / "org" / "name")
    assert resolve("org/name") == Place("name", str(path))
    assert resolve("./org/name/") == Place("name", str(path))
    assert resolve("org/other@v1.0") == Place("org/other@v1.0", None, "org/other", "v1.0")
    assert resolve("org/other") == Place("org/other", None, "org/other", None)


def test_the_current_folder_comes_before_the_recipe_s(here: Path) -> None:
    model(here / "recipes" / "m", 2)
    assert open_source("m", folder="recipes")["a"].tolist() == [2, 2]
    model(here / "m", 3)
    assert open_source("m", folder="recipes")["a"].tolist() == [3, 3]


def test_home_dot_files_and_plus(here: Path) -> None:
    path = model(here / "home" / "a+b")
    assert resolve("~/a+b").path == str(path)
    assert open_source(path / "model.safetensors").label == "model.safetensors"
    assert open_source(path, label="x").label == "x"
    assert resolve(".").label == here.name


@pytest.mark.parametrize(
    ("ref", "code", "words"),
    [
        ("modelA", "C200", "'modelA' does not exist; did you mean 'model_a'?"),
        ("./models/modelB", "C200", "did you mean './models/model_b'?"),
        ("", "C200", "'' does not exist; name a folder"),
        ("model_a/modul.safetensors", "C200", "does not exist; did you mean 'model_a/model.safetensors'?"),
        ("a/b/c", "C200", "'a/b/c' does not exist"),
        ("/nowhere/at/all", "C200", "does not exist"),
        ("-x/y", "C200", "does not exist"),
        ("org/na me", "C200", "does not exist"),
        ("model_a+lora", "C205", "asks for a model with a LoRA adapter; adapters are not read yet"),
        ("org/name@v1+org/lora", "C205", "LoRA"),
        ("https://example.org/model", "C209", "is a URL"),
        ("http://169.254.169.254/latest", "C209", "is a URL"),
        ("s3://bucket/a+b", "C209", "is a URL"),
        ("file:///etc/passwd", "C209", "is a URL"),
    ],
)
def test_what_is_no_model(here: Path, ref: str, code: str, words: str) -> None:
    model(here / "model_a")
    model(here / "models" / "model_b")
    with pytest.raises(CheckpointError) as caught:
        resolve(ref)
    (problem,) = caught.value.problems
    assert problem.code == code and code in CODES and problem.hint
    assert words in str(problem)


def test_near_names_are_sought_in_the_recipe_s_folder_too(here: Path) -> None:
    model(here / "recipes" / "model_a")
    with pytest.raises(CheckpointError, match="did you mean 'model_a'"):
        resolve("modela", "recipes")


def test_other_kinds_of_model(here: Path) -> None:
    module = nn.Linear(2, 3)
    source = open_source(module)
    assert isinstance(source, MemorySource) and source.label == "Linear"
    assert open_source(source) is source
    assert open_source({"x": torch.zeros(1)}, label="base").label == "base"
    with pytest.raises(CheckpointError, match=r"C204 a recipe is no model; `eutectic.merged` makes one of it"):
        open_source({"merge_method": "linear", "models": ["a", "b"]})
    with pytest.raises(CheckpointError, match="C200 a int is no model"):
        open_source(3)


def test_an_existing_file_of_another_kind(here: Path) -> None:
    (here / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="C204"):
        open_source("model.gguf")


def test_opening_a_folder_imports_no_torch(here: Path) -> None:
    path = model(here / "m")
    code = (
        f"import sys, eutectic.checkpoint as c; s = c.open_source({str(path)!r}); assert len(s.specs) == 1\n"
        "print([m for m in ('torch', 'numpy', 'numba', 'huggingface_hub', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_code_has_an_explanation() -> None:
    for code, (title, text) in CODES.items():
        assert code.startswith(("C2", "W4")) and title == title.rstrip(".") and text.endswith(".") and len(text) > 60
