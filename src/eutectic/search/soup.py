"""Model soups: which checkpoints to average, or how much of each, by the score of the mixture."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

from eutectic.errors import Problem, RecipeError, did_you_mean, several
from eutectic.evaluate import Difference, Score, Task, paired
from eutectic.plan.labels import unique_labels
from eutectic.search.ingredients import Pot, Weights
from eutectic.search.learned import learn, losses_of
from eutectic.search.scoring import Scorer

METHODS = ("uniform", "greedy", "pruned", "learned")
_PARTS = ("model", "layer")


@dataclass(frozen=True, slots=True)
class SoupOptions:
    """How ingredients are chosen.

    Attributes:
        method: `uniform`: all. `greedy`: from the best on, each that does no harm. `pruned`: all but those whose
            removal does no harm. `learned`: all, with weights that follow the gradient of the task's loss.
        tie_break: a loss among the task's details, which decides between equal scores.
        by: of `learned`: one weight for each `model`, or for each model and `layer`.
        epochs: of `learned`: passes over the task's data.
        rate: of `learned`: of AdamW.
    """

    method: str = "greedy"
    tie_break: str | None = None
    by: str = "model"
    epochs: int = 5
    rate: float = 0.05

    def __post_init__(self) -> None:
        """Raises `RecipeError` (S802) with everything that cannot be."""
        problems = []
        for name, value, known in (("method", self.method, METHODS), ("by", self.by, _PARTS)):
            if value not in known:
                message = f"must be one of {', '.join(known)}, not {value!r}"
                problems.append(Problem("S802", message, name, did_you_mean(value, known)))
        if self.tie_break is not None and self.method in ("uniform", "learned"):
            problems.append(Problem("S802", f"a {self.method} soup breaks no ties", "tie_break", "leave it out"))
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, Integral) or self.epochs < 1:
            message = f"must be a whole number from 1 on, not {self.epochs!r}"
            problems.append(Problem("S802", message, "epochs"))
        number = isinstance(self.rate, Real) and not isinstance(self.rate, bool)
        if not number or not 0 < self.rate < float("inf"):
            problems.append(Problem("S802", f"must be a number above 0, not {self.rate!r}", "rate"))
        if problems:
            raise RecipeError(problems)


@dataclass(frozen=True, slots=True)
class Step:
    """One mixture that was tried.

    Attributes:
        number: counts from 1.
        action: `alone` (one ingredient), `all`, `add`, `remove` or `epoch`.
        tried: the label of the ingredient that it is about; empty for `all` and `epoch`.
        ingredients: labels of what was in it.
        score: of the mixture.
        loss: what breaks ties, if anything does.
        accepted: whether the soup went on from it. None for an ingredient by itself, which only gives the order.
        gain: of the mixture over what was there before, item by item; None for the first, and where they cannot be
            paired.
        weights: of a learned soup: by part of the model, one an ingredient.
    """

    number: int
    action: str
    tried: str
    ingredients: tuple[str, ...]
    score: Score
    loss: float | None
    accepted: bool | None
    gain: Difference | None = None
    weights: Weights | None = None

    def as_json(self) -> dict[str, Any]:
        """The step as plain data: a line of the log."""
        data: dict[str, Any] = {
            "step": self.number,
            "action": self.action,
            "tried": self.tried,
            "accepted": self.accepted,
            "ingredients": list(self.ingredients),
            "score": self.score.as_json(),
            "gain": None if self.gain is None else self.gain.as_json(),
        }
        if self.loss is not None:
            data["loss"] = self.loss
        if self.weights is not None:
            data["weights"] = {part: list(values) for part, values in self.weights.items()}
        return data


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        method: of `METHODS`.
        models: labels of all ingredients, as listed.
        ingredients: labels of those in the soup, the best first where they were scored.
        weights: of a learned soup; else None.
        recipe: the soup as a recipe, numbers and all.
        steps: every mixture that was tried, in order.
        score: the soup's, on the data that it was chosen by; None for a uniform soup without a task.
        best: label of the best single ingredient there.
        held_out: task → `soup`, `best` and `uniform` → score on data that had no say in the choice.
    """

    method: str
    models: tuple[str, ...]
    ingredients: tuple[str, ...]
    weights: Weights | None
    recipe: dict[str, Any]
    steps: tuple[Step, ...]
    score: Score | None
    best: str | None
    held_out: dict[str, dict[str, Score]] = field(default_factory=dict)

    def __repr__(self) -> str:
        score = "" if self.score is None else f", {self.score.metric} {self.score.value:.6g}"
        chosen = f"{len(self.ingredients)} of {several(len(self.models), 'model')}{score}"
        return f"<Choice of a {self.method} soup: {chosen}; see .ingredients and .steps>"

    @property
    def alone(self) -> dict[str, Score]:
        """Each ingredient's own score."""
        return {step.tried: step.score for step in self.steps if step.action == "alone"}

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "method": self.method,
            "models": list(self.models),
            "ingredients": list(self.ingredients),
            "weights": None if self.weights is None else {part: list(v) for part, v in self.weights.items()},
            "score": None if self.score is None else self.score.as_json(),
            "best": self.best,
            "steps": [step.as_json() for step in self.steps],
            "held_out": {
                task: {name: score.as_json() for name, score in scores.items()}
                for task, scores in self.held_out.items()
            },
        }


