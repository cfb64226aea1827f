"""The same merge gives the same bytes, however it is run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from fractions import Fraction

import numpy as np
import pytest
import torch

import eutectic
from eutectic.api import Options
from eutectic.run import engine
from eutectic.testing import write_safetensors
from faults import FaultStorage, contents

METHODS = ["linear", "task_arithmetic", "slerp", "ties", "dare_linear", "dare_ties"]
# More entries than one block, and tensors of every awkward size.
SHAPES = {"big": (1030, 1020), "row": (7,), "one": (1,), "scalar": (), "none": (0, 4), "square": (33, 31)}
SMALL = {"a": (50, 30), "b": (64,), "c": (9, 2, 3)}


def write_models(home, dtypes, shapes=SHAPES, count=3, seed=0):
    """Models m0, m1, …, the first the base; `dtypes` one for each (the last for the rest)."""
    generator = torch.Generator().manual_seed(seed)
    paths = []
    start = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    for i in range(count):
        dtype = getattr(torch, dtypes[min(i, len(dtypes) - 1)])
        moved = {
            name: (t + 0.02 * i * torch.randn(t.shape, generator=generator, dtype=torch.float64)).to(dtype)
            for name, t in start.items()
        }
        path = home / f"m{i}"
        path.mkdir()
        write_safetensors(path / "model.safetensors", moved)
        paths.append(str(path))
    return paths


def make(method, paths, **parameters):
    """A recipe of this method; the first model is the base where there is one."""
    if method == "slerp":
        models = [{"model": path} for path in paths[:2]]
        return {"merge_method": method, "base_model": paths[0], "models": models, "parameters": {"t": 0.3}}
    with_base = method != "linear"
    density = {"density": 0.4} if method in ("ties", "dare_linear", "dare_ties") else {}
    models = paths[1:] if with_base else paths
    return {
        "merge_method": method,
        "models": [{"model": path, "parameters": {"weight": 0.3 + 0.2 * i}} for i, path in enumerate(models)],
        "parameters": density | parameters,
        "seed": 7,
    } | ({"base_model": paths[0]} if with_base else {})


def merged_folder(recipe, out, storage=None, **options):
    eutectic.merge(recipe, out, options=Options(**{"threads": 1} | options), storage=storage or FaultStorage())
    return contents(out)


def weights(recipe, out, **options):
    return merged_folder(recipe, out, **options)["model.safetensors"]


def same_as_reference(recipe, home):
    """Equal bytes. The inner products of slerp are summed in another order there, which float64 can show."""
    fused = weights(recipe, home / "fused")
    reference = weights(recipe, home / "reference", reference=True, memory=4 << 30)
    if recipe["merge_method"] != "slerp":
        assert reference == fused
        return
    found, expected = eutectic.open(str(home / "fused")), eutectic.open(str(home / "reference"))
    for name in expected:
        eps = torch.finfo(expected[name].dtype).eps
        torch.testing.assert_close(found[name], expected[name], rtol=2 * eps, atol=0)


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    home = tmp_path_factory.mktemp("big")
    return home, write_models(home, ["bfloat16"])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    home = tmp_path_factory.mktemp("small")
    return home, write_models(home, ["bfloat16"], SMALL, count=4)


@pytest.mark.parametrize("method", METHODS)
def test_threads_memory_and_order_of_work(big, method, tmp_path, monkeypatch):
    _, paths = big
    recipe = make(method, paths)
    expected = merged_folder(recipe, tmp_path / "t1")
    for threads in (2, 4):
        assert merged_folder(recipe, tmp_path / f"t{threads}", threads=threads) == expected
    nothing_held = engine.Engine.__init__

    def without_holding(self, *args, **keywords):
        nothing_held(self, *args, **{**keywords, "hold_bytes": 0})

    def backwards(self, *args, **keywords):
        nothing_held(self, *args, **keywords)
        self._queue = deque(reversed(self._queue))

    for label, changed in (("unheld", without_holding), ("backwards", backwards)):
        monkeypatch.setattr(engine.Engine, "__init__", changed)
        assert merged_folder(recipe, tmp_path / label, threads=2) == expected
    monkeypatch.undo()
    lazy, written = eutectic.merged(recipe), eutectic.open(str(tmp_path / "t1"))
    assert lazy.specs == written.specs
    assert all(torch.equal(lazy[name], written[name]) for name in lazy)


def test_model_scope_is_as_steady(big, tmp_path):
    _, paths = big
    recipe = make("ties", paths, scope="model")
    expected = merged_folder(recipe, tmp_path / "t1")
    for threads in (2, 4):
        assert merged_folder(recipe, tmp_path / f"t{threads}", threads=threads) == expected
    source = eutectic.merged(recipe)
    written = eutectic.open(str(tmp_path / "t1"))
    assert all(torch.equal(source[name], written[name]) for name in source)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_the_fused_form_equals_the_reference(method, dtype, tmp_path):
    shapes = SHAPES if dtype == "bfloat16" else SMALL
    paths = write_models(tmp_path, [dtype], shapes)
    same_as_reference(make(method, paths), tmp_path)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("out", ["bfloat16", "float16", "float32", None])
def test_mixed_dtypes_equal_the_reference(method, out, tmp_path):
    paths = write_models(tmp_path, ["float32", "bfloat16", "float16"], SMALL)
    same_as_reference(make(method, paths) | ({"out_dtype": out} if out else {}), tmp_path)


@pytest.mark.parametrize(
    "parameters",
    [
        {"normalize": True},
        {"normalize": False},
        {"lambda": 0.7},
        {"rescale": True},
        {"density": 1.0},
        {"density": 0.01},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties"])
def test_parameters_equal_the_reference(small, method, parameters, tmp_path):
    same_as_reference(make(method, small[1], **parameters), tmp_path)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_the_order_of_models_does_not_matter(small, method, tmp_path):
    _, paths = small
    recipe = make(method, paths)
    expected = weights(recipe, tmp_path / "a")
    recipe["models"] = recipe["models"][::-1]
    assert weights(recipe, tmp_path / "b") == expected
    recipe["models"] = recipe["models"][1:] + recipe["models"][:1]
    assert weights(recipe, tmp_path / "c") == expected


def test_models_of_one_name_are_told_apart_by_their_place(tmp_path):
    models = []
    for i, folder in enumerate(("x", "y", "z")):
        (tmp_path / folder).mkdir()
        path = write_models(tmp_path / folder, ["float32"], SMALL, count=1, seed=i)[0]
        models.append({"model": path, "parameters": {"weight": 1.0 + i}})
    recipe = {"merge_method": "dare_linear", "base_model": models[0]["model"], "parameters": {"density": 0.5}}
    first = weights(recipe | {"models": models[1:]}, tmp_path / "a")
    assert weights(recipe | {"models": models[:0:-1]}, tmp_path / "b") == first


def test_files_of_any_size_hold_the_same_tensors(big, tmp_path):
    _, paths = big
    recipe = make("ties", paths)
    eutectic.merge(recipe, tmp_path / "one")
    eutectic.merge(recipe, tmp_path / "many", options=Options(shard_bytes=1000))
    one, many = eutectic.open(str(tmp_path / "one")), eutectic.open(str(tmp_path / "many"))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert list(one.specs) == list(many.specs)
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_a_nested_recipe_equals_two_steps_through_the_disk(small, tmp_path):
    _, paths = small
    inner = make("ties", paths[:3]) | {"out_dtype": "bfloat16", "name": "inner"}
    weights(inner, tmp_path / "inner")

    def outer(second):
        return {
            "merge_method": "linear",
            "models": [{"model": paths[3], "parameters": {"weight": 0.6}}, {"model": second}],
            "parameters": {"weight": 0.4},
        }

    stepwise = weights(outer(str(tmp_path / "inner")), tmp_path / "stepwise")
    assert weights(outer(inner), tmp_path / "nested") == stepwise


def test_hash_seeds_do_not_matter(small, tmp_path):
    _, paths = small
    recipe = make("dare_ties", paths)
    script = f"import eutectic, sys; eutectic.merge({recipe!r}, sys.argv[1])"
    found = []
    for seed in ("0", "1", "random"):
        out = tmp_path / f"out{seed}"
        subprocess.run(
            [sys.executable, "-c", script, str(out)],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=tmp_path,
            timeout=600,
        )
        found.append(contents(out))
    assert found[0] == found[1] == found[2]


def test_model_scope_keeps_the_largest_of_the_whole_model(tmp_path):
    """Against an oracle that sorts every entry of the model; ties go to the first in the order of the tensors."""
    shapes = {"w1": (40, 30), "w2": (64,), "w3": (9, 2, 3)}
    base, *tuned = write_models(tmp_path, ["bfloat16"], shapes, count=4)
    densities = [0.1, 0.5, 0.9]
    recipe = {
        "merge_method": "ties",
        "base_model": base,
        "out_dtype": "float32",
        "models": [{"model": p, "parameters": {"density": d}} for p, d in zip(tuned, densities, strict=True)],
        "parameters": {"scope": "model"},
    }
    written = {name: t.numpy() for name, t in eutectic.merged(recipe).items()}
    expected = oracle(base, tuned, densities, list(shapes))
    for name in shapes:
        np.testing.assert_allclose(written[name].ravel(), expected[name], rtol=1e-6, atol=1e-7)


def oracle(base, tuned, densities, names):
    def flat(path):
        source = eutectic.open(path)
        return np.concatenate([source[name].float().numpy().ravel() for name in names])

    start = flat(base)
    deltas = np.stack([flat(path) - start for path in tuned])
    for delta, density in zip(deltas, densities, strict=True):
        kept = np.argsort(-np.abs(delta), kind="stable")[: int(Fraction(str(density)) * delta.size)]
        mask = np.zeros(delta.size, bool)
        mask[kept] = True
        delta[~mask] = 0
    sign = np.where(deltas.astype(np.float64).sum(0) >= 0, 1.0, -1.0)
    agree = deltas * sign > 0
    merged = start + (deltas * agree).sum(0) / np.maximum(agree.sum(0), 1)
    sizes = np.cumsum([eutectic.open(base).specs[name].numel for name in names])[:-1]
    return dict(zip(names, np.split(merged, sizes), strict=True))
