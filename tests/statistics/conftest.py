"""A tiny model with text beside it, and the command run in that folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from eutectic.cli.commands import app
from eutectic.testing import tiny_llama


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: model, text whole (`text.jsonl`) and in two parts, and one without its field."""
    tiny_llama(tmp_path / "model", seed=1, layers=1)
    tiny_llama(tmp_path / "other", seed=2, base=tmp_path / "model")
    lines = [json.dumps({"text": " ".join(f"w{3 + (i * 7 + k) % 80}" for k in range(4 + 3 * i))}) for i in range(8)]
    for name, chosen in (("text", lines), ("first", lines[:3]), ("rest", lines[3:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(chosen) + "\n")
    (tmp_path / "fields.jsonl").write_text('{"prompt": "w3"}\n{"text": 1}\n')
    (tmp_path / "empty.txt").write_text(" \n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def run(here: Path) -> Callable[..., Result]:
    """Runs `eutectic collect` with the arguments given, within this process."""

    def runner(*arguments: object) -> Result:
        result = CliRunner().invoke(app, ["collect", *map(str, arguments)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return runner
