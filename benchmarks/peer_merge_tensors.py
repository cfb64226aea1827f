"""Run by mergekit's own Python (see `crosscheck_mergekit.py`): merges single tensors with it.

python peer_merge_tensors.py CASES.json IN.safetensors OUT.safetensors
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from mergekit.merge_methods.api import merge_tensors
from safetensors.torch import load_file, save_file


def main(cases: str, inputs: str, output: str) -> None:
    """Merges every case; the result's name is the case's number."""
    tensors = load_file(inputs)
    results = {}
    for number, case in enumerate(json.loads(Path(cases).read_text())):
        merged = merge_tensors(
            [tensors[name] for name in case["inputs"]],
            case["method"],
            parameters=case["parameters"],
            base_index=case["base_index"],
            dtype=getattr(torch, case["compute"]) if case["compute"] else None,
            out_dtype=getattr(torch, case["stored"]),
        )
        results[str(number)] = merged.contiguous().clone()
    save_file(results, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
