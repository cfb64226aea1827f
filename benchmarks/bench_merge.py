"""How fast is a merge? Ours beside `cat` + `cp` of the same files and beside mergekit, interleaved in one run.

    python benchmarks/bench_merge.py                         # what `make bench` does; writes docs/benchmarks.md
    python benchmarks/bench_merge.py --size small --no-peer  # a trial in seconds; writes no docs

See benchmarks/README.md for what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import measure
import peer as peers
from measure import Cost

import report

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parent / "docs" / "benchmarks.md"
TUNED = ("tuned-1", "tuned-2", "tuned-3")


@dataclass(frozen=True)
class Recipe:
    """One merge to time: what it reads, its parameters, and how many times the yardstick it may take.

    `peer` says that mergekit has it, `statistics` that each model's Fisher diagonal is read too.
    """

    method: str
    models: tuple[str, ...]
    base: bool
    limit: float
    shared: dict[str, float] = field(default_factory=dict)
    each: dict[str, float] = field(default_factory=dict)
    peer: bool = True
    statistics: bool = False

    def inputs(self) -> tuple[str, ...]:
        """Every checkpoint that the merge reads, the base first."""
        return (("base",) if self.base else ()) + self.models

    def folders(self) -> tuple[str, ...]:
        """Everything that the merge reads."""
        return self.inputs() + (tuple(f"fisher-{model}" for model in self.models) if self.statistics else ())

    def text(self, root: Path) -> str:
        """The recipe in YAML, for checkpoints under `root`."""
        lines = [f"merge_method: {self.method}", "dtype: bfloat16", "models:"]
        # Endpoints are both listed; elsewhere the base is not a model.
        listed = self.inputs() if self.method in ("slerp", "nearswap", "arcee_fusion") else self.models
        for model in listed:
            lines.append(f"  - model: {root / model}")
            if self.each:
                lines.append(f"    parameters: {json.dumps(self.each)}")
            if self.statistics:
                lines.append(f"    statistics: {root / f'fisher-{model}'}")
        if self.base:
            lines.append(f"base_model: {root / 'base'}")
        if self.shared:
            lines.append(f"parameters: {json.dumps(self.shared)}")
        return "\n".join(lines) + "\n"


RECIPES = {
    recipe.method: recipe
    for recipe in (
        Recipe("linear", TUNED, base=False, limit=2, each={"weight": 1.0}),
        Recipe("slerp", TUNED[:1], base=True, limit=4, shared={"t": 0.5}),
        Recipe("task_arithmetic", TUNED, base=True, limit=2, each={"weight": 0.4}),
        Recipe("ties", TUNED, base=True, limit=4, each={"weight": 1.0, "density": 0.2}),
        Recipe("dare_linear", TUNED, base=True, limit=2, each={"weight": 0.4, "density": 0.5}),
        Recipe("dare_ties", TUNED, base=True, limit=4, each={"weight": 0.4, "density": 0.5}),
        Recipe("della", TUNED, base=True, limit=4, each={"weight": 0.4, "density": 0.7, "epsilon": 0.07}),
        Recipe("della_linear", TUNED, base=True, limit=4, each={"weight": 0.4, "density": 0.7, "epsilon": 0.07}),
        Recipe("breadcrumbs", TUNED, base=True, limit=4, each={"weight": 0.4, "density": 0.15, "gamma": 0.01}),
        Recipe("breadcrumbs_ties", TUNED, base=True, limit=4, each={"weight": 0.4, "density": 0.15, "gamma": 0.01}),
        Recipe("sce", TUNED, base=True, limit=4, shared={"select_topk": 1.0}),
        Recipe("ram", TUNED, base=True, limit=4),
        Recipe("ramplus_tl", TUNED, base=True, limit=4),
        Recipe("nuslerp", TUNED[:2], base=False, limit=4, each={"weight": 1.0}),
        Recipe("multislerp", TUNED, base=False, limit=4, each={"weight": 1.0}),
        Recipe("karcher", TUNED, base=False, limit=4),
        Recipe("model_stock", TUNED, base=True, limit=4),
        Recipe("nearswap", TUNED[:1], base=True, limit=4, shared={"t": 5e-4}),
        Recipe("arcee_fusion", TUNED[:1], base=True, limit=4),
        Recipe("passthrough", TUNED[:1], base=False, limit=4, each={"scale": 0.5}),
        Recipe("wise_ft", TUNED, base=True, limit=4, shared={"alpha": 0.5}, peer=False),
        Recipe("consensus_ta", TUNED, base=True, limit=4, peer=False),
        Recipe("magmax", TUNED, base=True, limit=4, peer=False),
        Recipe("emr", TUNED, base=True, limit=4, peer=False),
        Recipe("pcb", TUNED, base=True, limit=4, peer=False),
        Recipe("fisher", TUNED[:2], base=False, limit=4, peer=False, statistics=True),
    )
}


@dataclass
class Bench:
    """Where things lie and what runs: the checkpoints' folder, a scratch folder, our command, and the peer if any."""

    checkpoints: Path
    scratch: Path
    eutectic: str
    peer: peers.Peer | None

    def recipe_file(self, recipe: Recipe) -> Path:
        """Writes a recipe to the scratch folder."""
        path = self.scratch / f"{recipe.method}.yaml"
        path.write_text(recipe.text(self.checkpoints))
        return path

    def weights(self, recipe: Recipe) -> list[str]:
        """The weight files that a recipe reads."""
        return [str(self.checkpoints / model / "model.safetensors") for model in recipe.folders()]

    def fresh(self) -> Path:
        """A path for an output that is not there, with nothing of an earlier run left to be written to the disk."""
        out = self.scratch / "out"
        shutil.rmtree(out, ignore_errors=True)
        os.sync()
        return out

    def timed(self, command: list[str], environment: dict[str, str] | None = None) -> Cost:
        """The cost of one command, its output in the scratch folder's log."""
        return measure.run(command, self.scratch / "log.txt", environment)

    def yardstick(self, recipe: Recipe, *, synced: bool) -> Cost:
        """Every input through `cat`, one of them through `cp`; `synced` waits until the copy is on the disk."""
        copy = self.fresh()
        # A file system that shares blocks would copy nothing: GNU cp is told not to.
        cp = "cp --reflink=never" if sys.platform == "linux" else "cp"
        script = f'out="$1"; shift; cat "$@" > /dev/null && {cp} "$1" "$out"' + (' && sync "$out"' if synced else "")
        try:
            return self.timed(["sh", "-c", script, "yardstick", str(copy), *self.weights(recipe)])
        finally:
            copy.unlink(missing_ok=True)

    def ours(self, recipe: Recipe) -> Cost:
        """One `eutectic merge`, the whole process."""
        options = ["--replace", "--quiet", "--threads", str(measure.CORES)]
        return self.timed([self.eutectic, "merge", str(self.recipe_file(recipe)), str(self.fresh()), *options])

    def theirs(self, recipe: Recipe) -> Cost:
        """One `mergekit-yaml`, the whole process."""
        assert self.peer is not None
        command = self.peer.merge(self.recipe_file(recipe), self.fresh())
        return self.timed(command, self.peer.environment())


