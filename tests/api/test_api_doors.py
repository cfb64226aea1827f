"""The doors from Python: merge, plan, merged, open, verify, and the methods by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import eutectic
from eutectic import api
from eutectic.errors import CheckpointError, RecipeError, ResourceError
from eutectic.testing import tiny_llama, write_safetensors

RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"parameters": {"weight": 0.5}},
    "slerp": {"parameters": {"t": 0.3}},
    "task_arithmetic": {"parameters": {"weight": 0.7, "lambda": 0.5}},
    "ties": {"parameters": {"density": 0.5}},
    "dare_linear": {"parameters": {"density": 0.5}, "seed": 3},
    "dare_ties": {"parameters": {"density": 0.5}, "seed": 3},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doors")
    tiny_llama(folder / "base", seed=1, layers=1, hidden=16, intermediate=16)
    for seed, name in enumerate(("a", "b"), 2):
        tiny_llama(folder / name, seed=seed, base=folder / "base", shards=seed - 1)
    return folder


def recipe_of(method: str, home: Path) -> dict[str, Any]:
    base, a, b = (str(home / name) for name in ("base", "a", "b"))
    models = [base, a] if method == "slerp" else [a, b]
    named = {} if method == "linear" else {"base_model": base}
    return {"merge_method": method, "models": models, **named, **RECIPES[method]}


def equal(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> bool:
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_the_public_names() -> None:
    assert set(eutectic.__all__) == set(dir(eutectic))
    for name in eutectic.__all__:
        assert getattr(eutectic, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'mrege'"):
        eutectic.mrege  # noqa: B018


@pytest.mark.parametrize("method", RECIPES)
def test_merged_equals_what_merge_writes_equals_the_method_by_hand(method: str, home: Path, tmp_path: Path) -> None:
    recipe = recipe_of(method, home)
    done = eutectic.merge(recipe, tmp_path / "out")
    written, lazy = eutectic.open(tmp_path / "out"), eutectic.merged(recipe)
    assert equal(written, lazy)
    function = getattr(eutectic.methods, method)
    base, a, b = (eutectic.open(home / name) for name in ("base", "a", "b"))
    for job in done.plan.jobs:
        parameters = {("lambda_" if k == "lambda" else k): v for k, v in job.parameters.items()}
        if function.random:
            from eutectic.kernels.random import Rng

            parameters["rng"] = Rng(3, job.name, ("a", "b"))
        if method == "slerp":
            expected = function(torch.stack([base[job.name], a[job.name]]), **parameters)
        elif method == "linear":
            expected = function(torch.stack([a[job.name], b[job.name]]), **parameters)
        else:
            start = base[job.name].float()
            deltas = torch.stack([a[job.name].float() - start, b[job.name].float() - start])
            expected = (start + function(deltas, **parameters)).bfloat16()
        torch.testing.assert_close(written[job.name], expected, rtol=2**-7, atol=1e-6)
    for source in (written, lazy, base, a, b):
        source.close()


def test_a_recipe_may_be_a_path_text_a_dict_or_a_recipe(home: Path, tmp_path: Path) -> None:
    plain = recipe_of("linear", home)
    text = json.dumps(plain)
    path = tmp_path / "r.yml"
    path.write_text(text)
    forms = [plain, text + "\n", path, str(path), api.load_recipe(plain)]
    fingerprints = set()
    for form in forms:
        plan = eutectic.plan(form)
        fingerprints.add(plan.fingerprint)
        plan.close()
    assert len(fingerprints) == 1
    outs = [eutectic.merge(form, tmp_path / f"out{i}").path for i, form in enumerate(forms)]
    first = (Path(outs[0]) / "model.safetensors").read_bytes()
    assert all((Path(out) / "model.safetensors").read_bytes() == first for out in outs)


def test_overrides_seed_and_dtype(home: Path) -> None:
    plan = eutectic.plan(recipe_of("ties", home), overrides=["parameters.density=1", "out_dtype=float16"], seed=9)
    assert (plan.jobs[0].parameters["density"], plan.seed, plan.jobs[0].spec.dtype) == ([1.0, 1.0], 9, "float16")
    plan = eutectic.plan(recipe_of("ties", home), dtype="float64", seed=0)
    assert (plan.jobs[0].spec.dtype, plan.seed) == ("float64", 0)
    plan = eutectic.plan(recipe_of("ties", home) | {"dtype": torch.bfloat16}, dtype=torch.float16)
    assert (plan.recipe.dtype, plan.jobs[0].spec.dtype) == ("bfloat16", "float16")
    lazy = eutectic.merged(recipe_of("linear", home), overrides=["models[0].parameters.weight=0"], dtype="float32")
    assert lazy["model.norm.weight"].dtype == torch.float32
    b = eutectic.open(home / "b")["model.norm.weight"]
    assert torch.equal(lazy["model.norm.weight"], b.float())


class Tied(nn.Module):
    """Embeddings that are also the head, a buffer of integers and one of numbers."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("ids", torch.arange(5))
        with torch.no_grad():
            self.embed.weight.fill_(value)


