"""The three specialists of `demo_llm.py` merged with statistics of their training texts, beside their plain average.

Writes its tables into `docs/experiments/statistics.md`, between its markers, and all figures to
`runs/demo-llm/statistics/report.json`. What was collected or measured before is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import figures
import yaml
from demo_llm import ROOT, RUNS, SCORES
from domains import DOMAINS, GUARD, training
from rich.console import Console
from tasks import write_tasks
from transformers.utils import logging

from eutectic import statistics
from eutectic.evaluate import Evaluation, evaluate_models, paired

PAGE = ROOT / "docs" / "experiments" / "statistics.md"
BEGIN, END = "<!-- language models: written by `make demo-statistics` -->", "<!-- end of language models -->"
HOME = RUNS / "statistics"
LENGTH = 128  # tokens a sequence, as in the training


@dataclass(frozen=True)
class Merge:
    """A recipe of the three specialists; `samples` sequences each, of their own training texts."""

    method: str
    samples: int
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Literal["fisher", "gram"]:
        """Of the statistics."""
        return "fisher" if self.method == "fisher" else "gram"

    def recipe(self) -> dict[str, Any]:
        """As it stands in a file, with paths from the root of the repository."""
        models = [
            {"model": str(RUNS / "models" / domain), "statistics": str(place(self.kind, domain, self.samples))}
            for domain in DOMAINS
        ]
        return {"merge_method": self.method, "models": models, "parameters": self.parameters, "dtype": "float32"}


AVERAGE, TUNED = "linear", "task_arithmetic-tuned"  # made by `demo_llm.py`
MERGES = {
    "fisher-64": Merge("fisher", 64),
    "regmean-64": Merge("regmean", 64),
    "regmean-64-alpha-1": Merge("regmean", 64, {"alpha": 1.0}),
    "fisher-64-norm": Merge("fisher", 64, {"norm": "global"}),
    "regmean-256": Merge("regmean", 256),
    "regmean-256-alpha-1": Merge("regmean", 256, {"alpha": 1.0}),
}


def place(kind: str, domain: str, samples: int) -> Path:
    """The folder of the statistics of a specialist."""
    return HOME / f"{domain}-{kind}-{samples}"


def collect(names: list[str], console: Console) -> None:
    """All statistics that these merges need, of text that each specialist was trained on."""
    wanted = [(MERGES[name].kind, MERGES[name].samples) for name in names]
    for kind, samples in dict.fromkeys(wanted):
        for domain in DOMAINS:
            text = HOME / f"{domain}.txt"
            text.write_text(training(domain), encoding="utf-8")
            options = statistics.Options(samples=samples, length=LENGTH)
            out, before = place(kind, domain, samples), _seconds()
            done = statistics.collect(kind, RUNS / "models" / domain, text, out, options=options)
            spent = "there already" if done.already_complete else f"{_seconds() - before:.0f} s of CPU"
            console.print(f"{out.name}: {done.samples} sequences, {spent}", highlight=False)


def evaluate(names: list[str], console: Console) -> Evaluation:
    """Base, specialists, their merges without and with statistics on the test texts; the latter are not written."""
    models = _made()
    for name in names:
        (HOME / f"{name}.yml").write_text(yaml.safe_dump(MERGES[name].recipe(), sort_keys=False), encoding="utf-8")
        models.append(HOME / f"{name}.yml")
    tasks = [RUNS / "tasks" / "test" / f"{name}.yml" for name in (*DOMAINS, GUARD)]

    def told(model: str, task: str) -> None:
        console.print(f"{model} on {task}", highlight=False)

    return evaluate_models(models, tasks, cache=SCORES, on_start=told)


def shown(found: Evaluation) -> Iterator[str]:
    """Perplexities, marked against the average's; then how far each merge is from those without statistics."""
    yield from figures.overview(found, AVERAGE)
    merges = [model for model in found.models if model not in ("base", *DOMAINS, AVERAGE, TUNED)]
    for other in (AVERAGE, TUNED):
        rows = []
        for model in merges:
            less = [paired(found.scores[task][model], found.scores[task][other]) for task in found.tasks]
            rows.append([model, *map(figures.difference, less)])
        yield ""
        yield from figures.table([f"less {other}", *found.tasks], rows)


def _made() -> list[Path]:
    """What `demo_llm.py` has made: the base, the specialists, and two merges of them without statistics."""
    return [*(RUNS / "models" / name for name in ("base", *DOMAINS)), RUNS / AVERAGE, RUNS / TUNED]


def _seconds() -> float:
    """Of CPU that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Collects, merges, evaluates and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=MERGES, nargs="+", default=list(MERGES), help="these merges (all)")
    names = parser.parse_args().only
    os.chdir(ROOT)
    logging.disable_progress_bar()
    console = Console(width=120)
    if missing := [str(path) for path in _made() if not path.exists()]:
        raise SystemExit(f"{', '.join(missing)} not found; `make demo-llm` makes them")
    HOME.mkdir(exist_ok=True)
    write_tasks(RUNS / "tasks")
    collect(names, console)
    found = evaluate(names, console)
    text = "\n".join(shown(found))
    console.print(text, markup=False, highlight=False)
    (HOME / "report.json").write_text(json.dumps(found.as_json(), indent=1) + "\n", encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
