"""Soups of fine-tunes, and part of the way back to the base: what do they gain, here and elsewhere? On small images.

Writes the figures into `docs/experiments/soups.md`, between its markers, `docs/experiments/soups.json` and two plots.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import digits
import glyphs
import torch
from regimes import Check, table, write_page
from rich.console import Console
from rich.progress import track
from swa import column, network
from torch import Tensor, nn

import eutectic
from eutectic.evaluate import Classification, Loader, Settings
from eutectic.report.search_html import soup_chart, tuning_charts

PAGE = Path(__file__).resolve().parents[1] / "docs" / "experiments" / "soups.md"
# Of the first seed: a greedy soup, and the target against other data on the way back.
PLOTS = ("soups.svg", "back.svg")
BATCH, INGREDIENTS, CHOOSE_BY = 32, 16, 400
RATES, EPOCHS, WRONG = (0.003, 0.1), (3, 12), 0.05
TUNED = {"rate": 0.05, "epochs": 12}

Figures = dict[str, float]
Weights = dict[str, Tensor]
HANDWRITTEN, FONT = "Handwritten digits", "Digits of a font"
CHOSEN_BY, TEST, ELSEWHERE, BOTH = "chosen by", "test", "elsewhere", "mean of both"
METHODS = ("greedy", "greedy, loss breaks ties", "pruned", "learned")
CHECKS: Mapping[str, tuple[Check, ...]] = {
    CHOSEN_BY: (Check("greedy is no worse than the best ingredient where it was chosen", "greedy soup", "best"),),
    TEST: (
        Check("greedy beats the best ingredient", "greedy soup", "best"),
        Check("greedy beats uniform", "greedy soup", "uniform soup"),
        Check("part of the way back beats the fine-tune", "back, α chosen", "fine-tune"),
        Check("part of the way back beats the base", "back, α chosen", "base"),
    ),
    ELSEWHERE: (
        Check("greedy beats the best ingredient", "greedy soup", "best"),
        Check("uniform beats the best ingredient", "uniform soup", "best"),
        Check("part of the way back beats the fine-tune", "back, α chosen", "fine-tune"),
    ),
    BOTH: (
        Check("part of the way back beats the fine-tune", "back, α chosen", "fine-tune"),
        Check("part of the way back beats the base", "back, α chosen", "base"),
    ),
}


def shifted(x: Tensor, seed: int) -> Tensor:
    """The same images elsewhere: moved by up to one pixel up, down or sideways, and noisy."""
    side, generator = math.isqrt(x.shape[1]), torch.Generator().manual_seed(seed)
    moves = torch.randint(-1, 2, (len(x), 2), generator=generator).tolist()
    images = zip(x.view(-1, side, side), moves, strict=True)
    return torch.stack([image.roll((down, right), (0, 1)) for image, (down, right) in images]).flatten(
        1
    ) + 0.15 * torch.randn(x.shape, generator=generator)


def relabelled(y: Tensor, seed: int) -> Tensor:
    """The labels, some of them drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(len(y), generator=generator) < WRONG
    return torch.where(drawn, torch.randint(digits.CLASSES, y.shape, generator=generator), y)


