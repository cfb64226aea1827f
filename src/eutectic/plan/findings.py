"""Problems and notes of one planning, collected so that all can be told at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from eutectic.errors import Problem, did_you_mean
from eutectic.names import matcher
from eutectic.recipe import Place, Recipe

# Models of different sizes differ in every tensor: a dozen of them say it.
MOST_OF_A_KIND = 12


class Findings:
    """What is wrong with a plan (`problems`), what the user should know (`notes`), and what is left out (`dropped`).

    `dropped` has (input label, tensor, why).
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._problems: list[Problem] = []
        self.notes: list[str] = list(recipe.notes)
        self.dropped: list[tuple[str, str, str]] = []

    def say(self, code: str, message: str, hint: str = "", where: str = "") -> None:
        """Notes a problem at `where`: a path in the recipe, whose line is looked up, or a tensor's name."""
        place = self._recipe.places.get(where)
        if place is not None:
            self.say_at(place, code, message, hint)
        else:
            self._problems.append(Problem(code, message, where, hint, self._recipe.file or ""))

    def say_at(self, place: Place, code: str, message: str, hint: str = "") -> None:
        """Notes a problem that stands at a known place of the recipe."""
        self._problems.append(Problem(code, message, place.path, hint, place.file, place.line, place.column))

    def check_filters(
        self, filters: Iterable[tuple[str, Place]], floats: Sequence[str], ties: Mapping[str, str]
    ) -> None:
        """Every filter matches a tensor that is merged (P303), or at least one that is tied to such a tensor."""
        parts = sorted({part for name in floats for part in name.split(".")})
        for pattern, place in filters:
            matches = matcher(pattern)
            if any(map(matches, floats)):
                continue
            if tied := next(filter(matches, ties), None):
                why = f"{tied} is tied to {ties[tied]}, which is merged once"
                self.notes.append(f"the filter {pattern!r} has no effect: {why}")
                continue
            self.say_at(place, "P303", f"the filter {pattern!r} matches no tensor", did_you_mean(pattern, parts))

    @property
    def problems(self) -> list[Problem]:
        """Each once, at most a dozen of one kind; the rest are counted."""
        return few(self._problems, self._recipe.file or "")


def few(problems: Iterable[Problem], file: str) -> list[Problem]:
    """Each problem once, at most a dozen of one kind; the rest are counted."""
    seen: Counter[str] = Counter()
    kept = []
    for problem in dict.fromkeys(problems):
        seen[problem.code] += 1
        if seen[problem.code] <= MOST_OF_A_KIND:
            kept.append(problem)
    more = {code: count - MOST_OF_A_KIND for code, count in seen.items() if count > MOST_OF_A_KIND}
    return kept + [Problem(code, f"and {count} more problems of this kind", file=file) for code, count in more.items()]
