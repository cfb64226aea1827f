"""The seam to the file system: what each primitive does and refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import shutil
import stat
from pathlib import Path

import pytest

import eutectic
from eutectic.checkpoint.extents import unreadable
from eutectic.checkpoint.storage import Storage

STORAGE = Storage()


def test_only_regular_files_are_opened_and_none_blocks(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            STORAGE.open_read(str(path))
    with pytest.raises(FileNotFoundError):
        STORAGE.open_read(str(tmp_path / "missing"))


def test_bytes_come_back_from_where_they_went(tmp_path):
    fd = STORAGE.create(str(tmp_path / "f"))
    STORAGE.allocate(fd, 100)
    STORAGE.write(fd, b"abc", 50)
    STORAGE.write(fd, b"", 60)
    STORAGE.sync(fd)
    buffer = bytearray(5)
    STORAGE.read_into(fd, memoryview(buffer), 49)
    assert buffer == b"\0abc\0"
    assert STORAGE.stat(fd).st_size == 100
    with pytest.raises(OSError, match="ended early") as caught:
        STORAGE.read_into(fd, memoryview(buffer), 98)
    assert caught.value.errno == errno.EIO
    STORAGE.truncate(fd, 3)
    STORAGE.close(fd)
    assert (tmp_path / "f").read_bytes() == b"\0\0\0"


def test_allocation_keeps_what_is_there_and_sets_the_size(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 10)
    fd = STORAGE.create(str(tmp_path / "f"))
    for size in (20, 5, 0):
        STORAGE.allocate(fd, size)
        assert (tmp_path / "f").stat().st_size == size
        assert (tmp_path / "f").read_bytes().startswith(b"x" * min(size, 5))
    STORAGE.close(fd)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC, errno.EDQUOT])
def test_only_a_file_system_that_cannot_is_forgiven(tmp_path, monkeypatch, number):
    def refuse(fd, offset, size):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    fd = STORAGE.create(str(tmp_path / "f"))
    if number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(OSError, match=os.strerror(number)):
            STORAGE.allocate(fd, 10)
    else:
        STORAGE.allocate(fd, 10)
        assert STORAGE.stat(fd).st_size == 10
    STORAGE.close(fd)


def test_a_small_file_is_read_whole_or_refused(tmp_path):
    (tmp_path / "f").write_bytes(b"12345")
    assert STORAGE.read_bytes(str(tmp_path / "f"), 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, more than the 4 allowed here") as caught:
        STORAGE.read_bytes(str(tmp_path / "f"), 4)
    assert caught.value.filename == str(tmp_path / "f")


def test_a_small_file_is_written_whole_over_an_old_one(tmp_path):
    (tmp_path / "f.tmp").write_bytes(b"a longer leftover")
    for data in (b"one", b"", b"two"):
        STORAGE.write_file(str(tmp_path / "f"), data)
        assert (tmp_path / "f").read_bytes() == data
    assert os.listdir(tmp_path) == ["f"]


def test_exists_and_is_dir_tell_links_from_what_they_lead_to(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "to-folder").symlink_to(tmp_path / "folder")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    expected = {"folder": (True, True), "file": (True, False), "to-folder": (True, False), "broken": (True, False)}
    expected |= {"missing": (False, False), "file/below": (False, False)}
    found = {n: (STORAGE.exists(str(tmp_path / n)), STORAGE.is_dir(str(tmp_path / n))) for n in expected}
    assert found == expected


def test_what_cannot_be_known_is_an_error(tmp_path):
    for question in (STORAGE.exists, STORAGE.is_dir):
        with pytest.raises(OSError, match="File name too long"):
            question(str(tmp_path / ("x" * 300)))


def test_removing_a_tree_never_follows_links(tmp_path):
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "mine").write_text("mine")
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").touch()
    (tree / "link").symlink_to(tmp_path / "keep")
    (tree / "broken").symlink_to(tmp_path / "nowhere")
    STORAGE.remove_tree(str(tree))
    assert sorted(os.listdir(tmp_path)) == ["keep"]
    assert (tmp_path / "keep" / "mine").exists()
    (tmp_path / "link").symlink_to(tmp_path / "keep")
    STORAGE.remove_tree(str(tmp_path / "link"))
    assert (tmp_path / "keep" / "mine").exists()
    STORAGE.remove_tree(str(tmp_path / "missing"))


def test_a_lock_is_exclusive_and_goes_with_its_descriptor(tmp_path):
    first = STORAGE.lock(str(tmp_path / "lock"))
    with pytest.raises(BlockingIOError):
        STORAGE.lock(str(tmp_path / "lock"))
    STORAGE.close(first)
    STORAGE.close(STORAGE.lock(str(tmp_path / "lock")))


def test_modes_are_those_of_any_program(tmp_path):
    before = os.umask(0o027)
    try:
        STORAGE.close(STORAGE.create(str(tmp_path / "f")))
        STORAGE.mkdir(str(tmp_path / "d"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o750


def test_free_space_is_that_of_the_file_system(tmp_path):
    assert 0 < STORAGE.free_bytes(str(tmp_path)) <= shutil.disk_usage(tmp_path).total


def test_the_output_side_touches_the_file_system_only_through_the_seam():
    """Names of `os` calls that would go past a test's faults."""
    direct = re.compile(
        r"\bos\.(open|stat|lstat|listdir|scandir|mkdir|makedirs|rename|replace|unlink|remove|rmdir|link|truncate|utime)\b"
        r"|\bos\.path\.(exists|lexists|isdir|isfile|islink|getsize|getmtime)\b|\bopen\(|\bshutil\b|\btempfile\b"
    )
    folder = Path(eutectic.__file__).parent / "checkpoint"
    for name in ("output.py", "journal.py", "layout.py"):
        text = (folder / name).read_text()
        found = [m.group() for m in direct.finditer(text.replace("def open(", "").replace(".open(", ""))]
        assert not found, f"{name}: {found}"


@pytest.fixture
def few_files():
    """A process that may have hardly more files open than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = max(map(int, os.listdir("/dev/fd"))) + 3
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    yield few
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_files_are_opened_than_the_system_allows_unasked(tmp_path, few_files):
    opened = []
    for number in range(few_files):
        opened.append(STORAGE.create(str(tmp_path / str(number))))
        opened.append(STORAGE.open_read(str(tmp_path / str(number))))
    assert len(set(opened)) == 2 * few_files
    for fd in opened:
        STORAGE.close(fd)


def test_where_no_more_files_are_allowed_the_limit_is_named(tmp_path, few_files, monkeypatch):
    def refused(*_):
        raise ValueError("not allowed to raise maximum limit")

    with monkeypatch.context() as patched, contextlib.ExitStack() as opened:
        patched.setattr(resource, "setrlimit", refused)
        (tmp_path / "x").touch()
        with pytest.raises(OSError, match="Too many open files") as caught:
            for _ in range(few_files):
                opened.callback(os.close, STORAGE.open_read(str(tmp_path / "x")))
    assert "`ulimit -n`" in str(unreadable(caught.value, "x"))
