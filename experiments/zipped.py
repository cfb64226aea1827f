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
from rebasin import APART, DIGITS, MNIST, NAMES, PLAIN, here, load, measured
from regimes import Check, table, write_page
from rich.console import Console
from torch import Tensor, nn
from trained import Net, Recipe, trained

from eutectic.alignment.zipit import zipit

PAGE = Path(__file__).resolve().parents[1] / "docs" / "experiments" / "zipit.md"
SEEDS = {DIGITS: 3, MNIST: 3}
HALF = digits.CLASSES // 2
NET = Net("mlp", 128, 3, HALF)
TRAINING = {
    "Adam without decay": PLAIN,
    "SGD with weight decay": {DIGITS: Recipe("sgd", 0.1, 2e-3, 100, 32), MNIST: Recipe("sgd", 0.1, 2e-3, 20, 64)},
}
# What is merged: the hidden layers, by the names of their tensors.
TRUNKS: Mapping[str, tuple[str, ...]] = {"all three layers": ("0", "2", "4"), "the first layer": ("0",)}
BETAS = (0.0, 0.5, 1.0)
ALPHA = 0.3

ENSEMBLE, AVERAGE, PERMUTED, ZIPPED = "both networks, side by side", "average", "permuted average", "ZipIt!, β {:g}"
OWN, JOINT, FOLDED = "each at its own labels, %", "all labels, %", "units folded into one of their own model, %"
Figures = Mapping[str, Mapping[str, Sequence[float]]]


def _order() -> tuple[Check, ...]:
    best = ZIPPED.format(BETAS[-1])
    pairs = ((ENSEMBLE, best), (best, PERMUTED), (PERMUTED, AVERAGE))
    return tuple(Check(f"{a} beats {b}", f"{a}: {OWN}", f"{b}: {OWN}") for a, b in pairs)


CHECKS = (
    *_order(),
    Check("ZipIt! beats the permuted average on all labels", f"{ZIPPED.format(1)}: {JOINT}", f"{PERMUTED}: {JOINT}"),
    Check("merges within a model help", f"{ZIPPED.format(1)}: {OWN}", f"{ZIPPED.format(0)}: {OWN}"),
)


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
    """One seed: training and trunk → `row: column` → figure."""
    data, found = load(title, seed), {}
    for training, recipes in TRAINING.items():
        models = [
            trained(
                half(data, number), f"{NAMES[title]} {seed} half {number}", NET, recipes[title], seed + APART * number
            )
            for number in (0, 1)
        ]
        pair = Pair(*models, data)
        for trunk, layers in TRUNKS.items():
            rows = merges(pair, layers)
            figures = {f"{row}: {column}": one for row, columns in rows.items() for column, one in columns.items()}
            found[f"{training}, {trunk}"] = figures
    return found


def merges(pair: Pair, layers: Sequence[str]) -> dict[str, dict[str, float]]:
    """Both networks and their merges in the given layers: row → column → figure."""
    data, shared = pair.data, [f"{layer}.{tensor}" for layer in layers for tensor in ("weight", "bias")]
    batches = list(data.x.split(BATCH))
    rows = {ENSEMBLE: accuracies([pair.a, pair.b], data)}
    for row, b in ((AVERAGE, pair.b), (PERMUTED, pair.moved(ACTIVATIONS))):
        rows[row] = accuracies([average([one, other], shared) for one, other in ((pair.a, b), (b, pair.a))], data)
    for beta in BETAS:
        until = f"{layers[-1]}.weight"
        made = zipit([pair.a, pair.b], batches, pair.symmetries, until=until, alpha=ALPHA, beta=beta)
        folded = [lost / group.units for group in made.groups.values() for lost in group.folded]
        rows[ZIPPED.format(beta)] = accuracies(list(made.members), data) | {FOLDED: 100 * sum(folded) / len(folded)}
    return rows


def shown(title: str, figures: Figures) -> str:
    """The tables: what was found, and what held."""
    lines = [f"## {title}", ""]
    for section, rows in figures.items():
        lines += [f"### {section}", "", *table(rows, "")]
        lines += ["", "| | difference | |", "| --- | ---: | --- |"]
        for check in CHECKS:
            mean, error = check.difference(rows)
            verdict = "held" if check.holds(rows) else "**not held**"
            lines.append(f"| {check.text} | {mean:+.1f} ± {error:.1f} | {verdict} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measures, and writes the page's figures."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    kept = PAGE.with_suffix(".json")
    figures, console = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}, Console()
    for title, count in SEEDS.items():
        if here(title, console):
            figures[title] = measured(run, title, range(1, count + 1))
    text = "\n".join(shown(title, rows) for title, rows in figures.items())
    write_page(PAGE, text, figures)
    console.print(text, highlight=False, markup=False)


if __name__ == "__main__":
    main()
