"""specs -> shards: every output byte has its place before the first input byte is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eutectic.checkpoint.safetensors import header_digest, write_header
from eutectic.checkpoint.source import Spec

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file: its name, its header's bytes, where each of its tensors starts, and its whole size."""

    name: str
    header: bytes
    offsets: Mapping[str, int]
    nbytes: int

    def identity(self) -> dict[str, Any]:
        """Its size and its header's digest, as `FileSource.identity` gives them: plain JSON data."""
        return {"size": self.nbytes, "header": header_digest(self.header[8:])}


def lay_out(specs: Mapping[str, Spec], metadata: Mapping[str, str], shard_bytes: int) -> list[Shard]:
    """Fills shards in the order of `specs`, each up to `shard_bytes` of tensors (a larger tensor has its own shard).

    Named as `transformers` expects: one `model.safetensors`, or `model-00001-of-0000N.safetensors` with an index.
    """
    parts: list[dict[str, Spec]] = [{}]
    size = 0
    for name, spec in specs.items():
        if parts[-1] and size + spec.nbytes > shard_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = spec
        size += spec.nbytes
    shards = []
    for number, part in enumerate(parts, 1):
        name = SINGLE if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        header, offsets = write_header(part, metadata)
        shards.append(Shard(name, header, offsets, len(header) + sum(spec.nbytes for spec in part.values())))
    return shards


def index_of(shards: list[Shard], total_bytes: int) -> bytes | None:
    """The index file of several shards; None for one."""
    if len(shards) == 1:
        return None
    where = {name: shard.name for shard in shards for name in shard.offsets}
    body = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(where.items()))}
    return (json.dumps(body, indent=2) + "\n").encode()
