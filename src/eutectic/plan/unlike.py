"""Why models do not have the same tensors, as far as names and shapes tell, and what can be done about it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from eutectic.checkpoint import Spec
from eutectic.errors import did_you_mean
from eutectic.names import kind_of, layer_of
from eutectic.plan.model import PlanInput

# With more than this share of the entries missing from some model, a merge that copies them is a copy, not a merge.
MOST = 0.5
# Rows of these are tokens; those of positions and patches are not.
_VOCABULARY = re.compile(r"lm_head|embed_out|predictions|(^|\.)output\.weight$")
_PLACES = re.compile(r"posit|wpe|patch", re.IGNORECASE)
_SHARD = re.compile(r"-\d+-of-0*([2-9]|[1-9]\d+)\.(?:safetensors|bin)$")
_COPY = "set `missing: copy` to copy such tensors"
# Who puts this in front of all names.
_WRAPPERS = {"module.": " (DataParallel)", "_orig_mod.": " (torch.compile)"}


def why_shapes_differ(name: str, specs: Sequence[Spec]) -> str:
    """What a tensor outside of the layers is likely to be whose models differ in its first dimension only."""
    rows, rest = {spec.shape[:1] for spec in specs}, {spec.shape[1:] for spec in specs}
    if len(rows) < 2 or len(rest) > 1 or layer_of(name) is not None or _PLACES.search(name):
        return ""
    if kind_of(name) == "embedding" or _VOCABULARY.search(name):
        return "vocabularies of different sizes? resize one model's embeddings to the other's first"
    part = name.rpartition(".")[0] or name
    return f"heads for different labels? `leave_out: {part}` takes one model's as it is"


def one_of_shards(label: str) -> str:
    """What to say of a model that is one file of several; empty for any other."""
    found = _SHARD.search(label)
    return f"{label} is one shard of {found[1]}: name its folder, or its index" if found else ""


def why_missing(names: Sequence[str], absent: Sequence[PlanInput], present: PlanInput, share: float) -> str:
    """What to do about tensors that some models lack.

    Args:
        names: the tensors, as the first model that has them calls them.
        absent: the models that lack them.
        present: the first that has them.
        share: how much of all entries is missing from some model.
    """
    if shard := next(filter(None, map(one_of_shards, (item.label for item in absent))), ""):
        return shard
    # What is there in place of them, so nobody else has those names.
    spare = [name for item in absent for name in item.specs if name not in present.specs]
    if renamed := named_otherwise(names, spare, (present.label, absent[0].label)):
        return f"{renamed}: save it without that first"
    if near := did_you_mean(names[0], spare):
        return near
    if share > MOST:
        return f"`missing: copy` would copy {100 * share:.0f} % of the entries: are the models of one architecture?"
    return _COPY


def named_otherwise(names: Collection[str], others: Iterable[str], labels: tuple[str, str]) -> str:
    """Whether two models have most of these tensors under names that begin in another way, in words; else empty.

    Args:
        names: tensors of the first model that the second lacks.
        others: tensors of the second that the first lacks.
        labels: of the two.
    """
    found = _prefixes(names, others)
    if found is None:
        return ""
    (less, short), (more, long) = sorted(zip(found, labels, strict=True), key=lambda pair: len(pair[0]))
    instead = f" where those of {short} begin with {less!r}" if less else f", and those of {short} do not"
    return f"the names of {long} begin with {more!r}{_WRAPPERS.get(more, '')}{instead}"


def _prefixes(names: Collection[str], others: Iterable[str]) -> tuple[str, str] | None:
    """What stands before names, and before the same ones among `others`, if that explains half of them and more.

    `("", "module.")` for `["a.weight"]` and `["module.a.weight"]`. One has parts before or behind those of the other:
    anything else is another name.
    """
    by_tail = {tail: other for other in others for tail in _tails(other)}
    found: Counter[tuple[str, str]] = Counter()
    for name in names:
        if tail := next((tail for tail in _tails(name) if tail in by_tail), ""):
            here, there = name.removesuffix(tail), by_tail[tail].removesuffix(tail)
            less, more = sorted((here, there), key=len)
            if less != more and (more.startswith(less) or more.endswith(less)):
                found[here, there] += 1
    if not found:
        return None
    pair, count = found.most_common(1)[0]
    return pair if 2 * count >= len(names) else None


def _tails(name: str) -> Iterator[str]:
    """`a.b.c`, `b.c`, `c`."""
    while name:
        yield name
        name = name.partition(".")[2]
