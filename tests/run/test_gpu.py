"""The CUDA path against the CPU's: run by `make test-gpu` where there is a GPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import eutectic
from eutectic import methods
from eutectic.api import Options
from eutectic.errors import ResourceError
from eutectic.run import gpu
from eutectic.testing import tiny_llama, write_statistics
from faults import contents, in_child

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
            about["layers"] = {
                n.removesuffix(".weight"): {"kind": "linear", "weight": n, "bias": None} for n in values
            }
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
            torch.testing.assert_close(one, two, rtol=2 * torch.finfo(one.dtype).eps, atol=1e-9)
        elif not torch.equal(one, two):
            differ[tensor] = int((one != two).sum())
    # The same masks and kept sets, and no operation that is not rounded as on the CPU.
    assert not differ
