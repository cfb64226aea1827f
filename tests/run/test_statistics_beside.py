"""Merges with statistics, from recipe to disk: small networks of every kind of layer, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import eutectic
from eutectic.api import Options
from eutectic.errors import EutecticError, NumericError
from eutectic.testing import write_safetensors, write_statistics
from faults import FaultStorage, contents

MODELS = ("one", "two")


class Net(nn.Module):
    """A layer of every kind; `turned` is a weight that is stored as inputs × outputs."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.plain = nn.Linear(6, 5, bias=False)
        self.shares = nn.Linear(6, 4, bias=False)
        self.biased = nn.Linear(6, 5)
        self.conv = nn.Conv2d(4, 6, (2, 3), groups=2)
        self.turned = nn.Linear(6, 5)
        self.unseen = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.score = nn.Linear(6, 3)
        self.register_buffer("steps", torch.tensor(7))


def moments(inputs):
    return (inputs.mT @ inputs / inputs.shape[-2]).float()


def made(home, seed):
    """A model in bfloat16 and its statistics, in folders; returns the tensors of all."""
    torch.manual_seed(seed)
    weights = {n: t.bfloat16() if t.is_floating_point() else t for n, t in Net().state_dict().items()}
    weights["turned.weight"] = weights["turned.weight"].T.contiguous()
    label, g = MODELS[seed], torch.Generator().manual_seed(seed)
    (home / label).mkdir()
    write_safetensors(home / label / "model.safetensors", weights)

    def one(count):
        x = torch.randn(30, count, generator=g).double()
        return moments(x)

    def with_one(*shape):
        x = torch.randn(*shape, generator=g).double()
        return moments(torch.cat([x, torch.ones_like(x[..., :1])], -1))

    grams = {
        "plain.weight": one(6),
        "biased.weight": with_one(30, 6),
        "turned.weight": with_one(30, 6),
        "unseen.weight": torch.zeros(7, 7) if seed else with_one(30, 6),
        "score.weight": with_one(30, 6),
        "conv.weight": with_one(2, 30, 12),
    }
    about = {
        "shared": {"shares.weight": "plain.weight"},
        "bias": {n: n.replace("weight", "bias") for n in grams if n != "plain.weight"},
        "transposed": ["turned.weight"],
        "groups": {"conv.weight": 2},
        "counts": dict.fromkeys(grams, 30) | {"unseen.weight": 0 if seed else 30},
    }
    write_statistics(home / f"{label}-gram", "gram", grams, of=weights, **about)
    fishers = {n: torch.rand(t.shape, generator=g) ** 8 for n, t in weights.items() if t.is_floating_point()}
    norm = float(sum((f.double() ** 2).sum() for f in fishers.values()) ** 0.5)
    write_statistics(home / f"{label}-fisher", "fisher", fishers, of=weights, norm=norm)
    wide = {n: t.double().numpy() for n, t in weights.items()}
    return {"weights": wide, "gram": grams, "fisher": {n: f.double().numpy() for n, f in fishers.items()}}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    return home, [made(home, seed) for seed in range(2)]


