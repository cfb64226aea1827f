"""The manifest: what was merged from what, and what became of every input tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from eutectic._version import __version__
from eutectic.kernels.digests import block_digest, digest_of
from eutectic.plan import NUMERICS, Plan

FORMAT = 1
# The key of the manifest's own digest.
SELF = "manifest"


def manifest_of(
    plan: Plan,
    records: Mapping[int, Mapping[str, Any]],
    *,
    weights: Mapping[str, Mapping[str, Any]],
    fingerprint: str,
    shard_bytes: int,
    files: Mapping[str, str],
    notes: list[str],
    out: str,
    gpu: str = "",
) -> bytes:
    """The manifest as JSON: the same bytes for the same merge, however often it was interrupted.

    Args:
        plan: what was done.
        records: digests and counts of each job, by its number.
        weights: size and digest of the header of each file of weights, by name.
        fingerprint: of the plan and the division into files.
        shard_bytes: the limit that the files were made by.
        files: digest of every other file, by name.
        notes: what the user was told.
        gpu: the name of the GPU that computed, if one did: what it sums may differ from a CPU's in the last digits.
        out: the output folder; relative paths of the recipe are written from it, so that `verify` finds the models.
    """
    body = {
        "format": FORMAT,
        "eutectic": __version__,
        "numerics": NUMERICS,
        "fingerprint": fingerprint,
        "shard_bytes": shard_bytes,
        "method": plan.method.name,
        "paper": plan.method.paper,
        "seed": plan.seed,
        "recipe": plan.recipe.to_dict(),
        "found_from": [
            os.path.relpath(folder, out)
            for folder in dict.fromkeys(map(os.path.realpath, (os.getcwd(), plan.recipe.folder or ".")))
        ],
        "inputs": [{"role": item.role, **item.identity()} for item in plan.inputs],
        "digests": "xxh3-128 over the xxh3-128 digests of consecutive blocks of 1048576 entries",
        "tensors": {job.name: _tensor(plan, number, records[number]) for number, job in enumerate(plan.jobs)},
        "tied": dict(plan.ties),
        "dropped": [{"model": model, "tensor": name, "reason": why} for model, name, why in plan.dropped],
        **({"gpu": gpu} if gpu else {}),
        "weights": weights,
        "files": dict(sorted(files.items())),
        "notes": notes,
    }
    return encoded(body)


def encoded(body: Mapping[str, Any]) -> bytes:
    """A manifest's bytes; it ends with the digest of all that stands before, so that any damage to it is found."""
    rest = {key: value for key, value in body.items() if key != SELF}
    digest = digest_of([block_digest(json.dumps(rest, sort_keys=True).encode())])
    # What no UTF-8 can hold, as in a path of other bytes, is escaped as JSON escapes it.
    return (json.dumps({**rest, SELF: digest}, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _tensor(plan: Plan, number: int, record: Mapping[str, Any]) -> dict[str, Any]:
    job = plan.jobs[number]
    inputs = []
    for (index, name), digest, bad in zip(job.reads, record["inputs"], record["nonfinite"], strict=True):
        one: dict[str, Any] = {"model": plan.inputs[index].label, "digest": digest}
        one |= {"tensor": name} if name != job.name else {}
        spec = plan.inputs[index].specs[name]
        one |= {"dtype": spec.dtype} if spec.dtype != job.spec.dtype else {}
        one |= {"shape": list(spec.shape)} if spec.shape != job.spec.shape else {}
        inputs.append(one | ({"nonfinite": bad} if bad else {}))
    fate: dict[str, Any] = {"fate": "merged" if job.action == "merge" else "copied"}
    fate |= {"reason": job.reason} if job.reason else {}
    fate |= {"dtype": job.spec.dtype, "shape": list(job.spec.shape), "digest": record["digest"], "inputs": inputs}
    fate |= {"parameters": dict(job.parameters)} if job.parameters else {}
    return fate | ({"post": {step.name: dict(step.parameters) for step in job.post}} if job.post else {})