def test_live_modules_in_and_out() -> None:
    one, two, target = Tied(1.0), Tied(3.0), Tied(0.0)
    lazy = eutectic.merged({"merge_method": "linear", "models": [one, two]})
    assert isinstance(lazy, Mapping)
    assert set(lazy) == set(one.state_dict()) and len(lazy) == len(one.state_dict())
    assert "head.weight" in lazy and "nothing" not in lazy
    target.load_state_dict(dict(lazy), strict=True)
    assert target.head.weight is target.embed.weight
    assert torch.equal(target.embed.weight, torch.full((6, 4), 2.0))
    assert torch.equal(target.ids, torch.arange(5))
    # The inputs are as they were.
    assert one.embed.weight[0, 0] == 1.0
    with pytest.raises(KeyError):
        lazy["nothing"]


def test_a_merge_is_read_when_it_is_asked_for() -> None:
    state = {"w": torch.zeros(3), "v": torch.zeros(2)}
    lazy = eutectic.merged({"merge_method": "linear", "models": [state, {"w": torch.ones(3), "v": torch.ones(2)}]})
    state["w"].fill_(5.0)
    assert torch.equal(lazy["w"], torch.full((3,), 3.0))


def test_live_models_can_be_written(tmp_path: Path) -> None:
    done = eutectic.merge({"merge_method": "linear", "models": [Tied(1.0), Tied(2.0)]}, tmp_path / "out")
    assert done.notes == ("no config or tokenizer files: the weights do not come from a model folder",)
    written = eutectic.open(tmp_path / "out")
    assert dict(written.ties) == {"head.weight": "embed.weight"}
    assert torch.equal(written["head.weight"], torch.full((6, 4), 1.5))
    with pytest.raises(CheckpointError, match="V704"):
        eutectic.verify(tmp_path / "out")
    assert not eutectic.verify(tmp_path / "out", stored_only=True).problems


def test_buffers_that_differ_stop_before_anything_is_written(tmp_path: Path) -> None:
    one, two = Tied(1.0), Tied(2.0)
    two.ids += 1
    recipe = {"merge_method": "linear", "models": [{"model": one}, {"model": two}]}
    with pytest.raises(RecipeError, match=r"^N503 ids: int64 buffer differs between Tied and Tied#2; say whose"):
        eutectic.merge(recipe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RecipeError, match="N503"):
        eutectic.merged(recipe)["ids"]
    for label, module in (("one", one), ("two", two)):
        torch.save(module.state_dict(), tmp_path / f"{label}.bin")
    two_bin = str(tmp_path / "two.bin")
    paths = {"merge_method": "linear", "models": [str(tmp_path / "one.bin"), two_bin], "buffers_from": two_bin}
    assert torch.equal(eutectic.merged(paths)["ids"], torch.arange(5) + 1)


def test_open_reads_folders_shards_pickles_and_bare_files(home: Path, tmp_path: Path) -> None:
    whole = eutectic.open(home / "a")
    state = dict(whole)
    torch.save(state, tmp_path / "pytorch_model.bin")
    write_safetensors(tmp_path / "bare.safetensors", state)
    for place in (tmp_path / "pytorch_model.bin", tmp_path / "bare.safetensors", state, whole):
        assert equal(eutectic.open(place), state)
    sharded = eutectic.open(home / "b")
    assert len(sharded.identity()["files"]) == 2 and set(sharded) == set(state)
    assert repr(whole).startswith("<FileSource 'a': 12 tensors, ")


