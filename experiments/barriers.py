"""Is there a barrier between two networks? Of one initialisation no, of two yes, and a curve goes around it. On digits.

Writes the figures into `docs/experiments/barriers.md`, between its markers, `docs/experiments/barriers.json`, and a
plot of the first seed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import digits
import torch
from regimes import CLEAR, mean_and_error, table, write_page
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from eutectic.connectivity import Barrier, connect, curve_barrier, instability, train_bend
from eutectic.evaluate import Classification, Loader, Settings
from eutectic.report.connect_html import path_chart

PAGE = Path(__file__).resolve().parents[1] / "docs" / "experiments" / "barriers.md"
PLOT = PAGE.with_suffix(".svg")
WIDTH, BATCH, EPOCHS, MOMENTUM = 256, 32, 30, 0.9
BEND_STEPS, BEND_RATE = 1000, 3e-3
SPAWNED = (0, 2, 10)  # epochs
NONE, HIGH = 0.02, 0.5

Figures = dict[str, float]
SAME, OTHER, CURVE = "same initialisation", "different initialisations", "different initialisations, on a curve"
LAYER = "different initialisations, worst single layer, half way"
TRAIN, TEST = "train", "held out"
LATE = "noisy training, spawned after {} epochs"


@dataclass(frozen=True)
class Rate:
    """Learning rate at the start, and weight decay."""

    start: float
    decay: float


CALM, NOISY = Rate(0.05, 1e-3), Rate(0.1, 5e-3)


@dataclass(frozen=True)
class Check:
    """Where the mean of a row lies, with standard errors to spare."""

    text: str
    row: str
    column: str
    above: bool
    bound: float

    def holds(self, figures: Mapping[str, Sequence[float]]) -> bool:
        mean, error = mean_and_error(figures[f"{self.row}: {self.column}"])
        return mean - CLEAR * error > self.bound if self.above else mean + CLEAR * error < self.bound


CHECKS = (
    Check("one initialisation, two orders of the data: no barrier", SAME, f"loss, {TRAIN}", False, NONE),
    Check("nor on held-out images", SAME, f"loss, {TEST}", False, NONE),
    Check("two initialisations: a barrier", OTHER, f"loss, {TRAIN}", True, HIGH),
    Check("and on held-out images", OTHER, f"loss, {TEST}", True, HIGH),
    Check("a single layer may go half way", LAYER, f"loss, {TRAIN}", False, HIGH),
    Check("a curve goes around the barrier", CURVE, f"loss, {TRAIN}", False, NONE),
    Check("noisier training parts from one initialisation", LATE.format(0), f"loss, {TRAIN}", True, NONE),
    Check("but not late in training", LATE.format(SPAWNED[-1]), f"loss, {TRAIN}", False, NONE),
)


def network(inputs: int, seed: int) -> nn.Sequential:
    """Three hidden layers."""
    torch.manual_seed(seed)
    hidden = [part for width in (inputs, WIDTH, WIDTH) for part in (nn.Linear(width, WIDTH), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, digits.CLASSES))


class Training:
    """SGD with momentum at a rate that falls to zero along a cosine; a copy goes on by itself."""

    def __init__(self, data: digits.Split, seed: int, rate: Rate, epochs: int) -> None:
        self.model = network(data.x.shape[1], seed)
        self.rate, self.done, self.data = rate, 0, data
        self.steps = epochs * (len(data.x) // BATCH)
        self.optimiser = torch.optim.SGD(
            self.model.parameters(), lr=rate.start, momentum=MOMENTUM, weight_decay=rate.decay
        )

    def go(self, seed: int, until: int | None = None) -> nn.Sequential:
        """Trains to the end, or to the step `until`; the seed draws the order of the data."""
        generator, rows = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
        while self.done < (self.steps if until is None else until):
            if len(rows) < BATCH:
                rows = torch.randperm(len(self.data.x), generator=generator)
            batch, rows = rows[:BATCH], rows[BATCH:]
            for group in self.optimiser.param_groups:
                group["lr"] = self.rate.start * (1 + math.cos(math.pi * self.done / self.steps)) / 2
            self.optimiser.zero_grad()
            nn.functional.cross_entropy(self.model(self.data.x[batch]), self.data.y[batch]).backward()
            self.optimiser.step()
            self.done += 1
        return self.model


def tasks(data: digits.Split) -> list[Classification]:
    """Loss and error on the training data and on what was held out."""
    parts = ((TRAIN, data.x, data.y), (TEST, data.x_test, data.y_test))
    return [Classification([(x, y)], name=name, metric="cross_entropy") for name, x, y in parts]


def run(data: digits.Split, seed: int, epochs: int = EPOCHS) -> tuple[Figures, list[Barrier]]:
    """One seed: `row: column` -> figure, and the paths between different initialisations, the curve last."""
    a, twin, other = (
        Training(data, start, CALM, epochs).go(order) for start, order in ((seed, 1), (seed, 2), (1000 + seed, 3))
    )
    measured, settings = tasks(data), Settings(loader=Loader(module=lambda: network(data.x.shape[1], 0)))
    found: Figures = {}
    note(found, SAME, [pairs[0, 1] for pairs in connect([a, twin], measured, settings=settings).barriers.values()])
    between = connect([a, other], measured, layerwise=True, settings=settings)
    straight = [pairs[0, 1] for pairs in between.barriers.values()]
    note(found, OTHER, straight)
    for task, pairs in between.layers.items():
        values = [layer.barrier.curve.values for layer in pairs[0, 1]]
        found[f"{LAYER}: loss, {task}"] = max(layer[len(layer) // 2] - layer[0] for layer in values)
    bend = around(a, other, data, seed)
    curved = [curve_barrier(a, bend, other, task, settings=settings) for task in measured]
    note(found, CURVE, curved)
    note_instability(found, data, seed, epochs, settings)
    return found, [straight[0], curved[0]]


def note(found: Figures, row: str, barriers: Sequence[Barrier]) -> None:
    """Barriers of loss and error of each task; errors in per cent."""
    for one in barriers:
        for quantity, curve in one.curves.items():
            scale = 100 if quantity == "error" else 1
            found[f"{row}: {quantity}{', %' if scale > 1 else ''}, {one.task}"] = scale * curve.height().value


def note_instability(found: Figures, data: digits.Split, seed: int, epochs: int, settings: Settings) -> None:
    """Barriers between children of noisy training, spawned sooner and later."""

    def start(step: int) -> Training:
        training = Training(data, seed, NOISY, epochs)
        training.go(0, until=step)
        return training

    an_epoch = len(data.x) // BATCH
    steps = [spawned * an_epoch for spawned in SPAWNED]
    children = instability(start, Training.go, tasks(data)[0], steps=steps, settings=settings)
    for spawned, one in zip(SPAWNED, children, strict=True):
        note(found, LATE.format(spawned), [one.barrier])


def around(a: nn.Module, b: nn.Module, data: digits.Split, seed: int) -> dict[str, Tensor]:
    """The bend of a curve from a to b, trained on batches of the training data."""
    generator, module = torch.Generator().manual_seed(seed), network(data.x.shape[1], 0)

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        rows = torch.randint(len(data.x), (4 * BATCH,), generator=generator)
        out = torch.func.functional_call(module, dict(weights), (data.x[rows],))
        return nn.functional.cross_entropy(out, data.y[rows])

    return train_bend(a, b, loss, steps=BEND_STEPS, rate=BEND_RATE, seed=seed)


def measure(seeds: Sequence[int]) -> tuple[dict[str, list[float]], list[Barrier]]:
    """The figures of all seeds, each with a split of its own, and the paths of the first."""
    found: dict[str, list[float]] = {}
    first: list[Barrier] = []
    for seed in track(seeds, "training"):
        figures, paths = run(digits.load(seed), seed)
        first = first or paths
        for row, value in figures.items():
            found.setdefault(row, []).append(value)
    return found, first


def shown(figures: Mapping[str, Sequence[float]]) -> str:
    """The tables: what was found, and what held."""
    lines = []
    for quantity, unit in (("loss", "thousandths of a nat"), ("error", "percent")):
        rows = {row.replace(", %", ""): values for row, values in figures.items() if f": {quantity}" in row}
        digits_kept = table(rows, quantity) if quantity == "error" else thousandths(rows)
        lines += [f"## Barriers of the {quantity}, in {unit}", "", *digits_kept, ""]
    lines += ["## What held", "", "| | mean over the seeds | should be | |", "| --- | ---: | ---: | --- |"]
    for check in CHECKS:
        mean, error = mean_and_error(figures[f"{check.row}: {check.column}"])
        verdict = "held" if check.holds(figures) else "**not held**"
        sign = ">" if check.above else "<"
        lines.append(f"| {check.text} | {mean:.4f} ± {error:.4f} | {sign} {check.bound:g} | {verdict} |")
    return "\n".join([*lines, ""])


def thousandths(rows: Mapping[str, Sequence[float]]) -> list[str]:
    """A table whose figures are shown in thousandths, so that small ones can be read."""
    return table({row: [1000 * value for value in values] for row, values in rows.items()}, "loss")


def main() -> None:
    """Measures, and writes the page's figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="splits and networks (5)")
    torch.set_num_threads(1)
    figures, paths = measure(range(1, parser.parse_args().seeds + 1))
    text = shown(figures)
    write_page(PAGE, text, figures)
    named = [replace(one, ends=("a", "b"), task=name) for one, name in zip(paths, ("line", "curve"), strict=True)]
    PLOT.write_text(path_chart(named, "loss") + "\n", encoding="utf-8")
    Console().print(text, highlight=False, markup=False)


if __name__ == "__main__":
    main()
