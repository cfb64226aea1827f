"""`statistics.json`: what was measured of which model, beside tensors that have the form of a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eutectic.checkpoint.source import Source
from eutectic.errors import CheckpointError, Problem

ABOUT = "statistics.json"
# Of statistics.json: what it says means the same as long as this stays.
FORMAT = 1
KINDS = ("fisher", "gram", "activations")


@dataclass(frozen=True, slots=True)
class About:
    """What `statistics.json` says.

    Attributes:
        kind: `fisher`, `gram` or `activations`.
        samples: examples that were seen.
        counts: tensor → rows of inputs that its statistic is the mean of; 0 where there were none (an expert that no
            token was sent to). Tensors that are not named have seen some.
        shared: weight → the weight under whose name the Gram of their common inputs stands.
        bias: weight → its bias, where the Gram has the constant one as its last input.
        transposed: weights that are stored as inputs × outputs.
        groups: weight → number of groups of a grouped convolution.
        norm: L2 norm of all tensors together; None where it was not taken.
        digests: tensor of the model → digest of its stored bytes (`kernels.digests`).
    """

    kind: str
    samples: int
    counts: Mapping[str, int] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    bias: Mapping[str, str] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    groups: Mapping[str, int] = field(default_factory=dict)
    norm: float | None = None
    digests: Mapping[str, str] = field(default_factory=dict)


def read_about(source: Source) -> About:
    """What stands beside the tensors of an artefact.

    Raises `CheckpointError`: C260 where there is no `statistics.json`, C261 where it is not what it should be.
    """
    raw = source.beside(ABOUT)
    if raw is None:
        hint = "name a folder that `eutectic collect` made"
        raise CheckpointError(Problem("C260", f"{source.label!r} has no {ABOUT}, so it holds no statistics", hint=hint))
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _broken(source, f"is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise _broken(source, "is no mapping")
    return _checked(source, found)


def _checked(source: Source, found: dict[str, Any]) -> About:
    if found.get("kind") not in KINDS:
        raise _broken(source, f"has the kind {found.get('kind')!r}, which is none of {', '.join(KINDS)}")
    if found.get("format", FORMAT) != FORMAT:
        raise _broken(source, f"has the format {found['format']!r}, and this version reads {FORMAT}")
    samples, norm = found.get("samples"), found.get("norm")
    if not isinstance(samples, int) or not _is_count(samples):
        raise _broken(source, f"has {samples!r} samples")
    if norm is not None and not (_is_number(norm) and math.isfinite(norm) and norm >= 0):
        raise _broken(source, f"has the norm {norm!r}")
    tables = {key: found.get(key) or {} for key in ("counts", "shared", "bias", "groups", "digests")}
    kinds = {"counts": int, "groups": int, "shared": str, "bias": str, "digests": str}
    for key, table in tables.items():
        if not isinstance(table, dict) or not all(_is(value, kinds[key]) for value in table.values()):
            raise _broken(source, f"has no table of names under {key!r}")
    transposed = found.get("transposed") or []
    if not isinstance(transposed, list) or not all(isinstance(name, str) for name in transposed):
        raise _broken(source, "has no list of names under 'transposed'")
    return About(found["kind"], samples, transposed=frozenset(transposed), norm=norm, **tables)


def _is(value: Any, kind: type) -> bool:
    return _is_count(value) if kind is int else isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _broken(source: Source, why: str) -> CheckpointError:
    hint = "was it edited? collect the statistics again"
    return CheckpointError(Problem("C261", f"{ABOUT} of {source.label!r} {why}", hint=hint))
