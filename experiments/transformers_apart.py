"""Transformers: real ones scrambled and recovered, fine-tunes of one base, and small ones trained from two seeds.

Writes the figures into `docs/experiments/transformers-apart.md`, between its markers, and
`docs/experiments/transformers-apart.json`. Models that are not here are left out, with what makes them, and their
figures are kept: those of `make demo` and of `make demo-llm`. Small models are kept under `runs/rebasin`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from pathlib import Path

import characters
import torch
from regimes import write_page
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import eutectic
from eutectic.alignment import Aligned, align, match_activations, match_weights, prove, random_moves, symmetries_of
from eutectic.checkpoint import Source, open_source
from eutectic.connectivity import barrier

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "experiments" / "transformers-apart.md"
DEMO, DEMO_LLM = ROOT / "runs" / "demo" / "models", ROOT / "runs" / "demo-llm" / "models"
REAL: Mapping[str, Path] = {"all-MiniLM-L6-v2": DEMO / "general", "SmolLM2-135M": DEMO_LLM / "base"}
TUNED: Mapping[str, tuple[Path, Path]] = {
    "MiniLM, fine-tuned for maintenance": (DEMO / "general", DEMO / "specialist"),
    **{
        f"SmolLM2, fine-tuned: {name}": (DEMO_LLM / "base", DEMO_LLM / name)
        for name in ("code", "biomedical", "arithmetic")
    },
}
SEEDS, WINDOWS = (1, 2, 3), 64
NAIVE, WEIGHTS, ACTIVATIONS = "as trained", "weights matched", "activations matched"
SCRAMBLED, FINE_TUNES, APART = "Scrambled and recovered", "Fine-tunes of one base", "Small models of different seeds"

Figures = dict[str, dict[str, dict[str, float]]]


def scrambled(folder: Path) -> dict[str, float]:
    """A model, a random element of its symmetry group, and the way back."""
    source = open_source(folder)
    symmetries = symmetries_of(source)
    _, proof = prove(folder, elements=1)
    other = Aligned(source, symmetries, random_moves(symmetries, 1), label="scrambled")
    match = match_weights(source, other, symmetries)
    back = Aligned(other, symmetries, match.moves, label="recovered")
    merge = eutectic.merged({"merge_method": "linear", "models": [source, back], "dtype": "float32"})
    return {
        "outputs change by": proof.error,
        "weights change by": distance(source, other),
        "recovered to": distance(source, back),
        "merge to": distance(source, merge),
    }


def tuned(base: Path, model: Path) -> dict[str, float]:
    """What alignment does to a model that needs none."""
    found = align(base, model)
    units = {column: sum(change[column] for change in found.changes.values()) for column in ("units", "moved")}
    return {"units": units["units"], "of them moved": units["moved"], "distance taken away, %": 100 * found.gain}


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The largest ‖a − b‖ / ‖a‖ of all tensors that are not zero or integers."""
    found = 0.0
    for name, tensor in a.items():
        if tensor.is_floating_point() and tensor.any():
            found = max(found, float((tensor.double() - b[name].double()).norm() / tensor.double().norm()))
    return found


def apart(family: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Each pair of seeds: barrier on held-out text, and the loss half way."""
    for pair in combinations(SEEDS, 2):
        a, b = (characters.trained(characters.Training(family), seed) for seed in pair)
        found: dict[str, float] = {}
        for how, other in ways(a, b):
            one = barrier(open_source(a), other, loss_of(a), points=11, refine=1)
            curve = one.curve.values
            found["their own loss"] = (curve[0] + curve[-1]) / 2
            found |= {f"{how}: barrier": one.value, f"{how}: loss half way": curve[len(curve) // 2]}
        yield f"{family}, seeds {pair[0]} and {pair[1]}", found


def ways(a: Path, b: Path) -> Iterator[tuple[str, Source]]:
    """The second model as it is, and as each method moves it."""
    sources = open_source(a), open_source(b)
    symmetries = symmetries_of(sources[0])
    yield NAIVE, sources[1]
    yield WEIGHTS, Aligned(sources[1], symmetries, match_weights(*sources, symmetries).moves)
    modules = [AutoModelForCausalLM.from_pretrained(folder) for folder in (a, b)]
    batches = [{"input_ids": piece} for piece in pieces(characters.text().train).split(16)]
    match = match_activations(*modules, batches, symmetries, sources=sources)
    yield ACTIVATIONS, Aligned(sources[1], symmetries, match.moves)


def loss_of(folder: Path) -> Callable[[Mapping[str, Tensor]], list[float]]:
    """Nats a character of each held-out piece, of weights in the architecture of a folder."""
    model, batch = AutoModelForCausalLM.from_pretrained(folder).eval(), pieces(characters.text().test)

    @torch.no_grad()
    def loss(weights: Mapping[str, Tensor]) -> list[float]:
        logits = torch.func.functional_call(model, dict(weights), (), {"input_ids": batch}).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
        return [float(one) for one in losses.mean(1)]

    return loss


def pieces(numbers: Tensor) -> Tensor:
    """Pieces of text, evenly spaced over all of it."""
    starts = torch.linspace(0, len(numbers) - characters.CONTEXT, WINDOWS).long()
    return numbers[starts[:, None] + torch.arange(characters.CONTEXT)]


def unigram() -> float:
    """Nats a character of a model that knows nothing but how often each is."""
    text = characters.text()
    counts = text.train.bincount(minlength=len(text.letters)).double()
    return -float((counts / counts.sum()).log()[pieces(text.test)].mean())


def measure(kept: Figures, console: Console) -> Figures:
    """All figures; `kept` ones where models are not here."""
    found: Figures = {section: dict(kept.get(section, {})) for section in (SCRAMBLED, FINE_TUNES, APART)}
    for title, folder in REAL.items():
        if here(folder, title, console):
            found[SCRAMBLED][title] = scrambled(folder)
    for title, folders in TUNED.items():
        if here(folders[1], title, console):
            found[FINE_TUNES][title] = tuned(*folders)
    for family in characters.FAMILIES:
        with console.status(family):
            found[APART].update(apart(family))
    found[APART]["frequencies of characters alone"] = {"their own loss": unigram()}
    return found


def here(folder: Path, title: str, console: Console) -> bool:
    """Whether a model is there; says what makes it if not."""
    if folder.exists():
        return True
    made_by = "make demo" if DEMO in folder.parents else "make demo-llm"
    console.print(f"{title}: kept as it is; {made_by} brings the model", highlight=False)
    return False


def shown(figures: Figures) -> str:
    """The tables."""
    formats: Mapping[str, Callable[[str, float], str]] = {
        SCRAMBLED: lambda column, value: f"{value:.1e}",
        FINE_TUNES: lambda column, value: f"{value:.3f}" if "%" in column else f"{value:,.0f}",
        APART: lambda column, value: f"{value:.3f}",
    }
    lines = []
    for section, rows in figures.items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        lines += [f"## {section}", "", f"| | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
        for title, row in rows.items():
            cells = (formats[section](column, row[column]) if column in row else "" for column in columns)
            lines.append(f"| {title} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measures, and writes the page's figures."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console, kept = Console(), PAGE.with_suffix(".json")
    figures = measure(json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}, console)
    text = shown(figures)
    write_page(PAGE, text, figures)
    console.print(text, highlight=False, markup=False)


if __name__ == "__main__":
    main()
