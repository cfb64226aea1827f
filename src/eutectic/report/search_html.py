"""Soups, evaluated sweeps and learned weights as one HTML file: what was tried, what it scored, what was chosen."""

from __future__ import annotations

import os
from numbers import Real

from eutectic.errors import listed, several
from eutectic.evaluate import Difference, Score
from eutectic.report import html
from eutectic.report.curves import Point, Series, chart
from eutectic.report.heatmap import clean
from eutectic.search import Choice, Learned, Tuning
from eutectic.search.soup import Step


def write_soup_report(choice: Choice, path: str | os.PathLike[str]) -> None:
    """Writes what led to a soup. Raises `RecipeError` or `OutputError` (A802)."""
    body = [f'<p class="answer">{clean(soup_in_words(choice))}</p>']
    if choice.steps:
        body += [f"<figure>{soup_chart(choice)}</figure>", "<h2>Every step</h2>"]
        body.append(html.table(STEP_HEAD, [step_row(step) for step in choice.steps]))
    if choice.held_out:
        body += ["<h2>On data that had no say</h2>", html.table(HELD_OUT_HEAD, held_out_rows(choice))]
    html.write(html.document(f"Soup of {several(len(choice.models), 'checkpoint')}", body, "from their scores"), path)


def write_tuning_report(found: Tuning, path: str | os.PathLike[str]) -> None:
    """Writes what the merges of a sweep score. Raises `RecipeError` or `OutputError` (A802)."""
    body = [f'<p class="answer">{clean(tuning_in_words(found))}</p>', html.bullets(found.notes)]
    body += [f"<figure>{text}</figure>" for text in tuning_charts(found)]
    for task in found.tasks:
        body += [f"<h2>{clean(task)}</h2>", html.table(tuning_head(found, task), tuning_rows(found, task))]
    html.write(html.document("Sweep", body, "from live merges"), path)


def write_learning_report(learned: Learned, path: str | os.PathLike[str]) -> None:
    """Writes how weights were learned. Raises `RecipeError` or `OutputError` (A802)."""
    body = [f'<p class="answer">{clean(learning_in_words(learned))}</p>']
    body += [f"<figure>{text}</figure>" for text in learning_charts(learned)]
    body += ["<h2>Weights</h2>", html.table(weights_head(learned), weights_rows(learned)), html.bullets(learned.notes)]
    body += ["<h2>Looks at the held-out data</h2>", html.table(LOOK_HEAD, look_rows(learned))]
    html.write(html.document("Learned weights", body, "from live merges"), path)


def soup_in_words(choice: Choice) -> str:
    """One sentence: what the soup is made of, and its score."""
    if choice.weights is not None:
        made = f"learned soup of {several(len(choice.ingredients), 'checkpoint')}"
    else:
        made = f"{choice.method} soup: {len(choice.ingredients)} of {several(len(choice.models), 'checkpoint')}"
    if choice.score is None:
        return made
    said = f"{made}, {choice.score.task} {choice.score.metric} {number(choice.score.value)}"
    alone = choice.alone.get(choice.best or "")
    return said if alone is None else f"{said}; the best by itself, {choice.best}, has {number(alone.value)}"


def tuning_in_words(found: Tuning) -> str:
    """One sentence: which merge was chosen."""
    condition = f" among those that keep {', '.join(found.keep)}" if found.keep else ""
    if found.best is None:
        return f"none of {several(len(found.choices), 'merge')} keeps {', '.join(found.keep)}"
    score = found.scores[found.best][found.tasks[0]]
    said = f"best{condition}: {found.best}, {found.tasks[0]} {score.metric} {number(score.value)}"
    if found.equals:
        verb = "has" if len(found.equals) == 1 else "have"
        said += f"; a tie: {listed(found.equals)} {verb} the same score, the first of the sweep is taken"
    return said


def learning_in_words(learned: Learned) -> str:
    """One sentence: from what, how long, and what it brought."""
    options, looks = learned.options, learned.looks
    said = f"weights by {options.by}, {options.objective}, step {learned.chosen} of {looks[-1].number}"
    chosen = next(step for step in looks if step.number == learned.chosen)
    if chosen.held_out is None or looks[0].held_out is None:
        return said
    return f"{said}: held-out {options.objective} {number(looks[0].held_out)} → {number(chosen.held_out)}"


STEP_HEAD = ("", "what", "tried", "in it", "score", "95 % interval", "gain", "95 % interval", "taken")
HELD_OUT_HEAD = ("task", "model", "score", "95 % interval")


def step_row(step: Step) -> tuple[str, ...]:
    """A row for `STEP_HEAD`."""
    taken = {None: "", True: "yes", False: "no"}[step.accepted]
    gain = ("", "") if step.gain is None else (f"{step.gain.value:+.4g}", interval(step.gain))
    what = (str(step.number), step.action, step.tried, str(len(step.ingredients)))
    return (*what, number(step.score.value), interval(step.score), *gain, taken)


def held_out_rows(choice: Choice) -> list[tuple[str, ...]]:
    """Rows for `HELD_OUT_HEAD`."""
    names = {"soup": "the soup", "best": f"best ingredient, {choice.best}", "uniform": "uniform soup"}
    return [
        (task, names[name], number(score.value), interval(score))
        for task, scores in choice.held_out.items()
        for name, score in scores.items()
    ]


def tuning_head(found: Tuning, task: str) -> tuple[str, ...]:
    """Heads for `tuning_rows`."""
    metric = next(iter(found.scores.values()))[task].metric
    base = ("less the base", "95 % interval") if found.base else ()
    return ("merge", metric, "95 % interval", *base, *(("keeps",) if found.keep else ()), "")