def train(start: Weights | None, x: Tensor, y: Tensor, *, rate: float, epochs: int, seed: int) -> Weights:
    """SGD with momentum at a rate that falls to zero."""
    model, generator = network(x.shape[1], False, seed), torch.Generator().manual_seed(seed)
    if start is not None:
        model.load_state_dict(start)
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, epochs * (len(x) // BATCH))
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator)[: len(x) // BATCH * BATCH].split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
            schedule.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def fine_tunes(base: Weights, x: Tensor, y: Tensor, seed: int) -> list[Weights]:
    """As a search over rates and lengths leaves them: some good, some ruined, each with an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(INGREDIENTS):
        where, length = torch.rand(2, generator=generator).tolist()
        rate = RATES[0] * (RATES[1] / RATES[0]) ** where
        epochs = round(EPOCHS[0] + length * (EPOCHS[1] - EPOCHS[0]))
        found.append(train(base, x, y, rate=rate, epochs=epochs, seed=1000 * seed + number))
    return found


class World:
    """The data of one seed as tasks, and how to run them."""

    def __init__(self, data: digits.Split, seed: int) -> None:
        half = (len(data.x) - CHOOSE_BY) // 2
        views = [shifted(data.x[:half], 10 * seed + view) for view in range(3)]
        self.pretrain = (torch.cat(views), data.y[:half].repeat(len(views)))
        self.tune = (data.x[half : 2 * half], relabelled(data.y[half : 2 * half], seed))
        rest = slice(2 * half, None)
        elsewhere = shifted(data.x_test, 10 * seed + 9)
        self.tasks = {
            name: Classification(list(zip(x.split(64), y.split(64), strict=True)), name=name)
            for name, (x, y) in {
                CHOSEN_BY: (data.x[rest], data.y[rest]),
                TEST: (data.x_test, data.y_test),
                ELSEWHERE: (elsewhere, data.y_test),
            }.items()
        }
        self.inputs = data.x.shape[1]
        self.settings = Settings(loader=Loader(self.make))

    def make(self) -> nn.Module:
        """The network that weights are loaded into."""
        return network(self.inputs, False, 0)

    def note(self, found: Figures, row: str, weights: object) -> None:
        """The accuracies of a model, or of the merge of a recipe, on all data."""
        for name, task in self.tasks.items():
            score = eutectic.evaluate(weights, task, module=self.make, cache=False)
            found[f"{row}: {name}"] = 100 * score.value
        found[f"{row}: {BOTH}"] = (found[f"{row}: {TEST}"] + found[f"{row}: {ELSEWHERE}"]) / 2


def run(data: digits.Split, seed: int) -> tuple[Figures, list[str]]:
    """One seed: `row: column` -> figure; and the charts of a soup and of the way back."""
    world = World(data, seed)
    base = train(None, *world.pretrain, rate=0.1, epochs=15, seed=seed)
    models = fine_tunes(base, *world.tune, seed)
    found: Figures = {}
    charts = []
    choose: dict[str, object] = {"task": world.tasks[CHOSEN_BY], "settings": world.settings, "cache": False}
    for name in METHODS:
        method, _, ties = name.partition(", ")
        done = eutectic.soup(models, method=method, tie_break="cross_entropy" if ties else None, **choose).choice
        if name == "greedy":
            world.note(found, "best", models[done.models.index(str(done.best))])
            world.note(found, "uniform soup", {"merge_method": "linear", "models": models})
            found["greedy soup: ingredients"] = float(len(done.ingredients))
            charts.append(soup_chart(done))
        world.note(found, f"{method} soup{', ' + ties if ties else ''}", done.recipe)
    tuned = train(base, *world.tune, seed=seed, rate=TUNED["rate"], epochs=int(TUNED["epochs"]))
    way = eutectic.tune(
        {"merge_method": "wise_ft", "base_model": base, "models": [tuned]},
        over={"parameters.alpha": "0:1:0.1"},
        tasks=[world.tasks[CHOSEN_BY], world.tasks[ELSEWHERE]],
        settings=world.settings,
        cache=False,
    )
    world.note(found, "base", base)
    world.note(found, "fine-tune", tuned)
    world.note(found, "back, α chosen", way.recipe)
    found["back, α chosen: α"] = float(way.found.choices[str(way.found.best)]["parameters.alpha"])
    charts.append(tuning_charts(way.found)[-1])
    return found, charts


def load(title: str, seed: int) -> digits.Split:
    """The images of one seed."""
    if title == HANDWRITTEN:
        return digits.load(seed)
    x, y = glyphs.images("plain", 2300, torch.Generator().manual_seed(seed))
    return digits.split(x, y, seed, wrong=0.0, held_out=1000)


# Rates, sizes and noise were chosen while looking at the figures of seeds 1 to 10.
FIRST = 11


def measure(title: str, seeds: Sequence[int]) -> tuple[dict[str, list[float]], list[str]]:
    """The figures of all seeds, each with a split of its own, and the charts of the first."""
    found: dict[str, list[float]] = {}
    first: list[str] = []
    for seed in track(seeds, title):
        figures, charts = run(load(title, seed), seed)
        first = first or charts
        for row, value in figures.items():
            found.setdefault(row, []).append(value)
    return found, first


def shown(title: str, figures: Mapping[str, Sequence[float]]) -> str:
    """The tables: what was found, and what held."""
    rows = {row: values for row, values in figures.items() if row.rpartition(": ")[2] in CHECKS}
    counts = {row: values for row, values in figures.items() if row not in rows}
    lines = [f"## {title}", "", *table(rows, "accuracy, %"), ""]
    for row, values in counts.items():
        lines += [f"{row.replace(': ', ', ')}: {sum(values) / len(values):.2f} on average.", ""]
    lines += ["| | data | difference | |", "| --- | --- | ---: | --- |"]
    for name, checks in CHECKS.items():
        for check in checks:
            mean, error = check.difference(column(rows, name))
            verdict = "held" if holds(name, check, rows) else "**not held**"
            lines.append(f"| {check.text} | {name} | {mean:+.2f} ± {error:.2f} | {verdict} |")
    return "\n".join([*lines, ""])


def holds(name: str, check: Check, figures: Mapping[str, Sequence[float]]) -> bool:
    """Whether a claim held: on the data that it was chosen by, the soup may not be worse for any seed."""
    rows = column(figures, name)
    if name == CHOSEN_BY:
        return all(a >= b for a, b in zip(rows[check.better], rows[check.worse], strict=True))
    return check.holds(rows)


def main() -> None:
    """Measures, and writes the page's figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="splits and networks (10)")
    torch.set_num_threads(1)
    seeds = range(FIRST, FIRST + parser.parse_args().seeds)
    found = {title: measure(title, seeds) for title in (HANDWRITTEN, FONT)}
    figures = {title: rows for title, (rows, _) in found.items()}
    text = "\n".join(shown(title, rows) for title, rows in figures.items())
    write_page(PAGE, text, figures)
    for name, chart in zip(PLOTS, found[HANDWRITTEN][1], strict=True):
        PAGE.with_name(name).write_text(chart + "\n", encoding="utf-8")
    Console().print(text, highlight=False, markup=False)


if __name__ == "__main__":
    main()
