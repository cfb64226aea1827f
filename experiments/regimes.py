"""Which method when: claims of the papers, tried on networks that are trained here, in minutes, on a CPU.

Writes the figures into `docs/experiments/regimes.md`, between its markers, and `docs/experiments/regimes.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from glyphs import DOMAINS, HEAVY, LIGHT, SKILLS, Seed, Weights, accuracy, distance
from rich.console import Console
from rich.progress import track

import eutectic

PAGE = Path(__file__).resolve().parents[1] / "docs" / "experiments" / "regimes.md"
BEGIN, END = "<!-- figures: written by `make experiments` -->", "<!-- end of figures -->"
# An order holds if the mean difference, seed by seed, is this many standard errors above zero.
CLEAR = 2.0

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Claim:
    """Something that a paper says and that a user might rely on."""

    title: str
    paper: str
    said: str
    done: str
    run: Callable[[Seed], Figures]
    checks: tuple[Check, ...]
    unit: str = "accuracy, %"


@dataclass(frozen=True)
class Check:
    """What the figures should show: `better` above `worse` by `least`, or within `margin` of it where one is given."""

    text: str
    better: str
    worse: str
    margin: float | None = None
    least: float = 0.0

    def difference(self, figures: Mapping[str, Sequence[float]]) -> tuple[float, float]:
        """Mean and standard error of the difference."""
        return mean_and_error([a - b for a, b in zip(figures[self.better], figures[self.worse], strict=True)])

    def holds(self, figures: Mapping[str, Sequence[float]]) -> bool:
        mean, error = self.difference(figures)
        return mean - self.least > CLEAR * error if self.margin is None else abs(mean) + CLEAR * error < self.margin


def merged(
    method: str, base: Weights, models: Sequence[Weights], post: Sequence[object] = (), **parameters: object
) -> Weights:
    """A merge of networks in memory; `lambda_` is the recipe's `lambda`."""
    chosen = {name.rstrip("_"): value for name, value in parameters.items()}
    recipe = {"merge_method": method, "base_model": base, "models": list(models), "parameters": chosen}
    return dict(eutectic.merged({**recipe, "post": list(post)} if post else recipe))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of it."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.fmean(values), error


def collisions(share: float, noise: float, agree: bool) -> Callable[[Seed], Figures]:
    """Errors of merges of eight task vectors that each move a random `share` of the entries and add noise elsewhere."""

    def run(seed: Seed) -> Figures:
        generator, shape = torch.Generator().manual_seed(seed.number), (8, 200, 500)
        moves = torch.rand(shape, generator=generator) < share
        size = 1 + 2 * torch.rand(shape, generator=generator)
        sign = torch.rand(shape[1:] if agree else shape, generator=generator).round() * 2 - 1
        signal = moves * size * sign
        wanted = signal.sum(0) / moves.sum(0).clamp(min=1)
        models = [{"w": delta} for delta in signal + noise * torch.randn(shape, generator=generator)]
        base = {"w": torch.zeros(shape[1:])}

        def error(method: str, **parameters: object) -> float:
            found = merged(method, base, models, **parameters)["w"]
            return 100 * float((found - wanted).square().sum() / wanted.square().sum())

        grid = [error("task_arithmetic", lambda_=step / 20) for step in range(1, 21)]
        return {
            "average": error("linear"),
            "task arithmetic, λ 0.4": error("task_arithmetic", lambda_=0.4),
            "task arithmetic, best λ": min(grid),
            "TIES, λ 1": error("ties", density=share, lambda_=1.0),
        }

    return run


def dropping(how: Mapping[str, float]) -> Callable[[Seed], Figures]:
    """One fine-tune whose changes are dropped at random, with and without rescaling."""

    def run(seed: Seed) -> Figures:
        tuned, found = seed.tuned(how), {}
        found["base"] = accuracy(seed.base, [seed.skill])
        found["fine-tune"] = accuracy(tuned, [seed.skill])
        for density, rescale in ((0.1, True), (0.1, False), (0.01, True), (0.01, False)):
            made = merged("dare_linear", seed.base, [tuned], density=density, rescale=rescale)
            name = f"{'DARE' if rescale else 'drop only'}, p {1 - density:g}"
            found[name] = accuracy(made, [seed.skill])
        return found

    return run


def tuned_scale(seed: Seed, method: str, grid: Sequence[float], post: Sequence[object] = ()) -> Weights:
    """The merge of the specialists whose `lambda` does best on the images for tuning."""
    made = [merged(method, seed.base, seed.specialists(), post, lambda_=scale) for scale in grid]
    return max(made, key=lambda weights: accuracy(weights, SKILLS, "tune"))