def tuning_rows(found: Tuning, task: str) -> list[tuple[str, ...]]:
    """One row for the base, if there is one, and one for each merge."""
    rows = []
    width = len(tuning_head(found, task))
    if found.base:
        row = ("base", number(found.base[task].value), interval(found.base[task]))
        rows.append((*row, *[""] * (width - len(row))))
    for label, scores in found.scores.items():
        gap = found.less(label, task)
        base = () if not found.base else ("", "") if gap is None else (f"{gap.value:+.4g}", interval(gap))
        kept = () if not found.keep else ("no" if found.failed[label] else "yes",)
        chosen = "chosen" if label == found.best else "the same score" if label in found.equals else ""
        rows.append((label, number(scores[task].value), interval(scores[task]), *base, *kept, chosen))
    return rows


LOOK_HEAD = ("step", "training", "held out", "")


def look_rows(learned: Learned) -> list[tuple[str, ...]]:
    """One row for each look at the held-out data."""

    def cell(value: float | None) -> str:
        return "" if value is None else number(value)

    return [
        (str(step.number), cell(step.loss), cell(step.held_out), "chosen" if step.number == learned.chosen else "")
        for step in learned.looks
    ]


def weights_head(learned: Learned) -> tuple[str, ...]:
    """Heads for `weights_rows`."""
    return ("part", *learned.models)


def weights_rows(learned: Learned) -> list[tuple[str, ...]]:
    """One row for each part of the model that has weights of its own."""
    rest = "all" if len(learned.weights) == 1 else "the rest"
    return [(part or rest, *map(number, own)) for part, own in learned.weights.items()]


def learning_charts(learned: Learned) -> list[str]:
    """The objective by step, and each model's weight, averaged over the parts, by step."""
    looks = learned.looks
    training = [Point(float(step.number), step.loss) for step in learned.steps if step.loss is not None]
    held_out = [Point(float(step.number), step.held_out) for step in looks if step.held_out is not None]
    series = [Series("training", training), *([Series("held out", held_out)] if held_out else [])]
    means = []
    for place, label in enumerate(learned.models):
        own = [(step.number, [row[place] for row in (step.weights or {}).values()]) for step in looks]
        means.append(Series(label, [Point(float(at), sum(values) / len(values)) for at, values in own]))
    what = "weight" if len(learned.weights) == 1 else "mean weight"
    return [
        chart(f"{learned.options.objective} by step", series, x="step", y=f"{learned.options.objective}, nats"),
        chart(f"{what} by step", means, x="step", y=what),
    ]


def soup_chart(choice: Choice) -> str:
    """Score by the number of ingredients, or by epoch of a learned soup."""
    learned = choice.weights is not None
    tried = [step for step in choice.steps if not learned or step.action == "epoch"]
    place = {step.number: i if learned else len(step.ingredients) for i, step in enumerate(tried)}
    alone = [step for step in choice.steps if step.action == "alone"]
    best = next((step for step in alone if step.tried == choice.best), None)
    taken = [step for step in tried if step.accepted]
    if best is not None and choice.method == "greedy":
        taken = [best, *taken]
    series = [
        Series("tried", [_point(place[step.number], step.score) for step in tried], "dots"),
        Series("soup", [_point(place[step.number], step.score) for step in taken]),
    ]
    if best is not None:
        last = max(place.values(), default=1)
        ends = [Point(min(place.values(), default=1), best.score.value), Point(last, best.score.value)]
        series.append(Series("best ingredient", ends, "rule"))
    first = choice.steps[0].score
    across = "epoch" if learned else "ingredients"
    return chart(f"{first.task} of each mixture", series, x=across, y=first.metric)


def tuning_charts(found: Tuning) -> list[str]:
    """Each task's score over the swept value, and the target against each other task."""
    name, places = _axis(found)
    charts = []
    for task in found.tasks:
        points = [_point(places[label], scores[task]) for label, scores in found.scores.items()]
        series = [Series("merges", points)]
        if task in found.base:
            base = found.base[task]
            ends = [Point(min(places.values()), base.value), Point(max(places.values()), base.value)]
            series.append(Series("base", ends, "rule"))
        metric = next(iter(found.scores.values()))[task].metric
        charts.append(chart(task, series, x=name, y=metric))
    target = found.tasks[0]
    for task in found.tasks[1:]:
        pairs = [Point(scores[task].value, scores[target].value) for scores in found.scores.values()]
        series = [Series("merges", pairs)]
        if found.base:
            series.append(Series("base", [Point(found.base[task].value, found.base[target].value)], "dots"))
        if found.best is not None:
            best = found.scores[found.best]
            series.append(Series(found.best, [Point(best[task].value, best[target].value)], "dots"))
        charts.append(chart(f"{target} against {task}", series, x=task, y=target))
    return charts


def _axis(found: Tuning) -> tuple[str, dict[str, float]]:
    """What is across: the value, where one parameter is swept over numbers; else the number of the merge."""
    paths = {path for choices in found.choices.values() for path in choices}
    if len(paths) == 1:
        path = paths.pop()
        values = {label: choices[path] for label, choices in found.choices.items()}
        if all(isinstance(value, Real) and not isinstance(value, bool) for value in values.values()):
            return path.removeprefix("parameters."), {label: float(value) for label, value in values.items()}
    return "merge", {label: float(number) for number, label in enumerate(found.choices, 1)}


def _point(x: float, score: Score) -> Point:
    return Point(float(x), score.value, *(score.interval or (None, None)))


def number(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}"


def interval(thing: Score | Difference) -> str:
    """`0.71 to 0.75`."""
    return "" if thing.interval is None else f"{number(thing.interval[0])} to {number(thing.interval[1])}"
