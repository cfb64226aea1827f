"""Three tiny models, recipes beside them, and the command run in that folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import Result
from commanding import Run
from typer.testing import CliRunner

from eutectic.cli.commands import app
from eutectic.testing import tiny_llama

RECIPE = """merge_method: linear
models:
  - model: a
    parameters: {weight: 1}
  - model: b
    parameters: {weight: 3}
"""
DARE = """merge_method: dare_linear
base_model: base
models: [a, b]
parameters: {density: 0.5}
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    tiny_llama(home / "base", seed=1, layers=1, hidden=16, intermediate=16)
    tiny_llama(home / "a", seed=2, base=home / "base")
    tiny_llama(home / "b", seed=3, base=home / "base", shards=2)
    return home


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the models and two recipes, which is the current one."""
    for model in models.iterdir():
        shutil.copytree(model, tmp_path / model.name)
    (tmp_path / "r.yml").write_text(RECIPE)
    (tmp_path / "dare.yml").write_text(DARE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def run(here: Path) -> Run:
    """Runs `eutectic` with the arguments given, within this process."""

    def runner(*arguments: object) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        # Anything but a deliberate end is a bug that a user would see as a traceback.
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.stderr
        return result

    return runner