def choose(
    pot: Pot,
    options: SoupOptions,
    task: Task | None,
    held_out: Sequence[Task],
    scorer: Scorer,
    on_step: Callable[[Step], None] | None = None,
) -> Choice:
    """Makes the soup, without writing it.

    Args:
        pot: the ingredients.
        options: how to choose.
        task: the data to choose by, which no ingredient was trained on; None for a uniform soup.
        held_out: other data, on which the soup, its best ingredient and the uniform soup are scored at the end.
        scorer: measures mixtures.
        on_step: called with each mixture as it is scored.

    Raises `RecipeError`: S802 for a choice without a task and for data that are held out and chosen by, S803 for a
    tie-break that the task does not measure, S804 for a task that has no gradient; and what evaluation raises.
    """
    tasks = [*([task] if task is not None else []), *held_out]
    if task is None and options.method != "uniform":
        raise RecipeError(Problem("S802", f"a {options.method} soup is chosen by a task", "task", "name one"))
    everyone = list(range(len(pot.models)))
    if tasks:
        scorer.check([*map(pot.alone, everyone), pot.mix(everyone)], tasks)
    if task is not None:
        _refuse_leaks(task, held_out)
    tasting = _Tasting(pot, options, task, scorer, on_step)
    chosen, weights, score = everyone, None, None
    if task is not None:
        if options.method == "learned":
            losses_of(task, scorer.run, pot.sources[0])
            pot.parts(options.by)
        ranked = tasting.ranked()
        recipes: dict[str, Callable[[list[int]], tuple[list[int], Weights | None, Score]]] = {
            "uniform": tasting.uniform,
            "greedy": tasting.greedy,
            "pruned": tasting.pruned,
            "learned": tasting.learned,
        }
        chosen, weights, score = recipes[options.method](ranked)
    scores = {} if task is None else {i: tasting.single[i] for i in everyone}
    best = max(scores, key=lambda i: tasting.merit(scores[i]), default=None)
    labels = tuple(pot.labels)
    return Choice(
        options.method,
        labels,
        tuple(labels[i] for i in chosen),
        weights,
        pot.recipe(chosen, weights),
        tuple(tasting.steps),
        score,
        None if best is None else labels[best],
        _compared(pot, scorer, held_out, chosen, weights, best),
    )


def _refuse_leaks(task: Task, held_out: Sequence[Task]) -> None:
    """Raises `RecipeError` (S802) for tasks on the data that the soup is chosen by, whatever they measure there."""
    problems = [
        Problem("S802", f"{other.name} has the data of {task.name}, by which is chosen", "held_out", "name other data")
        for other in held_out
        if _data_of(other) == _data_of(task)
    ]
    if problems:
        raise RecipeError(problems)


def _data_of(task: Task) -> Any:
    """What tells a task's data from others': their digest, the loader itself, or the task itself."""
    known = task.identity()
    return id(getattr(task, "loader", task)) if known is None else known.get("data", known)


def _compared(
    pot: Pot, scorer: Scorer, tasks: Sequence[Task], chosen: list[int], weights: Weights | None, best: int | None
) -> dict[str, dict[str, Score]]:
    """The soup, its best ingredient and the uniform soup on data that had no say; model by model, as loading costs."""
    models = {"soup": pot.mix(chosen, weights), "uniform": pot.mix(range(len(pot.models)))}
    if best is not None:
        models["best"] = pot.alone(best)
    labels = unique_labels(task.name for task in tasks)
    scores = {
        name: {label: replace(scorer(model, task), task=label) for label, task in zip(labels, tasks, strict=True)}
        for name, model in models.items()
    }
    order = [name for name in ("soup", "best", "uniform") if name in scores]
    return {label: {name: scores[name][label] for name in order} for label in labels}


