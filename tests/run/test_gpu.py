"""The CUDA path against the CPU's: run by `make test-gpu` where there is a GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import eutectic
from eutectic import methods
from eutectic.api import Options
from eutectic.errors import InterruptedMergeError, ResourceError
from eutectic.run import gpu
from every_method import assert_near, models, recipe
from faults import contents

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def home(request: Any, tmp_path_factory: Any) -> Path:
    return models(tmp_path_factory.mktemp(request.param), request.param)


def both(asked: dict[str, Any], out: Path, **options: Any) -> tuple[Any, Any]:
    """The merge on the CPU and on the GPU."""
    for device in ("cpu", "cuda"):
        eutectic.merge(asked, out / device, options=Options(device=device, **options))
    return eutectic.open(str(out / "cpu")), eutectic.open(str(out / "cuda"))


@pytest.mark.parametrize("name", methods.names())
def test_a_gpu_merges_like_the_cpu(home: Path, tmp_path: Path, name: str) -> None:
    assert_near(name, home, *both(recipe(home, name), tmp_path))


@pytest.mark.parametrize("name", ["ties", "dare_ties", "iso_c"])
def test_the_same_bytes_for_any_threads_and_after_a_stop(home: Path, tmp_path: Path, name: str) -> None:
    asked = recipe(home, name)
    eutectic.merge(asked, tmp_path / "one", options=Options(device="cuda", threads=1))
    eutectic.merge(asked, tmp_path / "many", options=Options(device="cuda", threads=8))

    told: list[int] = []

    def stop(nbytes: int) -> None:
        told.append(nbytes)
        if len(told) == 8:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedMergeError):
        eutectic.merge(asked, tmp_path / "stopped", options=Options(device="cuda", threads=1), progress=stop)
    merge = eutectic.merge(asked, tmp_path / "stopped", options=Options(device="cuda"))
    assert merge.resumed
    made = [contents(tmp_path / out) for out in ("one", "many", "stopped")]
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("name", ["ties", "iso_cts", "linear", "fisher"])
def test_a_sweep_is_its_merges(home: Path, tmp_path: Path, name: str) -> None:
    parameter, values = {
        "ties": ("lambda", [0.5, 1.0]),
        "iso_cts": ("lambda", [0.5, 1.0]),
        "linear": ("normalize", [True, False]),
        "fisher": ("floor", [0.0, 0.5]),
    }[name]
    asked = recipe(home, name)
    swept = {**asked, "parameters": asked["parameters"] | {parameter: {"sweep": values}}}
    merges = eutectic.sweep(swept, tmp_path / "swept", options=Options(device="cuda")).merges.values()
    for value, merge in zip(values, merges, strict=True):
        single = {**asked, "parameters": asked["parameters"] | {parameter: value}}
        eutectic.merge(single, tmp_path / str(value), options=Options(device="cuda"))
        own, alone = eutectic.open(merge.path), eutectic.open(str(tmp_path / str(value)))
        assert all(torch.equal(own[tensor], alone[tensor]) for tensor in alone)


def test_steps_after_the_method(home: Path, tmp_path: Path) -> None:
    post = [{"svc": {"alpha": 1.0}}, {"lines": {"beta": 0.5}}, {"norm_guard": {"scope": "model"}}]
    cpu, cuda = both(recipe(home, "ties") | {"post": post}, tmp_path)
    for tensor in cpu:
        change = float(cpu[tensor].double().abs().max())
        torch.testing.assert_close(cpu[tensor], cuda[tensor], rtol=0.01, atol=1e-3 * change)


def test_what_the_cpu_does_is_said(home: Path, tmp_path: Path) -> None:
    asked = recipe(home, "ties")
    asked["parameters"] = {"density": 0.4, "scope": "model"}
    merge = eutectic.merge(asked, tmp_path / "model", options=Options(device="cuda"))
    assert any("`scope: model` is computed on the CPU" in note for note in merge.notes)
    nested = recipe(home, "linear")
    nested["models"][0] = {"model": recipe(home, "ties"), "parameters": {"weight": 1.0}}
    cpu, cuda = both(nested, tmp_path)
    assert all(torch.equal(cpu[tensor], cuda[tensor]) for tensor in cpu)


def test_too_little_memory_is_refused_before_anything_is_written(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "free_bytes", lambda device: 8 << 20)
    with pytest.raises(ResourceError, match=r"M604.*embed_tokens.* MiB of cuda:0, which has 8 MiB free"):
        eutectic.merge(recipe(home, "ties"), tmp_path / "out", options=Options(device="cuda"))
    assert not list(tmp_path.iterdir())


def test_page_locked_memory_is_counted_as_torch_takes_it() -> None:
    assert gpu.pinned(3 << 20).nbytes == 4 << 20 and gpu.pinned(4 << 20).nbytes == 4 << 20


def test_memory_that_somebody_else_takes_meanwhile(home: Path, tmp_path: Path) -> None:
    asked = recipe(home, "iso_c")
    torch.cuda.empty_cache()
    left = torch.cuda.memory_reserved() + (12 << 20)
    torch.cuda.set_per_process_memory_fraction(left / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(ResourceError, match=r"M604 .*cuda:0 has no room left"):
            eutectic.merge(asked, tmp_path / "out", options=Options(device="cuda", threads=1))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (tmp_path / "out.partial").exists()
    eutectic.merge(asked, tmp_path / "out", options=Options(device="cuda"))
    eutectic.merge(asked, tmp_path / "other", options=Options(device="cuda"))
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


@pytest.mark.parametrize("name", ["ties", "iso_c", "wudi"])
def test_verify_allows_for_the_last_digits(home: Path, tmp_path: Path, name: str) -> None:
    eutectic.merge(recipe(home, name), tmp_path / "out", options=Options(device="cuda"))
    found = eutectic.verify(tmp_path / "out")
    assert not found.problems and found.derived
    assert name != "ties" or not found.near


def test_the_memory_of_both_is_as_planned(home: Path, tmp_path: Path) -> None:
    """In a process of its own: nothing that other tests have loaded counts."""
    program = """
import json, sys, torch, eutectic
from eutectic.api import Options
planned = {}
eutectic.merge(json.loads(sys.argv[1]), sys.argv[2], options=Options(device="cuda", threads=4),
               on_plan=lambda plan, budget, notes: planned.update(main=budget.peak_bytes, gpu=budget.gpu_bytes))
peak = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps(planned | {"peak": peak, "allocated": torch.cuda.max_memory_allocated()}))
"""
    found = {}
    for name in ("linear", "dare_ties", "ties", "iso_c", "wudi", "regmean"):
        asked = json.dumps(recipe(home, name))
        done = subprocess.run([sys.executable, "-c", program, asked, str(tmp_path / name)], capture_output=True)
        assert not done.returncode, done.stderr.decode()
        found[name] = json.loads(done.stdout)
    over = [n for n, of in found.items() if of["allocated"] > of["gpu"] or of["peak"] > of["main"]]
    assert not over, found
