"""Steps after a method: lines, norm guard, singular value calibration, alone and one after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import eutectic
from eutectic.api import Options
from eutectic.errors import EutecticError
from eutectic.kernels.calibration import svc
from eutectic.testing import write_safetensors
from faults import contents

SHAPES = {
    "embed.weight": (40, 16),
    "layers.0.w": (24, 16),
    "layers.0.b": (24,),
    "layers.1.w": (1100, 1000),
    "layers.2.w": (16, 24),
    "norm": (16,),
    "none": (0, 2),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base in float32 and two fine-tunes, of which the second went further; one tensor is untouched."""
    home = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(5)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    made = {"base": base}
    for label, step in (("one", 0.01), ("two", 0.03)):
        moved = {name: t + step * torch.randn(t.shape, generator=generator) for name, t in base.items()}
        made[label] = {**moved, "norm": base["norm"]}
    for label, tensors in made.items():
        (home / label).mkdir()
        write_safetensors(home / label / "model.safetensors", tensors)
    return home, {label: {n: t.double().numpy() for n, t in tensors.items()} for label, tensors in made.items()}


def merged(home, post, method="task_arithmetic", **keys):
    recipe = {
        "merge_method": method,
        "base_model": str(home / "base"),
        "models": [str(home / "one"), str(home / "two")],
        "parameters": {"weight": 1.0},
        "post": post,
        **keys,
    }
    return {name: tensor.double().numpy() for name, tensor in eutectic.merged(recipe).items()}


def changes(made, base):
    return {name: tensor - base[name] for name, tensor in made.items()}


def norm(tensors):
    return np.sqrt(sum((tensor**2).sum() for tensor in tensors))


