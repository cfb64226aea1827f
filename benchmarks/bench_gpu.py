"""What a GPU saves: each method's whole merge on the CPU and on the GPU of one machine, interleaved in one process.

    python benchmarks/make_checkpoints.py --size full --dir /dev/shm/bench
    python benchmarks/bench_gpu.py --dir /dev/shm/bench/full [--rounds N] [--methods M ...] [--json FILE] [--write]

The CPU has every core, the GPU its usual workers. Libraries are loaded and kernels compiled by a merge of each kind
beforehand. Spectral methods take one thread of LAPACK for each matrix on the CPU and cuSOLVER on the GPU; they are left
at their defaults but for the embedding and the head, which are averaged. `--write` puts the table into
docs/benchmarks.md, with `--from` of figures that `--json` left elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_merge import DOCUMENT, RECIPES, Recipe
from make_checkpoints import SIZES

import eutectic
import report
from eutectic import methods

MARKERS = (
    "<!-- gpu:begin (written by `bench_gpu.py --write`; edit outside of the markers) -->",
    "<!-- gpu:end -->",
)
SPECTRAL = ("tsv_m", "iso_c", "iso_cts", "star", "cart", "wudi", "swudi", "aswudi")
DEFAULT = ("linear", "slerp", "task_arithmetic", "ties", "dare_ties", "della", "breadcrumbs", "sce", *SPECTRAL)


def described(method: str, root: Path) -> dict[str, Any]:
    """The recipe: as `bench_merge.py` has it, or a spectral method of three fine-tunes."""
    import yaml

    if method not in SPECTRAL:
        found: dict[str, Any] = yaml.safe_load(RECIPES[method].text(root))
        return found
    recipe = yaml.safe_load(Recipe(method, ("tuned-1", "tuned-2", "tuned-3"), base=True, limit=0).text(root))
    left_out = [{"filter": "embed_tokens", "value": False}, {"filter": "lm_head", "value": False}, {"value": True}]
    switch = "solve" if "solve" in methods.get(method).params else "spectral"
    return recipe | {"parameters": {switch: left_out}}


def timed(recipe: dict[str, Any], out: Path, device: str, threads: int | None) -> dict[str, float]:
    """Wall and CPU seconds of one merge, and the memory it took of the GPU."""
    shutil.rmtree(out, ignore_errors=True)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    wall, spent = time.perf_counter(), sum(os.times()[:2])
    eutectic.merge(recipe, out, options=eutectic.Options(device=device, memory=32 << 30, threads=threads))
    found = {"wall": time.perf_counter() - wall, "cpu": sum(os.times()[:2]) - spent}
    return found | ({"gpu": torch.cuda.max_memory_allocated()} if device != "cpu" else {})


def measured(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Medians over the rounds, method by method."""
    with tempfile.TemporaryDirectory(dir=given.dir) as scratch:
        out = Path(scratch) / "out"
        for method in given.methods:
            recipe = described(method, given.dir)
            rounds: dict[str, list[dict[str, float]]] = {"cpu": [], "cuda": []}
            for number in range(given.rounds + 1):
                for device, found in rounds.items():
                    cost = timed(recipe, out, device, given.threads if device == "cuda" else None)
                    # The first loads and compiles.
                    found.extend([cost] if number else [])
            of = {
                f"{device}_{what}": median(cost[what] for cost in found)
                for device, found in rounds.items()
                for what in found[0]
            }
            print(json.dumps({"method": method, **of}), flush=True)
            yield {"method": method, "size": given.dir.name, **of}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| method | parameters | CPU, s | GPU, s | CPU / GPU | CPU seconds: CPU | GPU | GPU memory, MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        ratio = row["cpu_wall"] / row["cuda_wall"]
        size = f"{SIZES[row['size']].elements() / 1e9:.2f} G"
        spent = f"{row['cpu_cpu']:.1f} | {row['cuda_cpu']:.1f} | {int(row['cuda_gpu']) >> 20}"
        times = f"{row['cpu_wall']:.2f} | {row['cuda_wall']:.2f} | **{ratio:.1f}×**"
        lines.append(f"| `{row['method']}` | {size} | {times} | {spent} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints and, if asked to, writes."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--dir", type=Path, help="the checkpoints of make_checkpoints.py")
    asked.add_argument("--rounds", type=int, default=2)
    asked.add_argument("--methods", nargs="+", default=list(DEFAULT))
    asked.add_argument("--threads", type=int, help="workers beside the GPU")
    asked.add_argument("--json", type=Path)
    asked.add_argument(
        "--from", type=Path, nargs="+", default=[], dest="earlier", help="what --json left; instead of --dir"
    )
    asked.add_argument("--write", action="store_true")
    given = asked.parse_args()
    runs = [json.loads(file.read_text()) for file in given.earlier]
    if given.dir:
        machine = f"{torch.cuda.get_device_name(0)} and {os.cpu_count()} cores, torch {torch.__version__}"
        runs.append({"machine": machine, "rounds": given.rounds, "rows": list(measured(given))})
    if given.json:
        given.json.write_text(json.dumps(runs[-1], indent=1))
    medians = " and ".join(f"{len(run['rows'])} methods, {run['rounds']} round(s)" for run in runs)
    rows = [row for run in runs for row in run["rows"]]
    text = f"{runs[0]['machine']}; medians: {medians}.\n\n{table(rows)}"
    print(text)
    if given.write:
        report.write(DOCUMENT, text, MARKERS)


if __name__ == "__main__":
    main()