@pytest.fixture
def home(models, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(models[0], tmp_path / "models")
    return tmp_path / "models"


def recipe(home, method, **keys):
    kind = {"regmean": "gram"}.get(method, method)
    entries = [{"model": str(home / m), "statistics": str(home / f"{m}-{kind}")} for m in MODELS]
    return {"merge_method": method, "models": entries, "out_dtype": "float32", **keys}


def merged(home, method, **keys):
    return {n: t.double().numpy() for n, t in eutectic.merged(recipe(home, method, **keys)).items()}


def near(found, wanted, tolerance=1e-6):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def solved(layers, grams, alpha=0.9, ridge=1e-6):
    """The closed form on matrices of outputs × inputs."""
    moment, total = 0.0, 0.0
    for layer, gram in zip(layers, np.asarray(grams, np.float64), strict=True):
        diagonal = np.diag(np.diag(gram))
        shrunk = alpha * gram + (1 - alpha) * diagonal + ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
        moment, total = moment + layer @ shrunk, total + shrunk
    return moment @ np.linalg.inv(total)


def test_fisher_from_recipe_to_disk(models, tmp_path):
    home, made = models
    eutectic.merge(recipe(home, "fisher", parameters={"norm": "global"}), tmp_path / "out")
    norms = [np.sqrt(sum((f**2).sum() for f in m["fisher"].values())) for m in made]
    out = eutectic.open(tmp_path / "out")
    for name in made[0]["fisher"]:
        parts = [(m["fisher"][name] / norm, m["weights"][name]) for m, norm in zip(made, norms, strict=True)]
        total = sum(f for f, _ in parts)
        weighed, mean = sum(f * t for f, t in parts) / total, sum(t for _, t in parts) / 2
        wanted = np.where(total > 1e-6 * sum(f.mean() for f, _ in parts), weighed, mean)
        near(out[name].double().numpy(), wanted)
    assert out["steps"] == 7
    assert not eutectic.verify(tmp_path / "out").problems


def test_regmean_solves_every_kind_of_layer_and_averages_the_rest(models):
    home, made = models
    found = merged(home, "regmean")
    weights, grams = [m["weights"] for m in made], [m["gram"] for m in made]

    def joined(name, turn=False):
        return [np.c_[w[f"{name}.weight"].T if turn else w[f"{name}.weight"], w[f"{name}.bias"]] for w in weights]

    for name in ("plain", "shares"):
        near(
            found[f"{name}.weight"], solved([w[f"{name}.weight"] for w in weights], [g["plain.weight"] for g in grams])
        )
    for name, turn in (("biased", False), ("turned", True), ("score", False)):
        wanted = solved(joined(name, turn), [g[f"{name}.weight"] for g in grams])
        near(found[f"{name}.weight"], wanted[:, :-1].T if turn else wanted[:, :-1])
        near(found[f"{name}.bias"], wanted[:, -1])
    flat = [np.c_[w["conv.weight"].reshape(6, -1), w["conv.bias"]] for w in weights]
    for group in range(2):
        rows = slice(3 * group, 3 * group + 3)
        wanted = solved([one[rows] for one in flat], [g["conv.weight"][group] for g in grams])
        near(found["conv.weight"].reshape(6, -1)[rows], wanted[:, :-1])
        near(found["conv.bias"][rows], wanted[:, -1])
    # Only the first model has seen an input of it.
    near(found["unseen.weight"], weights[0]["unseen.weight"], 1e-5)
    near(found["unseen.bias"], weights[0]["unseen.bias"], 1e-5)
    for name in ("embed.weight", "norm.weight", "norm.bias"):
        near(found[name], sum(w[name] for w in weights) / 2)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_bytes_depend_on_neither_threads_nor_the_order_of_the_models(models, tmp_path, method):
    home, _ = models
    asked = recipe(home, method, parameters={"weight": 1.0})
    eutectic.merge(asked, tmp_path / "one", options=Options(threads=1))
    turned = {**asked, "models": asked["models"][::-1]}
    eutectic.merge(turned, tmp_path / "other", options=Options(threads=2))
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("one", "other")]
    assert weights[0] == weights[1]
    if method == "regmean":
        eutectic.merge(asked, tmp_path / "plain", options=Options(reference=True))
        assert (tmp_path / "plain" / "model.safetensors").read_bytes() == weights[0]


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_an_interrupted_merge_goes_on(models, tmp_path, method):
    home, _ = models
    asked = recipe(home, method)
    eutectic.merge(asked, tmp_path / "whole", options=Options(threads=1), storage=FaultStorage())
    whole = contents(tmp_path / "whole")
    counting = FaultStorage(counted=("read_into",))
    eutectic.merge(asked, tmp_path / "counted", options=Options(threads=1), storage=counting)

    def stop(*_):
        raise OSError(5, "Input/output error")

    for at in range(len(counting.log) // 2, len(counting.log), len(counting.log) // 8):
        out = tmp_path / f"out{at}"
        broken = FaultStorage(at, stop, counted=("read_into",))
        with pytest.raises(EutecticError):
            eutectic.merge(asked, out, options=Options(threads=1), storage=broken)
        eutectic.merge(asked, out, options=Options(threads=1), storage=FaultStorage())
        found = contents(out)
        assert found["model.safetensors"] == whole["model.safetensors"]


def test_the_manifest_says_what_became_of_every_tensor(models, tmp_path):
    home, _ = models
    eutectic.merge(recipe(home, "regmean", leave_out="score"), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "eutectic.json").read_text())
    reasons = {name: entry.get("reason") for name, entry in manifest["tensors"].items()}
    assert reasons == {
        "embed.weight": "averaged: no Gram matrix",
        "plain.weight": "solved",
        "shares.weight": "solved",
        "biased.weight": "solved with biased.bias",
        "biased.bias": "solved with biased.weight",
        "conv.weight": "solved with conv.bias",
        "conv.bias": "solved with conv.weight",
        "turned.weight": "solved with turned.bias",
        "turned.bias": "solved with turned.weight",
        "unseen.weight": "solved with unseen.bias; two saw no input of it",
        "unseen.bias": "solved with unseen.weight; two saw no input of it",
        "norm.weight": "averaged: no Gram matrix",
        "norm.bias": "averaged: no Gram matrix",
        "score.weight": "left out by the rule 'score'; taken from one",
        "score.bias": "left out by the rule 'score'; taken from one",
        "steps": "int64 buffer",
    }
    assert [item["label"] for item in manifest["inputs"]] == ["one", "two", "one-gram", "two-gram"]
    read = [one.get("tensor", "shares.weight") for one in manifest["tensors"]["shares.weight"]["inputs"]]
    assert read == ["shares.weight", "shares.weight", "plain.weight", "plain.weight"]
    assert "averaged: no Gram matrix (embed.weight, norm.weight, norm.bias)" in manifest["notes"]
    assert not eutectic.verify(tmp_path / "out").problems


