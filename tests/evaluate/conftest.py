"""Three tiny models, data of each kind beside them, and a cache of scores of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from items import words, write_lines

from eutectic.testing import tiny_llama


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("evaluate")
    tiny_llama(home / "base", seed=1, layers=1)
    # Far from the base, so that they differ in what they answer.
    tiny_llama(home / "a", seed=2, base=home / "base", noise=0.2)
    tiny_llama(home / "b", seed=3, base=home / "base", noise=0.2)
    draw = np.random.default_rng(0)
    write_lines(home / "text.jsonl", ({"text": words(draw, int(n))} for n in draw.integers(1, 70, 12)))
    (home / "text.txt").write_text(words(draw, 100))
    write_lines(
        home / "choice.jsonl",
        (
            {
                "question": words(draw, 1 + i % 5),
                "choices": [words(draw, 1 + j) for j in range(2 + i % 3)],
                "answer": i % 2,
            }
            for i in range(20)
        ),
    )
    write_lines(home / "match.jsonl", ({"prompt": words(draw, 1 + i), "answer": "w5"} for i in range(7)))
    parts = ("  - {model: a, parameters: {weight: 0.3}}", "  - {model: b, parameters: {weight: 0.7}}")
    (home / "recipe.yml").write_text("\n".join(["merge_method: linear", "models:", *parts]) + "\n")
    return home


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all of it, which is the current folder."""
    home = tmp_path / "home"
    shutil.copytree(made, home)
    monkeypatch.chdir(home)
    monkeypatch.setenv("EUTECTIC_CACHE", str(tmp_path / "cache"))
    return home
