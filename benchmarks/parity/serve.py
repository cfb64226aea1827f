"""The half that every peer's own Python runs: reads cases and tensors, merges with the peer, writes what came out.

A script `in_PEER.py` hands its one function to `serve` and is run as
`python in_PEER.py CASES.json IN.safetensors OUT.safetensors NOTES.json`. Imports nothing but torch and safetensors.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

# Method, base (or None), fine-tunes, parameters.
Merge = Callable[[str, Tensor | None, list[Tensor], dict[str, Any]], Tensor]


def one(case: dict[str, Any], tensors: dict[str, Tensor], merge: Merge) -> Tensor:
    """One case: cast to the dtype that the peer is to compute in, if any is asked for, and the result rounded once."""
    stored = getattr(torch, case["stored"])
    compute = getattr(torch, case["compute"]) if case["compute"] else stored
    # Buffers that a peer makes itself must not narrow what it is told to compute in.
    torch.set_default_dtype(torch.float64 if compute == torch.float64 else torch.float32)
    given = [tensors[name].to(compute, copy=True) for name in case["inputs"]]
    base = given.pop(0) if case["base"] else None
    torch.manual_seed(0)
    return merge(case["method"], base, given, case["parameters"]).detach().to(stored).contiguous().clone()


def serve(merge: Merge) -> None:
    """Merges every case; what came out, and the CPU seconds or the error, are named by the case's number."""
    cases, inputs, output, notes = sys.argv[1:]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tensors, results, failed, seconds = load_file(inputs), {}, {}, {}
    for number, case in enumerate(json.loads(Path(cases).read_text())):
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            try:
                start = time.process_time()
                results[str(number)] = one(case, tensors, merge)
                seconds[str(number)] = time.process_time() - start
            # Whatever it raises is its answer, to be shown.
            except Exception as error:
                failed[str(number)] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
    save_file(results, output)
    Path(notes).write_text(json.dumps({"failed": failed, "seconds": seconds}))
