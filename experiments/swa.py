"""Averages along one training run: is SWA better than the last weights, and flatter? On small images, on a CPU.

Writes the figures into `docs/experiments/swa.md`, between its markers, `docs/experiments/swa.json` and two plots.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import digits
import glyphs
import torch
from regimes import Check, table, write_page
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from eutectic.averaging import WeightAverage, constant_rate, update_bn
from eutectic.averaging.running import STALE
from eutectic.report.curves import Point, Series, chart

PAGE = Path(__file__).resolve().parents[1] / "docs" / "experiments" / "swa.md"
PLOTS = ("swa.svg", "flat.svg")
BATCH, TAIL, RATE = 32, 0.5, 0.1
PUSHES, PUSH = 10, 0.1
FARTHER = (0.05, 0.1, 0.15, 0.2)

Figures = dict[str, float]
HANDWRITTEN, FONT = "Handwritten digits", "Digits of a font"
ACCURACY, LOSS, RISE = "accuracy, %", "loss", "rise of the training loss"
STALE_ROW = "SWA, batch norm, stale statistics"
CHECKS: Mapping[str, tuple[Check, ...]] = {
    ACCURACY: (
        Check("SWA is more accurate than the last weights", "SWA", "last weights"),
        Check("EMA is more accurate than the last weights", "EMA", "last weights"),
        Check("SWA is more accurate than a rate that falls to zero", "SWA", "rate falls to zero"),
        Check("SWA with recomputed statistics is more accurate than with stale ones", "SWA, batch norm", STALE_ROW),
    ),
    LOSS: (
        Check("the last weights have more loss than SWA", "last weights", "SWA"),
        Check("a rate that falls to zero has more loss than SWA", "rate falls to zero", "SWA"),
        Check("stale statistics have more loss", STALE_ROW, "SWA, batch norm"),
    ),
    RISE: (
        Check("the last weights' loss rises more than SWA's", "last weights", "SWA"),
        Check("the loss of a rate that falls to zero rises more than SWA's", "rate falls to zero", "SWA"),
    ),
}


def network(inputs: int, norm: bool, seed: int) -> nn.Sequential:
    """Two hidden layers of 64 units."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for width in (inputs, 64):
        layers += [nn.Linear(width, 64), *([nn.BatchNorm1d(64)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, digits.CLASSES))


def batches(data: digits.Split, generator: torch.Generator) -> Iterator[Tensor]:
    """One epoch: rows of each batch, of which all are whole."""
    order = torch.randperm(len(data.x), generator=generator)
    yield from order[: len(order) // BATCH * BATCH].split(BATCH)


def train(
    model: nn.Module, data: digits.Split, rate: Callable[[int], float], seed: int, epochs: int,
    averages: Sequence[WeightAverage] = (), after: Callable[[int], None] = lambda epoch: None,
) -> None:  # fmt: skip
    """SGD with momentum at RATE times `rate`; `after` is called with the number of each epoch that is over."""
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for epoch in range(1, epochs + 1):
        for rows in batches(data, generator):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(data.x[rows]), data.y[rows]).backward()
            optimiser.step()
            schedule.step()
            for average in averages:
                average.step()
        after(epoch)
        model.train()


@torch.no_grad()
def loss_and_accuracy(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean loss, and accuracy in per cent."""
    out = model.eval()(x)
    return float(nn.functional.cross_entropy(out, y)), 100 * float((out.argmax(1) == y).float().mean())


@torch.no_grad()
def rise(model: nn.Module, data: digits.Split, push: float = PUSH) -> float:
    """By how much the training loss rises if every tensor is pushed by a share of its norm, in random directions."""
    own = {name: tensor.clone() for name, tensor in model.named_parameters()}
    start, _ = loss_and_accuracy(model, data.x, data.y)
    generator, found = torch.Generator().manual_seed(0), 0.0
    for _ in range(PUSHES):
        for name, tensor in model.named_parameters():
            way = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(own[name] + push * own[name].norm() / way.norm() * way)
        found += loss_and_accuracy(model, data.x, data.y)[0] - start
    for name, tensor in model.named_parameters():
        tensor.copy_(own[name])
    return found / PUSHES


def falling(start: int, steps: int) -> Callable[[int], float]:
    """The whole rate up to `start`, then in a straight line to zero."""
    return lambda step: min(1.0, (steps - step) / (steps - start))


def load(title: str, seed: int) -> tuple[digits.Split, int]:
    """The images of one seed, some of their training labels wrong, and for how many epochs to train on them."""
    if title == HANDWRITTEN:
        return digits.load(seed, wrong=0.1), 60
    x, y = glyphs.images("plain", 3000, torch.Generator().manual_seed(seed))
    return digits.split(x, y, seed, wrong=0.2, held_out=1000), 16


def averaged(
    data: digits.Split, seed: int, epochs: int, after: Callable[[dict[str, Any]], Callable[[int], None]] | None = None
) -> dict[str, Any]:
    """Trains at a constant rate, from half way on a lower one; the model is the last weights, beside its averages.

    `after` is given all three and returns what `train` calls.
    """
    an_epoch = len(data.x) // BATCH
    start = int(TAIL * epochs) * an_epoch
    model = network(data.x.shape[1], False, seed)
    found = {
        "last weights": model,
        "SWA": WeightAverage(model, start=start, period=an_epoch),
        "EMA": WeightAverage(model, decay=1 - 1 / (5 * an_epoch)),
    }
    told = after(found) if after else lambda epoch: None
    rate = constant_rate(start, 0.5, anneal=an_epoch)
    train(model, data, rate, seed, epochs, (found["SWA"], found["EMA"]), told)
    return found


def in_model(row: Any) -> AbstractContextManager[nn.Module]:
    """The weights of a row of `averaged`, in the model."""
    return row.swapped() if isinstance(row, WeightAverage) else nullcontext(row)


def charts(data: digits.Split, seed: int, epochs: int) -> list[str]:
    """Test loss along one training run, and the training loss around its end."""
    along: dict[str, list[Point]] = {}

    def follow(rows: dict[str, Any]) -> Callable[[int], None]:
        def note(epoch: int) -> None:
            for row, weights in rows.items():
                if not isinstance(weights, WeightAverage) or weights.collected:
                    with in_model(weights) as model:
                        loss, _ = loss_and_accuracy(model, data.x_test, data.y_test)
                    along.setdefault(row, []).append(Point(epoch, loss))

        return note

    around = {}
    for row, weights in averaged(data, seed, epochs, follow).items():
        with in_model(weights) as model:
            around[row] = [Point(0.0, 0.0), *(Point(100 * push, rise(model, data, push)) for push in FARTHER)]
    return [
        chart("Along the run", [Series(*row) for row in along.items()], x="epoch", y="test loss"),
        chart("Around its end", [Series(*row) for row in around.items()], x="push, % of the norm", y=RISE),
    ]


def run(data: digits.Split, seed: int, epochs: int) -> Figures:
    """One seed: `row: column` -> figure."""
    an_epoch = len(data.x) // BATCH
    steps, start = epochs * an_epoch, int(TAIL * epochs) * an_epoch
    found: Figures = {}

    def note(row: str, model: nn.Module, flat: bool = True) -> None:
        found[f"{row}: {LOSS}"], found[f"{row}: {ACCURACY}"] = loss_and_accuracy(model, data.x_test, data.y_test)
        if flat:
            found[f"{row}: {RISE}"] = rise(model, data)

    for row, weights in averaged(data, seed, epochs).items():
        with in_model(weights) as model:
            note(row, model)
    inputs = data.x.shape[1]
    model = network(inputs, False, seed)
    train(model, data, falling(start, steps), seed, epochs)
    note("rate falls to zero", model)

    model = network(inputs, True, seed)
    swa = WeightAverage(model, start=start, period=an_epoch, buffers="copy")
    train(model, data, constant_rate(start, 0.5, anneal=an_epoch), seed, epochs, (swa,))
    note("last weights, batch norm", model, flat=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=STALE[:40])  # of what is shown here
        swa.apply()
    note(STALE_ROW, model, flat=False)
    update_bn(data.x.split(256), model)
    note("SWA, batch norm", model, flat=False)
    return found


def measure(title: str, seeds: Sequence[int]) -> dict[str, list[float]]:
    """The figures of all seeds, each with a split of its own."""
    found: dict[str, list[float]] = {}
    for seed in track(seeds, title):
        data, epochs = load(title, seed)
        for row, value in run(data, seed, epochs).items():
            found.setdefault(row, []).append(value)
    return found


def column(figures: Mapping[str, Sequence[float]], name: str) -> dict[str, Sequence[float]]:
    """The rows' figures of one column."""
    return {row.removesuffix(f": {name}"): values for row, values in figures.items() if row.endswith(f": {name}")}


def shown(title: str, figures: Mapping[str, Sequence[float]]) -> str:
    """The tables: what was found, and what held."""
    lines = [f"## {title}", ""]
    for name, checks in CHECKS.items():
        scale = 1 if name == ACCURACY else 1000
        rows = {row: [scale * value for value in values] for row, values in column(figures, name).items()}
        lines += [f"### {name[0].upper()}{name[1:].partition(',')[0]}", ""]
        lines += [
            *table(rows, name if scale == 1 else f"{name}, × 1000"),
            "",
            "| | difference | |",
            "| --- | ---: | --- |",
        ]
        for check in checks:
            mean, error = check.difference(rows)
            verdict = "held" if check.holds(rows) else "**not held**"
            lines.append(f"| {check.text} | {mean:+.2f} ± {error:.2f} | {verdict} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measures, and writes the page's figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="splits and networks (10)")
    torch.set_num_threads(1)
    seeds = range(1, parser.parse_args().seeds + 1)
    figures = {title: measure(title, seeds) for title in (HANDWRITTEN, FONT)}
    text = "\n".join(shown(title, rows) for title, rows in figures.items())
    write_page(PAGE, text, figures)
    data, epochs = load(HANDWRITTEN, 1)
    for name, drawn in zip(PLOTS, charts(data, 1, epochs), strict=True):
        PAGE.with_name(name).write_text(drawn + "\n", encoding="utf-8")
    Console().print(text, highlight=False, markup=False)


if __name__ == "__main__":
    main()
