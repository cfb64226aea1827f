"""A recipe of every method over a base and three fine-tunes, and how near two computations of it are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import eutectic
from eutectic import methods
from eutectic.testing import tiny_llama, write_statistics

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


def models(place: Path, dtype: str = "bfloat16") -> Path:
    """The base and the fine-tunes; the embedding has more entries than one block."""
    sizes = {"hidden": 96, "layers": 1, "heads": 4, "kv_heads": 2, "intermediate": 160, "vocab": 11000}
    base = tiny_llama(place / "base", seed=1, dtype=dtype, **sizes)
    for i in range(3):
        tiny_llama(place / f"m{i}", base=base, seed=10 + i, dtype=dtype, noise=0.002 * (i + 1))
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


def assert_near(name: str, home: Path, one: Any, two: Any) -> None:
    """Two merges by this method, equal but for the order of sums; bit for bit where there are none."""
    base = eutectic.open(str(home / "base"))
    differ = {}
    for tensor in one:
        a, b = one[tensor], two[tensor]
        eps = torch.finfo(a.dtype).eps
        if name in DECOMPOSING:
            change = float((a.double() - base[tensor].double()).abs().max())
            torch.testing.assert_close(a.double(), b.double(), rtol=2 * eps, atol=1e-4 * change)
        elif name in SUMMING:
            torch.testing.assert_close(a, b, rtol=2 * eps, atol=1e-6 * float(a.abs().max()))
        elif not torch.equal(a, b):
            differ[tensor] = int((a != b).sum())
    # The same masks and kept sets, and no operation that is rounded in another way.
    assert not differ
