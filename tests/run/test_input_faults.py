"""Inputs that fail or change during the merge: a named error, never a wrong output and never a signal."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

import eutectic
from eutectic.api import Options
from eutectic.errors import CheckpointError, EutecticError
from faults import FaultStorage, contents, fail, family


@pytest.fixture
def job(tmp_path):
    recipe = family(tmp_path)
    merge(recipe, tmp_path / "expected")
    return recipe, tmp_path, contents(tmp_path / "expected")


def merge(recipe, out, storage=None):
    return eutectic.merge(recipe, out, options=Options(threads=1, shard_bytes=1500), storage=storage or FaultStorage())


def weights_of(recipe, model=0):
    return sorted(Path(recipe["models"][model]["model"]).glob("*.safetensors"))[-1]


def reads(recipe, out):
    """How many reads come before the weights, and how many in all."""
    storage = FaultStorage(counted=("read_into", "lock"))
    merge(recipe, out, storage)
    shutil.rmtree(out)
    # After the lock the journal is read, which is empty.
    return storage.log.index("lock") + 1, len(storage.log) - 1


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def rewrite(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with open(path, "r+b") as file:
        file.write(data)


def replace(path):
    other = path.with_suffix(".new")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    other.rename(path)


def unlink(path):
    path.unlink()


def grow(path):
    with open(path, "ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize("change", [truncate, rewrite, replace, unlink, grow])
def test_a_model_that_changes_at_any_read(job, change):
    recipe, home, expected = job
    path = weights_of(recipe)
    whole, mode = path.read_bytes(), ("read_into",)
    headers, total = reads(recipe, home / "out")
    for at in range(headers, total, 4):
        done = []

        def act(name, args, real, done=done):
            done.append(change(path))
            return real(*args)

        with pytest.raises(CheckpointError) as caught:
            merge(recipe, home / "out", FaultStorage(at, act, counted=mode))
        assert done
        assert {problem.code for problem in caught.value.problems} <= {"C220", "C221"}
        assert str(path) in str(caught.value)
        assert not (home / "out").exists()
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
    # The work of the last try is of another file, as far as one can know.
    assert merge(recipe, home / "out").resumed == 0
    assert contents(home / "out") == expected


@pytest.mark.parametrize("change", [truncate, unlink, grow])
def test_a_model_that_changes_while_headers_are_read(job, change):
    recipe, home, expected = job
    path = weights_of(recipe)
    whole, mode = path.read_bytes(), ("read_into",)
    headers, _ = reads(recipe, home / "out")
    for at in range(0, headers, 2):

        def act(name, args, real):
            change(path)
            return real(*args)

        with pytest.raises(CheckpointError) as caught:
            merge(recipe, home / "out", FaultStorage(at, act, counted=mode))
        assert str(path) in str(caught.value)
        assert not (home / "out").exists()
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
    merge(recipe, home / "out")
    assert contents(home / "out") == expected


def test_reads_that_fail_name_file_and_tensor(job):
    recipe, home, _ = job
    mode = ("read_into",)
    headers, total = reads(recipe, home / "out")
    for at in range(headers, total, 3):
        with pytest.raises(CheckpointError, match="C221") as caught:
            merge(recipe, home / "out", FaultStorage(at, fail(errno.EIO), counted=mode))
        problem = caught.value.problems[0]
        assert os.strerror(errno.EIO) in problem.message
        assert problem.where
        assert problem.file.endswith(".safetensors")
        shutil.rmtree(home / "out.partial")


def test_work_on_a_model_that_has_changed_since_is_not_resumed(job):
    recipe, home, expected = job
    written = FaultStorage(counted=("write",))
    merge(recipe, home / "out", written)
    shutil.rmtree(home / "out")
    with pytest.raises(EutecticError):
        merge(recipe, home / "out", FaultStorage(len(written.log) - 4, fail(errno.EIO), counted=("write",)))
    rewrite(weights_of(recipe))
    done = merge(recipe, home / "out")
    assert done.resumed == 0
    assert contents(home / "out") != expected


def test_an_output_older_than_its_models_is_not_taken_for_complete(job):
    recipe, home, _ = job
    assert merge(recipe, home / "expected").already_complete
    rewrite(weights_of(recipe))
    later = (home / "expected" / "eutectic.json").stat().st_mtime_ns + 10**9
    os.utime(weights_of(recipe), ns=(later, later))
    with pytest.raises(EutecticError, match=r"W401 .* may have changed since"):
        merge(recipe, home / "expected")


def test_live_tensors_never_make_an_output_complete(tmp_path):
    import torch

    def recipe(value):
        return {"merge_method": "linear", "models": [{"model": {"x": torch.full((4,), value)}} for _ in range(2)]}

    eutectic.merge(recipe(1.0), tmp_path / "out")
    with pytest.raises(EutecticError, match="W401"):
        eutectic.merge(recipe(2.0), tmp_path / "out")
    eutectic.merge(recipe(2.0), tmp_path / "out", options=Options(replace=True))
    assert eutectic.open(str(tmp_path / "out"))["x"].tolist() == [2.0] * 4


def test_a_failing_input_ends_every_worker(job):
    recipe, home, _ = job
    before = threading.active_count()
    headers, total = reads(recipe, home / "out")
    for at in range(headers, total, 6):
        with pytest.raises(CheckpointError):
            eutectic.merge(
                recipe,
                home / "out",
                options=Options(threads=4),
                storage=FaultStorage(at, fail(errno.EIO), counted=("read_into",), lasting=True),
            )
        shutil.rmtree(home / "out.partial", ignore_errors=True)
    assert threading.active_count() == before


def test_companions_that_cannot_be_read_are_named(job):
    recipe, home, _ = job
    headers, _ = reads(recipe, home / "out")
    storage = FaultStorage(headers - 2, fail(errno.EIO), counted=("read_into",))
    with pytest.raises(CheckpointError, match=r"C221 .*/base/tokenizer_config.json: .*Input/output error"):
        merge(recipe, home / "out", storage)
