"""The tables of `bench_merge.py`, in Markdown, and their place in the docs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from measure import middle

if TYPE_CHECKING:
    from bench_merge import Result

BEGIN = "<!-- bench:begin (written by `make bench`; edit outside of the markers) -->"
END = "<!-- bench:end -->"
MIB = 2**20


def parameters(count: int) -> str:
    """`0.66 G parameters`, `5 M parameters`."""
    return f"{count / 1e9:.2f} G parameters" if count >= 1e8 else f"{count / 1e6:.0f} M parameters"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A Markdown table: the first `words` columns to the left, the others, numbers, to the right."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * words + "---:|" * (len(head) - words)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def speed(results: Sequence[Result], count: int) -> str:
    """Ours beside the yardstick."""
    rows = []
    for result in results:
        ours = middle(result.ours)
        rows.append(
            [
                f"`{result.recipe.method}`",
                str(len(result.recipe.inputs())),
                f"{middle(result.yardstick).wall:.2f}",
                f"{middle(result.synced).wall:.2f}",
                f"{ours.wall:.2f}",
                f"**{result.ratio():.2f}×**",
                f"≤ {result.recipe.limit:g}×",
                f"{ours.cpu:.2f}",
                f"{ours.cpu / count * 1e9:.2f}",
                f"{ours.rss / MIB:.0f}",
            ]
        )
    head = ["method", "inputs", "cat + cp, s", "cat + cp + sync, s", "eutectic, s", "eutectic / (cat + cp)", "target"]
    return table([*head, "CPU s", "CPU ns per output element", "peak memory, MiB"], rows)


def against_peer(results: Sequence[Result]) -> str:
    """Ours beside mergekit, or an empty string when it did not run."""
    rows = []
    for result in results:
        if not result.theirs:
            continue
        ours, theirs = middle(result.ours), middle(result.theirs)
        rows.append(
            [
                f"`{result.recipe.method}`",
                f"{theirs.wall:.1f}",
                f"{theirs.cpu:.1f}",
                f"{theirs.rss / MIB:.0f}",
                f"**{theirs.wall / ours.wall:.1f}×**",
                f"{theirs.cpu / ours.cpu:.1f}×",
                f"{theirs.rss / ours.rss:.1f}×",
            ]
        )
    head = ["method", "mergekit, s", "CPU s", "peak memory, MiB", "eutectic is faster by", "less CPU by"]
    return table([*head, "less memory by"], rows) if rows else ""


def memory(results: Sequence[Result], quarter: Mapping[str, int], count: int) -> str:
    """Peak memory at two sizes, or an empty string when only one was measured."""
    if not quarter:
        return ""
    rows = [
        [
            f"`{result.recipe.method}`",
            f"{quarter[result.recipe.method] / MIB:.0f}",
            f"{middle(result.ours).rss / MIB:.0f}",
        ]
        for result in results
    ]
    return table(["peak memory, MiB", "0.17 G parameters", parameters(count)], rows)


def text(
    results: Sequence[Result],
    facts: Mapping[str, str],
    count: int,
    quarter: Mapping[str, int],
    help_and_empty: tuple[float, float],
    day: str,
    rounds: int,
) -> str:
    """Everything between the markers."""
    parts = [
        f"Measured on {day}: medians of {rounds} interleaved rounds (mergekit: one) on checkpoints of"
        f" {parameters(count)} in bf16, warm page cache.",
        table(["machine", ""], ([name, value] for name, value in facts.items()), words=2),
        "### Beside reading and copying",
        speed(results, count),
    ]
    if peer := against_peer(results):
        parts += ["### Beside mergekit", peer]
    if sizes := memory(results, quarter, count):
        parts += ["### Memory and the model's size", sizes]
    ours, empty = help_and_empty
    start = f"`eutectic --help` takes {ours:.2f} s, {ours / empty:.1f} times an empty Python program ({empty:.3f} s)."
    return "\n\n".join([*parts, "### Start-up", start])


def write(path: Path, body: str, markers: tuple[str, str] = (BEGIN, END)) -> None:
    """Puts `body` between the markers of a document, leaving the rest as it is; makes the document if it is missing.

    Raises `SystemExit` when the document has only one of the markers, or both in the wrong order.
    """
    old = path.read_text() if path.exists() else f"# {path.stem.capitalize()}\n\n{markers[0]}\n{markers[1]}\n"
    before, begin, rest = old.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not begin or not end:
        raise SystemExit(f"{path.name} lacks the markers between which the tables go: {' … '.join(markers)}")
    path.write_text(f"{before}{begin}\n\n{body}\n\n{end}{after}")
