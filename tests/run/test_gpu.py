"""The CUDA path against the CPU's: run by `make test-gpu` where there is a GPU."""

from __future__ import annotations

import pytest
import torch

import eutectic
from eutectic.api import Options
from faults import family


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_a_gpu_merges_like_the_cpu(tmp_path, method):
    recipe = family(tmp_path) | {"merge_method": method, "parameters": {"density": 0.5}}
    if method == "linear":
        recipe = {"merge_method": method, "models": recipe["models"]}
    elif method == "slerp":
        recipe = recipe | {"models": [recipe["models"][0]["model"]], "parameters": {"t": 0.3}}
    elif method == "task_arithmetic":
        recipe["parameters"] = {"lambda": 0.5}
    for device in ("cpu", "cuda"):
        eutectic.merge(recipe, tmp_path / device, options=Options(device=device))
    ours, theirs = eutectic.open(str(tmp_path / "cpu")), eutectic.open(str(tmp_path / "cuda"))
    for name in ours:
        # The same masks and kept sets, so nothing differs by more than the last digits.
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-2, atol=1e-6)
