"""Does Eutectic give mergekit's numbers where those are right? Writes docs/crosscheck-mergekit.md; fails if not.

    MERGEKIT_PYTHON=.../bin/python python benchmarks/crosscheck_mergekit.py

Single tensors by both Python interfaces, then whole pico llamas through both commands. Takes about two minutes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import crosscheck_merges as merges
import crosscheck_tensors as tensors
import make_checkpoints
import peer as peers
from measure import version
from report import table

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "crosscheck-mergekit.md"

HEAD = """\
# Cross-check against mergekit

*Written by `benchmarks/crosscheck_mergekit.py`; do not edit.* Eutectic {ours} beside mergekit {theirs}
(torch {torch}), on seeded random inputs. Differences are the largest of a tensor, relative to the largest magnitude of
mergekit's result. The reasons for what differs on purpose stand on each method's page under *Differs from mergekit*.

**Verdict: {verdict}.**
"""
SINGLE = """\
## Single tensors

`eutectic.methods` called by hand beside mergekit's `merge_tensors`; a base and three fine-tunes, weights 0.7, 0.4, 0.2
unless the case says otherwise. To agree means: within {float64:g} (float64) and {float32:g} (float32).
"""
ROUNDED = """\
### bfloat16

Told to compute in float32 and to round once, mergekit gives Eutectic's bits. By itself it computes task vectors in
bfloat16, and the results part by roundings: to agree then means within {bfloat16:g}, one unit in the last place.
"""
PURPOSE = "### Different on purpose\n"
WHOLE = """\
## Whole merges

The same recipe through `eutectic merge` and `mergekit-yaml`, float32 llamas of {layers} layers. Tensors that must agree
do so within {tolerance:g} (slerp: {slerp:g}, since mergekit interpolates nearly parallel tensors linearly).

A gradient's value for what stands behind the last layer (`model.norm`, `lm_head`) is its last one in Eutectic and its
first one in mergekit. The last two columns are about those tensors alone: how far the two results differ, and how far
Eutectic's is from mergekit's when every gradient is replaced by its last value.
"""


def number(value: float | None) -> str:
    """A difference for a table: `0`, `1.2e-07`, or a dash."""
    if value is None:
        return "–"
    return f"{value:.1e}" if value else "0"


def tensor_rows(outcomes: Sequence[tensors.Outcome]) -> str:
    """The table of cases that must agree."""
    rows = [
        [
            f"`{outcome.case.method}`",
            outcome.case.title,
            outcome.case.dtype,
            outcome.case.arithmetic,
            number(outcome.absolute),
            number(outcome.relative),
            f"{outcome.share:.1%}",
            "yes" if outcome.agrees else "**no**",
        ]
        for outcome in outcomes
    ]
    head = ["method", "case", "stored", "mergekit computes in", "largest difference", "relative"]
    return table([*head, "entries that differ", "agree"], rows, words=4)


def purpose_rows(outcomes: Sequence[tensors.Outcome]) -> str:
    """The table of cases that differ on purpose."""
    rows = [[f"`{o.case.method}`", o.case.title, o.case.why, number(o.relative), f"{o.share:.1%}"] for o in outcomes]
    return table(["method", "case", "why", "relative", "entries that differ"], rows, words=3)


def merge_rows(comparisons: Sequence[merges.Comparison]) -> str:
    """The table of whole merges."""
    rows = [
        [
            found.recipe.title,
            str(found.tensors),
            str(found.identical),
            number(found.same),
            number(found.behind),
            number(found.behind_at_end),
            f"**no**: {', '.join(found.faults)}" if found.faults else "yes",
        ]
        for found in comparisons
    ]
    head = [
        "recipe",
        "tensors that must agree",
        "equal bit by bit",
        "largest difference",
        "norm and head",
        "at the gradient's end",
    ]
    return table([*head, "agree"], rows)


def document(outcomes: Sequence[tensors.Outcome], compared: Sequence[merges.Comparison], peer: peers.Peer) -> str:
    """The whole page."""
    wrong = disagreements(outcomes, compared)
    verdict = f"{len(wrong)} unexpected differences" if wrong else "no unexpected difference"
    same = [outcome for outcome in outcomes if not outcome.case.why]
    wide = [outcome for outcome in same if outcome.case.dtype != "bfloat16"]
    narrow = [outcome for outcome in same if outcome.case.dtype == "bfloat16"]
    size = make_checkpoints.SIZES["pico"]
    return "\n".join(
        [
            HEAD.format(ours=version("eutectic"), theirs=peer.version, torch=peer.torch, verdict=verdict),
            SINGLE.format(**tensors.TOLERANCE),
            tensor_rows(wide) + "\n",
            ROUNDED.format(**tensors.TOLERANCE),
            tensor_rows(narrow) + "\n",
            PURPOSE,
            purpose_rows([outcome for outcome in outcomes if outcome.case.why]) + "\n",
            WHOLE.format(layers=size.layers, tolerance=merges.TOLERANCE, slerp=merges.SLERP_TOLERANCE),
            merge_rows(compared) + "\n",
        ]
    )


def disagreements(outcomes: Sequence[tensors.Outcome], compared: Sequence[merges.Comparison]) -> list[str]:
    """What must agree and does not, and what is said to differ and does not."""
    wrong = [f"{o.case.method}, {o.case.title}, {o.case.dtype}" for o in outcomes if o.agrees == bool(o.case.why)]
    return wrong + [f"{found.recipe.title}: {', '.join(found.faults)}" for found in compared if found.faults]


def main() -> int:
    """Compares, writes the page, and returns 1 if anything differs that should not."""
    peer = peers.find()
    if peer is None:
        print("skipped: no mergekit found; set MERGEKIT_PYTHON to the Python of an environment that has it")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = tensors.compare(peer, Path(scratch))
        compared = merges.compare(peer, Path(scratch))
    DOCUMENT.write_text(document(outcomes, compared, peer))
    wrong = disagreements(outcomes, compared)
    print("\n".join(wrong) or f"{len(outcomes)} tensors and {len(compared)} merges: no unexpected difference")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
