"""Merges that know something of the data: are they worth it, and how much data do they need? On small images, on a CPU.

Writes the figures into `docs/experiments/statistics.md`, between its markers, `docs/experiments/statistics.json` and a
plot for each set of images.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import digits
import mnist
import shifts
import torch
from regimes import Check, mean_and_error, table, write_page
from rich.console import Console
from rich.progress import track
from shifts import HANDWRITTEN, MNIST, Weights, World

import eutectic
from eutectic import statistics
from eutectic.evaluate import Classification, Loader, Settings
from eutectic.report.curves import Point, Series, chart

PAGE = Path(__file__).resolve().parents[1] / "docs" / "experiments" / "statistics.md"
IMAGES = {HANDWRITTEN: digits, MNIST: mnist}
PLOTS = {HANDWRITTEN: "samples-digits.svg", MNIST: "samples-mnist.svg"}
# Domains, rates and lengths were chosen while looking at the figures of seed 1.
FIRST = 11
SAMPLES, CURVE = 256, tuple(2**power for power in range(3, 11))
LEARNING = {"steps": 100, "lr": 0.02}
SCALES, RIDGE = (0.2, 0.3, 0.4, 0.5, 0.7, 1.0), 1e-2

MEAN, WORST, ACCURACY = "mean of the four", "worst of the four", "accuracy, %"
METHODS, FISHER, REGMEAN = "Methods", "Which Fisher information", "Off-diagonals and ridge"
LEARNED, TRIMMED, ENOUGH = "Learned weights", "Trimming by activations", "How many samples are enough"
CURVES: Mapping[str, tuple[str, dict[str, float]]] = {
    "Fisher": ("fisher", {}),
    "RegMean, α 0.9": ("regmean", {}),
    "RegMean, α 1": ("regmean", {"alpha": 1.0}),
    f"RegMean, α 1, ridge {RIDGE:g}": ("regmean", {"alpha": 1.0, "ridge": RIDGE}),
}
Figures = Mapping[str, Mapping[str, Sequence[float]]]
CHECKS: Mapping[str, tuple[Check, ...]] = {
    METHODS: (
        Check("RegMean beats Fisher by 3 points", f"RegMean: {MEAN}", f"Fisher: {MEAN}", least=3),
        Check("Fisher beats the average by 3 points", f"Fisher: {MEAN}", f"average: {MEAN}", least=3),
        Check("Fisher beats task arithmetic", f"Fisher: {MEAN}", f"task arithmetic, best λ: {MEAN}"),
        Check("RegMean++ beats RegMean", f"RegMean++: {MEAN}", f"RegMean: {MEAN}"),
        Check("RegMean beats Fisher in its worst domain too", f"RegMean: {WORST}", f"Fisher: {WORST}"),
    ),
    FISHER: (
        Check("the model's labels beat those of the data", "the model's labels", "the data's labels"),
        Check("as it is beats divided by its norm", "the model's labels", "divided by its norm"),
    ),
    REGMEAN: (
        Check("α 1 beats 0.9", "α 1", "α 0.9"),
        Check("0.9 beats 0.5", "α 0.9", "α 0.5"),
        Check("0.5 beats 0.1", "α 0.5", "α 0.1"),
        Check("0.1 beats 0, the diagonal alone", "α 0.1", "α 0"),
        Check("α 1 with a ridge of 0.01 beats 0.9 without", f"α 1, ridge {RIDGE:g}", "α 0.9"),
        Check("a ridge of 1 costs accuracy", f"α 1, ridge {RIDGE:g}", "α 1, ridge 1"),
    ),
    LEARNED: (
        Check("entropy, by layer, beats the best single λ", "by layer, entropy", "task arithmetic, best λ"),
        Check("with labels, by layer, it beats it", "by layer, cross-entropy", "task arithmetic, best λ"),
        Check("by layer beats by task, with labels", "by layer, cross-entropy", "by task, cross-entropy"),
    ),
    TRIMMED: (Check("with activations it is better", "TIES by magnitude × activation", "TIES by magnitude"),),
    ENOUGH: (
        Check("RegMean from 32 samples beats Fisher from 1024", "RegMean, α 0.9: 32", "Fisher: 1024"),
        Check("Fisher from 64 is within a point of 1024", "Fisher: 64", "Fisher: 1024", margin=1),
        Check("RegMean from 256 is within a point of 1024", "RegMean, α 0.9: 256", "RegMean, α 0.9: 1024", margin=1),
    ),
}


class Bench:
    """The specialists of one seed, what was measured of them, and what their merges can do."""

    def __init__(self, world: World, home: Path) -> None:
        self.world, self.home = world, home

    def accuracy(self, weights: Weights, tune: bool = False) -> float:
        """Mean over the domains, on images to test, or on those of the training, to choose by."""
        found = shifts.accuracies(weights, self.world.train if tune else self.world.test)
        return sum(found) / len(found)

    def statistics(self, kind: str, samples: int, labels: str = "model") -> list[Path]:
        """Folders, one a specialist, each measured on training images of its own domain."""
        places = [self.home / f"{kind} {labels} {samples} {number}" for number in range(len(self.world.specialists))]
        for place, weights, (x, y) in zip(places, self.world.specialists, self.world.train, strict=True):
            if not place.exists():
                batches = list(zip(x[:samples].split(64), y[:samples].split(64), strict=True))
                how: dict[str, Any] = {"labels": labels} if kind == "fisher" else {}
                getattr(statistics, kind)(shifts.live(weights), batches, **how).save(place)
        return places

    def with_statistics(self, method: str, samples: int = SAMPLES, labels: str = "model", **parameters: Any) -> Weights:
        """The merge by `fisher` or `regmean`."""
        places = self.statistics({"fisher": "fisher", "regmean": "gram"}[method], samples, labels)
        models = [
            {"model": weights, "statistics": str(place)}
            for weights, place in zip(self.world.specialists, places, strict=True)
        ]
        return dict(eutectic.merged({"merge_method": method, "models": models, "parameters": parameters}))

    def plusplus(self) -> Weights:
        """The merge by RegMean++, from the same images as `with_statistics`."""
        modules = [shifts.live(weights) for weights in self.world.specialists]
        loaders = [x[:SAMPLES].split(64) for x, _ in self.world.train]
        return statistics.regmean_plusplus(modules, loaders).tensors

    def scaled(self, method: str, models: Sequence[Weights], **parameters: Any) -> Weights:
        """The merge of task vectors at the scale that does best on the training images."""
        recipe = {"merge_method": method, "base_model": self.world.base, "models": list(models)}
        made = [dict(eutectic.merged({**recipe, "parameters": {**parameters, "lambda": scale}})) for scale in SCALES]
        return max(made, key=lambda weights: self.accuracy(weights, tune=True))

    def learned(self, by: str, objective: str) -> Weights:
        """Task arithmetic with learned weights; entropy is not shown the labels."""
        data = [
            Classification(list(zip(x[:SAMPLES].split(64), y[:SAMPLES].split(64), strict=True)), name=domain)
            for domain, (x, y) in zip(shifts.DOMAINS, self.world.train, strict=True)
        ]
        inputs = self.world.train[0][0].shape[1]
        recipe = {"merge_method": "task_arithmetic", "base_model": self.world.base, "models": self.world.specialists}
        settings = Settings(loader=Loader(lambda: shifts.network(inputs)))
        done = eutectic.learn(recipe, data=data, by=by, objective=objective, settings=settings, **LEARNING)
        return dict(eutectic.merged(done.recipe))

    def trimmed(self, density: float) -> list[Weights]:
        """The specialists with the changes that score low undone: |τ| times the root mean square of its input."""
        found = []
        for weights, (x, _) in zip(self.world.specialists, self.world.train, strict=True):
            squares = statistics.activations(shifts.live(weights), x[:SAMPLES].split(64)).tensors
            model = dict(weights)
            for name, base in self.world.base.items():
                change = weights[name] - base
                layer, _, part = name.rpartition(".")
                seen = squares[f"{layer}.square"].sqrt() if part == "weight" else torch.ones(())
                score = (change.abs() * seen).flatten()
                kept = torch.zeros_like(score)
                kept[score.topk(math.ceil(density * score.numel())).indices] = 1
                model[name] = base + change * kept.view_as(change)
            found.append(model)
        return found


def run(bench: Bench, curve: Sequence[int] = CURVE) -> dict[str, dict[str, float]]:
    """One seed: section -> row -> figure."""
    world, accuracy = bench.world, bench.accuracy
    average = dict(eutectic.merged({"merge_method": "linear", "models": world.specialists}))
    arithmetic = bench.scaled("task_arithmetic", world.specialists)
    models = {
        "base": world.base,
        "trained on all four": world.together,
        "average": average,
        "task arithmetic, best λ": arithmetic,
        "Fisher": bench.with_statistics("fisher"),
        "RegMean": bench.with_statistics("regmean"),
        "RegMean++": bench.plusplus(),
    }
    own = [shifts.accuracies(*pair)[0] for pair in zip(world.specialists, ([part] for part in world.test), strict=True)]
    methods = {f"each at its own: {MEAN}": sum(own) / len(own), f"each at its own: {WORST}": min(own)}
    for row, weights in models.items():
        methods[f"{row}: {MEAN}"] = accuracy(weights)
        methods[f"{row}: {WORST}"] = min(shifts.accuracies(weights, world.test))
    fishers: dict[str, dict[str, Any]] = {
        "the model's labels": {}, "the data's labels": {"labels": "data"}, "divided by its norm": {"norm": "global"},
    }  # fmt: skip
    alphas = {f"α {alpha:g}": {"alpha": alpha} for alpha in (1.0, 0.9, 0.5, 0.1, 0.0)}
    ridges = {f"α 1, ridge {ridge:g}": {"alpha": 1.0, "ridge": ridge} for ridge in (1e-4, RIDGE, 1.0)}
    learned = [(by, objective) for objective in ("entropy", "cross-entropy") for by in ("task", "layer")]
    return {
        METHODS: methods,
        FISHER: {row: accuracy(bench.with_statistics("fisher", **how)) for row, how in fishers.items()},
        REGMEAN: {row: accuracy(bench.with_statistics("regmean", **how)) for row, how in (alphas | ridges).items()},
        LEARNED: {
            "task arithmetic, best λ": accuracy(arithmetic),
            **{f"by {by}, {objective}": accuracy(bench.learned(by, objective)) for by, objective in learned},
        },
        TRIMMED: {
            "TIES by magnitude": accuracy(bench.scaled("ties", world.specialists, density=0.2)),
            "TIES by magnitude × activation": accuracy(bench.scaled("ties", bench.trimmed(0.2), density=1.0)),
        },
        ENOUGH: {
            f"{row}: {samples}": accuracy(bench.with_statistics(method, samples, **how))
            for row, (method, how) in CURVES.items()
            for samples in curve
        },
    }


def measure(title: str, seeds: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """The figures of all seeds, each with a split and networks of its own."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in track(seeds, title):
        with tempfile.TemporaryDirectory() as home:
            for section, rows in run(Bench(shifts.world(title, seed), Path(home))).items():
                for row, value in rows.items():
                    found.setdefault(section, {}).setdefault(row, []).append(value)
    return found