def near(found, expected):
    """Equal up to what float32 keeps of a sum with a base of size one."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=4e-7)


def test_lines_grows_with_the_layer(models):
    home, tensors = models
    plain = changes(merged(home, []), tensors["base"])
    found = changes(merged(home, [{"lines": {"alpha": 0.2, "beta": 0.6}}]), tensors["base"])
    for name, change in plain.items():
        layer = int(name.split(".")[1]) if name.startswith("layers") else 0
        near(found[name], change * (0.2 + 0.6 * layer / 2))


def test_lines_takes_alpha_from_the_norms(models):
    home, tensors = models
    plain = changes(merged(home, [], "ties"), tensors["base"])
    own = [changes(tensors[label], tensors["base"]) for label in ("one", "two")]
    total = norm([own[0][name] + own[1][name] for name in plain])
    alpha = total / norm(plain.values()) / 2
    found = changes(merged(home, [{"lines": {"beta": 0.0}}], "ties"), tensors["base"])
    for name, change in plain.items():
        near(found[name], change * alpha)


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_norm_guard_caps_at_the_longest_parent(models, scope):
    home, tensors = models
    parameters = {"weight": 1.0, "lambda": 3.0}
    plain = changes(merged(home, [], parameters=parameters), tensors["base"])
    step = {"norm_guard": {"scope": scope, "factor": 0.5}}
    found = changes(merged(home, [step], parameters=parameters), tensors["base"])
    own = [changes(tensors[label], tensors["base"]) for label in ("one", "two")]
    for name, change in plain.items():
        names = [name] if scope == "tensor" else list(plain)
        longest, length = max(norm([one[n] for n in names]) for one in own), norm([plain[n] for n in names])
        near(found[name], change * min(1.0, 0.5 * longest / length if length else 1.0))


def test_a_guard_that_is_not_needed_changes_no_bit(models):
    home, _ = models
    for scope in ("tensor", "model"):
        step = {"norm_guard": {"scope": scope, "factor": 100}}
        for method in ("task_arithmetic", "ties"):
            plain, found = merged(home, [], method), merged(home, [step], method)
            assert all(np.array_equal(plain[name], found[name]) for name in plain)


def test_svc_is_the_kernel_and_leaves_what_is_no_matrix(models):
    home, tensors = models
    steps = [{"svc": {"spectral": [{"filter": "embed", "value": False}, {"value": True}]}}]
    plain, found = (changes(merged(home, post, "ties"), tensors["base"]) for post in ([], steps))
    for name, change in plain.items():
        expected = change
        if change.ndim == 2 and change.size and "embed" not in name:
            deltas = np.stack([tensors[label][name] - tensors["base"][name] for label in ("one", "two")])
            expected = svc(torch.from_numpy(change), torch.from_numpy(deltas), 0.5).numpy()
            assert not np.allclose(change, expected)
        near(found[name], expected)


def test_steps_apply_in_order(models):
    home, tensors = models
    guard, lines = {"norm_guard": {"scope": "model"}}, {"lines": {"alpha": 3.0, "beta": 0.0}}
    long = changes(merged(home, [guard, lines]), tensors["base"])
    short = changes(merged(home, [lines, guard]), tensors["base"])
    longest = max(norm(changes(tensors[label], tensors["base"]).values()) for label in ("one", "two"))
    assert norm(short.values()) == pytest.approx(longest, rel=1e-4)
    assert norm(long.values()) == pytest.approx(3 * longest, rel=1e-4)


def test_a_method_that_starts_from_its_base(models):
    home, tensors = models
    recipe = {
        "merge_method": "slerp",
        "base_model": str(home / "base"),
        "models": [str(home / "two")],
        "parameters": {"t": 0.5},
    }
    plain = eutectic.merged(recipe)
    found = eutectic.merged({**recipe, "post": [{"lines": {"alpha": 0.5, "beta": 0.0}}]})
    for name in plain:
        base = tensors["base"][name]
        near(found[name].double().numpy() - base, (plain[name].double().numpy() - base) / 2)


@pytest.mark.parametrize(("method", "parameters"), [("ties", {"density": 0.3}), ("ramplus_tl", {"epsilon": 0.01})])
def test_steps_after_a_method_that_ranks_the_whole_model(models, method, parameters, tmp_path):
    home, tensors = models
    keys = {"parameters": {**parameters, "scope": "model"}}
    plain = changes(merged(home, [], method, **keys), tensors["base"])
    own = [changes(tensors[label], tensors["base"]) for label in ("one", "two")]
    alpha = norm([own[0][name] + own[1][name] for name in plain]) / norm(plain.values()) / 2
    scaled = {
        name: change * (alpha + 0.5 * (int(name.split(".")[1]) / 2 if name.startswith("layers") else 0))
        for name, change in plain.items()
    }
    guarded = {}
    for name, change in scaled.items():
        longest = max(norm([one[name]]) for one in own)
        guarded[name] = change * min(1.0, 0.4 * longest / norm([change]) if change.any() else 1.0)
    post = [{"lines": {"beta": 0.5}}, {"norm_guard": {"factor": 0.4}}]
    found = changes(merged(home, post, method, **keys), tensors["base"])
    for name, change in guarded.items():
        near(found[name], change)

    recipe = {"merge_method": method, "base_model": str(home / "base"), "post": post, **keys}
    recipe["models"] = [str(home / "one"), str(home / "two")]
    eutectic.merge(recipe, tmp_path / "out", options=Options(threads=3))
    assert not eutectic.verify(tmp_path / "out").problems
    stored = eutectic.open(str(tmp_path / "out"))
    near(
        changes({name: stored[name].double().numpy() for name in stored}, tensors["base"])["layers.1.w"],
        found["layers.1.w"],
    )


POST = [
    {"lines": {"beta": 0.5}},
    "svc",
    {"norm_guard": {"scope": "model"}},
]


def test_bytes_do_not_depend_on_threads_and_verify(models, tmp_path):
    home, _ = models
    recipe = {
        "merge_method": "ties",
        "base_model": str(home / "base"),
        "models": [str(home / "one"), str(home / "two")],
        "parameters": {"weight": 1.0, "density": 0.5},
        "post": POST,
        "out_dtype": "bfloat16",
    }
    made = []
    for threads in (1, 3):
        out = tmp_path / str(threads)
        eutectic.merge(recipe, out, options=Options(threads=threads, memory=4 << 30))
        assert not eutectic.verify(out).problems
        made.append(contents(out)["model.safetensors"])
    assert made[0] == made[1]
    lazy = eutectic.merged(recipe)
    stored = eutectic.open(str(tmp_path / "1"))
    assert all(torch.equal(lazy[name], stored[name]) for name in stored)
    assert eutectic.plan(recipe).fingerprint != eutectic.plan({**recipe, "post": POST[:1]}).fingerprint


def test_steps_can_be_swept(models, tmp_path):
    home, _ = models
    recipe = {
        "merge_method": "ties",
        "base_model": str(home / "base"),
        "models": [str(home / "one"), str(home / "two")],
        "parameters": {"weight": 1.0, "density": 0.5},
    }
    swept = {**recipe, "post": [{"lines": {"alpha": 0.3, "beta": {"sweep": [0.2, 0.7]}}}, "norm_guard"]}
    done = eutectic.sweep(swept, tmp_path / "out")
    for beta in (0.2, 0.7):
        single = {**recipe, "post": [{"lines": {"alpha": 0.3, "beta": beta}}, "norm_guard"]}
        eutectic.merge(single, tmp_path / str(beta))
        found, expected = contents(done.merges[f"beta={beta}"].path), contents(tmp_path / str(beta))
        assert found["model.safetensors"] == expected["model.safetensors"]


@pytest.mark.parametrize(
    ("post", "keys", "message"),
    [
        ("lines", {}, "R150 post: must be a list of steps, not 'lines'"),
        ([3], {}, "R150 post[0]: must be one step, not 3"),
        (["line"], {}, "R150 post[0]: there is no step 'line'; did you mean 'lines'?"),
        (["lines"], {}, "R126 post[0]: lines needs 'beta'"),
        ([{"lines": {"beta": 0.5, "gamma": 1}}], {}, "R121 post[0].lines.gamma: lines has no parameter 'gamma'"),
        ([{"lines": {"beta": "auto"}}], {}, "R123 post[0].lines.beta: must be a number, not 'auto'"),
        ([{"lines": {"beta": 0.5, "alpha": [0.1, "auto"]}}], {}, "P306 post[0].lines.alpha: alpha is one value"),
        (
            [{"lines": {"beta": [{"filter": "mlp", "value": 1}]}}],
            {},
            "P304 post[0].lines.beta: beta has no value for some",
        ),
        ([{"svc": {"alpha": 0}}], {}, "R123 post[0].svc.alpha: must lie in (0, 1], not 0"),
        ([{"norm_guard": {"scope": "layer"}}], {}, "must be one of tensor, model, not 'layer'"),
        (["norm_guard", "norm_guard"], {}, "R150 post: norm_guard stands twice"),
        ([{"svc": {"spectral": [{"filter": "emebd", "value": False}]}}], {}, "the filter 'emebd' matches no tensor"),
        (["norm_guard"], {"merge_method": "linear"}, "P312 post: linear merges models"),
        (["svc"], {"merge_method": "ties", "parameters": {"scope": "model"}}, "P312 post: svc needs whole tensors"),
    ],
)
def test_mistakes(models, post, keys, message):
    home, _ = models
    with pytest.raises(EutecticError) as caught:
        merged(home, post, **keys)
    assert message in str(caught.value)


def test_steps_that_do_nothing_change_no_bit(models):
    """`slerp` gives θ in float32, and θ₀ + (θ - θ₀) is not always θ."""
    home, _ = models
    recipe = {
        "merge_method": "slerp",
        "base_model": str(home / "base"),
        "models": [str(home / "two")],
        "parameters": {"t": 0.4},
    }
    steps = [{"norm_guard": {"factor": 100}}, {"lines": {"alpha": 1.0, "beta": 0.0}}, {"svc": {"spectral": False}}]
    plain, found = eutectic.merged(recipe), eutectic.merged({**recipe, "post": steps})
    assert all(torch.equal(plain[name], found[name]) for name in plain)


@pytest.mark.parametrize("step", [{"lines": {"beta": 0.0}}, {"norm_guard": {"scope": "model", "factor": 0.1}}])
def test_a_broken_tensor_does_not_switch_a_factor_off(step, tmp_path):
    generator = torch.Generator().manual_seed(2)
    base = {name: torch.randn(64, 64, generator=generator) for name in ("good", "bad")}
    tuned = [{name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in base.items()} for _ in range(2)]

    def made(names, spoilt, out):
        models = [{name: one[name].clone() for name in names} for one in (base, *tuned)]
        if spoilt:
            models[1]["bad"][0, 0] = torch.nan
        recipe = {"merge_method": "task_arithmetic", "parameters": {"weight": 1.0}, "post": [step]}
        eutectic.merge(
            {**recipe, "base_model": models[0], "models": models[1:]}, out, options=Options(nonfinite="count")
        )
        return eutectic.open(str(out))["good"]

    assert torch.equal(made(["good", "bad"], True, tmp_path / "a"), made(["good"], False, tmp_path / "b"))


def test_what_only_the_unguarded_change_overflows_is_merged(tmp_path):
    base = {"w": torch.zeros(8, 8, dtype=torch.float16), "v": torch.ones(8, 8, dtype=torch.float16)}
    far = {"w": torch.full((8, 8), 40000.0, dtype=torch.float16), "v": base["v"]}
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [far],
        "parameters": {"weight": 1.0, "lambda": 3.0},
        "post": [{"norm_guard": {"scope": "model"}}],
    }
    eutectic.merge(recipe, tmp_path / "out")
    assert torch.allclose(eutectic.open(str(tmp_path / "out"))["w"].float(), far["w"].float(), rtol=1e-3)


def test_a_sweep_measures_all_its_merges_in_one_pass(models, tmp_path, monkeypatch):
    from eutectic.run import measure

    home, _ = models
    passes = []
    real = measure.Engine.__init__

    def counted(self, lanes, *args, **keywords):
        passes.append(len(lanes))
        real(self, lanes, *args, **keywords)

    monkeypatch.setattr(measure.Engine, "__init__", counted)
    recipe = {
        "merge_method": "ties",
        "base_model": str(home / "base"),
        "models": [str(home / "one"), str(home / "two")],
        "parameters": {"weight": 1.0, "lambda": {"sweep": [0.5, 1.0, 2.0]}},
        "post": [{"norm_guard": {"scope": "model"}}],
    }
    plans = eutectic.plan_sweep(recipe)
    assert "norm_guard over the whole model: one more pass over the inputs first" in next(iter(plans.values())).notes
    eutectic.sweep(recipe, tmp_path / "out")
    assert passes == [3, 3]


def test_filters_of_steps_know_tied_names(tmp_path):
    from eutectic.testing import tiny_llama

    base = tiny_llama(tmp_path / "base", tied=True)
    tuned = tiny_llama(tmp_path / "tuned", base=base, seed=2)
    step = {"svc": {"spectral": [{"filter": "lm_head", "value": False}, {"value": True}]}}
    recipe = {"merge_method": "task_arithmetic", "base_model": base, "models": [tuned], "post": [step]}
    with eutectic.plan(recipe) as planned:
        assert any("'lm_head' has no effect" in note for note in planned.notes)
