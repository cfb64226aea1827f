"""What models are called where several stand together: by the end of their paths, as much of it as tells them apart."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from eutectic.checkpoint import Source


def labels_of(sources: Sequence[Source], taken: Collection[str] = ()) -> list[str]:
    """A label of its own for each model: see `unique_labels`."""
    return unique_labels((source.label for source in sources), [source.path for source in sources], taken)


def unique_labels(labels: Iterable[str], paths: Sequence[str] = (), taken: Collection[str] = ()) -> list[str]:
    """The labels; those of one name get as much of their paths as tells them apart, and so do not depend on the order.

    `run-a/final` and `run-b/final` for two models `final`. What has no path, or the same one, is numbered in the order
    given: `model`, `model#2`.

    Args:
        labels: the short names.
        paths: of each; "" or none at all where a name is not the last part of one.
        taken: names that are given already.
    """
    wanted = list(labels)
    parts = [_parts(label, path) for label, path in zip(wanted, paths or [""] * len(wanted), strict=True)]
    named = _told_apart(parts, taken)
    return _numbered([named[one] for one in parts], taken)


def _parts(label: str, path: str) -> tuple[str, ...]:
    parts = tuple(part for part in os.path.normpath(path).split(os.sep) if part) if path else ()
    return parts if parts[-1:] == (label,) else (label,)


def _told_apart(parts: Iterable[tuple[str, ...]], taken: Collection[str]) -> dict[tuple[str, ...], str]:
    """Each path → the shortest end of it that is no end of another, if there is one."""
    depths = dict.fromkeys(parts, 1)
    while True:
        named = {one: "/".join(one[-depth:]) for one, depth in depths.items()}
        counts = Counter([*named.values(), *taken])
        longer = [one for one, depth in depths.items() if counts[named[one]] > 1 and depth < len(one)]
        if not longer:
            return named
        for one in longer:
            depths[one] += 1


def _numbered(wanted: Sequence[str], taken: Collection[str]) -> list[str]:
    given, seen = {*wanted, *taken}, set(taken)
    unique = []
    for label in wanted:
        number, name = 1, label
        while name in seen or (number > 1 and name in given):
            number += 1
            name = f"{label}#{number}"
        seen.add(name)
        unique.append(name)
    return unique
