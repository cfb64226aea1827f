"""One network for two halves of the labels, out of two that were trained apart: ZipIt! beside what else there is.

Writes the figures into `docs/experiments/zipit.md`, between its markers, and `docs/experiments/zipit.json`. Networks
that an earlier run trained are found under `runs/rebasin`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import digits
import torch
from aligning import ACTIVATIONS, BATCH, Pair, average
from rebasin import APART, DIGITS, MNIST, NAMES, load
from regimes import BEGIN, END, Check, table
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from trained import Net, Recipe, trained

from eutectic.alignment.zipit import zipit

PAGE = Path(__file__).resolve().parents[1] / "docs" / "experiments" / "zipit.md"
SEEDS = {DIGITS: 3, MNIST: 3}
HALF = digits.CLASSES // 2
NET = Net("mlp", 128, 3, HALF)
TRAINING = {DIGITS: Recipe("sgd", 0.1, 2e-3, 100, 32), MNIST: Recipe("sgd", 0.1, 2e-3, 20, 64)}
# What is merged: all hidden layers, or the first one or two, named by the tensor that makes its units.
TRUNKS: Mapping[str, tuple[str, ...]] = {
    "all three layers": ("0", "2", "4"),
    "two layers": ("0", "2"),
    "one layer": ("0",),
}
BETAS = (0.0, 0.5, 1.0)
ALPHA = 0.3

ENSEMBLE, AVERAGE, PERMUTED, ZIPPED = "both networks, side by side", "average", "permuted average", "ZipIt!, β {:g}"
OWN, JOINT, FOLDED = "each at its own labels, %", "all labels, %", "units folded into one of their own model, %"
Figures = Mapping[str, Mapping[str, Sequence[float]]]


def _order(trunk: str) -> tuple[Check, ...]:
    best = ZIPPED.format(BETAS[-1])
    pairs = ((ENSEMBLE, best), (best, PERMUTED), (PERMUTED, AVERAGE))
    return tuple(Check(f"{a} beats {b}", f"{a}: {OWN}", f"{b}: {OWN}") for a, b in pairs)


CHECKS: Mapping[str, tuple[Check, ...]] = {
    trunk: (
        *_order(trunk),
        Check(
            "ZipIt! beats the permuted average on all labels", f"{ZIPPED.format(1)}: {JOINT}", f"{PERMUTED}: {JOINT}"
        ),
        Check("merges within a model help", f"{ZIPPED.format(1)}: {OWN}", f"{ZIPPED.format(0)}: {OWN}"),
    )
    for trunk in TRUNKS
}


def half(data: digits.Split, number: int) -> digits.Split:
    """The images with the first or the last five labels, counted from 0."""

    def part(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        rows = y // HALF == number
        return x[rows], y[rows] - HALF * number

    return digits.Split(*part(data.x, data.y), *part(data.x_test, data.y_test))


@torch.no_grad()
def accuracies(models: Sequence[nn.Module], data: digits.Split) -> dict[str, float]:
    """In per cent: mean of each network at its own labels, and of their joint logits at all labels."""
    own = []
    for number, model in enumerate(models):
        part = half(data, number)
        own.append(float((model(part.x_test).argmax(1) == part.y_test).float().mean()))
    joint = torch.cat([model(data.x_test) for model in models], 1).argmax(1) == data.y_test
    return {OWN: 100 * sum(own) / len(own), JOINT: 100 * float(joint.float().mean())}


def run(title: str, seed: int) -> dict[str, dict[str, float]]:
    """One seed: trunk → `row: column` → figure."""
    data = load(title, seed)
    parts = [half(data, number) for number in (0, 1)]
    models = [
        trained(part, f"{NAMES[title]} {seed} half {number}", NET, TRAINING[title], seed + APART * number)
        for number, part in enumerate(parts)
    ]
    pair = Pair(*models, data)
    batches = [data.x[rows] for rows in torch.arange(len(data.x)).split(BATCH)]
    both = accuracies(models, data)
    found: dict[str, dict[str, float]] = {}
    for trunk, layers in TRUNKS.items():
        shared = [f"{layer}.{tensor}" for layer in layers for tensor in ("weight", "bias")]
        rows = {ENSEMBLE: both}
        for row, other in ((AVERAGE, models[1]), (PERMUTED, pair.moved(ACTIVATIONS))):
            rows[row] = accuracies([average([a, b], shared) for a, b in ((models[0], other), (other, models[0]))], data)
        for beta in BETAS:
            made = zipit(models, batches, pair.symmetries, until=f"{layers[-1]}.weight", alpha=ALPHA, beta=beta)
            folded = [lost / group.units for group in made.groups.values() for lost in group.folded]
            rows[ZIPPED.format(beta)] = accuracies(list(made.members), data) | {FOLDED: 100 * sum(folded) / len(folded)}
        found[trunk] = {f"{row}: {column}": value for row, columns in rows.items() for column, value in columns.items()}
    return found


def measure(title: str, seeds: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """The figures of all seeds, each with a split and networks of its own."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in track(seeds, title):
        for section, rows in run(title, seed).items():
            for row, value in rows.items():
                found.setdefault(section, {}).setdefault(row, []).append(value)
    return found


def shown(title: str, figures: Figures) -> str:
    """The tables: what was found, and what held."""
    lines = [f"## {title}", ""]
    for section, rows in figures.items():
        lines += [f"### {section.capitalize()}", "", *table(rows, "")]
        lines += ["", "| | difference | |", "| --- | ---: | --- |"]
        for check in CHECKS[section]:
            mean, error = check.difference(rows)
            verdict = "held" if check.holds(rows) else "**not held**"
            lines.append(f"| {check.text} | {mean:+.1f} ± {error:.1f} | {verdict} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measures, and writes the page's figures."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    figures = {title: measure(title, range(1, count + 1)) for title, count in SEEDS.items()}
    text = "\n".join(shown(title, rows) for title, rows in figures.items())
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    PAGE.with_suffix(".json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    Console().print(text, highlight=False, markup=False)


if __name__ == "__main__":
    main()
