"""How long does one tensor take? Streamed methods beside mergekit's, spectral ones beside LAPACK's SVD.

    python benchmarks/make_peers.py
    python benchmarks/bench_methods.py

CPU time, one thread, tensors in memory. Writes the second part of docs/parity.md. Takes about ten minutes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import measure
import numpy as np
import peer as peers
import torch
from parity.cases import Case
from parity.compare import Task, recipe_of, theirs
from torch import Tensor

import eutectic
import report
from eutectic import methods

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "parity.md"
MARKERS = (
    "<!-- speed:begin (written by `make parity`; edit outside of the markers) -->",
    "<!-- speed:end -->",
)
SHAPE = (2048, 8192)
MODELS = 3
REPEATS = 3
WEIGHTS = (0.4, 0.4, 0.4)
SPECTRAL = ("iso_c", "wudi", "knots", "star", "cart", "tsv_m", "iso_cts")
SIDES = (1024, 2048)


def streamed() -> list[Case]:
    """The methods to time beside mergekit's, with its parameters."""
    plain = {"weight": WEIGHTS}
    window = plain | {"density": 0.7, "epsilon": 0.07}
    timed: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("ties", "density 0.2", plain | {"density": 0.2}, {}),
        ("breadcrumbs", "density 0.15, γ 0.01", plain | {"density": 0.15, "gamma": 0.01}, {}),
        ("sce", "all", {"select_topk": 1.0}, {}),
        ("sce", "select_topk 0.5", {"select_topk": 0.5}, {}),
        ("della", "density 0.7, ε 0.07, matched in L1", window, {"rescale": "l1"}),
        ("della", "density 0.7, ε 0.07, divided by p here", window, {"rescale": True}),
    ]
    return [
        Case("mergekit", method, title, given | added, given, models=(MODELS,)) for method, title, given, added in timed
    ]


def checkpoint() -> dict[str, Tensor]:
    """A base and three fine-tunes of it in bfloat16, named as the comparison names them."""
    made = torch.Generator().manual_seed(3)
    base = torch.randn(SHAPE, generator=made) * 0.02
    tuned = [base + torch.randn(SHAPE, generator=made) * deviation for deviation in (3e-4, 6e-4, 1e-3)]
    return {f"bench/bfloat16/{index}": tensor.bfloat16() for index, tensor in enumerate([base, *tuned])}


def least(work: Callable[[], object]) -> float:
    """CPU seconds of the quickest run, after one that is not counted."""
    work()
    found = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def our_seconds(case: Case, tensors: Mapping[str, Tensor]) -> float:
    """A plan and one read into memory that is there; planned anew each time, as a plan keeps its reductions."""
    states = [{"weight": tensors[f"bench/bfloat16/{index}"]} for index in range(1 + MODELS)]
    recipe, out = recipe_of(case, MODELS, states), np.zeros(2 * SHAPE[0] * SHAPE[1], np.uint8)
    return least(lambda: eutectic.merged(recipe, seed=1).read_into("weight", 0, SHAPE[0] * SHAPE[1], memoryview(out)))


def beside_mergekit(peer: peers.Peer) -> str:
    """The table of streamed methods."""
    tensors, cases = checkpoint(), streamed()
    wanted = [Task(case, MODELS, "bench", "bfloat16", "") for case in cases for _ in range(1 + REPEATS)]
    with tempfile.TemporaryDirectory() as scratch:
        seconds = theirs(wanted, peer, Path(scratch), dict(tensors)).seconds
    rows, entries = [], SHAPE[0] * SHAPE[1]
    for place, case in enumerate(cases):
        first = place * (1 + REPEATS)
        other = min(seconds[number] for number in range(first + 1, first + 1 + REPEATS))
        mine = our_seconds(case, tensors)
        figures = [f"{mine:.3f}", f"{mine / entries * 1e9:.1f}", f"{other:.2f}", f"**{other / mine:.0f}×**"]
        rows.append([f"`{case.method}`", case.title, *figures])
    head = ["method", "parameters", "eutectic, s", "ns an entry", "mergekit, s", "less CPU by"]
    return report.table(head, rows, words=2)


def beside_lapack() -> str:
    """The table of spectral methods: CPU time, and the same in units of one float32 SVD of the same size."""
    made, rows = torch.Generator().manual_seed(5), []
    deltas = {side: torch.randn(MODELS, side, side, generator=made) * 1e-3 for side in SIDES}
    svd = {side: least(lambda side=side: torch.linalg.svd(deltas[side][0], full_matrices=False)) for side in SIDES}
    wide = {
        side: least(lambda side=side: torch.linalg.svd(deltas[side][0].double(), full_matrices=False)) for side in SIDES
    }

    def row(title: str, seconds: Mapping[int, float]) -> list[str]:
        return [title, *(f for side in SIDES for f in (f"{seconds[side]:.2f}", f"{seconds[side] / svd[side]:.1f}×"))]

    rows += [row("LAPACK's SVD, float32, of one", svd), row("LAPACK's SVD, float64, of one", wide)]
    for name in SPECTRAL:
        method = methods.get(name)
        assert method is not None
        seconds = {side: least(lambda side=side, method=method: method(deltas[side])) for side in SIDES}
        rows.append(row(f"`{name}`, {MODELS} models", seconds))
    head = ["", *(text for side in SIDES for text in (f"{side}², s", "times that SVD"))]
    return report.table(head, rows)


def main() -> None:
    """Measures and writes the tables."""
    peer = peers.find()
    torch.set_num_threads(1)
    cores = measure.keep_to_cores(1)
    day = datetime.now(UTC).date().isoformat()
    parts = [f"Measured on {day}: the quickest of {REPEATS} runs, {cores} core, {measure.processor()}."]
    if peer:
        shape = " × ".join(map(str, SHAPE))
        parts += [f"### One bf16 tensor of {shape}, a base and {MODELS} fine-tunes", beside_mergekit(peer)]
    with torch.no_grad():
        parts += [f"### Spectral methods, {MODELS} float32 matrices", beside_lapack()]
    text = "\n\n".join(parts)
    print(text)
    if peer:
        report.write(DOCUMENT, text, MARKERS)


if __name__ == "__main__":
    main()
