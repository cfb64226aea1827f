"""What the planner refuses, in its own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planning import WEIGHT, Header, linear, llama, plan_of, refused, ties_of

from eutectic.errors import CheckpointError, EutecticError, RecipeError

RESIZE = "vocabularies of different sizes? resize one model's embeddings to the other's first"
COPY = "set `missing: copy` to copy such tensors"


def slerp(t: Any, **more: Any) -> dict[str, Any]:
    return {"merge_method": "slerp", "base_model": "a", "models": ["a", "b"], "parameters": {"t": t}, **more}


def test_p301_a_vocabulary_of_another_size() -> None:
    bigger = llama("b", specs={"lm_head.weight": ("float32", 9, 4)})
    shapes = "a: float32 [8, 4], b: float32 [9, 4]"
    assert refused(linear("a", "b"), llama("a"), bigger) == [
        f"P301 lm_head.weight: differs between the models ({shapes}); {RESIZE}"
    ]


def test_p301_heads_for_other_labels() -> None:
    a, b = (llama(x, specs={"classifier.weight": ("float32", n, 4)}) for n, x in enumerate("ab", 2))
    recipe = linear("a", "b")
    assert refused(recipe, a, b) == [
        "P301 classifier.weight: differs between the models (a: float32 [2, 4], b: float32 [3, 4]); heads for "
        "different labels? `leave_out: classifier` takes one model's as it is"
    ]
    assert plan_of({**recipe, "leave_out": "classifier"}, a, b).specs["classifier.weight"].shape == (2, 4)


def test_p301_positions_are_neither() -> None:
    a, b = (llama(x, specs={"position_embeddings.weight": ("float32", n, 4)}) for n, x in enumerate("ab", 2))
    assert refused(linear("a", "b"), a, b)[0].endswith("(a: float32 [2, 4], b: float32 [3, 4])")


def test_p301_another_shape() -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    odd = llama("b", specs={name: ("float32", 4, 2)})
    shapes = "a: float32 [4, 4], b: float32 [4, 2]"
    assert refused(linear("b", "a"), llama("a"), odd) == [f"P301 {name}: differs between the models ({shapes})"]


def test_p301_buffers_of_different_kinds() -> None:
    a = llama("a", specs={"ids": ("int64", 3)})
    b, c = llama("b"), llama("c", specs={"ids": ("int32", 3)})
    shapes = "a: int64 [3], c: int32 [3]"
    hint = "say whose to take with `buffers_from: MODEL` or `buffers_from: base`"
    assert refused(linear("a", "b", "c"), a, b, c) == [f"P301 ids: differs between the models ({shapes}); {hint}"]


def test_p301_models_of_another_size_do_not_flood_the_screen() -> None:
    a = Header("a", {f"w{i}": ("float32", 2) for i in range(40)})
    b = Header("b", {f"w{i}": ("float32", 3) for i in range(40)})
    found = refused(linear("a", "b"), a, b)
    assert len(found) == 13
    assert found[-1] == "P301 and 28 more problems of this kind"


def test_p302_one_tensor() -> None:
    a, b = llama("a", specs={"extra": WEIGHT}), llama("b")
    assert refused(linear("a", "b"), a, b) == [f"P302 extra: is missing from b but is in a; {COPY}"]


def test_p302_a_near_miss() -> None:
    name = "model.layers.0.mlp.gate_proj.weight"
    a, b = llama("a", specs={name: WEIGHT}), llama("b", specs={name.replace("gate_proj", "gate"): WEIGHT})
    found = refused(linear("a", "b"), a, b)
    assert found == [
        f"P302 {name}: is missing from b but is in a; did you mean 'model.layers.0.mlp.gate.weight'?",
        "P302 model.layers.0.mlp.gate.weight: is missing from a but is in b; "
        "did you mean 'model.layers.0.mlp.gate_proj.weight'?",
    ]


def test_p302_many_tensors_are_one_problem() -> None:
    found = refused(linear("a", "b"), llama("a", layers=6), llama("b", layers=3))
    names = [f"model.layers.{i}.{part}.weight" for i in (3, 4) for part in ("self_attn.q_proj", "mlp.up_proj")]
    assert found == [f"P302 {', '.join(names)} and 2 more are missing from b but are in a; {COPY}"]


@pytest.mark.parametrize(
    ("here", "there", "said"),
    [
        ("", "module.", "begin with 'module.' (DataParallel), and those of a do not"),
        ("", "_orig_mod.", "begin with '_orig_mod.' (torch.compile), and those of a do not"),
        ("model.", "model.language_model.", "begin with 'model.language_model.' where those of a begin with 'model.'"),
        ("bert.", "wrapped.bert.", "begin with 'wrapped.', and those of a do not"),
    ],
)
def test_p302_names_with_something_before_them(here: str, there: str, said: str) -> None:
    parts = ["embed.weight", "layers.0.up.weight", "layers.1.up.weight"]
    a = Header("a", {**{here + part: WEIGHT for part in parts}, "head": WEIGHT})
    b = Header("b", {there + part: WEIGHT for part in parts})
    found = refused(linear("a", "b"), a, b)
    assert len(found) == 2 and all(
        line.endswith(f"the names of b {said}: save it without that first") for line in found
    )


def test_p302_models_with_little_in_common_are_not_to_be_copied() -> None:
    a, b = Header("a", {"one": WEIGHT, "x": ("float32", 4)}), Header("b", {"two": WEIGHT, "x": ("float32", 4)})
    hint = "`missing: copy` would copy 89 % of the entries: are the models of one architecture?"
    assert refused(linear("a", "b"), a, b) == [
        f"P302 one: is missing from b but is in a; {hint}",
        f"P302 two: is missing from a but is in b; {hint}",
    ]


def test_one_shard_is_not_a_model() -> None:
    whole, shard = llama("a"), llama("model-00001-of-00002.safetensors", layers=2)
    said = "model-00001-of-00002.safetensors is one shard of 2: name its folder, or its index"
    assert refused(linear("a", shard.label), whole, shard)[0].endswith(f"but are in a; {said}")
    other = llama("model-00001-of-00002.bin", layers=2)
    plan = plan_of(linear(other.label, shard.label), other, shard)
    assert f"{said}; what the others hold is not merged" in plan.notes
    lone = llama("model-00001-of-00001.safetensors")
    assert not plan_of(linear("a", lone.label), whole, lone).notes


def test_p303_a_filter_that_matches_nothing() -> None:
    recipe = slerp([{"filter": "mlpp", "value": 1}, {"filter": "/q_proj$/", "value": 1}, {"value": 0}])
    assert refused(recipe, llama("a"), llama("b")) == [
        "P303 parameters.t[0].filter: the filter 'mlpp' matches no tensor; did you mean 'mlp'?",
        "P303 parameters.t[1].filter: the filter '/q_proj$/' matches no tensor; did you mean 'q_proj'?",
    ]


def test_p303_buffers_are_no_target() -> None:
    a, b = (llama(label, specs={"ids": ("int64", 3)}) for label in "ab")
    found = refused(slerp([{"filter": "ids", "value": 1}, {"value": 0}]), a, b)
    assert found == ["P303 parameters.t[0].filter: the filter 'ids' matches no tensor"]


def test_p304_no_value_for_some_tensors_is_told_once() -> None:
    hint = "end its list with an entry without a filter"
    found = refused(slerp([{"filter": "mlp", "value": 1}]), llama("a"), llama("b"))
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(3)]
    shown = ", ".join(["model.embed_tokens.weight", *names])
    assert found == [f"P304 parameters.t: t has no value for {shown} and 2 more; {hint}"]


def test_p305_weights_that_cancel_for_some_tensors() -> None:
    recipe = linear("a", "b")
    recipe["models"][1]["parameters"] = {"weight": [{"filter": "norm", "value": -1}, {"value": 1}]}
    hint = "set `normalize: false`, or change the weights"
    assert refused(recipe, llama("a"), llama("b")) == [
        f"P305 parameters.weight: the weights sum to zero under normalize, for model.norm.weight; {hint}"
    ]
    recipe["parameters"] = {"normalize": False}
    assert len(plan_of(recipe, llama("a"), llama("b")).jobs) == 9


def test_p306_one_density_for_a_whole_model() -> None:
    recipe = ties_of("base", "a", parameters={"density": [0.1, 0.9], "scope": "model"})
    hint = "give one density for all tensors, or use `scope: tensor`"
    assert refused(recipe, llama("base"), llama("a")) == [
        f"P306 parameters.density: density differs between tensors under `scope: model`; {hint}"
    ]
    recipe["parameters"]["density"] = 0.5
    recipe["models"][0]["parameters"] = {"density": 0.1}
    assert plan_of(recipe, llama("base"), llama("a")).jobs[0].parameters["density"] == [0.1]


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_p307_fp8(dtype: str) -> None:
    specs = {f"w{i}": ("bfloat16", 2) for i in range(6)}
    quantised = dict.fromkeys(specs, (dtype, 2))
    hint = "convert the checkpoint to bfloat16 first"
    assert refused(linear("a", "b"), Header("a", specs), Header("b", quantised)) == [
        f"P307 w0, w1, w2, w3 and 2 more are {dtype} in b; {hint}"
    ]
    only = {**specs, "w5": (dtype, 2)}
    assert refused(linear("a", "b"), Header("a", specs), Header("b", only)) == [f"P307 w5 is {dtype} in b; {hint}"]


def test_p308_nothing_in_common() -> None:
    a, b = Header("a", {"x": ("float32", 2)}), Header("b", {"y": ("float32", 2)})
    # With `missing: copy` each tensor by itself is fine, and the whole is no merge.
    assert refused(linear("a", "b", missing="copy"), a, b) == [
        "P308 no tensor can be merged: a, b have none of floats in common"
    ]
    only_buffers = Header("a", {"x": ("int64", 2)}), Header("b", {"x": ("int64", 2)})
    assert refused(linear("a", "b"), *only_buffers)[0].startswith("P308 ")


def test_p308_all_left_out() -> None:
    a, b = Header("a", {"x": ("float32", 2)}), Header("b", {"x": ("float32", 2)})
    everything = linear("a", "b", leave_out="*")
    assert refused(everything, a, b) == ["P308 leave_out: no tensor can be merged: leave_out takes every one"]


def test_p309_layer_range(tmp_path: Path) -> None:
    file = tmp_path / "r.yml"
    file.write_text(
        "merge_method: linear\nslices:\n  - sources:\n"
        "      - {model: a, layer_range: [0, 2]}\n      - {model: b, layer_range: [0, 2]}\n"
    )
    (found,) = refused(str(file), llama("a"), llama("b"))
    assert found.startswith(f"P309 {file}:4:")
    assert found.endswith(
        "slices[0].sources[0].layer_range: layer_range [0, 2] does not cover the model's 3 layers; "
        "write [0, 3]; stacking layers is not supported yet"
    )


def test_p310_a_float_here_an_integer_there() -> None:
    a, b = llama("a"), llama("b", specs={"model.norm.weight": ("int8", 4)})
    assert refused(linear("a", "b"), a, b) == [
        "P310 model.norm.weight: is a float in some models only (a: float32, b: int8)"
    ]


@pytest.mark.parametrize("wanted", ["base", "c"])
def test_p311_a_base_that_is_not_merged(wanted: str) -> None:
    recipe = linear("a", "b", base_model="c", buffers_from=wanted)
    assert refused(recipe, *map(llama, "abc")) == [
        f"P311 buffers_from: {wanted!r} is not merged by linear; list it under `models`, or name one of the models"
    ]
    recipe["models"].append({"model": "c"})
    assert plan_of(recipe, *map(llama, "abc")).donor.label == "c"


def test_a_base_that_is_not_merged_gives_config_and_tokenizer() -> None:
    plan = plan_of(linear("a", "b", base_model="c"), *map(llama, "abc"))
    assert plan.donor.label == "c"
    assert plan.tokenizer is None
    assert [item.label for item in plan.inputs] == ["a", "b"]
    assert any("only gives config and tokenizer" in note for note in plan.notes)


def test_a_base_for_its_files_that_does_not_exist() -> None:
    with pytest.raises(CheckpointError, match="'c' does not exist"):
        plan_of(linear("a", "b", base_model="c"), *map(llama, "ab"))


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "r.yml"
    file.write_text(
        "merge_method: slerp\nbase_model: a\nmodels: [a, b]\nparameters:\n  t:\n"
        "    - {filter: mlpp, value: 1}\n    - {filter: norm, value: 0}\n"
    )
    a = llama("a", specs={"extra": WEIGHT, "q": ("float8_e5m2", 2)})
    b = llama("b", specs={"lm_head.weight": ("float32", 9, 4), "model.embed_tokens.weight": ("int8", 8, 4)})
    with pytest.raises(RecipeError) as caught:
        plan_of(str(file), a, b)
    assert {problem.code for problem in caught.value.problems} == {"P301", "P302", "P303", "P304", "P307", "P310"}
    lines = {problem.code: problem.line for problem in caught.value.problems}
    assert lines["P303"] == 6
    assert lines["P304"] == 6
    assert all(problem.file == str(file) for problem in caught.value.problems)


def test_models_that_cannot_be_opened_are_told_together_and_the_others_closed() -> None:
    a = llama("a")
    with pytest.raises(CheckpointError) as caught:
        plan_of(linear("x", "a", "y"), a)
    assert str(caught.value) == "C200 models[0]: 'x' does not exist\nC200 models[2]: 'y' does not exist"
    assert a.closed == 1


def test_problems_of_nested_recipes_and_of_models_come_together() -> None:
    inner = linear("a", "b")
    odd = llama("b", specs={"model.norm.weight": ("int8", 4)})
    with pytest.raises(EutecticError) as caught:
        plan_of(linear(inner, "x"), llama("a"), odd)
    assert isinstance(caught.value, RecipeError)
    assert [problem.code for problem in caught.value.problems] == ["P310", "C200"]
