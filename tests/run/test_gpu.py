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
from eutectic.testing import tiny_llama, write_statistics
from faults import contents

pytestmark = pytest.mark.gpu

# These add up whole tensors, decompose matrices or iterate; all others compute each entry by itself, or only count.
SUMMING = {"slerp", "nuslerp", "multislerp", "karcher", "model_stock", "sce", "arcee_fusion", "ram", "ramplus_tl"}
SUMMING |= {"consensus_ta", "pcb", "emr", "magmax"}
DECOMPOSING = {"tsv_m", "iso_c", "iso_cts", "star", "cart", "wudi", "swudi", "aswudi", "knots", "regmean"}
GIVEN: dict[str, dict[str, Any]] = {
    "slerp": {"t": 0.3},
    "nearswap": {"t": 0.001},
    "wise_ft": {"alpha": 0.3},
    "knots": {"density": 0.5},
    "ties": {"density": 0.4},
    "dare_linear": {"density": 0.4},
    "dare_ties": {"density": 0.4},
    "della": {"density": 0.5},
}


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def home(request: Any, tmp_path_factory: Any) -> Path:
    """A base and three fine-tunes; the embedding has more entries than one block."""
    place = tmp_path_factory.mktemp(request.param)
    sizes = {"hidden": 96, "layers": 1, "heads": 4, "kv_heads": 2, "intermediate": 160, "vocab": 11000}
    base = tiny_llama(place / "base", seed=1, dtype=request.param, **sizes)
    for i in range(3):
        tiny_llama(place / f"m{i}", base=base, seed=10 + i, dtype=request.param, noise=0.002 * (i + 1))
    return place


def recipe(home: Path, name: str) -> dict[str, Any]:
    """A recipe of this method with as many models as it takes."""
    method = methods.get(name)
    least, most = method.models
    count = max(least, 3 if most is None else min(3, most))
    models = [str(home / f"m{i}") for i in range(count)]
    asked: dict[str, Any] = {"merge_method": name, "models": models, "parameters": GIVEN.get(name, {}), "seed": 3}
    if method.base in ("required", "first"):
        asked["base_model"] = str(home / "base") if method.base == "required" else models[0]
    if "weight" in method.params and method.params["weight"].per_model:
        asked["models"] = [{"model": m, "parameters": {"weight": 0.3 + 0.2 * i}} for i, m in enumerate(models)]
    if method.statistics:
        asked["models"] = [{"model": m, "statistics": with_statistics(m, method.statistics)} for m in models]
    return asked


def with_statistics(model: str, kind: str) -> str:
    """Where statistics of a model stand; made if they are not there."""
    place = Path(f"{model}-{kind}")
    if not place.exists():
        generator = torch.Generator().manual_seed(len(model))
        source = eutectic.open(model)
        values = {}
        for name in source:
            tensor = source[name]
            if kind == "fisher":
                values[name] = torch.rand(tensor.shape, generator=generator)
            elif tensor.dim() == 2 and "proj" in name:
                inputs = torch.randn(300, tensor.shape[1], generator=generator)
                values[name] = inputs.T @ inputs / 300
        about: dict[str, Any] = {} if kind == "fisher" else {"counts": dict.fromkeys(values, 300)}
        if kind == "gram":
            about["layers"] = {n.removesuffix(".weight"): {"kind": "linear", "weight": n, "bias": None} for n in values}
        write_statistics(place, kind, values, of={n: source[n] for n in source}, **about)
    return str(place)


def both(asked: dict[str, Any], out: Path, **options: Any) -> tuple[Any, Any]:
    """The merge on the CPU and on the GPU."""
    for device in ("cpu", "cuda"):
        eutectic.merge(asked, out / device, options=Options(device=device, **options))
    return eutectic.open(str(out / "cpu")), eutectic.open(str(out / "cuda"))


@pytest.mark.parametrize("name", methods.names())
def test_a_gpu_merges_like_the_cpu(home: Path, tmp_path: Path, name: str) -> None:
    cpu, cuda = both(recipe(home, name), tmp_path)
    base = eutectic.open(str(home / "base"))
    differ = {}
    for tensor in cpu:
        one, two = cpu[tensor], cuda[tensor]
        if name in DECOMPOSING:
            change = float((one.double() - base[tensor].double()).abs().max())
            eps = float(torch.finfo(one.dtype).eps)
            torch.testing.assert_close(one.double(), two.double(), rtol=2 * eps, atol=1e-4 * change)
        elif name in SUMMING:
            torch.testing.assert_close(
                one, two, rtol=2 * torch.finfo(one.dtype).eps, atol=1e-6 * float(one.abs().max())
            )
        elif not torch.equal(one, two):
            differ[tensor] = int((one != two).sum())
    # The same masks and kept sets, and no operation that is not rounded as on the CPU.
    assert not differ


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
    with pytest.raises(ResourceError, match=r"M604.*embed_tokens.* MiB of cuda, which has 8 MiB free"):
        eutectic.merge(recipe(home, "ties"), tmp_path / "out", options=Options(device="cuda"))
    assert not list(tmp_path.iterdir())


def test_memory_that_somebody_else_takes_meanwhile(home: Path, tmp_path: Path) -> None:
    asked = recipe(home, "iso_c")
    taken = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((32 << 20) / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(ResourceError, match=r"M604 .*cuda has no room left"):
            eutectic.merge(asked, tmp_path / "out", options=Options(device="cuda", threads=1))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert taken >= 0 and (tmp_path / "out.partial").exists()
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
