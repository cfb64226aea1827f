"""The tables of the demonstration, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from domains import DOMAINS

from eutectic.evaluate import Difference, Evaluation, Score, paired
from eutectic.search import Tuning


def report(found: Evaluation, tuned: Mapping[str, Tuning]) -> str:
    """All tables: an overview, each text by itself, and what the sweeps measured."""
    parts = [["## All models", "", *overview(found)], ["## What is kept of the gains", "", *kept(found)]]
    name = chosen(tuned)
    if name is not None:
        parts.append([f"## Less {name}, the best on the development texts", "", *beside(found, name)])
    parts += [[f"## Perplexity on {task}", "", *by_task(found.scores[task])] for task in found.tasks]
    parts += [[f"## The sweep of {method}", "", *of_sweep(one)] for method, one in tuned.items()]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def overview(found: Evaluation, to: str = "base") -> Iterator[str]:
    """Perplexities, marked ↓ where surely below those of the model `to` and ↑ where surely above them."""
    rows = []
    for model in found.models:
        marks = {task: _mark(paired(scores[model], scores[to])) for task, scores in found.scores.items()}
        rows.append([model, *(f"{found.scores[task][model].value:.2f}{marks[task]}" for task in found.tasks)])
    return table(["model", *found.tasks], rows)


def kept(found: Evaluation) -> Iterator[str]:
    """How far each merge goes from the base's loss to that of the specialist: 0 % is the base, 100 % the specialist."""
    rows = []
    for model in found.models:
        row = [model]
        for task in DOMAINS:
            loss = {name: math.log(score.value) for name, score in found.scores[task].items()}
            row.append(f"{100 * (loss['base'] - loss[model]) / (loss['base'] - loss[task]):.0f} %")
        rows += [row] if model not in ("base", *DOMAINS) else []
    return table(["merge", *DOMAINS], rows)


def chosen(tuned: Mapping[str, Tuning]) -> str | None:
    """The merge that is best on the development texts, among those that each method's sweep chose."""
    best = {method: one.scores[one.best][one.tasks[0]].value for method, one in tuned.items() if one.best is not None}
    return f"{min(best, key=lambda method: best[method])}-tuned" if best else None


def beside(found: Evaluation, name: str) -> Iterator[str]:
    """Each model's perplexities less those of the model `name`, with intervals of 95 %."""
    others = [model for model in found.models if model != name]
    rows = [[m, *(difference(paired(scores[m], scores[name])) for scores in found.scores.values())] for m in others]
    return table(["model", *found.tasks], rows)


def by_task(scores: Mapping[str, Score]) -> Iterator[str]:
    """Each model's perplexity on one text, less the base's and less the best parent's, with intervals of 95 %."""
    base = scores["base"]
    parent = min(DOMAINS, key=lambda name: scores[name].value)
    rows = []
    for model, score in scores.items():
        to_base = "-" if model == "base" else difference(paired(score, base))
        to_parent = "-" if model == parent else difference(paired(score, scores[parent]))
        rows.append([model, f"{score.value:.3f}", _interval(score, ".2f"), to_base, to_parent])
    return table(["model", "perplexity", "95 % interval", "less the base", f"less {parent}, the best parent"], rows)


def of_sweep(found: Tuning) -> Iterator[str]:
    """What each merge of a sweep scores on the development texts, less the base, and whether it keeps the guard."""
    target, guard = found.tasks
    rows = []
    for label, scores in found.scores.items():
        said = "chosen" if label == found.best else "no" if found.failed[label] else "yes"
        less = {task: difference(paired(scores[task], found.base[task])) for task in found.tasks}
        rows.append(
            [label, f"{scores[target].value:.3f}", less[target], f"{scores[guard].value:.2f}", less[guard], said]
        )
    rows.insert(0, ["base", f"{found.base[target].value:.3f}", "-", f"{found.base[guard].value:.2f}", "-", ""])
    return table(["", target, "less the base", guard, "less the base", f"`{', '.join(found.keep)}`"], rows)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Lines of a Markdown table whose columns after the first are numbers."""
    names = list(head)
    for row in (names, ["---", *["---:"] * (len(names) - 1)], *rows):
        yield f"| {' | '.join(row)} |"


def _mark(difference: Difference) -> str:
    return "" if difference.better is None else " ↓" if difference.better else " ↑"


def difference(one: Difference) -> str:
    """With its interval of 95 %."""
    return f"{one.value:+.3f} ({_interval(one, '+.3f')})"


def _interval(one: Score | Difference, form: str) -> str:
    return "-" if one.interval is None else f"{one.interval[0]:{form}} to {one.interval[1]:{form}}"
