"""A GPU gives the CPU's scores, but for rounding."""

from __future__ import annotations

from pathlib import Path

import pytest

import eutectic
from eutectic.evaluate import Choice, ExactMatch, Perplexity

pytest.importorskip("transformers")


@pytest.mark.gpu
def test_scores_on_a_gpu(here: Path) -> None:
    for task in (
        Perplexity("text.jsonl", block=16, dtype="float32"),
        Choice("choice.jsonl", dtype="float32"),
        ExactMatch("match.jsonl", max_new_tokens=3, dtype="float32"),
    ):
        cpu, gpu = (eutectic.evaluate("recipe.yml", task, device=device, cache=False) for device in ("cpu", "cuda"))
        assert gpu.items.tolist() == pytest.approx(cpu.items.tolist(), rel=1e-3)
