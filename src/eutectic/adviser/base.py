"""Which of several models the others were trained from, as far as weights can tell.

Fine-tunes of one base leave it in directions of their own, so seen from the base their differences are nearly
orthogonal, and it is nearer to all of them than they are to each other. Seen from one of the fine-tunes, all the others
lie in the direction of the base: with changes of one size their differences have a cosine of 1/2. So

1. the candidate is the model with the smallest sum of distances to the others;
2. it must be near to them (`NEAR`), or the models are not of one family;
3. the mean cosine of the others' differences to it must be below `STAR`: above, no model stands in the middle;
4. and not so far below zero that they cancel (`CANCELS`): then it is their average, a merge of them and not their base.

A star has no arrow: of a chain base -> a -> b the middle model `a` is found, and nothing in the weights tells which end
was first. Of two models neither stands in the middle. Name the base where you know it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from eutectic.adviser.sums import Sums

# Distance over the smaller norm, from the candidate to every other. Light fine-tunes lie at 0.01 to 0.05, heavy ones at
# 0.1 to 0.3, unrelated trainings at about 1.4.
NEAR = 0.5
# Half-way between 0 (independent changes) and 1/2 (a sibling taken for the base), and above the cosine of 0.1 to 0.3
# that fine-tunes for related tasks have.
STAR = 0.4
# Of K models around their own average the mean cosine is -1/(K - 1); of independent ones 0. Half-way.
CANCELS = -0.5


def find_base(sums: Sums, labels: Sequence[str]) -> tuple[int | None, str]:
    """The row that is the base of all others, and why it is, or why none is.

    `sums` are over the matrices or a sample of them, with the first model as their origin.
    """
    count = len(labels)
    if count < 3:
        return None, "of two models neither stands in the middle: name the base if there is one"
    candidate = min(range(count), key=lambda row: (sum(sums.distance(row, other) for other in range(count)), row))
    others = [row for row in range(count) if row != candidate]
    label = labels[candidate]
    reach = {row: NEAR * min(sums.norm(candidate), sums.norm(row)) for row in others}
    far = [labels[row] for row in others if sums.distance(candidate, row) > reach[row]]
    if far:
        return None, f"no model is near to all others ({label}, the nearest, is far from {', '.join(far)})"
    cosines = [found for a, b in combinations(others, 2) if (found := sums.direction(candidate, a, b)) is not None]
    if not cosines:
        return None, "the models are equal"
    mean = sum(cosines) / len(cosines)
    told = f"the others' differences to {label} have a mean cosine of {mean:z.2f}"
    if mean >= STAR:
        return None, f"no model stands in the middle ({told}; about 0.5 where siblings are compared without their base)"
    if mean <= CANCELS / (len(others) - 1):
        return None, f"{label} looks like an average of the others ({told})"
    return candidate, f"{label} is nearest to all others, and {told} (0: independent fine-tunes of it)"
