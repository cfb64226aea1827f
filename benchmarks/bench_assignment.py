"""Assignments of large matrices beside SciPy, lapx and lapjv: CPU seconds, and how far the sums are from the best.

    OMP_NUM_THREADS=1 python benchmarks/bench_assignment.py [--sizes N ...] [--limit SECONDS] [--json FILE] [--write]

lapx and lapjv are run by the Python that LAPX_PYTHON and LAPJV_PYTHON name (see benchmarks/README.md), or left out.
Each run is a process of its own, given up after `--limit` CPU seconds. Compiled code is loaded before the clock starts,
and what a library needs done to its input (negation, float64) is counted. `--write` puts the table into
docs/benchmarks.md; `--from` takes the figures of earlier runs from files that `--json` left.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
MARKERS = (
    "<!-- assignment:begin (written by `bench_assignment.py --write`; edit outside of the markers) -->",
    "<!-- assignment:end -->",
)
SOLVERS = ("eutectic", "scipy", "lapx", "lapjv")
KINDS = {
    "uniform": "independent numbers",
    "planted 1": "512 features and the same in another order, noise 1×",
    "planted 16": "the same, noise 16×",
    "gram": "products of 512 weights that have nothing in common, of unequal norms",
    "moments": "E[ab] of ReLU activations that share 64 causes",
}


def problem(kind: str, n: int) -> Any:
    """(n, n) float32 similarities."""
    made = np.random.default_rng(n)

    def normal(*shape: int) -> Any:
        return made.standard_normal(shape, dtype=np.float32)

    if kind == "uniform":
        return made.random((n, n), dtype=np.float32)
    if kind == "gram":
        first, second = (normal(n, 512) * np.exp(normal(n, 1) / 2) for _ in range(2))
        return first @ second.T
    if kind == "moments":
        causes = normal(64, 1024) / 8
        first, second = (np.maximum(normal(n, 64) @ causes + normal(n, 1) / 2, 0) for _ in range(2))
        return first @ second.T / 1024
    first = normal(n, 512)
    second = first[made.permutation(n)] + np.float32(kind.split()[1]) * normal(n, 512)
    return first @ second.T / np.linalg.norm(first, axis=1)[:, None] / np.linalg.norm(second, axis=1)


def solver(name: str) -> Callable[[Any], Any]:
    """float32 similarities -> columns."""
    if name == "scipy":
        from scipy.optimize import linear_sum_assignment

        return lambda values: linear_sum_assignment(values, maximize=True)[1]
    if name == "lapx":
        import lap

        return lambda values: lap.lapjvx(np.negative(values, dtype=np.float64), return_cost=False)[1]
    if name == "lapjv":
        import lapjv

        return lambda values: lapjv.lapjv(-values)[0]
    import torch

    from eutectic.alignment.assignment import LARGE, assign

    assign(torch.rand(LARGE, LARGE))
    return lambda values: assign(torch.from_numpy(values)).numpy()


def solved(name: str, kind: str, n: int, limit: int) -> dict[str, float]:
    """CPU seconds and Σ similarity in float64. The system ends the process `limit` CPU seconds after the start."""
    solve, values = solver(name), problem(kind, n)
    start = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(start) + limit, resource.RLIM_INFINITY))
    columns = np.asarray(solve(values))
    seconds = time.process_time() - start
    assert len(set(columns.tolist())) == n
    total = float(values[np.arange(n), columns].sum(dtype=np.float64))
    return {"seconds": seconds, "sum": total}


def pythons() -> dict[str, str]:
    """Those solvers that are there, with the Python that runs them."""
    import peer as peers

    found = {name: peers.interpreter(name) if name in peers.SOLVERS else sys.executable for name in SOLVERS}
    return {name: python for name, python in found.items() if python is not None}


def measured(python: str, name: str, kind: str, n: int, limit: int) -> dict[str, float] | None:
    """What `solved` says in a process of its own; None if it was given up."""
    command = [python, __file__, "--solve", name, kind, str(n), "--limit", str(limit)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == -signal.SIGXCPU:
        return None
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return dict(json.loads(done.stdout))


def table(results: list[dict[str, Any]], limit: int) -> str:
    """One row a matrix."""
    import report

    rows = []
    for found in results:
        known = {name: found[name] for name in SOLVERS if found.get(name)}
        best = max(one["sum"] for one in known.values())
        ours, others = known["eutectic"], [one["seconds"] for name, one in known.items() if name != "eutectic"]
        seconds = [
            f"{known[name]['seconds']:.2f}" if name in known else f"> {limit}" for name in found if name in SOLVERS
        ]
        ratio = f"**{ours['seconds'] / min(others):.2f}×**" if others else f"**< {ours['seconds'] / limit:.2f}×**"
        rows.append([f"`{found['kind']}`", str(found["n"]), *seconds, ratio, f"{(best - ours['sum']) / abs(best):.0e}"])
    solvers = [f"{name}, s" for name in results[0] if name in SOLVERS]
    return report.table(["matrix", "n", *solvers, "eutectic / fastest library", "gap"], rows)


def main() -> None:
    """Measures, prints and, if asked to, writes."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    asked.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    asked.add_argument("--limit", type=int, default=300)
    asked.add_argument("--json", type=Path)
    asked.add_argument("--from", type=Path, nargs="+", default=[], dest="earlier")
    asked.add_argument("--write", action="store_true")
    asked.add_argument("--solve", nargs=3, help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.solve:
        print(json.dumps(solved(given.solve[0], given.solve[1], int(given.solve[2]), given.limit)))
        return
    import measure

    import report

    results = [one for file in given.earlier for one in json.loads(file.read_text())]
    for kind in given.kinds:
        for n in given.sizes:
            if any((one["kind"], one["n"]) == (kind, n) for one in results):
                continue
            found = {name: measured(python, name, kind, n, given.limit) for name, python in pythons().items()}
            results.append({"kind": kind, "n": n, **found})
            print(json.dumps(results[-1]), flush=True)
    results.sort(key=lambda one: (given.kinds.index(one["kind"]), one["n"]))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))
    day = datetime.now(UTC).date().isoformat()
    parts = [
        f"Measured on {day}: CPU seconds of one core, {measure.processor()}; scipy {measure.version('scipy')}, "
        f"lapx {peer_version('lapx')}, lapjv {peer_version('lapjv')}. `> {given.limit}`: given up.",
        table(results, given.limit),
        "\n".join(f"- `{kind}`: {KINDS[kind]}." for kind in given.kinds),
    ]
    print("\n\n".join(parts))
    if given.write:
        report.write(DOCUMENT, "\n\n".join(parts), MARKERS)


def peer_version(name: str) -> str:
    """The version of a peer, or "none"."""
    import peer as peers

    found = peers.find(name)
    return found.version if found else "none"


if __name__ == "__main__":
    main()
