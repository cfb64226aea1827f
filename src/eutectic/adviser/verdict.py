"""numbers -> words: can the models be merged, how, and what to mind. Each threshold says what it rests on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

from eutectic import methods
from eutectic.adviser.model import Comparison, Verdict
from eutectic.adviser.sums import Sums
from eutectic.errors import listed

# Distance over norm of two models. Independent trainings of one architecture lie at about √2 (a cosine of 0); light
# fine-tunes of one base below 0.1, heavy ones below 0.3. At 1 the cosine of the weights is 1/2.
UNRELATED = 1.0
# Beyond this, models that share a base have been trained so long that averages are uncertain: it is more than twice
# what fine-tuning usually moves.
FAR = 0.5
# A change of 13 % of the base's norm was enough, on small networks, for a plain average of four fine-tunes to fall
# below the base, and for DARE at density 0.01 to end below dropping without rescaling.
HEAVY = 0.1
# Fine-tunes of language models with small learning rates move the weights by 1 to 5 %.
LIGHT = 0.05
# DARE's authors found that it needs changes of mostly less than 0.002 to 0.005 (arXiv:2311.03099).
DARE_CHANGE = 0.002
# Cosine of task vectors. Models of one run or one task share most of their direction; those of different tasks are
# nearly orthogonal (arXiv:2212.04089), and 0.1 is far beyond chance in any model of more than a thousand weights.
ALIKE = 0.5
INDEPENDENT = 0.1
# TIES settles entries that several models change much and in opposite directions (arXiv:2306.01708). That needs an
# overlap of the largest changes clearly beyond chance, and opposition near to the half that unrelated signs have.
COLLIDING_OVERLAP = 0.1
COLLIDING_SIGNS = 0.3
# Methods on singular values keep a share 1/K of each model's directions, or flatten them: they lose least where few
# directions carry the change. Their published gains are for eight and more specialised vision models.
LOW_RANK = 0.1
SPECIALISTS = 4
# The part of a half-weighted change that rounds away in bfloat16 before a merge is no longer what was asked for.
LOST = 0.1

EQUAL = "nothing tells the models apart"
ONE_RUN = "checkpoints of one run: average them, with `eutectic average`, perhaps the last few alone"
EVALUATE = (
    "no statistic of weights proves a merge good: evaluate it on data that nothing was tuned on, on what each model is "
    "good at and on something general"
)


def judge(found: Comparison) -> Verdict:
    """The verdict on a comparison whose other parts are complete."""
    if found.structure.faults:
        return Verdict("not mergeable", tuple(found.structure.faults), cautions=tuple(found.structure.cautions))
    if found.broken:
        what = "NaN, infinity or values too large to square"
        reasons = [f"{model} has {what} in {listed(names)}" for model, names in found.broken.items()]
        return Verdict("not mergeable", tuple(reasons), cautions=("mend or download the model again",))
    assert found.matrices is not None and found.whole is not None
    sums = found.matrices
    if not found.whole.changed.any():
        return Verdict("merge directly", (EQUAL,), cautions=("they are one model: a merge of them is that model",))
    if (apart := _unrelated(found, sums)) is not None:
        return apart
    based = found.base.label is not None
    reasons = [_nearness(sums, based)]
    cautions = [f"base: {found.base.reason}"] if not found.base.given else []
    cautions += found.structure.cautions
    if based:
        reasons += _towards_the_base(found, sums)
        cautions += _cautions(found, sums)
        advice = _with_base(found, sums)
    else:
        advice = _without_base(found)
    known = [(name, why) for name, why in advice if methods.get(name) is not None]
    return Verdict("merge directly", tuple(reasons), tuple(known), (*cautions, EVALUATE))


def percent(share: float) -> str:
    """`3.1 %`."""
    if share == 0 or abs(share) >= 0.0995:
        return f"{100 * share:.0f} %"
    return f"{100 * share:#.2g} %"


def _unrelated(found: Comparison, sums: Sums) -> Verdict | None:
    """The verdict where some of the models are no relatives of the others; None if all are."""
    base = [found.base.label] if found.base.label is not None else []
    labels = [*base, *found.models]
    apart = {pair for pair in combinations(range(len(labels)), 2) if _distance(sums, *pair) >= UNRELATED}
    if not apart:
        return None
    if base and apart == {(0, row) for row in range(1, len(labels))} and len(labels) > 2:
        why = f"{labels[0]} is not the base of {listed(found.models)}: they are near to each other and not to it"
        return Verdict("not mergeable", (why,), cautions=("name their own base, or compare them without one",))
    told = [f"{labels[a]} and {labels[b]} ({_distance(sums, a, b):.2f})" for a, b in sorted(apart)]
    text = "relative distance 1 and more, as of independent trainings (about 1.4)"
    reasons = (
        f"not related: {listed(told)}; {text}",
        "the average of two such models is no model: their units are in different orders",
    )
    cautions = (
        "`eutectic align` matches units first (Git Re-Basin, arXiv:2209.04836, and its relatives for transformers); "
        "`eutectic connect --align` measures what that helps",
        "if they were meant to be fine-tunes of one base, one of them is not the model that its name says",
    )
    return Verdict("align first", reasons, cautions=cautions)


def _distance(sums: Sums, a: int, b: int) -> float:
    """The relative distance; from a model of zeros to any other it is beyond all."""
    found = sums.relative_distance(a, b)
    return (math.inf if sums.distance(a, b) else 0.0) if found is None else found


def _nearness(sums: Sums, based: bool) -> str:
    rows = range(1 if based and sums.models > 1 else 0, sums.models + 1)
    known = [value for a, b in combinations(rows, 2) if (value := sums.relative_distance(a, b)) is not None]
    if not any(known):
        return EQUAL
    told = _span(known, "{:.2g}".format)
    return f"the models are relatives: their relative distance is {told} (independent trainings: about 1.4)"


def _towards_the_base(found: Comparison, sums: Sums) -> list[str]:
    pairs = list(found.pairs())
    changes = [f"{label} {percent(sums.change(k) or 0.0)}" for k, label in enumerate(found.models)]
    told = [f"they changed {found.base.label} by this share of its norm: {', '.join(changes)}"]
    cosines = [sums.cosine(a, b) for a, b in pairs]
    # A model that did not move has no direction, and no pair may be left that has.
    if any(cosine is not None for cosine in cosines):
        cosine = _span(cosines, "{:z.2f}".format)
        opposed = _span([sums.opposed_by_size(a, b) for a, b in pairs], percent)
        overlap = _span([sums.overlap(a, b) for a, b in pairs], percent)
        chance = _span([sums.overlap_by_chance(a, b) for a, b in pairs], percent)
        told.append(
            f"the cosine of their changes is {cosine}; by size, {opposed} of what two of them change is opposed"
        )
        told.append(f"their largest changes overlap by {overlap} (by chance: {chance})")
    ranks = [rank for k in range(sums.models) if (rank := sums.rank(k)) is not None]
    if ranks:
        told.append(f"the effective rank of their changes is {_span(ranks, percent)} of the possible")
    return told


def _cautions(found: Comparison, sums: Sums) -> list[str]:
    said = []
    each = list(enumerate(found.models))
    if far := [label for k, label in each if (sums.change(k) or 0) >= FAR]:
        said.append(
            f"{listed(far)} moved very far from the base: long training, or another base; averages are uncertain"
        )
    elif heavy := [label for k, label in each if (sums.change(k) or 0) >= HEAVY]:
        said.append(f"{listed(heavy)} moved far: start with small weights, no low DARE densities")
    if lost := [f"{label} {percent(sums.lost(k) or 0)}" for k, label in each if (sums.lost(k) or 0) >= LOST]:
        text = ", ".join(lost)
        said.append(f"bfloat16 is too coarse for half a change added to the base: {text} rounds away; write float32")
    if same := [label for k, label in each if not sums.changed[k]]:
        verb, adds = ("equals", "it adds") if len(same) == 1 else ("equal", "they add")
        said.append(f"{listed(same)} {verb} the base in every matrix: {adds} nothing")
    against = [
        f"{found.models[a]} and {found.models[b]}" for a, b in found.pairs() if (sums.cosine(a, b) or 0) <= -ALIKE
    ]
    if against:
        said.append(
            f"{listed(against)} changed in opposite directions: added up they cancel; is one meant to be undone?"
        )
    first = 0 if found.base.label is None else 1  # the row of the first model
    pairs = [(a, b) for a, b in found.pairs() if sums.distance(first + a, first + b) == 0]
    twins = [f"{found.models[a]} and {found.models[b]}" for a, b in pairs]
    if twins and first and not same:
        said.append(f"nothing tells {listed(twins)} apart: list one of them")
    return said


def _with_base(found: Comparison, sums: Sums) -> Iterable[tuple[str, str]]:
    """Methods in the order in which to try them. What of this is evidence stands in `docs/how-to-choose.md`."""
    count = len(found.models)
    cosines = [value for a, b in found.pairs() if (value := sums.cosine(a, b)) is not None]
    changes = [sums.change(k) or 0.0 for k in range(count)]
    if count == 1:
        yield "wise_ft", "one fine-tune and its base: a point on the way often keeps more of both"
        yield "task_arithmetic", "the same, as a weight between 0 and 1"
        return
    alike = found.one_run or (bool(cosines) and min(cosines) >= ALIKE)
    if found.one_run:
        yield "linear", ONE_RUN
    elif alike:
        yield "linear", "the changes point in one direction, as of one run or one task: average them"
    if alike:
        yield "model_stock", "sets the way to the base by the angle between the models"
    swept = "around 0.5, the average" if count == 2 else f"from {1 / count:.2g}, the average, to 0.5"
    yield "task_arithmetic", f"the safest on language models (arXiv:2511.21437); sweep lambda {swept}"
    if max(changes) >= HEAVY and not alike:
        yield "model_stock", "pulls back towards the base what the models disagree about: for changes this heavy"
    if _collide(found, sums):
        yield "ties", "large changes collide, and the signs disagree; on fleets of language models it has cost points"
    ranks = [rank for k in range(count) if (rank := sums.rank(k)) is not None]
    independent = bool(cosines) and max(map(abs, cosines)) < INDEPENDENT
    if count >= SPECIALISTS and independent and ranks and max(ranks) < LOW_RANK:
        why = "many specialists, independent and of low rank; large gains on vision models, losses on language models"
        yield "tsv_m", why
        yield "iso_c", why
    light = max(changes) <= LIGHT and all((sums.mean_change(k) or 0) <= DARE_CHANGE for k in range(count))
    if light:
        yield "dare_linear", "only to store such small changes sparsely: a density down to 0.1 is nearly free for one"


def _collide(found: Comparison, sums: Sums) -> bool:
    return any(
        (sums.overlap(a, b) or 0) - (sums.overlap_by_chance(a, b) or 0) >= COLLIDING_OVERLAP
        and (sums.opposed_by_size(a, b) or 0) >= COLLIDING_SIGNS
        for a, b in found.pairs()
    )


def _without_base(found: Comparison) -> Iterable[tuple[str, str]]:
    if found.one_run:
        yield "linear", ONE_RUN
        return
    yield "linear", "averages need no base; with one (`--base`) there is more to compare and to choose from"
    if len(found.models) == 2:
        yield "slerp", "two models and one number between them; for relatives nearly the same as linear"


def _span(values: Sequence[float | None], shown: Callable[[float], str]) -> str:
    """`0.1`, or `0.1 to 0.3`."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return "not defined"
    least, most = shown(known[0]), shown(known[-1])
    return least if least == most else f"{least} to {most}"