def specialists(seed: Seed) -> Figures:
    """Eight tasks, one model; λ of every method is chosen on other images."""
    models, base = seed.specialists(), seed.base
    own = [accuracy(model, [skill]) for model, skill in zip(models, SKILLS, strict=True)]
    sums, levelled = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4), (0.25, 0.5, 0.75, 1.0, 1.5)
    guard = [{"norm_guard": {"scope": "model"}}]
    made = {
        "base": base,
        "average": merged("linear", base, models),
        "task arithmetic": tuned_scale(seed, "task_arithmetic", sums),
        "TIES": tuned_scale(seed, "ties", (0.2, 0.3, 0.5, 0.7, 1.0)),
        "TSV-M, λ 1": merged("tsv_m", base, models),
        "TSV-M": tuned_scale(seed, "tsv_m", (0.25, 0.5, 0.75, 1.0)),
        "Iso-C": tuned_scale(seed, "iso_c", levelled),
        "ASWUDI": tuned_scale(seed, "aswudi", (0.25, 0.5, 0.75, 1.0)),
        "task arithmetic, then SVC": tuned_scale(seed, "task_arithmetic", sums, ["svc"]),
        "task arithmetic, then SVC with α 1": tuned_scale(seed, "task_arithmetic", sums, [{"svc": {"alpha": 1}}]),
        "Iso-C, then SVC": tuned_scale(seed, "iso_c", levelled, ["svc"]),
        "Iso-C, then SVC with α 1": tuned_scale(seed, "iso_c", levelled, [{"svc": {"alpha": 1}}]),
        "task arithmetic, λ 1": merged("task_arithmetic", base, models),
        "task arithmetic, λ 1, then norm guard": merged("task_arithmetic", base, models, guard),
    }
    return {"each by itself": statistics.fmean(own), **{name: accuracy(w, SKILLS) for name, w in made.items()}}


def way_back(seed: Seed) -> Figures:
    """Target and general accuracy on the way from a heavy fine-tune back to its base."""
    tuned, found = seed.tuned(HEAVY), {}
    best = {"WiSE-FT": -1.0, "LiNeS": -1.0}
    for step in range(11):
        alpha = step / 10
        ways = {
            "WiSE-FT": merged("wise_ft", seed.base, [tuned], alpha=alpha),
            "LiNeS": merged(
                "task_arithmetic", seed.base, [tuned], [{"lines": {"alpha": alpha, "beta": round(1 - alpha, 1)}}]
            ),
        }
        for name, weights in ways.items():
            target, general = accuracy(weights, [seed.skill]), accuracy(weights, seed.others)
            best[name] = max(best[name], (target + general) / 2)
            if name == "WiSE-FT" and step in (0, 5, 10):
                found[f"WiSE-FT, α {alpha:g}: target"] = target
                found[f"WiSE-FT, α {alpha:g}: the other domains"] = general
                found[f"WiSE-FT, α {alpha:g}: mean of both"] = (target + general) / 2
    return {**found, **{f"{name}, best α: mean of both": value for name, value in best.items()}}


def fleet(seed: Seed) -> Figures:
    """Eight fine-tunes for the same purpose; what their merges do at it, and what they have forgotten."""
    models, base, purpose = seed.fleet(), seed.base, SKILLS[:2]
    rest = [domain for domain in DOMAINS if domain not in purpose]
    made = {
        "base": base,
        "best fine-tune": max(models, key=lambda weights: accuracy(weights, purpose, "tune")),
        "average": merged("linear", base, models),
        "TIES, λ 1": merged("ties", base, models),
        "TSV-M, λ 1": merged("tsv_m", base, models),
        "Iso-C, λ 1": merged("iso_c", base, models),
    }
    found = {}
    for name, weights in made.items():
        found[f"{name}: purpose"] = accuracy(weights, purpose)
        found[f"{name}: the other domains"] = accuracy(weights, rest)
        found[f"{name}: distance from the base"] = 100 * distance(weights, base)
    return found


