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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

# Method, base (or None), fine-tunes, parameters.
Merge = Callable[[str, Tensor | None, list[Tensor], dict[str, Any]], Tensor]


class Sorted(NamedTuple):
    """What `torch.sort` and `torch.topk` return."""

    values: Tensor
    indices: Tensor


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Within, torch orders equal values as Eutectic does: those with the lower index count as larger."""
    plain = torch.sort

    def sort(values: Tensor, dim: int = -1, descending: bool = False) -> Sorted:
        if descending:
            return Sorted(*plain(values, dim=dim, descending=True, stable=True))
        found = plain(values.flip(dim), dim=dim, stable=True)
        return Sorted(found.values, values.shape[dim] - 1 - found.indices)

    def argsort(values: Tensor, dim: int = -1, descending: bool = False) -> Tensor:
        return sort(values, dim, descending).indices

    def topk(values: Tensor, k: int, largest: bool = True) -> Sorted:
        found = sort(values, -1, largest)
        return Sorted(found.values[:k], found.indices[:k])

    with mock.patch.multiple(torch, sort=sort, argsort=argsort, topk=topk):
        yield


def one(case: dict[str, Any], tensors: dict[str, Tensor], merge: Merge) -> Tensor:
    """One case: cast to the dtype that the peer is to compute in, if any is asked for, and the result rounded once."""
    stored = getattr(torch, case["stored"])
    compute = getattr(torch, case["compute"]) if case["compute"] else stored
    # Buffers that a peer makes itself must not narrow what it is told to compute in.
    torch.set_default_dtype(torch.float64 if compute == torch.float64 else torch.float32)
    given = [tensors[name].to(compute, copy=True) for name in case["inputs"]]
    base = given.pop(0) if case["base"] else None
    torch.manual_seed(0)
    with settled() if case["settled"] else contextlib.nullcontext():
        merged = merge(case["method"], base, given, case["parameters"])
    return merged.detach().to(stored).contiguous().clone()


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