@dataclass
class Result:
    """Every run of one recipe."""

    recipe: Recipe
    yardstick: list[Cost] = field(default_factory=list)
    synced: list[Cost] = field(default_factory=list)
    ours: list[Cost] = field(default_factory=list)
    theirs: list[Cost] = field(default_factory=list)

    def ratio(self) -> float:
        """Ours to the yardstick: the median over rounds, each against the yardstick run just before it."""
        return median(our.wall / yard.wall for our, yard in zip(self.ours, self.yardstick, strict=True))

    def as_json(self) -> dict[str, object]:
        """Every run as plain data."""
        runs = {name: getattr(self, name) for name in ("yardstick", "synced", "ours", "theirs")}
        return {
            "method": self.recipe.method,
            "ratio": self.ratio(),
            **{k: [c.as_json() for c in v] for k, v in runs.items()},
        }


def measured(bench: Bench, recipes: list[Recipe], rounds: int) -> list[Result]:
    """All recipes, round by round, the programs interleaved. The first of ours is not counted: it compiles kernels."""
    results = [Result(recipe) for recipe in recipes]
    for result in results:
        say(f"warming up: {result.recipe.method}")
        bench.timed(["cat", *bench.weights(result.recipe)])
        bench.ours(result.recipe)
    for number in range(rounds):
        for result in results:
            result.yardstick.append(bench.yardstick(result.recipe, synced=False))
            result.ours.append(bench.ours(result.recipe))
            result.synced.append(bench.yardstick(result.recipe, synced=True))
            say(f"round {number + 1} of {rounds}: {result.recipe.method} {result.ours[-1].wall:.2f} s")
            if bench.peer and result.recipe.peer and number == 0:
                result.theirs.append(bench.theirs(result.recipe))
                say(f"round 1 of {rounds}: {result.recipe.method} with mergekit {result.theirs[-1].wall:.2f} s")
    bench.fresh()
    return results