BEST_TA, TIES_1 = "task arithmetic, best λ", "TIES, λ 1"
ELSEWHERE = ": the other domains"
ERROR = "squared error, % of what is wanted"
CLAIMS = (
    Claim(
        "TIES where task vectors collide in few entries",
        "2306.01708",
        "Trimming and electing signs removes interference: TIES beats the average and task arithmetic.",
        "Eight task vectors of 100,000 entries move 2 % of them each, by ±1 to ±3, with noise of 0.2 everywhere. The "
        "merge should be what those that move an entry ask for on average. `density` is the true share.",
        collisions(0.02, 0.2, agree=False),
        (
            Check("task arithmetic at its best λ errs more than TIES", BEST_TA, TIES_1),
            Check("the average errs more than both", "average", BEST_TA),
        ),
        ERROR,
    ),
    Claim(
        "TIES where signs agree, 20 % of the entries each",
        "2306.01708",
        "The same, where task vectors overlap and agree.",
        "As before with 20 % of the entries, one sign for all models at each, noise of 0.2.",
        collisions(0.2, 0.2, agree=True),
        (Check("task arithmetic at its best λ errs more than TIES", BEST_TA, TIES_1),),
        ERROR,
    ),
    Claim(
        "TIES where signs are random, 20 % of the entries each",
        "2306.01708",
        "The same, where task vectors overlap and contradict each other.",
        "As before with signs at random: half of what collides is thrown away.",
        collisions(0.2, 0.2, agree=False),
        (Check("task arithmetic at its best λ errs more than TIES", BEST_TA, TIES_1),),
        ERROR,
    ),
    Claim(
        "DARE on a light fine-tune",
        "2311.03099",
        "Nine changes in ten can be dropped at no loss if the rest is rescaled.",
        "One fine-tune of 100 steps at a rate of 1e-4, which moves about 2 % of the base's norm. Accuracy at its task.",
        dropping(LIGHT),
        (
            Check("DARE at p 0.9 is within one point of the fine-tune", "DARE, p 0.9", "fine-tune", margin=1.0),
            Check("without rescaling it is worse", "DARE, p 0.9", "drop only, p 0.9"),
        ),
    ),
    Claim(
        "DARE on a heavy fine-tune",
        "2311.03099",
        "DARE fails where changes are large, as after continued pre-training.",
        "One fine-tune of 400 steps at a rate of 1e-3, which moves about 20 % of the base's norm.",
        dropping(HEAVY),
        (
            Check("the fine-tune is better than DARE at p 0.9", "fine-tune", "DARE, p 0.9"),
            Check("dropping only is better than DARE at p 0.99", "drop only, p 0.99", "DARE, p 0.99"),
            Check("the base is better than DARE at p 0.99", "base", "DARE, p 0.99"),
        ),
    ),
    Claim(
        "Eight true specialists in one model",
        "2412.00081",
        "Methods on singular values win on eight specialists: with CLIP ViT-B/32 (FusionBench's checkpoints) TSV-M has "
        "83.1 %, Iso-C 82.8 %, TIES 72.2 % and task arithmetic 68.0 %. On checkpoints of its authors, singular value "
        "calibration lifts task arithmetic from 68.9 to 81.9 % and Iso-C from 83.1 to 84.6 % "
        "([arXiv:2602.05536](https://arxiv.org/abs/2602.05536)).",
        "Eight fine-tunes of one base, one domain each, about 8 % of its norm. Mean accuracy over the eight domains; λ "
        "is chosen on other images unless it is given.",
        specialists,
        (
            Check("TSV-M beats task arithmetic", "TSV-M", "task arithmetic"),
            Check("Iso-C beats task arithmetic", "Iso-C", "task arithmetic"),
            Check("ASWUDI beats task arithmetic", "ASWUDI", "task arithmetic"),
            Check("TSV-M at λ 1, not tuned, beats it as well", "TSV-M, λ 1", "task arithmetic"),
            Check("TIES beats task arithmetic", "TIES", "task arithmetic"),
            Check("calibration lifts task arithmetic", "task arithmetic, then SVC", "task arithmetic"),
            Check("calibration lifts Iso-C", "Iso-C, then SVC", "Iso-C"),
            Check(
                "with α 1, which only damps, it lifts task arithmetic",
                "task arithmetic, then SVC with α 1",
                "task arithmetic",
            ),
            Check("with α 1, which only damps, it lifts Iso-C", "Iso-C, then SVC with α 1", "Iso-C"),
            Check(
                "the norm guard repairs a sum that went too far",
                "task arithmetic, λ 1, then norm guard",
                "task arithmetic, λ 1",
            ),
        ),
    ),
    Claim(
        "Eight fine-tunes for one purpose",
        "2511.21437",
        "On fleets of generic fine-tunes averaging is safer than TIES, TSV-M and Iso-C, and harm goes with the "
        "distance from the base. A soup of fine-tunes is not always better than the best of them, but it is elsewhere "
        "([arXiv:2203.05482](https://arxiv.org/abs/2203.05482)).",
        "Eight fine-tunes on the same two domains, with rates from 1e-4 to 2e-3; accuracy there, and on the seven "
        "others, which they were not trained on. No λ is tuned.",
        fleet,
        (
            Check("elsewhere the average beats TIES", "average" + ELSEWHERE, TIES_1 + ELSEWHERE),
            Check("elsewhere the average beats TSV-M", "average" + ELSEWHERE, "TSV-M, λ 1" + ELSEWHERE),
            Check("elsewhere TSV-M beats Iso-C", "TSV-M, λ 1" + ELSEWHERE, "Iso-C, λ 1" + ELSEWHERE),
            Check(
                "elsewhere the average beats the best fine-tune", "average" + ELSEWHERE, "best fine-tune" + ELSEWHERE
            ),
            Check(
                "for its purpose the best fine-tune beats the average", "best fine-tune: purpose", "average: purpose"
            ),
        ),
    ),
    Claim(
        "Part of the way back",
        "2109.01903",
        "Between base and fine-tune lies a model that is better on the whole than either; with factors that grow "
        "with the layer there is an even better one ([arXiv:2410.17146](https://arxiv.org/abs/2410.17146)).",
        "The heavy fine-tune and its base, α from 0 to 1 in steps of 0.1; accuracy at its task, on the eight other "
        "domains, and the mean of the two. LiNeS with β = 1 - α. The best α is that of these same images.",
        way_back,
        (
            Check("half way beats the fine-tune", "WiSE-FT, α 0.5: mean of both", "WiSE-FT, α 1: mean of both"),
            Check("half way beats the base", "WiSE-FT, α 0.5: mean of both", "WiSE-FT, α 0: mean of both"),
            Check("LiNeS beats WiSE-FT", "LiNeS, best α: mean of both", "WiSE-FT, best α: mean of both"),
        ),
    ),
)