def shown(title: str, figures: Figures) -> str:
    """The tables: what was found, and what held."""
    lines = [f"## {title}", ""]
    for section, rows in figures.items():
        lines += [f"### {section}", "", *table(rows, ACCURACY)]
        lines += ["", "| | difference | |", "| --- | ---: | --- |"]
        for check in CHECKS[section]:
            mean, error = check.difference(rows)
            verdict = "held" if check.holds(rows) else "**not held**"
            lines.append(f"| {check.text} | {mean:+.1f} ± {error:.1f} | {verdict} |")
        lines.append("")
    return "\n".join(lines)


def plot(title: str, figures: Figures) -> str:
    """Accuracy by the number of samples."""
    lines = []
    for row in CURVES:
        points = []
        for samples in CURVE:
            mean, error = mean_and_error(figures[ENOUGH][f"{row}: {samples}"])
            points.append(Point(math.log2(samples), mean, mean - 2 * error, mean + 2 * error))
        lines.append(Series(row, points))
    average = mean_and_error(figures[METHODS][f"average: {MEAN}"])[0]
    ends = [Point(math.log2(samples), average) for samples in (CURVE[0], CURVE[-1])]
    lines.append(Series("average, without data", ends, "rule"))
    return chart(title, lines, x="samples a specialist, powers of two: 3 is 8, 10 is 1024", y=ACCURACY)


def main() -> None:
    """Measures, and writes the page's figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6, help="splits and networks (6)")
    torch.set_num_threads(1)
    seeds = range(FIRST, FIRST + parser.parse_args().seeds)
    figures = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    console = Console()
    for title, images in IMAGES.items():
        if images.place() is None:
            console.print(f"{title}: kept as they are; the images are not here: {images.FETCH}", highlight=False)
            continue
        figures[title] = measure(title, seeds)
        PAGE.with_name(PLOTS[title]).write_text(plot(title, figures[title]) + "\n", encoding="utf-8")
    text = "\n".join(shown(title, figures[title]) for title in IMAGES)
    write_page(PAGE, text, figures)
    console.print(text, highlight=False, markup=False)


if __name__ == "__main__":
    main()
