"""What the tests of evaluation share: files of items for the tiny tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A `.jsonl` file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(draw: np.random.Generator, count: int) -> str:
    """Words of the tiny tokenizer."""
    return " ".join(f"w{i}" for i in draw.integers(3, 96, count))