def measure(seeds: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """For each claim and row the figures of all seeds."""
    found: dict[str, dict[str, list[float]]] = {claim.title: {} for claim in CLAIMS}
    for seed in track([Seed(number) for number in seeds], "training and merging"):
        for claim in CLAIMS:
            for row, value in claim.run(seed).items():
                found[claim.title].setdefault(row, []).append(value)
    return found


def table(rows: Mapping[str, Sequence[float]], unit: str, places: int = 1) -> list[str]:
    """Mean and standard error of every row; rows named `a: b` make a table with a column for each b."""
    cells = {name: "{:.{n}f} ± {:.{n}f}".format(*mean_and_error(values), n=places) for name, values in rows.items()}
    columns = list(dict.fromkeys(name.partition(": ")[2] for name in rows))
    titles = [title or unit for title in columns]
    lines = [f"| | {' | '.join(titles)} |", f"| --- |{' ---: |' * len(titles)}"]
    for row in dict.fromkeys(name.partition(": ")[0] for name in rows):
        found = (cells.get(f"{row}: {column}" if column else row, "") for column in columns)
        lines.append(f"| {row} | {' | '.join(found)} |")
    return lines


def shown(figures: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The tables: what was claimed, what was found, and whether it held."""
    lines = []
    for claim in CLAIMS:
        rows = figures[claim.title]
        source = f"[arXiv:{claim.paper}](https://arxiv.org/abs/{claim.paper})"
        lines += [f"## {claim.title}", "", f"**Claimed** ({source}): {claim.said}", ""]
        lines += [f"**Done**: {claim.done}", "", *table(rows, claim.unit)]
        lines += ["", "| | difference | |", "| --- | ---: | --- |"]
        for check in claim.checks:
            mean, error = check.difference(rows)
            verdict = "held" if check.holds(rows) else "**not held**"
            lines.append(f"| {check.text} | {mean:+.1f} ± {error:.1f} | {verdict} |")
        lines.append("")
    return "\n".join(lines)


def write_page(page: Path, text: str, figures: Mapping[str, Any]) -> None:
    """Puts the text between the marks of a page, and the figures beside it."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    page.with_suffix(".json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Measures all claims and writes the page's figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8, help="bases to train, each with its fine-tunes (8)")
    torch.set_num_threads(1)
    figures = measure(range(1, parser.parse_args().seeds + 1))
    text = shown(figures)
    write_page(PAGE, text, figures)
    Console().print(text, highlight=False, markup=False)


if __name__ == "__main__":
    main()
