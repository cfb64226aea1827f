"""Three specialists of one small language model, merged by each of the six methods: perplexity by domain.

Everything is made on the spot and kept under `runs/demo-llm` (about 6 GB): the float32 base, the specialists and the
merges. What is already there is not made again, except for the merges.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from dequantise import dequantise
from domains import DOMAINS, GUARD
from finetune import finetune
from perplexity import perplexities
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "demo-llm"
METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")
Scores = dict[str, dict[str, dict[str, float]]]  # model: domain: perplexity and error


def main() -> None:
    """Makes, merges, evaluates; prints the table and writes `runs/demo-llm/report.json` and `report.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="training steps of each specialist (default 60)")
    parser.add_argument("--windows", type=int, default=32, help="windows of 256 tokens a domain (default 32)")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    console, started = Console(width=120), time.perf_counter()
    losses = make_models(arguments.steps, console)
    merge_all(console)
    scores = evaluate_all(arguments.windows, console)
    console.print(table(scores))
    report = {
        "steps": arguments.steps,
        "windows": arguments.windows,
        "versions": {name: version(name) for name in ("eutectic", "torch", "transformers")},
        "losses": losses,
        "results": scores,
        "seconds": round(time.perf_counter() - started),
    }
    (RUNS / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (RUNS / "report.md").write_text(markdown(scores), encoding="utf-8")


def make_models(steps: int, console: Console) -> dict[str, list[float]]:
    """The base and its specialists in `runs/demo-llm/models`; returns the training losses of each specialist.

    A specialist is kept from an earlier run if that trained for as many steps, as noted beside it.
    """
    models = RUNS / "models"
    models.mkdir(parents=True, exist_ok=True)
    if not (models / "base").exists():
        with console.status("dequantising the base"):
            dequantise(models / "base")
    losses = {}
    for domain in DOMAINS:
        note = models / f"{domain}.json"
        losses[domain] = json.loads(note.read_text(encoding="utf-8")) if note.exists() else []
        if len(losses[domain]) != steps:
            shutil.rmtree(models / domain, ignore_errors=True)
            training = finetune(models / "base", domain, models / domain, steps)
            losses[domain] = list(track(training, f"fine-tuning on {domain}", total=steps, console=console))
            note.write_text(json.dumps(losses[domain]), encoding="utf-8")
        console.print(f"{domain}: loss {losses[domain][0]:.2f} → {losses[domain][-1]:.2f}", highlight=False)
    return losses


def merge_all(console: Console) -> None:
    """Runs `eutectic merge` and `eutectic verify` for each method; ends with the exit code of the first that fails."""
    for method in METHODS:
        console.rule(method)
        out = f"runs/demo-llm/{method}"
        for command in (["merge", str(HERE / f"{method}.yml"), out, "--replace"], ["verify", out]):
            done = subprocess.run([sys.executable, "-m", "eutectic", *command], cwd=ROOT, check=False)
            if done.returncode:
                raise SystemExit(done.returncode)


def evaluate_all(windows: int, console: Console) -> Scores:
    """Base, specialists and merges on the three domains and the guard."""
    names = ("base", *DOMAINS)
    folders = {name: RUNS / "models" / name for name in names} | {name: RUNS / name for name in METHODS}
    return {
        name: perplexities(folder, (*DOMAINS, GUARD), windows)
        for name, folder in track(list(folders.items()), "evaluating", console=console)
    }


def rows(scores: Scores) -> list[list[str]]:
    """One row a model: its name and `perplexity ± standard error` for each domain."""
    return [
        [name, *(f"{domains[d]['perplexity']:.2f} ± {domains[d]['error']:.2f}" for d in (*DOMAINS, GUARD))]
        for name, domains in scores.items()
    ]


def table(scores: Scores) -> Table:
    """The figures for the terminal."""
    shown = Table("model", *DOMAINS, GUARD, title="held-out perplexity ± standard error over windows (lower is better)")
    for row in rows(scores):
        shown.add_row(*row, end_section=row[0] == DOMAINS[-1])
    return shown


def markdown(scores: Scores) -> str:
    """The figures for the documentation."""
    head = ["model", *DOMAINS, GUARD]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows(scores)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