def test_progress_and_the_plan_first(home: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    def on_plan(plan: Any, budget: Any, notes: Any) -> None:
        assert not (tmp_path / "out").exists()
        seen.append((plan, budget, list(notes)))

    steps: list[int] = []
    options = eutectic.Options(threads=1, shard_bytes=2000)
    done = eutectic.merge(
        recipe_of("ties", home), tmp_path / "out", options=options, on_plan=on_plan, progress=steps.append
    )
    ((plan, budget, notes),) = seen
    assert (plan, budget, notes) == (done.plan, done.budget, list(done.notes))
    assert budget.threads == 1
    assert sum(steps) == done.plan.bytes_out
    assert (done.resumed, done.already_complete, done.nonfinite) == (0, False, 0)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    again = eutectic.merge(recipe_of("ties", home), tmp_path / "out", options=options)
    assert again.already_complete


def test_the_reference_form_agrees(home: Path, tmp_path: Path) -> None:
    options = eutectic.Options(reference=True, memory=2 << 30)
    eutectic.merge(recipe_of("ties", home), tmp_path / "reference", options=options)
    assert equal(eutectic.open(tmp_path / "reference"), eutectic.merged(recipe_of("ties", home)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "tpu"}, RecipeError, "M602 device: 'tpu' is no device"),
        ({"device": None}, RecipeError, "M602 device: None is no device"),
        ({"device": "cuda:99"}, ResourceError, "M602 device: torch .* sees no cuda:99"),
        ({"memory": 1}, ResourceError, "M601 memory: the merge needs [0-9]+ MiB at least, the bound is 1 byte"),
    ],
)
def test_options_that_cannot_be(
    home: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        eutectic.merge(recipe_of("linear", home), tmp_path / "out", options=eutectic.Options(**options))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"seed": ""}, "R112 seed: must be an integer from 0 on, not ''"),
        ({"seed": -1}, "R112 seed: must be an integer from 0 on, not -1"),
        ({"dtype": ""}, "R112 dtype: must be one of .*, not ''"),
        ({"dtype": torch.int8}, "R112 dtype: must be one of .*, not 'int8'"),
        ({"overrides": None}, "R140 overrides: nothing is not an override; write KEY=VALUE"),
        ({"overrides": [5]}, "R140 overrides: 5 is not an override"),
        ({"overrides": {"seed": 3}}, "R140 overrides: must be a list of texts KEY=VALUE, not a mapping; write"),
    ],
)
def test_arguments_of_a_plan_that_cannot_be(home: Path, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{message}"):
        eutectic.plan(recipe_of("linear", home), **keywords)


@pytest.mark.parametrize("overrides", [None, 5, [5]])
def test_all_that_take_changes_to_a_recipe_refuse_what_is_none(home: Path, overrides: Any) -> None:
    doors: list[Any] = [eutectic.plan, partial(eutectic.tune, over={}), partial(eutectic.learn, data=())]
    for door in doors:
        with pytest.raises(RecipeError, match=r"^R140 overrides: (nothing|5) is not an override"):
            door(recipe_of("linear", home), overrides=overrides)


@pytest.mark.parametrize("out", [None, 5, b"out", "", "a\0b"])
def test_outputs_that_name_no_folder(home: Path, out: Any) -> None:
    with pytest.raises(RecipeError, match=r"^M603 out: must be the folder to make"):
        eutectic.merge(recipe_of("linear", home), out)


def test_what_cannot_be_verified() -> None:
    with pytest.raises(RecipeError) as caught:
        eutectic.verify("a\0b", sample=0)
    assert [problem.where for problem in caught.value.problems] == ["out", "sample"]
    for out, sample in ((None, None), (b"out", None), ("out", 1.5), ("out", True)):
        with pytest.raises(RecipeError, match=r"^M603"):
            eutectic.verify(out, sample=sample)  # type: ignore[arg-type]


def test_the_minimum_that_is_named_is_enough(home: Path, tmp_path: Path) -> None:
    recipe = recipe_of("linear", home)
    with pytest.raises(ResourceError) as caught:
        eutectic.merge(recipe, tmp_path / "out", options=eutectic.Options(memory=1))
    (problem,) = caught.value.problems
    mib = int(problem.hint.split("memory=")[1].split(" << 20")[0])
    # The interpreter may have grown by a page or two in between.
    options = eutectic.Options(memory=(mib + 8) << 20, threads=1)
    done = eutectic.merge(recipe, tmp_path / "out", options=options)
    assert done.budget.threads == 1


def test_a_model_by_two_names_is_listed_twice(home: Path, tmp_path: Path) -> None:
    a, b = str(home / "a"), str(home / "b")
    link, file = tmp_path / "link", f"{a}/model.safetensors"
    link.symlink_to(b)
    with pytest.raises(RecipeError) as caught:
        eutectic.plan({"merge_method": "linear", "models": [a, b, {"model": file}, link]})
    assert [str(problem) for problem in caught.value.problems] == [
        f"R133 models[2]: {file!r} is the model {a!r} by another name; list it once",
        f"R133 models[3]: {str(link)!r} is the model {b!r} by another name; list it once",
    ]
    with pytest.raises(RecipeError, match=r"R133 .* is the model .* by another name"):
        eutectic.plan({"merge_method": "ties", "base_model": a, "models": [file, b]})


def test_tokenizer_source(home: Path, tmp_path: Path) -> None:
    for name in ("x", "y"):
        tiny_llama(tmp_path / name, seed=5, layers=1, hidden=16, intermediate=16)
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps({"from": name}))
        (tmp_path / name / "config.json").write_text(json.dumps({"from": name}))
    x, y = str(tmp_path / "x"), str(tmp_path / "y")
    inner = {"merge_method": "linear", "models": [x, y], "tokenizer_source": y}
    for number, recipe in enumerate((inner, {"merge_method": "linear", "models": [{"model": inner}, x]})):
        out = Path(eutectic.merge(recipe, tmp_path / f"out{number}").path)
        assert json.loads((out / "tokenizer_config.json").read_text()) == {"from": "y"}
        assert json.loads((out / "config.json").read_text()) == {"from": "x"}


