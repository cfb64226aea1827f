"""Disk errors at every operation: a clear message, nothing half-written, and the same command then completes."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

import eutectic
from eutectic.api import Options
from eutectic.checkpoint import open_folder
from eutectic.errors import CheckpointError, EutecticError, OutputError
from faults import READING, WRITING, FaultStorage, an_old_output, contents, fail, family, left_in


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    home = tmp_path_factory.mktemp("job")
    recipe = family(home)
    merge(recipe, home / "expected")
    return recipe, home, contents(home / "expected")


def merge(recipe, out, storage=None, **options):
    options = {"threads": 1, "shard_bytes": 1500} | options
    return eutectic.merge(recipe, out, options=Options(**options), storage=storage or FaultStorage())


def steps(recipe, out, counted=READING + WRITING):
    storage = FaultStorage(counted=counted)
    merge(recipe, out, storage)
    shutil.rmtree(out)
    return storage.log


def fails_clearly(recipe, out, storage, reason):
    """True if the merge was refused by a fit message; False if the fault did no harm."""
    try:
        merge(recipe, out, storage)
    except EutecticError as error:
        assert isinstance(error, OutputError | CheckpointError)
        for problem in error.problems:
            assert problem.code in {"W404", "W405", "C220", "C221"}
            assert reason in problem.message
            assert str(out.parent) in str(problem)
            assert problem.hint
        return True
    return False


@pytest.mark.parametrize(("number", "counted"), [(errno.EIO, READING + WRITING), (errno.ENOSPC, WRITING)])
def test_an_error_at_any_operation(job, number, counted):
    recipe, home, expected = job
    out = home / f"out-{number}"
    names = steps(recipe, out, counted)
    before, harmless = left_in(home), []
    for at, name in enumerate(names):
        if not fails_clearly(recipe, out, FaultStorage(at, fail(number), counted=counted), os.strerror(number)):
            harmless.append(name)
        assert not out.exists() or contents(out) == expected, f"half an output after {name}, operation {at}"
        if at < names.index("mkdir") and name != "close":
            assert left_in(home) == before, f"{name}, operation {at}"
            continue
        merge(recipe, out)
        assert contents(out) == expected, f"{name}, operation {at}"
        assert f"{out.name}.partial" not in left_in(home), f"{name}, operation {at}"
        shutil.rmtree(out)
    # Only closing an input whose bytes have arrived may go wrong without harm.
    assert set(harmless) <= {"close"}


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EROFS, errno.ESTALE])
def test_a_lasting_error_from_any_written_operation_on(job, number):
    recipe, home, expected = job
    out = home / f"lasting-{number}"
    names = steps(recipe, out, WRITING)
    for at in range(0, len(names), 3):
        storage = FaultStorage(at, fail(number), counted=WRITING, lasting=True)
        assert fails_clearly(recipe, out, storage, os.strerror(number)) or names[at] == "close"
        merge(recipe, out)
        assert contents(out) == expected
        shutil.rmtree(out)


def test_errors_with_several_threads_end_the_merge(job):
    recipe, home, expected = job
    out = home / "threads"
    count = len(steps(recipe, out))
    for at in range(0, count, 7):
        for number in (errno.EIO, errno.ENOSPC):
            fails_clearly_with_threads(recipe, out, at, number)
        merge(recipe, out, threads=4)
        assert contents(out) == expected
        shutil.rmtree(out)


def fails_clearly_with_threads(recipe, out, at, number):
    try:
        merge(recipe, out, FaultStorage(at, fail(number)), threads=4)
    except EutecticError as error:
        assert os.strerror(number) in str(error)


def test_a_full_disk_at_preallocation_leaves_nothing(job):
    recipe, home, _ = job
    out = home / "full"
    for at in range(steps(recipe, out).count("allocate")):
        before = left_in(home)
        with pytest.raises(OutputError, match="W404") as caught:
            merge(recipe, out, FaultStorage(at, fail(errno.ENOSPC), counted=("allocate",)))
        assert caught.value.exit_code == 1
        assert str(out) in str(caught.value)
        assert left_in(home) == before


def test_too_little_free_space_is_known_before_anything_is_allocated(job):
    recipe, home, _ = job
    before = left_in(home)
    storage = FaultStorage()
    storage.free_bytes = lambda path: 1000
    with pytest.raises(OutputError, match=r"W404 .*: \d,\d+ bytes needed, 1,000 free"):
        merge(recipe, home / "small", storage)
    assert "allocate" not in storage.log
    assert left_in(home) == before


def test_a_full_disk_does_not_cost_what_was_finished(job):
    recipe, home, expected = job
    out = home / "later"
    names = steps(recipe, out, ("write",))
    with pytest.raises(OutputError, match="W404"):
        merge(recipe, out, FaultStorage(len(names) - 4, fail(errno.ENOSPC), counted=("write",), lasting=True))
    storage = FaultStorage()
    storage.free_bytes = lambda path: 0
    done = merge(recipe, out, storage)
    assert done.resumed > 0
    assert contents(out) == expected


def test_an_error_while_an_old_folder_is_replaced_leaves_it_in_place(job):
    recipe, home, expected = job
    out = home / "old"
    old = an_old_output(out)
    storage = FaultStorage()
    eutectic.merge(recipe, out, options=Options(threads=1, shard_bytes=1500, replace=True), storage=storage)
    names = storage.log
    renames = [i for i, name in enumerate(names) if name == "rename"][-2:]
    # After the last folder is removed only inputs are closed.
    for at in range(renames[0], len(names) - names[::-1].index("rmdir")):
        shutil.rmtree(out)
        an_old_output(out)
        with pytest.raises(OutputError, match="W405"):
            merge(recipe, out, FaultStorage(at, fail(errno.EIO)), replace=True)
        if at <= renames[1]:
            assert contents(out) == old, names[at]
        else:
            assert contents(out) == expected, names[at]
        merge(recipe, out, replace=True)
        assert contents(out) == expected
        assert "old.partial" not in left_in(home)


def test_a_lock_that_cannot_be_had_touches_nothing_of_a_running_merge(job):
    recipe, home, _ = job
    out, work = home / "busy", home / "busy.partial"
    (work / "data").mkdir(parents=True)
    (work / "data" / "model.safetensors").write_bytes(b"the other's work")
    (work / "lock").touch()
    for number in (errno.EIO, errno.ENOSPC, errno.EMFILE):
        with pytest.raises(OutputError):
            merge(recipe, out, FaultStorage(0, fail(number), counted=("lock",)))
        assert contents(work) == {"data/model.safetensors": b"the other's work", "lock": b""}


def test_short_reads_and_writes_change_nothing(job, monkeypatch):
    recipe, home, expected = job
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: read(fd, [buffers[0][:97]], offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[:61], offset))
    merge(recipe, home / "short")
    assert contents(home / "short") == expected


def test_a_file_system_without_preallocation_is_written_too(job, monkeypatch):
    recipe, home, expected = job

    def unsupported(fd, offset, size):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    merge(recipe, home / "plain")
    assert contents(home / "plain") == expected


def test_a_failing_read_while_the_output_is_verified_is_reported(job):
    _, home, expected = job
    names = len(expected)
    assert names
    for at in range(0, 30, 3):
        try:
            found = eutectic.verify(home / "expected", stored_only=True, storage=FaultStorage(at, fail(errno.EIO)))
        except CheckpointError as error:
            assert {problem.code for problem in error.problems} <= {"V701", "C221"}
        else:
            assert not found.problems or {problem.code for problem in found.problems} == {"V702"}


def test_the_seam_sees_every_source(job):
    _, home, _ = job
    with pytest.raises(CheckpointError, match="C221"):
        open_folder(str(home / "base"), "base", FaultStorage(0, fail(errno.EIO), counted=("read_into",)))
