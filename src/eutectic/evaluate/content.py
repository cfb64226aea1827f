"""What a source is by its content: digests of weights and of the files beside them, for the cache of scores."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

from eutectic import dtypes
from eutectic.checkpoint import Source
from eutectic.checkpoint.companions import companions
from eutectic.kernels.digests import block_digest, digest_of, tensor_digest
from eutectic.run.merged import MergedSource
from eutectic.run.refusals import sources_in

# The digest of weights with a stamp (None: in memory), which the function makes where it is not remembered.
Memo = Callable[[Any, Callable[[], str]], str]


def digest_of_json(data: Any) -> str:
    """SHA-256 of plain JSON data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def digest_of_bytes(data: bytes) -> str:
    """XXH3-128 of bytes."""
    return digest_of([block_digest(data)])


def files_of(source: Source) -> dict[str, bytes]:
    """Config and tokenizer files, as they would lie beside the weights if the source were written.

    A merge's are those of its donor, with the dtype and the ties that the weights have, as `merge` writes them.
    """
    floats = {spec.dtype for spec in source.specs.values() if dtypes.is_float(spec.dtype)}
    dtype = floats.pop() if len(floats) == 1 else None
    found = companions(
        source.folder(), dtype, source.tokenizer_folder(), specs=source.specs, chat_template=source.chat_template
    )
    return {name: data for name, data in found.files.items() if os.path.basename(name) == name or _pooling(name)}


def _pooling(name: str) -> bool:
    return name.endswith("_Pooling/config.json")


def content_of(source: Source, memo: Memo) -> Any:
    """Plain data that is equal for equal weights and files beside them, whatever they are called and wherever they lie.

    Every byte of the weights counts: the header of a checkpoint and its size are the same for all fine-tunes of a
    model. `memo` spares the reading of files that have not changed. A merge is named by its plan and its inputs.
    """
    beside = {name: digest_of_bytes(data) for name, data in sorted(files_of(source).items())}
    if isinstance(source, MergedSource):
        inputs = [_weights(one, memo) for one in sources_in(source.plan)]
        return {"merge": source.plan.fingerprint, "inputs": inputs, "files": beside}
    return {"weights": _weights(source, memo), "files": beside}


def _weights(source: Source, memo: Memo) -> str:
    stamp = None if source.files() is None else source.stamp()
    return memo(stamp, lambda: _digest(source))


def _digest(source: Source) -> str:
    """Of every tensor: name, dtype, shape and bytes."""
    rows = []
    for name, spec in sorted(source.specs.items()):
        found = tensor_digest(
            spec.numel,
            dtypes.itemsize(spec.dtype),
            lambda start, stop, out, name=name: source.read_into(name, start, stop, out),  # type: ignore[misc]
        )
        rows.append([name, spec.dtype, list(spec.shape), found])
    return digest_of_json([rows, dict(source.ties)])