def test_union_stays_a_word_where_a_folder_has_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "union"):
        tiny_llama(tmp_path / "sub" / name, seed=len(name), layers=1, hidden=16, intermediate=16)
    (tmp_path / "sub" / "inner.yml").write_text("merge_method: linear\nmodels: [a]\ntokenizer_source: union\n")
    plan = eutectic.plan({"merge_method": "linear", "models": ["sub/inner.yml", "sub/union"]})
    nested = next(item.plan for item in plan.inputs if item.plan is not None)
    assert nested.tokenizer is None and any("union is the tokenizer of a" in note for note in nested.notes)
    plan.close()
    (tmp_path / "elsewhere").mkdir()
    eutectic.merge({"merge_method": "linear", "models": ["sub/a"], "tokenizer_source": "union"}, "out")
    monkeypatch.chdir(tmp_path / "elsewhere")
    tiny_llama("union", layers=1)
    tiny_llama(tmp_path / "union", layers=1)
    with eutectic.plan("../out") as again:
        assert again.recipe.tokenizer_source == "union"


@pytest.mark.parametrize("word", ["union", "base"])
def test_a_path_does_not_become_a_word(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", word):
        tiny_llama(tmp_path / "home" / name, seed=len(name), layers=1, hidden=16, intermediate=16)
    (tmp_path / "home" / "sub").mkdir()
    text = f"merge_method: linear\nbase_model: ../b\nmodels: [../a, ../{word}]\ntokenizer_source: ../{word}\n"
    (tmp_path / "home" / "sub" / "inner.yml").write_text(text)
    (tmp_path / "home" / "outer.yml").write_text("merge_method: linear\nmodels: [sub/inner.yml]\n")
    with eutectic.plan("home/outer.yml") as plan:
        assert plan.tokenizer_folder() == str(tmp_path / "home" / word)


def test_base_stays_a_word_in_a_recipe_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("start", "a", "base"):
        tiny_llama(tmp_path / "sub" / name, seed=len(name), layers=1, hidden=16, intermediate=16)
    inner = (
        "merge_method: task_arithmetic\nbase_model: start\nmodels: [a]\nbuffers_from: base\ntokenizer_source: base\n"
    )
    (tmp_path / "sub" / "inner.yml").write_text(inner)
    plan = eutectic.plan({"merge_method": "linear", "models": ["sub/inner.yml", "sub/base"]})
    nested = plan.inputs[1].plan
    assert nested is not None and nested.tokenizer is not None and nested.tokenizer.label == "start"
    plan.close()
