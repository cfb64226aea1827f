"""Networks of different initialisations, brought into one basin by their symmetries: how high is the barrier then?

Writes the figures into `docs/experiments/rebasin.md`, between its markers, `docs/experiments/rebasin.json` and plots of
the first seed. Networks that an earlier run trained are found under `runs/rebasin`.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import digits
import mnist
import torch
from aligning import ACTIVATIONS, NAIVE, SINKHORN, STRAIGHT, WEIGHTS, Pair, accuracy, average, moved
from barriers import Check as Bound
from regimes import Check, mean_and_error, table, write_page
from rich.console import Console
from rich.progress import track
from torch import nn
from trained import Net, Recipe, trained

from eutectic.alignment.many import align_many
from eutectic.checkpoint import MemorySource
from eutectic.connectivity import Barrier, connect
from eutectic.evaluate import Classification, Loader, Settings
from eutectic.report.connect_html import path_chart

PAGE = Path(__file__).resolve().parents[1] / "docs" / "experiments" / "rebasin.md"
DIGITS, MNIST, SMALL = "Handwritten digits", "MNIST", "MNIST, 14 × 14"
NAMES = {DIGITS: "digits", MNIST: "mnist", SMALL: "mnist-14"}
SEEDS = {DIGITS: 3, MNIST: 3, SMALL: 3}
APART = 1000  # between the seeds of networks that are brought together

DECAY = {DIGITS: Recipe("sgd", 0.1, 5e-3, 200, 32), MNIST: Recipe("sgd", 0.1, 5e-3, 20, 64)}
PLAIN = {DIGITS: Recipe("adam", 1e-3, 0.0, 60, 32), MNIST: Recipe("adam", 1e-3, 0.0, 10, 64)}
SMALL_START = 0.41
WIDE = {DIGITS: Net("mlp", 256, 3), MNIST: Net("mlp", 512, 3)}
WIDTHS = (32, 128, 512)
PLAIN_NET, DEEP = Net("mlp", 512, 3), Net("mlp", 128, 10)
CONVOLUTIONS = {
    "ResNet-8": (Net("resnet", 16, 1), Recipe("sgd", 0.1, 1e-3, 6, 64)),
    "VGG": (Net("vgg", 16, 2), Recipe("sgd", 0.05, 1e-3, 6, 64)),
}

METHODS = (NAIVE, WEIGHTS, ACTIVATIONS)
TRAIN, TEST, HALF = "barrier, training images", "barrier, held out", "accuracy half way, %"
ENDS, REPAIRED = "the networks themselves", "repaired, %"
WITH_DECAY, WITHOUT, CALM = "SGD with weight decay", "Adam without decay", "Adam without decay, small first weights"
TREND, COLLAPSE, SEVERAL = "Width", "Ten layers", "Four networks"
TO_FIRST, BY_MEAN, BY_UNIVERSE = "each to the first", "to the mean of the others", "in one universe"
PLOTS = {DIGITS: "rebasin-digits.svg", MNIST: "rebasin-mnist.svg"}

Row = dict[str, float]
Figures = Mapping[str, Mapping[str, Sequence[float]]]
_MATCHED = (
    Bound("as trained, a barrier of more than 1 nat", NAIVE, TRAIN, True, 1.0),
    Bound("weights matched, below a tenth", WEIGHTS, TRAIN, False, 0.1),
    Bound("and on images held out", WEIGHTS, TEST, False, 0.1),
    Check("half way as good as the networks", f"{WEIGHTS}: {HALF}", f"{ENDS}: {HALF}", margin=1.5),
)
_FIRED = (
    Bound("as trained, a barrier", NAIVE, TRAIN, True, 0.5),
    Bound("activations matched, below a tenth", ACTIVATIONS, TRAIN, False, 0.1),
    Check("by weights it is worse by a tenth", f"{WEIGHTS}: {TRAIN}", f"{ACTIVATIONS}: {TRAIN}", least=0.1),
)
_BY_GRADIENT = (
    Check("straight-through it is lower than by weights", f"{WEIGHTS}: {TRAIN}", f"{STRAIGHT}: {TRAIN}"),
    Check("Sinkhorn's is lower than by activations", f"{ACTIVATIONS}: {TRAIN}", f"{SINKHORN}: {TRAIN}"),
)
_SMALL_START = (Bound("weights matched, below a tenth", WEIGHTS, TRAIN, False, 0.1),)
_COLLAPSED = (
    Check("REPAIR gains ten points", f"{ACTIVATIONS}: {REPAIRED}", f"{ACTIVATIONS}: {HALF}", least=10),
    Check("matching still counts after it", f"{ACTIVATIONS}: {REPAIRED}", f"{NAIVE}: {REPAIRED}"),
)
CHECKS: Mapping[str, Mapping[str, tuple[Bound | Check, ...]]] = {
    DIGITS: {
        WITH_DECAY: _MATCHED,
        WITHOUT: (*_FIRED, *_BY_GRADIENT),
        CALM: _SMALL_START,
        COLLAPSE: _COLLAPSED,
        TREND: tuple(
            Check(
                f"{wide} units have less of a barrier than {narrow}",
                *(f"{n} units: {ACTIVATIONS}" for n in (narrow, wide)),
            )
            for narrow, wide in pairwise(WIDTHS)
        ),
        SEVERAL: (
            Bound("in one universe, below a tenth between all pairs", BY_UNIVERSE, TRAIN, False, 0.1),
            Check("and lower than each to the first", f"{TO_FIRST}: {TRAIN}", f"{BY_UNIVERSE}: {TRAIN}"),
            Check("the mean of four as good as the networks", f"{BY_UNIVERSE}: {HALF}", f"{ENDS}: {HALF}", margin=1.5),
        ),
    },
    MNIST: {WITH_DECAY: _MATCHED, WITHOUT: _FIRED},
    SMALL: {
        "ResNet-8": (
            Check("repair gains ten points", f"{WEIGHTS}: {REPAIRED}", f"{WEIGHTS}: {HALF}", least=10),
            Check("weights matched and repaired beats repaired", f"{WEIGHTS}: {REPAIRED}", f"{NAIVE}: {REPAIRED}"),
        ),
        "VGG": (
            Check("repair gains ten points", f"{ACTIVATIONS}: {REPAIRED}", f"{ACTIVATIONS}: {HALF}", least=10),
            Check("matched and repaired beats repaired", f"{ACTIVATIONS}: {REPAIRED}", f"{NAIVE}: {REPAIRED}"),
        ),
    },
}


def load(title: str, seed: int) -> digits.Split:
    """The images of one seed."""
    if title == DIGITS:
        return digits.load(seed)
    data = mnist.load(seed)
    return data if title == MNIST else digits.Split(halved(data.x), data.y, halved(data.x_test), data.y_test)


def here(title: str, console: Console) -> bool:
    """Whether the images are there; says how to fetch them if not."""
    images = digits if title == DIGITS else mnist
    if images.place() is None:
        console.print(f"{title}: kept as they are; the images are not here: {images.FETCH}", highlight=False)
    return images.place() is not None


def halved(x: torch.Tensor) -> torch.Tensor:
    """Images of half the side."""
    return nn.functional.avg_pool2d(x.view(-1, 1, 28, 28), 2).flatten(1)


class Bench:
    """The images of a seed, and the networks that are trained on them."""

    def __init__(self, title: str, seed: int) -> None:
        self.title, self.seed, self.data = title, seed, load(title, seed)

    def networks(self, net: Net, recipe: Recipe, count: int = 2) -> list[nn.Module]:
        """Of different initialisations and orders of the data."""
        seeds = [self.seed + APART * number for number in range(count)]
        return [trained(self.data, f"{NAMES[self.title]} {self.seed}", net, recipe, seed) for seed in seeds]

    def pair(self, net: Net, recipe: Recipe) -> Pair:
        """The first two of them."""
        a, b = self.networks(net, recipe)
        return Pair(a, b, self.data)

    def barriers(self, a: nn.Module, b: nn.Module, points: int = 15) -> list[Barrier]:
        """Between two, on the images to train on and on those held out."""
        settings = Settings(loader=Loader(module=lambda: copy.deepcopy(a)))
        tasks = [
            Classification([(x, y)], name=name, metric="cross_entropy")
            for name, x, y in ((TRAIN, self.data.x, self.data.y), (TEST, self.data.x_test, self.data.y_test))
        ]
        found = connect(
            [dict(a.state_dict()), dict(b.state_dict())], tasks, points=points, settings=settings, cache=False
        )
        return [one[0, 1] for one in found.barriers.values()]

    def accuracy(self, model: nn.Module) -> float:
        """On the images held out."""
        return accuracy(model, self.data.x_test, self.data.y_test)


def before_and_after(bench: Bench, pair: Pair, methods: Sequence[str] = METHODS) -> Row:
    """Barriers and accuracies half way, for each way of matching."""
    found = {}
    for how in methods:
        b = pair.moved(how)
        found |= {f"{how}: {one.task}": one.value for one in bench.barriers(pair.a, b)}
        found[f"{how}: {HALF}"] = bench.accuracy(average([pair.a, b]))
    found[f"{ENDS}: {HALF}"] = (bench.accuracy(pair.a) + bench.accuracy(pair.b)) / 2
    return found


def trend(bench: Bench) -> Row:
    """Barriers by width."""
    found = {}
    for width in WIDTHS:
        pair = bench.pair(Net("mlp", width, 3), PLAIN[bench.title])
        for how in METHODS:
            found[f"{width} units: {how}"] = bench.barriers(pair.a, pair.moved(how))[0].value
    return found


def collapse(bench: Bench, pair: Pair) -> Row:
    """Accuracies half way, before and after REPAIR."""
    found = {f"{ENDS}: {HALF}": (bench.accuracy(pair.a) + bench.accuracy(pair.b)) / 2}
    for how in METHODS:
        found[f"{how}: {HALF}"] = bench.accuracy(average([pair.a, pair.moved(how)]))
        found[f"{how}: {REPAIRED}"] = bench.accuracy(pair.repaired(how))
    return found


def several(bench: Bench) -> Row:
    """Four networks: barriers between pairs, and the accuracy of the mean of all four."""
    models = bench.networks(WIDE[bench.title], DECAY[bench.title], 4)
    first = Pair(models[0], models[1], bench.data)
    sources = [MemorySource(str(number), model) for number, model in enumerate(models)]
    to_first = [models[0], *(Pair(models[0], other, bench.data).moved(WEIGHTS) for other in models[1:])]
    made = {NAIVE: models, TO_FIRST: to_first}
    for row, method in ((BY_MEAN, "mean"), (BY_UNIVERSE, "universe")):
        pairs = zip(models, align_many(sources, first.symmetries, method=method), strict=True)
        made[row] = [moved(model, first.symmetries, one.moves) for model, one in pairs]
    found = {f"{ENDS}: {HALF}": sum(map(bench.accuracy, models)) / len(models)}
    for row, group in made.items():
        heights = [bench.barriers(a, b, points=9)[0].value for a, b in combinations(group, 2)]
        found[f"{row}: {TRAIN}"] = sum(heights) / len(heights)
        found[f"{row}: {HALF}"] = bench.accuracy(average(group))
    return found


def run(title: str, seed: int) -> dict[str, Row]:
    """One seed: section → `row: column` → figure."""
    bench = Bench(title, seed)
    if title == SMALL:
        return {name: collapse(bench, bench.pair(*how)) for name, how in CONVOLUTIONS.items()}
    plain = PLAIN[title]
    methods = METHODS if title == MNIST else (*METHODS, STRAIGHT, SINKHORN)
    found = {
        WITH_DECAY: before_and_after(bench, bench.pair(WIDE[title], DECAY[title])),
        WITHOUT: before_and_after(bench, bench.pair(PLAIN_NET, plain), methods),
    }
    if title == MNIST:
        return found
    return found | {
        CALM: before_and_after(bench, bench.pair(PLAIN_NET, replace(plain, start=SMALL_START))),
        TREND: trend(bench),
        COLLAPSE: collapse(bench, bench.pair(DEEP, plain)),
        SEVERAL: several(bench),
    }


def measured(
    run: Callable[[str, int], Mapping[str, Mapping[str, float]]], title: str, seeds: Sequence[int]
) -> dict[str, dict[str, list[float]]]:
    """The figures of all seeds, each with a split and networks of its own."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in track(seeds, title):
        for section, rows in run(title, seed).items():
            for row, value in rows.items():
                found.setdefault(section, {}).setdefault(row, []).append(value)
    return found


