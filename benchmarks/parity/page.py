"""The tables of `check_parity.py` in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from peer import PACKAGES

from parity import masks, merges
from parity.cases import Case
from parity.compare import Outcome
from parity.inputs import STORED
from parity.reasons import Reason, why
from report import table

MARKERS = (
    "<!-- parity:begin (written by `make parity`; edit outside of the markers) -->",
    "<!-- parity:end -->",
)


def number(value: float | None) -> str:
    """A difference for a table: `0`, `0.5`, `1.2e-07`, or a dash."""
    if value is None:
        return "–"
    return f"{value:.1e}" if 0 < value < 0.01 or value >= 1e4 else f"{value:.2g}"


def described(outcome: Outcome) -> str:
    """A case in one line, for whoever must find out why it differs."""
    task = outcome.task
    state = outcome.failed or ("" if outcome.finite else "not finite") or f"{outcome.gap:.3g} last places"
    told = task.compute or "nothing"
    return f"{task.case.name}: {task.models} models, {task.kind}, {task.stored} (told {told}): {state}"


def relative(outcomes: Iterable[Outcome]) -> str:
    """How far apart results are where they differ, by the tensor's largest magnitude."""
    found = list(outcomes)
    if any(outcome.failed for outcome in found):
        return "stops"
    if any(not outcome.finite for outcome in found):
        return "not finite"
    return number(max(outcome.gap * torch.finfo(getattr(torch, outcome.task.stored)).eps for outcome in found))


def differences(outcomes: Sequence[Outcome], marks: Mapping[str, int]) -> str:
    """`4: tied, packed (0.28); 9: huge (not finite)`."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        reason = why(outcome)
        mark = str(marks[reason.text]) if reason else "**no reason**"
        groups.setdefault(mark, []).append(outcome)
    parts = []
    for mark, found in sorted(groups.items()):
        kinds = ", ".join(dict.fromkeys(outcome.task.kind for outcome in found))
        parts.append(f"{mark}: {kinds} ({relative(found)})")
    return "; ".join(parts) or "–"


def row(case: Case, outcomes: Sequence[Outcome], marks: Mapping[str, int]) -> list[str]:
    """One method with its parameters."""
    agree = [outcome for outcome in outcomes if outcome.agrees]
    gaps = [max((o.gap for o in agree if o.task.stored == stored), default=None) for stored in STORED]
    equal = sum(outcome.equal for outcome in agree) / len(agree) if agree else None
    others = differences([outcome for outcome in outcomes if not outcome.agrees], marks)
    share = "–" if equal is None else f"{equal:.1%}"
    return [
        f"`{case.method}`",
        case.title or "–",
        f"{len(agree)} of {len(outcomes)}",
        *map(number, gaps),
        share,
        others,
    ]


def by_case(outcomes: Sequence[Outcome], marks: Mapping[str, int]) -> str:
    """The table of one peer."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.task.case.name, []).append(outcome)
    rows = [row(found[0].task.case, found, marks) for found in groups.values()]
    head = ["method", "parameters", "agree", *STORED, "equal bit by bit", "differs: reason, inputs (how far)"]
    return aligned(head, rows, numbers=range(2, 7))


def aligned(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: range) -> str:
    """A table with columns of numbers in its middle."""
    lines = table(head, rows).split("\n")
    lines[1] = "|" + "|".join("---:" if column in numbers else "---" for column in range(len(head))) + "|"
    return "\n".join(lines)


def mark_reasons(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Reasons in the order in which they turn up, numbered."""
    found: dict[str, int] = {}
    for outcome in outcomes:
        reason: Reason | None = None if outcome.agrees else why(outcome)
        if reason:
            found.setdefault(reason.text, len(found) + 1)
    return found


def draw_rows(draws: Sequence[masks.Comparison]) -> str:
    """The table of random masks."""
    rows = []
    for found in draws:
        pairs = zip(vars(found.ours).values(), vars(found.theirs).values(), strict=True)
        figures = [f"{mine:.4f} / {other:.4f}" for mine, other in pairs]
        title = PACKAGES[found.case.peer].title
        state = "yes" if found.agrees else "**no**"
        rows.append([f"`{found.case.method}`", found.case.title, title, *figures, state])
    head = ["method", "parameters", "peer", "kept", "of the smallest tenth", "of the largest tenth", "mean"]
    return table([*head, "agree"], rows, words=3)


def merge_rows(compared: Sequence[merges.Comparison]) -> str:
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
        for found in compared
    ]
    head = ["recipe", "tensors that must agree", "equal bit by bit", "largest difference", "norm and head"]
    return table([*head, "at the gradient's end", "agree"], rows)


def text(
    versions: Mapping[str, str],
    own: str,
    outcomes: Sequence[Outcome],
    draws: Sequence[masks.Comparison],
    compared: Sequence[merges.Comparison],
    wrong: int,
) -> str:
    """Everything between the markers."""
    agree, marks = sum(outcome.agrees for outcome in outcomes), mark_reasons(outcomes)
    named = ", ".join(f"{title} {version}" for title, version in versions.items())
    verdict = f"{wrong} findings are open" if wrong else "every difference has a reason"
    parts = [
        f"Eutectic {own} beside {named} (torch {torch.__version__.split('+')[0]}).",
        f"**{len(outcomes)} merged tensors: {agree} agree to within rounding, {len(outcomes) - agree} differ,"
        f" {verdict}.**",
    ]
    for name, package in PACKAGES.items():
        mine = [outcome for outcome in outcomes if outcome.task.case.peer == name]
        parts += [f"### {package.title}", by_case(mine, marks)]
    listed = "\n".join(f"{mark}. {text}" for text, mark in marks.items())
    parts += ["### Reasons", listed, "### Random masks", draw_rows(draws)]
    return "\n\n".join([*parts, "### Whole merges", merge_rows(compared)])