class _Tasting:
    """Scores mixtures one after the other and remembers every step."""

    def __init__(
        self,
        pot: Pot,
        options: SoupOptions,
        task: Task | None,
        scorer: Scorer,
        on_step: Callable[[Step], None] | None,
    ) -> None:
        self._pot, self._options, self._scorer, self._on_step = pot, options, scorer, on_step
        self._task = task
        self.steps: list[Step] = []
        self.single: dict[int, Score] = {}

    def ranked(self) -> list[int]:
        """The ingredients from the best to the worst; of equal ones, the first listed comes first."""
        for i in range(len(self._pot.models)):
            score = self._measured(self._pot.alone(i))
            self.single[i] = score
            self._note("alone", [i], score, None, tried=i)
        return sorted(self.single, key=lambda i: self.merit(self.single[i]), reverse=True)

    def uniform(self, ranked: list[int]) -> tuple[list[int], Weights | None, Score]:
        """All of them, as listed."""
        everyone = sorted(ranked)
        score = self._measured(self._pot.mix(everyone))
        self._note("all", everyone, score, True)
        return everyone, None, score

    def greedy(self, ranked: list[int]) -> tuple[list[int], Weights | None, Score]:
        """From the best ingredient on, each that leaves the score as good or better (Wortsman and others, recipe 1)."""
        chosen = ranked[:1]
        score = self.single[chosen[0]]
        for i in ranked[1:]:
            self._pot.keep(chosen)
            candidate = [*chosen, i]
            found = self._measured(self._pot.mix(candidate))
            accepted = self.merit(found) >= self.merit(score)
            self._note("add", candidate, found, accepted, tried=i, before=score)
            if accepted:
                chosen, score = candidate, found
        return chosen, None, score

    def pruned(self, ranked: list[int]) -> tuple[list[int], Weights | None, Score]:
        """From all of them, the worst first, each removed that leaves the score as good or better; until none does."""
        chosen = list(ranked)
        score = self._measured(self._pot.mix(chosen))
        self._note("all", chosen, score, True)
        queue = deque(reversed(ranked))
        # How many were tried in vain since the soup last changed: once all were, more passes change nothing.
        spared = 0
        while len(chosen) > 1 and spared < len(chosen):
            i = queue.popleft()
            candidate = [one for one in chosen if one != i]
            found = self._measured(self._pot.mix(candidate))
            accepted = self.merit(found) >= self.merit(score)
            self._note("remove", candidate, found, accepted, tried=i, before=score)
            if accepted:
                chosen, score, spared = candidate, found, 0
            else:
                queue.append(i)
                spared += 1
        return chosen, None, score

    def learned(self, ranked: list[int]) -> tuple[list[int], Weights | None, Score]:
        """All of them, with the weights of the epoch that scores best; the uniform soup is epoch 0."""
        everyone = sorted(ranked)
        assert self._task is not None
        best: tuple[Weights, Score] | None = None
        for weights in learn(self._pot, self._task, self._scorer.run, self._options):
            score = self._measured(self._pot.mix(everyone, weights))
            before = best[1] if best else None
            accepted = before is None or self.merit(score) > self.merit(before)
            self._note("epoch", everyone, score, accepted, before=before, weights=weights)
            if accepted:
                best = (weights, score)
        assert best is not None
        return everyone, *best

    def merit(self, score: Score) -> tuple[float, float]:
        """The larger, the better: the score, and of equal ones the smaller loss."""
        loss = self._loss(score)
        return score.merit, 0.0 if loss is None else -loss

    def _loss(self, score: Score) -> float | None:
        name = self._options.tie_break
        if name is None:
            return None
        if name == score.metric:
            return score.value
        if name not in score.details:
            hint = did_you_mean(name, score.details) or f"there are {', '.join(score.details) or 'none'}"
            raise RecipeError(Problem("S803", f"{score.task} measures no {name!r}", "tie_break", hint))
        return score.details[name]

    def _measured(self, source: Any) -> Score:
        assert self._task is not None
        return self._scorer(source, self._task)

    def _note(
        self,
        action: str,
        chosen: Iterable[int],
        score: Score,
        accepted: bool | None,
        *,
        tried: int | None = None,
        before: Score | None = None,
        weights: Weights | None = None,
    ) -> None:
        labels = self._pot.labels
        step = Step(
            len(self.steps) + 1,
            action,
            "" if tried is None else labels[tried],
            tuple(labels[i] for i in chosen),
            score,
            self._loss(score),
            accepted,
            _paired(score, before),
            weights,
        )
        self.steps.append(step)
        if self._on_step:
            self._on_step(step)


def _paired(score: Score, before: Score | None) -> Difference | None:
    try:
        return None if before is None else paired(score, before)
    except RecipeError:
        return None
