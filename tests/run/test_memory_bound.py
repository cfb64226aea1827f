"""The memory bound is kept, measured as the peak resident size of a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import eutectic
from eutectic.api import Options
from eutectic.errors import ResourceError

SCRIPT = """
import json, sys
from eutectic import api
recipe, out, memory = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
api.merge(recipe, out, options=api.Options(threads=2, memory=memory))
assert "torch" not in sys.modules
# Not getrusage: after fork and exec its maximum begins at the size of the parent.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024)
"""
MIB = 1 << 20


def write_model(path, seed, tensors=12, rows=3000, columns=2080):
    """About 150 MB of bfloat16 in two sizes of tensors, by hand: the package under test is not what is measured."""
    path.mkdir()
    header, place, parts = {}, 0, []
    rng = np.random.default_rng(seed)
    for i in range(tensors):
        for name, shape in ((f"layers.{i}.weight", (rows, columns)), (f"layers.{i}.norm", (columns,))):
            size = 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [place, place + size]}
            parts.append((rng.standard_normal(size // 2, np.float32).view(np.uint32) >> 16).astype(np.uint16))
            place += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with open(path / "model.safetensors", "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for part in parts:
            file.write(part)
    return str(path)


def peak(recipe, out, memory):
    command = [sys.executable, "-c", SCRIPT, json.dumps(recipe), str(out), str(memory)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "slerp"])
def test_the_peak_stays_below_the_bound(tmp_path, method):
    paths = [write_model(tmp_path / f"m{i}", i) for i in range(4)]
    recipe = {"merge_method": method, "base_model": paths[0], "models": [{"model": path} for path in paths[1:]]}
    if method == "linear":
        recipe = {"merge_method": method, "models": [{"model": path} for path in paths], "parameters": {"weight": 1.0}}
    elif method == "slerp":
        recipe = recipe | {"models": [{"model": path} for path in paths[:2]], "parameters": {"t": 0.5}}
    else:
        recipe["parameters"] = {"density": 0.5, "weight": 0.5}
    scopes = ["tensor", "model"] if method == "ties" else ["tensor"]
    for scope in scopes:
        found = []
        for memory in (400 * MIB, 1024 * MIB):
            if scope == "model":
                recipe["parameters"]["scope"] = "model"
            out = tmp_path / f"{scope}-{memory // MIB}"
            assert peak(recipe, out, memory) <= memory
            found.append((out / "model.safetensors").read_bytes())
        assert found[0] == found[1]


def test_too_small_a_bound_is_refused_with_the_least_one(tmp_path):
    models = [{"model": write_model(tmp_path / f"m{i}", i, tensors=1)} for i in range(2)]
    recipe = {"merge_method": "linear", "models": models}
    with pytest.raises(ResourceError, match=r"M601 .* the bound is 50 MiB; pass `memory=\d+ << 20`"):
        eutectic.merge(recipe, tmp_path / "out", options=Options(memory=50 * MIB))
    assert not (tmp_path / "out.partial").exists()
