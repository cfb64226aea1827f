"""Learned weights: does less entropy mean a better merge, and what do labels add? On small images.

Writes the figures into `docs/experiments/learned.md`, between its markers, `docs/experiments/learned.json` and a plot.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from glyphs import SKILLS, Reader, Seed, Weights, accuracy, held_out
from regimes import Check, merged, table, write_page
from rich.console import Console
from rich.progress import track

import eutectic
from eutectic.evaluate import Classification, Loader, Settings
from eutectic.report.search_html import learning_charts

PAGE = Path(__file__).resolve().parents[1] / "docs" / "experiments" / "learned.md"
# Of the first seed: entropy by step, a weight for each tensor of four specialists.
PLOT = PAGE.with_suffix(".svg")
IMAGES, BATCH, STEPS, RATE = 960, 64, 100, 1e-2
GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
COUNTS = {"Two specialists": 2, "Four specialists": 4}
BEST, BEGAN = "task arithmetic, best λ", "task arithmetic, λ 0.3"
CHECKS = (
    Check("entropy, by tensor, beats λ 0.3, where it began", "entropy, by tensor", BEGAN),
    Check("entropy, by tensor, beats entropy by task", "entropy, by tensor", "entropy, by task"),
    Check("entropy, by tensor, beats the best λ", "entropy, by tensor", BEST),
    Check("cross-entropy, by task, beats the best λ", "cross-entropy, by task", BEST),
    Check("cross-entropy, by tensor, beats the best λ", "cross-entropy, by tensor", BEST),
    Check(
        "cross-entropy, by tensor, beats cross-entropy by task", "cross-entropy, by tensor", "cross-entropy, by task"
    ),
)
# Number of images, rate and steps were chosen while looking at the figures of seeds 1 and 2.
FIRST = 11

Figures = dict[str, float]


def data(skills: Sequence[str]) -> list[Classification]:
    """Images for tuning, a data set for each skill; nothing is reported on them."""
    parts = {skill: held_out(skill, "tune") for skill in skills}
    return [
        Classification(list(zip(x[:IMAGES].split(BATCH), y[:IMAGES].split(BATCH), strict=True)), name=skill)
        for skill, (x, y) in parts.items()
    ]


def run(seed: Seed, count: int) -> tuple[Figures, str]:
    """The accuracies of one seed, and a chart."""
    skills = SKILLS[:count]
    models = seed.specialists()[:count]
    own = [accuracy(model, [skill]) for model, skill in zip(models, skills, strict=True)]

    def scaled(scale: float) -> Weights:
        return merged("task_arithmetic", seed.base, models, lambda_=scale)

    found = {
        "each by itself": statistics.fmean(own),
        "base": accuracy(seed.base, skills),
        BEGAN: accuracy(scaled(0.3), skills),
        BEST: accuracy(max(map(scaled, GRID), key=lambda weights: accuracy(weights, skills, "tune")), skills),
    }
    chart = ""
    for objective in ("entropy", "cross-entropy"):
        for by in ("task", "tensor"):
            done = eutectic.learn(
                {"merge_method": "task_arithmetic", "base_model": seed.base, "models": models},
                data=data(skills),
                by=by,
                objective=objective,
                steps=STEPS,
                lr=RATE,
                settings=Settings(loader=Loader(Reader)),
            )
            found[f"{objective}, by {by}"] = accuracy(dict(eutectic.merged(done.recipe)), skills)
            chart = learning_charts(done)[0] if (objective, by) == ("entropy", "tensor") else chart
    return found, chart


def measure(seeds: Sequence[Seed], count: int) -> tuple[dict[str, list[float]], str]:
    """The figures of all seeds, and the chart of the first."""
    found: dict[str, list[float]] = {}
    first = ""
    for seed in track(seeds, f"{count} specialists"):
        figures, chart = run(seed, count)
        first = first or chart
        for row, value in figures.items():
            found.setdefault(row, []).append(value)
    return found, first


def shown(title: str, figures: Mapping[str, Sequence[float]]) -> str:
    """The tables: what was found, and what held."""
    lines = [f"## {title}", "", *table(figures, "accuracy, %"), "", "| | difference | |", "| --- | ---: | --- |"]
    for check in CHECKS:
        mean, error = check.difference(figures)
        verdict = "held" if check.holds(figures) else "**not held**"
        lines.append(f"| {check.text} | {mean:+.1f} ± {error:.1f} | {verdict} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measures, and writes the page's figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="bases to train, each with its specialists (5)")
    torch.set_num_threads(1)
    seeds = [Seed(number) for number in range(FIRST, FIRST + parser.parse_args().seeds)]
    found = {title: measure(seeds, count) for title, count in COUNTS.items()}
    text = "\n".join(shown(title, rows) for title, (rows, _) in found.items())
    figures = {title: rows for title, (rows, _) in found.items()}
    write_page(PAGE, text, figures)
    PLOT.write_text([chart for _, chart in found.values()][-1] + "\n", encoding="utf-8")
    Console().print(text, highlight=False, markup=False)


if __name__ == "__main__":
    main()
