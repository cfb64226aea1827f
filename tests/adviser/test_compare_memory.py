"""A comparison's memory depends on the number of threads and models, not on the size of the tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import sys
import eutectic
assert eutectic.compare(sys.argv[2:], base=sys.argv[1], threads=2).verdict.answer == "merge directly"
assert "torch" not in sys.modules
# Not getrusage: after fork and exec its maximum begins at the size of the parent.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) << 10)
"""
MIB = 1 << 20


def write_models(home: Path, rows: int) -> list[str]:
    """Three models of two tensors of 1024 columns, in bfloat16, written piece by piece."""
    rng = np.random.default_rng(1)
    size = 2048 * rows
    shape = {"dtype": "BF16", "shape": [rows, 1024]}
    header = {name: {**shape, "data_offsets": [at * size, (at + 1) * size]} for at, name in enumerate(("a", "b"))}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    paths = [home / f"{number}.safetensors" for number in range(3)]
    files = [open(path, "wb") for path in paths]  # noqa: SIM115
    for file in files:
        file.write(len(text).to_bytes(8, "little") + text)
    for _ in range(2 * rows // 1024):
        base = rng.standard_normal(MIB, np.float32)
        for number, file in enumerate(files):
            tuned = base + np.float32(0.01 * number) * rng.standard_normal(MIB, np.float32)
            file.write((tuned.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    for file in files:
        file.close()
    return [str(path) for path in paths]


@pytest.mark.slow
def test_the_peak_does_not_grow_with_the_tensors(tmp_path: Path) -> None:
    peaks = []
    for rows in (4096, 65536):
        home = tmp_path / str(rows)
        home.mkdir()
        command = [sys.executable, "-c", SCRIPT, *write_models(home, rows)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        peaks.append(int(done.stdout))
    # Two workers, each with 64 MiB held at most between its passes; the models are 48 and 768 MiB.
    assert peaks[1] < 400 * MIB
    assert peaks[1] - peaks[0] < 200 * MIB
