"""Reading tensors from files: exact, one read a range, safe from threads, and aware of files that change."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from eutectic.checkpoint import Extent, FileSource, Spec, Storage, open_folder
from eutectic.errors import CheckpointError


def tensors(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.ones(2, 3) for name in names}


class Counting(Storage):
    """Counts calls, and fails reads when told to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail: OSError | None = None

    def open_read(self, path: str) -> int:
        self.calls.append("open")
        return super().open_read(path)

    def stat(self, fd: int) -> os.stat_result:
        self.calls.append("stat")
        return super().stat(fd)

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> None:
        self.calls.append("read")
        if self.fail:
            raise self.fail
        super().read_into(fd, buffer, offset)

    def close(self, fd: int) -> None:
        self.calls.append("close")
        super().close(fd)


def read(source: FileSource, name: str, start: int, stop: int, size: int) -> bytes:
    out = bytearray((stop - start) * size)
    source.read_into(name, start, stop, memoryview(out))
    return bytes(out)


def test_a_range_is_one_read(tmp_path: Path) -> None:
    values = torch.arange(100, dtype=torch.int32)
    save_file({"a": values}, tmp_path / "model.safetensors")
    storage = Counting()
    source = open_folder(str(tmp_path), "m", storage)
    read(source, "a", 0, 1, 4)
    storage.calls.clear()
    assert read(source, "a", 17, 41, 4) == values[17:41].numpy().tobytes()
    assert read(source, "a", 100, 100, 4) == b""
    assert storage.calls == ["read", "read"]
    source.close()
    assert storage.calls[-1] == "close"
    with pytest.raises(CheckpointError, match=r"C222 .*was closed before this read"):
        read(source, "a", 0, 1, 4)
    source.close()


def test_a_forgotten_source_closes_its_files(tmp_path: Path) -> None:
    save_file(tensors("a"), tmp_path / "model.safetensors")
    storage = Counting()
    source = open_folder(str(tmp_path), "m", storage)
    _ = source["a"]
    del source
    assert storage.calls.count("open") == storage.calls.count("close")


def test_many_threads_open_a_file_once(tmp_path: Path) -> None:
    names = [f"t{i}" for i in range(64)]
    save_file({name: torch.full((1000,), i) for i, name in enumerate(names)}, tmp_path / "model.safetensors")

    class Slow(Counting):
        def open_read(self, path: str) -> int:
            time.sleep(0.02)
            return super().open_read(path)

    storage = Slow()
    source = open_folder(str(tmp_path), "m", storage)
    storage.calls.clear()
    barrier = threading.Barrier(8)

    def sums(part: int) -> list[int]:
        barrier.wait()
        return [int(source[name].sum()) // 1000 for name in names[part::8]]

    with ThreadPoolExecutor(8) as pool:
        assert sorted(n for part in pool.map(sums, range(8)) for n in part) == list(range(64))
    assert storage.calls.count("open") == 1


STRIDED: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "transposed": ((4, 3), (1, 4), 0),
    "every other": ((5,), (2,), 1),
    "expanded": ((3, 4), (0, 1), 2),
    "block": ((2, 2, 2), (6, 1, 3), 0),
    "scalar": ((), (), 5),
    "empty": ((0, 3), (1, 4), 0),
}


@pytest.mark.parametrize("case", STRIDED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "float64"])
def test_strided_tensors_are_gathered(tmp_path: Path, case: str, dtype: str) -> None:
    shape, strides, offset = STRIDED[case]
    kind = getattr(torch, dtype)
    flat = (torch.arange(16) % 2 if dtype == "bool" else torch.arange(16)).to(kind)
    path = tmp_path / "raw"
    path.write_bytes(b"head" + bytes(flat.view(torch.uint8).tolist()))
    start = 4 + offset * flat.element_size()
    source = FileSource("m", {"x": Extent(str(path), start, Spec(dtype, shape), strides)})
    expected = torch.as_strided(flat, shape, strides, offset)
    assert torch.equal(source["x"], expected)
    assert read(source, "x", 0, 0, flat.element_size()) == b""
    count, size = expected.numel(), flat.element_size()
    whole = bytes(expected.contiguous().reshape(-1).view(torch.uint8).tolist())
    for at in range(count):
        assert read(source, "x", at, count, size) == whole[at * size :]


def test_read_errors_name_model_file_and_tensor(tmp_path: Path) -> None:
    save_file(tensors("a.w"), tmp_path / "model.safetensors")
    storage = Counting()
    source = open_folder(str(tmp_path), "m", storage)
    storage.fail = OSError(116, "Stale file handle")
    with pytest.raises(CheckpointError) as caught:
        _ = source["a.w"]
    (problem,) = caught.value.problems
    assert (problem.code, problem.where, problem.file) == ("C221", "a.w", str(tmp_path / "model.safetensors"))
    assert problem.message == "this file of model 'm' cannot be read: Stale file handle"


def test_a_small_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    save_file(tensors("a"), tmp_path / "model.safetensors")
    (tmp_path / "statistics.json").mkdir()
    source = open_folder(str(tmp_path), "m")
    assert source.beside("alignment.json") is None
    with pytest.raises(CheckpointError, match=r"C221 .*statistics.json: this file of model 'm' cannot be read"):
        source.beside("statistics.json")


def rewrite(path: Path) -> None:
    data = path.read_bytes()
    os.utime(path, ns=(1, 1))
    with path.open("r+b") as opened:
        opened.write(data)


def replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(path.read_bytes())
    found = path.stat()
    os.utime(path.with_suffix(".new"), ns=(found.st_atime_ns, found.st_mtime_ns))
    path.with_suffix(".new").rename(path)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


@pytest.mark.parametrize("change", [rewrite, replace, truncate, Path.unlink])
@pytest.mark.parametrize("opened", [True, False])
def test_changes_are_noticed(tmp_path: Path, change: Any, opened: bool) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors("a"), path)
    source = open_folder(str(tmp_path), "m")
    if opened:
        _ = source["a"]
    source.check_unchanged()
    change(path)
    with pytest.raises(CheckpointError, match=r"C220 .*changed while it was being read"):
        source.check_unchanged()
    if not opened or change is truncate:
        for _ in range(2):
            with pytest.raises(CheckpointError, match=r"C220|No such file"):
                _ = source["a"]