def plot(title: str) -> str:
    """Loss on the line between two networks of the first seed, as trained and matched."""
    bench = Bench(title, 1)
    pair = bench.pair(WIDE[title], DECAY[title])
    lines = [replace(bench.barriers(pair.a, pair.moved(how))[0], ends=("a", "b"), task=how) for how in METHODS]
    return path_chart(lines, "loss")


def shown(title: str, figures: Figures) -> str:
    """The tables: what was found, and what held."""
    lines = [f"## {title}", ""]
    for section, rows in figures.items():
        lines += [f"### {section}", ""]
        losses = {row: values for row, values in rows.items() if section == TREND or row.endswith((TRAIN, TEST))}
        others = {row: values for row, values in rows.items() if row not in losses}
        for part, places in ((losses, 3), (others, 1)):
            lines += [*table(part, "", places), ""] if part else []
        lines += ["| | measured | should be | |", "| --- | ---: | ---: | --- |"]
        lines += [verdict(check, rows) for check in CHECKS[title][section]]
        lines.append("")
    return "\n".join(lines)


def verdict(check: Bound | Check, rows: Mapping[str, Sequence[float]]) -> str:
    """One line: what was claimed, and whether it held."""
    places = 1 if isinstance(check, Check) and check.better.endswith("%") else 3
    if isinstance(check, Bound):
        mean, error = mean_and_error(rows[f"{check.row}: {check.column}"])
        due = f"{'>' if check.above else '<'} {check.bound:g}"
    else:
        mean, error = check.difference(rows)
        due = f"difference > {check.least:g}" if check.margin is None else f"within {check.margin:g}"
    said = "held" if check.holds(rows) else "**not held**"
    return f"| {check.text} | {mean:.{places}f} ± {error:.{places}f} | {due} | {said} |"


def main() -> None:
    """Measures, and writes the page's figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SEEDS, help="measure these images anew, and keep the figures of the others")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    kept = PAGE.with_suffix(".json")
    figures, console = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}, Console()
    for title, count in SEEDS.items():
        if only is None or title == only:
            if not here(title, console):
                continue
            figures[title] = measured(run, title, range(1, count + 1))
            if title in PLOTS:
                PAGE.with_name(PLOTS[title]).write_text(plot(title) + "\n", encoding="utf-8")
    text = write({title: figures[title] for title in SEEDS if title in figures})
    console.print(text, highlight=False, markup=False)


def write(figures: Mapping[str, Figures]) -> str:
    """Puts the figures beside the page and into it; returns the tables."""
    text = "\n".join(shown(title, rows) for title, rows in figures.items())
    write_page(PAGE, text, figures)
    return text


if __name__ == "__main__":
    main()
