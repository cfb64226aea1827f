"""The output folder by itself: what is kept, what is trusted, what is removed."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest

from eutectic.checkpoint.layout import lay_out
from eutectic.checkpoint.output import MANIFEST, AlreadyCompleteError, Output
from eutectic.checkpoint.source import Spec
from eutectic.checkpoint.storage import Storage
from eutectic.errors import OutputError, RecipeError
from eutectic.kernels.digests import BLOCK, block_digest, digest_of, tensor_digest

SPECS = {"a": Spec("float32", (4,)), "b": Spec("float32", (BLOCK + 3,)), "none": Spec("float32", (0,))}
DATA = {
    "a": np.arange(4, dtype=np.float32),
    "b": np.arange(BLOCK + 3, dtype=np.float32),
    "none": np.zeros(0, np.float32),
}
MANIFEST_DATA = json.dumps({"fingerprint": "f"}).encode()


def output(path, *, fingerprint="f", stamps="s", **options):
    tensors = [(name, spec.numel, 4) for name, spec in SPECS.items()]
    shards = lay_out(SPECS, {}, 1 << 40)
    return Output(str(path), shards, tensors, fingerprint=fingerprint, stamps=stamps, **options)


def digest(name):
    return digest_of([block_digest(DATA[name][i : i + BLOCK]) for i in range(0, len(DATA[name]), BLOCK)])


def fill(sink, names=tuple(SPECS)):
    for job, name in enumerate(SPECS):
        if name in names:
            for first in range(0, len(DATA[name]), BLOCK):
                sink.write(job, first, DATA[name][first : first + BLOCK])
            sink.finish(job, {"digest": digest(name), "inputs": [], "nonfinite": []})


def finished(path):
    sink = output(path)
    sink.open()
    fill(sink)
    sink.complete({"sub/folder/notes.txt": b"", "config.json": b"{}"}, MANIFEST_DATA)
    return path


def test_the_folder_appears_whole(tmp_path):
    finished(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["out"]
    assert (tmp_path / "out" / "sub" / "folder" / "notes.txt").read_bytes() == b""
    raw = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert raw.endswith(DATA["a"].tobytes() + DATA["b"].tobytes())
    assert (tmp_path / "out" / MANIFEST).read_bytes() == MANIFEST_DATA


def test_what_was_journalled_is_trusted_only_if_its_bytes_are_there(tmp_path):
    sink = output(tmp_path / "out")
    sink.open()
    fill(sink, ["a", "b"])
    sink.flush()
    sink.abandon(remove=False)
    path = tmp_path / "out.partial" / "data" / "model.safetensors"
    again = output(tmp_path / "out")
    again.open()
    assert set(again.records) == {0, 1} and again.resumed == 2
    again.abandon(remove=False)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    again = output(tmp_path / "out")
    again.open()
    assert set(again.records) == {0}
    again.abandon(remove=False)


@pytest.mark.parametrize("change", [{"stamps": "other"}, {"fingerprint": "g", "replace": True}])
def test_other_inputs_or_a_replaced_plan_start_afresh(tmp_path, change):
    sink = output(tmp_path / "out")
    sink.open()
    fill(sink)
    sink.flush()
    sink.abandon(remove=False)
    again = output(tmp_path / "out", **change)
    again.open()
    assert again.records == {} and again.resumed == 0
    again.abandon(remove=True)
    assert os.listdir(tmp_path) == []


def test_stopping_while_finished_work_is_checked_loses_nothing(tmp_path):
    sink = output(tmp_path / "out")
    sink.open()
    fill(sink)
    sink.flush()
    sink.abandon(remove=False)
    stop = threading.Event()
    stop.set()
    again = output(tmp_path / "out")
    again.open(stop)
    assert len(again.records) == 3
    again.abandon(remove=False)
    last = output(tmp_path / "out")
    last.open()
    assert last.resumed == 3
    last.abandon(remove=True)


@pytest.mark.parametrize(
    ("options", "complete"),
    [({}, True), ({"stamps": "t"}, False), ({"replace": True}, False), ({"fingerprint": "g"}, False)],
    ids=str,
)
def test_only_the_very_same_merge_is_complete(tmp_path, options, complete):
    finished(tmp_path / "out")
    with pytest.raises(AlreadyCompleteError if complete else RecipeError):
        output(tmp_path / "out", **options).open()
    assert sorted(os.listdir(tmp_path)) == ["out"]


@pytest.mark.parametrize("manifest", [None, b"", b"[]", b'{"fingerprint": 1}', b"\xff"])
def test_a_folder_without_our_manifest_is_a_stranger(tmp_path, manifest):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    if manifest is not None:
        (tmp_path / "out" / MANIFEST).write_bytes(manifest)
    with pytest.raises(RecipeError, match="W401"):
        output(tmp_path / "out").open()


def test_only_one_may_hold_the_folder(tmp_path):
    first = output(tmp_path / "out")
    first.open()
    with pytest.raises(OutputError, match=r"W402 .*another run is writing"):
        output(tmp_path / "out").open()
    fill(first)
    first.complete({}, MANIFEST_DATA)
    with pytest.raises(AlreadyCompleteError):
        output(tmp_path / "out").open()


def test_a_lock_file_that_is_removed_under_us_is_made_again(tmp_path):
    class Raced(Storage):
        turns = 0

        def lock(self, path):
            fd = super().lock(path)
            self.turns += 1
            if self.turns < 4:
                # The other run finishes between our opening its lock file and our locking it.
                self.unlink(path)
                self.rmdir(os.path.dirname(path))
            return fd

    storage = Raced()
    sink = output(tmp_path / "out", storage=storage)
    sink.open()
    assert storage.turns == 4
    fill(sink)
    sink.complete({}, MANIFEST_DATA)


def test_somebody_who_waits_for_the_lock_does_not_fail_the_winner(tmp_path):
    class Visited(Storage):
        def rmdir(self, path):
            (tmp_path / "out.partial" / "lock").touch()
            super().rmdir(path)

    sink = output(tmp_path / "out", storage=Visited())
    sink.open()
    fill(sink)
    sink.complete({}, MANIFEST_DATA)
    assert (tmp_path / "out" / MANIFEST).exists()


def test_an_error_of_the_journal_reaches_the_writers(tmp_path):
    class Failing(Storage):
        broken = False

        def sync(self, fd):
            if self.broken:
                raise OSError(5, "Input/output error")

    storage = Failing()
    sink = output(tmp_path / "out", storage=storage)
    sink.open()
    storage.broken = True
    fill(sink, ["a"])
    with pytest.raises(OutputError, match=r"W405 .*Input/output error"):
        sink.flush()
    with pytest.raises(OutputError, match="W405"):
        sink.write(0, 0, DATA["a"])
    sink.abandon(remove=False)


def test_a_part_of_a_tensor_is_synced_and_not_journalled(tmp_path, monkeypatch):
    synced = threading.Event()

    class Watched(Storage):
        def sync(self, fd):
            super().sync(fd)
            if watching:
                synced.set()

    watching = False
    monkeypatch.setattr("eutectic.checkpoint.output.BATCH_BYTES", 1000)
    sink = output(tmp_path / "out", storage=Watched())
    sink.open()
    watching = True
    sink.write(1, 0, DATA["b"][:BLOCK])
    assert synced.wait(600)
    sink.flush()
    assert sink.records == {}
    sink.abandon(remove=False)
    again = output(tmp_path / "out")
    again.open()
    assert again.records == {}
    again.abandon(remove=True)


def test_letting_go_never_fails(tmp_path):
    class Stuck(Storage):
        def close(self, fd):
            super().close(fd)
            raise OSError(5, "Input/output error")

    sink = output(tmp_path / "out", storage=Stuck())
    with pytest.raises(OutputError):
        sink.open()
    sink.abandon(remove=True)
    sink.abandon(remove=False)


def test_the_stored_digest_is_that_of_the_blocks(tmp_path):
    storage = Storage()
    fd = storage.create(str(tmp_path / "f"))
    storage.write(fd, DATA["b"], 7)
    assert tensor_digest(len(DATA["b"]), 4, lambda at, _, view: storage.read_into(fd, view, 7 + 4 * at)) == digest("b")
    assert tensor_digest(0, 4, lambda at, _, view: storage.read_into(fd, view, 4 * at)) == digest_of([])
    storage.close(fd)