def start_up(bench: Bench, times: int = 9) -> tuple[float, float]:
    """Median seconds of `eutectic --help` and of an empty Python program."""
    ours, empty = [], []
    for _ in range(times):
        empty.append(bench.timed([sys.executable, "-c", "pass"]).wall)
        ours.append(bench.timed([bench.eutectic, "--help"]).wall)
    return median(ours), median(empty)


def checkpoints(root: Path, size: str, *, fisher: bool = False) -> Path:
    """Makes the checkpoints of a size, in a process of its own to keep this one small; returns their folder."""
    say(f"checkpoints: {size}")
    maker = [sys.executable, str(HERE / "make_checkpoints.py"), "--dir", str(root), "--size", size]
    maker += ["--fisher"] if fisher else []
    made = subprocess.run(maker, check=True, capture_output=True, text=True).stdout.split("\n")
    return Path(made[0]).resolve().parent


def elements(folder: Path) -> int:
    """Parameters of a bench checkpoint, which is one bf16 file with a small header."""
    return (folder / "base" / "model.safetensors").stat().st_size // 2


def say(text: str) -> None:
    """Progress, away from the tables on standard output."""
    print(text, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Times merges beside cat + cp and beside mergekit.")
    parser.add_argument("--dir", type=Path, default=Path("runs/bench"), help="checkpoints and outputs (runs/bench)")
    parser.add_argument("--size", choices=("full", "quarter", "small"), default="full", help="0.66 G, 0.17 G, 5 M")
    parser.add_argument("--methods", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="METHOD")
    parser.add_argument("--rounds", type=int, default=5, help="of ours and of the yardstick (5); mergekit runs once")
    parser.add_argument("--no-peer", action="store_true", help="leave mergekit out even where it is found")
    few = {"nargs": "+", "choices": RECIPES, "default": list(RECIPES), "metavar": "METHOD"}
    parser.add_argument("--peer-methods", **few, help="run mergekit for these alone: it takes minutes for some (all)")
    parser.add_argument("--rss", action="store_true", help="also peak memory at a quarter of the size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run to FILE")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {given.rounds}")
    return given


def memory_at_a_quarter(bench: Bench, given: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Method and peak memory of ours on checkpoints of a quarter of the size."""
    fisher = "fisher" in given.methods
    small = Bench(checkpoints(given.dir, "quarter", fisher=fisher), bench.scratch, bench.eutectic, None)
    for method in given.methods:
        yield method, small.ours(RECIPES[method]).rss


def main() -> None:
    """Measures, prints the tables, and writes them into the docs when they are the full ones."""
    given = arguments()
    cores = measure.keep_to_cores()
    given.dir.mkdir(parents=True, exist_ok=True)
    scratch = given.dir.resolve() / "scratch"
    scratch.mkdir(exist_ok=True)
    folder = checkpoints(given.dir, given.size, fisher="fisher" in given.methods)
    bench = Bench(folder, scratch, measure.our_command(), None if given.no_peer else peers.find())
    recipes = [RECIPES[method] for method in given.methods]
    recipes = [replace(r, peer=r.peer and r.method in given.peer_methods) for r in recipes]
    results = measured(bench, recipes, given.rounds)
    facts = measure.machine(cores)
    if bench.peer:
        facts["mergekit"] = f"{bench.peer.version} (torch {bench.peer.torch})"
    quarter = dict(memory_at_a_quarter(bench, given)) if given.rss else {}
    help_and_empty = start_up(bench)
    day = datetime.now(UTC).date().isoformat()
    text = report.text(results, facts, elements(folder), quarter, help_and_empty, day, given.rounds)
    print(text)
    if given.size == "full" and set(given.methods) == set(RECIPES):
        report.write(DOCUMENT, text)
    if given.json:
        data = {"date": day, "machine": facts, "elements": elements(folder), "start_up": help_and_empty}
        data |= {"quarter_rss": quarter, "results": [result.as_json() for result in results]}
        given.json.write_text(json.dumps(data, indent=2) + "\n")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
