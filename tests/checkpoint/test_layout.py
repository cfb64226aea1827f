"""Where each tensor goes in the output's files."""

from __future__ import annotations

import json

import pytest

from eutectic.checkpoint.layout import INDEX, SINGLE, index_of, lay_out
from eutectic.checkpoint.safetensors import read_header
from eutectic.checkpoint.source import Spec
from eutectic.checkpoint.storage import Storage

SPECS = {
    "a": Spec("float32", (10,)),
    "b": Spec("bfloat16", (100,)),
    "scalar": Spec("float32", ()),
    "none": Spec("float16", (0, 3)),
    "c": Spec("int64", (2, 2)),
}


def test_one_file_holds_all_that_fits():
    (shard,) = lay_out(SPECS, {"format": "pt"}, 10_000)
    assert shard.name == SINGLE == "model.safetensors"
    assert list(shard.offsets) == list(SPECS)
    assert shard.nbytes == len(shard.header) + sum(spec.nbytes for spec in SPECS.values())
    assert index_of([shard], 276) is None


@pytest.mark.parametrize("limit", [1, 40, 44, 200, 240, 10_000])
def test_every_tensor_has_its_own_bytes_in_the_order_given(tmp_path, limit):
    shards = lay_out(SPECS, {}, limit)
    assert [name for shard in shards for name in shard.offsets] == list(SPECS)
    for shard in shards:
        sizes = [SPECS[name].nbytes for name in shard.offsets]
        assert sum(sizes) <= limit or sum(size > 0 for size in sizes[:-1]) == 0
        place = len(shard.header)
        for name, offset in shard.offsets.items():
            assert offset == place
            place += SPECS[name].nbytes
        assert place == shard.nbytes
        path = tmp_path / shard.name
        path.write_bytes(shard.header + bytes(shard.nbytes - len(shard.header)))
        with open(path, "rb") as file:
            header = read_header(Storage(), file.fileno(), str(path))
        assert {name: extent.offset for name, extent in header.entries.items()} == dict(shard.offsets)
        assert {name: extent.spec for name, extent in header.entries.items()} == {n: SPECS[n] for n in shard.offsets}
        assert shard.identity() == {"size": path.stat().st_size, "header": header.digest}


def test_shards_are_named_and_indexed_as_transformers_does():
    shards = lay_out(SPECS, {}, 200)
    assert [shard.name for shard in shards] == [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
    ]
    index = json.loads(index_of(shards, 276))
    assert INDEX == "model.safetensors.index.json"
    assert index["metadata"] == {"total_size": 276}
    assert index["weight_map"] == {name: shard.name for shard in shards for name in shard.offsets}
    assert list(index["weight_map"]) == sorted(SPECS)


def test_metadata_stands_in_every_file():
    for shard in lay_out(SPECS, {"format": "pt", "head": "a"}, 100):
        assert json.loads(shard.header[8:])["__metadata__"] == {"format": "pt", "head": "a"}