def test_tensors_that_the_recipe_does_not_solve(models):
    home, made = models
    values = [{"filter": "biased", "value": False}, {"filter": "conv.bias", "value": False}, {"value": True}]
    with eutectic.plan(recipe(home, "regmean", parameters={"solve": values})) as planned:
        reasons = {job.name: job.reason for job in planned.jobs if not job.beside and job.action == "merge"}
    assert reasons["biased.weight"] == reasons["conv.bias"] == "averaged: `solve: false`"
    assert reasons["conv.weight"] == "averaged, as conv.bias is not solved"
    found = merged(home, "regmean", parameters={"solve": values})
    near(found["biased.weight"], sum(m["weights"]["biased.weight"] for m in made) / 2)


def test_verify_finds_statistics_that_changed(home, tmp_path):
    eutectic.merge(recipe(home, "fisher"), tmp_path / "out")
    path = home / "two-fisher" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40  # what was small is now large
    path.write_bytes(data)
    found = eutectic.verify(tmp_path / "out").problems
    assert found[0].message.endswith("two-fisher changed since the merge")


def test_statistics_of_another_model_are_refused_at_the_first_tensor(home, tmp_path):
    for kind in ("fisher", "gram"):
        a, b = (home / f"{label}-{kind}" for label in MODELS)
        a.rename(home / "spare")
        b.rename(a)
        (home / "spare").rename(b)
    for method, label in (("fisher", "fisher"), ("regmean", "gram")):
        with pytest.raises(NumericError) as caught:
            eutectic.merge(recipe(home, method), tmp_path / "out")
        (problem,) = caught.value.problems
        assert problem.code == "N504"
        assert problem.message.startswith(f"one-{label} was measured of another model than one")
        assert not list(tmp_path.glob("out*"))
        with pytest.raises(NumericError) as caught:
            dict(eutectic.merged(recipe(home, method)))
        assert caught.value.problems[0].code == "N504"


def test_nan_in_statistics_is_refused_and_can_be_counted(home, tmp_path):
    fishers = dict(eutectic.open(home / "two-fisher"))
    fishers["plain.weight"][0, 0] = float("nan")
    write_statistics(home / "two-fisher", "fisher", fishers)
    with pytest.raises(NumericError) as caught:
        eutectic.merge(recipe(home, "fisher"), tmp_path / "out")
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("N501", "plain.weight")
    assert problem.message == "1 value of two-fisher is NaN or infinite"
    assert problem.hint.startswith("collect the statistics again")
    done = eutectic.merge(recipe(home, "fisher"), tmp_path / "out", options=Options(nonfinite="count"))
    assert done.nonfinite == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("nonfinite", ["stop", "count"])
def test_a_negative_fisher_is_refused_and_a_negative_zero_is_not(home, tmp_path, dtype, nonfinite):
    fishers = {name: fisher.to(dtype) for name, fisher in eutectic.open(home / "two-fisher").items()}
    fishers["plain.weight"][0, :3] = torch.tensor([-0.0, -1e-3, -2.0])
    write_statistics(home / "two-fisher", "fisher", fishers)
    with pytest.raises(NumericError) as caught:
        eutectic.merge(recipe(home, "fisher"), tmp_path / "out", options=Options(nonfinite=nonfinite))
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("N505", "plain.weight")
    assert problem.message == "2 values of two-fisher are negative"
    assert not list(tmp_path.glob("out*"))
    fishers["plain.weight"][0, 1:3] = -0.0
    write_statistics(home / "two-fisher", "fisher", fishers)
    eutectic.merge(recipe(home, "fisher"), tmp_path / "out")
