"""Recipes that are right: mergekit's documented forms, nesting, overrides, live objects, and the way back to data."""

from __future__ import annotations

import collections
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import eutectic.methods
from eutectic.errors import RecipeError
from eutectic.methods.registry import Param
from eutectic.recipe import ModelEntry, Recipe, label_of, load, load_sweep, same_model


def read(source: Any, **options: Any) -> Recipe:
    recipe = load(source, methods=eutectic.methods, **options)
    # The way back to data is open for every recipe, and JSON can hold it.
    plain = json.loads(json.dumps(recipe.to_dict()))
    assert plain == recipe.to_dict()
    assert load(plain, methods=eutectic.methods).to_dict() == plain
    return recipe


def refused(source: Any, **options: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load(source, methods=eutectic.methods, **options)
    # Models of these recipes are nowhere.
    return "\n".join(str(problem) for problem in caught.value.problems if problem.code != "C200")


LINEAR = """
models:
  - model: org/orca-13b
    parameters:
      weight: 1.0
  - model: org/wizard-13b
    parameters:
      weight: 0.3
  - model: org/platypus-13b
    parameters:
      weight: 0.5
merge_method: linear
dtype: float16
"""

TIES = """
models:
  - model: org/base-13b  # no parameters necessary for the base
  - model: org/orca-13b
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: org/platypus-13b
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
  - model: org/math-13b
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: org/base-13b
parameters:
  normalize: true
  int8_mask: true
dtype: float16
"""

SLERP = """
slices:
  - sources:
      - model: org/orca-13b
        layer_range: [0, 40]
      - model: org/platypus-13b
        layer_range: [0, 40]
merge_method: slerp
base_model: org/orca-13b
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for the rest
dtype: float16
"""

CHAIN = """
name: first
merge_method: linear
models:
  - {model: org/a, parameters: {weight: 0.6}}
  - {model: org/b, parameters: {weight: 0.4}}
dtype: bfloat16
---
name: second
merge_method: slerp
base_model: first
models:
  - model: org/c
parameters: {t: 0.5}
---
merge_method: dare_ties
base_model: org/base
models:
  - model: second
    parameters: {weight: 0.6, density: 0.5}
  - model: org/d
    parameters: {weight: 0.4, density: 0.7}
parameters: {lambda: 0.9, normalize: false, int8_mask: true}
out_dtype: bfloat16
"""


def test_linear() -> None:
    recipe = read(LINEAR)
    assert recipe.method == "linear"
    assert recipe.dtype == "float16"
    assert recipe.base is None
    assert [entry.model for entry in recipe.models] == ["org/orca-13b", "org/wizard-13b", "org/platypus-13b"]
    assert [entry.parameters["weight"].constant for entry in recipe.models] == [1.0, 0.3, 0.5]
    assert recipe.models[1].place.path == "models[1]"
    assert (recipe.places["models[1].parameters.weight"].line, recipe.places["dtype"].column) == (8, 8)


def test_ties_with_gradients_and_filters() -> None:
    recipe = read(TIES)
    assert [entry.model for entry in recipe.models] == ["org/orca-13b", "org/platypus-13b", "org/math-13b"]
    assert recipe.base == "org/base-13b"
    assert recipe.parameters["normalize"].constant is True
    assert recipe.models[0].parameters["density"].at("x", 0.25) == pytest.approx(0.85)
    assert recipe.models[1].parameters["weight"].at("x", 0.5) == pytest.approx(0.5)
    weight = recipe.models[2].parameters["weight"]
    assert (weight.at("layers.1.mlp.up", 0.5), weight.at("layers.1.attn.q", 0.5)) == (0.5, 0.0)
    assert recipe.notes == ("parameters.int8_mask has no effect: sign masks take no memory here",)


def test_slerp_in_slices() -> None:
    recipe = read(SLERP)
    assert [entry.model for entry in recipe.models] == ["org/orca-13b", "org/platypus-13b"]
    assert recipe.layer_range == (0, 40)
    t = recipe.parameters["t"]
    assert t.at("model.layers.5.self_attn.q_proj.weight", 0.125) == pytest.approx(0.25)
    assert t.at("model.layers.5.mlp.up_proj.weight", 0.125) == pytest.approx(0.75)
    assert t.at("lm_head.weight", 1.0) == 0.5
    assert recipe.to_dict()["slices"] == [
        {
            "sources": [
                {"model": "org/orca-13b", "layer_range": [0, 40]},
                {"model": "org/platypus-13b", "layer_range": [0, 40]},
            ]
        }
    ]


def test_slerp_puts_the_base_first() -> None:
    recipe = read("merge_method: slerp\nbase_model: b\nmodels: [a, b]\nparameters: {t: 0}\n")
    assert [entry.model for entry in recipe.models] == ["b", "a"]
    lone = read("merge_method: slerp\nbase_model: b\nmodels: [a]\nparameters: {t: 0}\n")
    assert lone == recipe
    assert lone.models[0].place.path == "base_model"


def test_parameters_of_a_slice_come_before_those_of_the_recipe() -> None:
    recipe = read(
        """
        merge_method: ties
        slices:
        - sources:
          - {model: a, layer_range: [0, 2], parameters: {weight: 3}}
          - {model: b, layer_range: [0, 2]}
          base_model: base
          residual_weight: 1
          parameters:
            weight: {filter: mlp, value: 2}
            density: 0.5
        parameters: {weight: 1, density: 0.9, lambda: 0.3}
        """
    )
    assert recipe.base == "base"
    assert recipe.models[0].parameters["weight"].constant == 3
    assert recipe.parameters["weight"].at("mlp", 0) == 2
    assert recipe.parameters["weight"].at("attn", 0) == 1
    assert recipe.parameters["density"].constant == 0.5
    assert recipe.parameters["lambda"].constant == 0.3
    assert recipe.notes == ("slices[0].residual_weight has no effect",)


def test_documents_in_a_chain() -> None:
    recipe = read(CHAIN)
    second = recipe.models[0].model
    assert isinstance(second, Recipe) and second.method == "slerp" and second.name == "second"
    first = second.base
    assert isinstance(first, Recipe) and first.method == "linear" and first.dtype == "bfloat16"
    assert second.models[0].model is first
    assert second.models[1].model == "org/c"
    assert (recipe.models[1].model, recipe.out_dtype) == ("org/d", "bfloat16")
    assert load(recipe.to_dict(), methods=eutectic.methods) == recipe


def test_documents_that_all_have_names() -> None:
    recipe = read(CHAIN.replace("---\nmerge_method: dare_ties", "---\nname: third\nmerge_method: dare_ties"))
    assert (recipe.name, recipe.method) == ("third", "dare_ties")
    assert recipe == replace(read(CHAIN), name="third")


def test_a_document_without_a_name_need_not_be_the_last() -> None:
    recipe = read("merge_method: linear\nmodels: [x, b]\n---\nname: x\nmerge_method: linear\nmodels: [a]\n---\n")
    assert label_of(recipe.models[0].model) == "x"


def test_a_document_that_is_not_used_is_told() -> None:
    recipe = read("name: x\nmerge_method: linear\nmodels: [a]\n---\nmerge_method: linear\nmodels: [b]\n")
    assert recipe.notes == ("the document 'x' is used by no other",)


def test_the_base_under_models_of_a_task_vector_method() -> None:
    recipe = read(
        "merge_method: ties\nbase_model: base\nmodels:\n"
        "- {model: ./base, parameters: {weight: 0.0, density: 0}}\n- model: a\n"
    )
    assert [entry.model for entry in recipe.models] == ["a"]
    assert recipe.notes == (
        "models[0].parameters.weight has no effect: the base has no delta",
        "models[0].parameters.density has no effect: the base has no delta",
    )


def test_linear_takes_the_base_only_if_listed() -> None:
    recipe = read("merge_method: linear\nbase_model: base\nmodels: [a, b]\n")
    assert [entry.model for entry in recipe.models] == ["a", "b"]
    assert recipe.notes == (
        "base_model is not merged, it only gives config and tokenizer: linear takes the models listed "
        "(mergekit would add the base)",
    )
    assert read("merge_method: linear\nbase_model: a\nmodels: [a, b]\n").notes == ()


def test_every_key() -> None:
    recipe = read(
        "merge_method: ties\nbase_model: org/base\nmodels: [org/a@main, org/b]\ndtype: float32\nout_dtype: bfloat16\n"
        "name: mine\nseed: 7\nmissing: copy\nbuffers_from: org/b\ntokenizer_source: base\nparameters: {scope: model}\n"
        "tokenizer:\nchat_template: auto\n"
    )
    assert recipe.to_dict() == {
        "name": "mine",
        "merge_method": "ties",
        "base_model": "org/base",
        "models": [{"model": "org/a@main"}, {"model": "org/b"}],
        "parameters": {"scope": "model"},
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "seed": 7,
        "buffers_from": "org/b",
        "tokenizer_source": "base",
        "chat_template": "auto",
        "missing": "copy",
    }


def test_keys_that_ask_for_nothing() -> None:
    plain = read("merge_method: linear\nmodels: [org/a]\n")
    nothing = "tokenizer_source:\ntokenizer:\nchat_template:\nmodules:\nbuffers_from:\n"
    assert read("merge_method: linear\nmodels: [org/a]\n" + nothing) == plain


@pytest.mark.parametrize(
    "written",
    [
        "tokenizer_source: org/a@v1",
        "tokenizer_source: model:org/a@v1",
        "tokenizer_source: {model: {path: org/a, revision: v1}}",
        "tokenizer: {source: org/a@v1}",
        "tokenizer: {source: {model: {path: org/a, revision: v1}}, tokens: {}, pad_to_multiple_of: null}",
        "tokenizer: {source: {path: org/a, revision: v1}, tokens: null}",
    ],
)
def test_the_forms_of_a_tokenizer(written: str) -> None:
    recipe = read(f"merge_method: linear\nmodels: [org/a@v1, org/b]\n{written}\n")
    assert recipe.to_dict()["tokenizer_source"] == "org/a@v1" and "tokenizer" not in recipe.to_dict()


def test_the_long_form_of_a_model() -> None:
    recipe = read(
        """
        merge_method: linear
        models:
        - model: {model: {path: org/a, revision: v1}, lora: null, override_architecture: Llama}
        - model: {model: {path: org/b}}
        - model: {model: org/c}
        - model: {path: org/d, revision: "1234567"}
        """
    )
    assert [entry.model for entry in recipe.models] == ["org/a@v1", "org/b", "org/c", "org/d@1234567"]


def test_existing_paths_may_contain_anything(tmp_path: Path) -> None:
    (tmp_path / "a+b").mkdir()
    (tmp_path / "r.yml").write_text("merge_method: linear\nmodels: [a+b]\n")
    assert load(tmp_path / "r.yml", methods=eutectic.methods).models[0].model == "a+b"


def test_weights_that_cancel_are_fine_without_normalize() -> None:
    text = "merge_method: task_arithmetic\nbase_model: base\nmodels:\n"
    text += "- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: -1}}\n"
    assert read(text).parameters == {}
    assert "R127" in refused(text + "parameters: {normalize: true}\n")
    huge = text.replace("weight: 1}", "weight: 1.0e+308}")
    assert read(huge.replace("-1", "1.0e+308") + "parameters: {normalize: true}\n")
    gradient = text.replace("weight: 1}", "weight: [1, 2]}")
    assert read(gradient + "parameters: {normalize: true}\n")
    assert read("merge_method: linear\nmodels: [a, b]\nparameters: {weight: 0, normalize: [true, false]}\n")
    # A weight that is wrong itself is the only thing told.
    assert "R127" not in refused(text.replace("-1", "x") + "parameters: {normalize: true}\n")


def test_inline_recipes_and_their_notes() -> None:
    recipe = read(
        """
        merge_method: task_arithmetic
        base_model: {merge_method: linear, models: [a, b]}
        models:
        - model:
            merge_method: ties
            base_model: base
            models: [c]
            parameters: {int8_mask: true}
        - {merge_method: linear, models: [a, b]}
        """.replace("- {merge", "- model: {merge")
    )
    assert recipe.base == Recipe("linear", (ModelEntry("a"), ModelEntry("b")))
    # The second model equals the base, so it has no delta.
    (entry,) = recipe.models
    assert isinstance(entry.model, Recipe)
    assert entry.model.notes == ("models[0].model.parameters.int8_mask has no effect: sign masks take no memory here",)
    assert entry.model.models[0].place.path == "models[0].model.models[0]"


def test_recipe_files_inside_recipe_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub" / "here").mkdir(parents=True)
    (tmp_path / "sub" / "inner.yaml").write_text(
        "merge_method: slerp\nbase_model: here\nmodels: [org/far]\nparameters: {t: 0.1}\ntokenizer_source: here\n"
        "buffers_from: org/far\n"
    )
    (tmp_path / "sub" / "middle.yml").write_text("merge_method: linear\nmodels: [inner.yaml, here]\n")
    (tmp_path / "outer.yml").write_text("merge_method: linear\nmodels: [sub/inner.yaml, sub/middle.yml, x]\n")
    recipe = read("outer.yml")
    assert (recipe.file, recipe.folder) == ("outer.yml", ".")
    inner, middle = recipe.models[0].model, recipe.models[1].model
    assert isinstance(inner, Recipe) and isinstance(middle, Recipe)
    assert [entry.model for entry in inner.models] == ["sub/here", "org/far"]
    assert (inner.base, inner.tokenizer_source, inner.buffers_from) == ("sub/here", "sub/here", "org/far")
    assert inner.folder == middle.folder == "."
    assert inner.file == "sub/inner.yaml"
    assert label_of(inner) == "sub/inner.yaml"
    assert middle.models[0].model == inner
    assert middle.models[1].model == "sub/here"
    assert load(recipe.to_dict(), methods=eutectic.methods) == recipe
    # From elsewhere, the paths are found through the folder of the file.
    monkeypatch.chdir("/")
    far = read(tmp_path / "outer.yml")
    assert far == recipe
    assert far.folder == str(tmp_path)


def test_problems_of_an_included_file_name_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("inner.yml").write_text("merge_method: liner\nmodels: [a]\n")
    Path("broken.yml").write_text("merge_method: [\n")
    Path("empty.yml").write_text("")
    Path("outer.yml").write_text(
        "merge_method: linear\nmodels: [inner.yml, broken.yml, inner.yml, ner.yml, empty.yml]\n"
    )
    assert refused("outer.yml").splitlines() == [
        "R120 inner.yml:1:15 merge_method: no merge method is called 'liner'; did you mean 'linear'?",
        "R102 broken.yml:2:1: not valid YAML: did not find expected node content while parsing a flow node from line 2",
        "R101 outer.yml:2:44 models[3]: the recipe 'ner.yml' does not exist; did you mean 'inner.yml'?",
        "R107 empty.yml: the recipe is empty",
    ]


def test_files_in_a_circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yml").write_text("merge_method: linear\nmodels: [b.yml, x]\n")
    Path("b.yml").write_text("merge_method: linear\nmodels: [./a.yml, y]\n")
    Path("self.yml").write_text("merge_method: linear\nmodels: [self.yml, y]\n")
    assert refused("a.yml").splitlines() == [
        "R108 b.yml:2:10 models[0]: the recipe contains itself: a.yml -> b.yml -> a.yml; break the circle"
    ]
    assert "self.yml -> self.yml" in refused("self.yml")
    # The name of a file may be that of a document, and does not make a circle.
    Path("names.yml").write_text(
        "name: n\nmerge_method: linear\nmodels: [a]\n---\nmerge_method: linear\nmodels: [n, b]\n"
    )
    assert read("names.yml").models[1].model == "b"


def test_nesting_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(30):
        Path(f"{i}.yml").write_text(f"merge_method: linear\nmodels: [{i + 1}.yml, x]\n")
    assert "R105 19.yml:2:10 models[0]: recipes inside one another more than 20 deep" in refused("0.yml")
    doubling = "name: d0\nmerge_method: linear\nmodels: [a]\n"
    for i in range(1, 15):
        doubling += f"---\nname: d{i}\nmerge_method: linear\nmodels: [d{i - 1}, {{model: d{i - 1}}}]\n"
    assert "more than 100 recipes inside one another" in refused(doubling)
    inner: dict[str, Any] = {"merge_method": "linear", "models": ["a"]}
    many = {"merge_method": "linear", "models": [{"model": {**inner, "seed": i}} for i in range(120)]}
    assert refused(many).splitlines() == [
        f"R105 models[{i}].model: more than 100 recipes inside one another" for i in range(99, 120)
    ]


def test_json_with_tabs_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('\ufeff{\n\t"merge_method": "linear",\n\t"models": ["a", "b\\/c"]\n}\n', encoding="utf-8")
    recipe = read(str(path))
    assert [entry.model for entry in recipe.models] == ["a", "b/c"]
    assert recipe.folder == str(tmp_path)
    assert recipe.file == str(path)


def test_overrides() -> None:
    recipe = read(
        LINEAR,
        overrides=[
            "models[0].parameters.weight=2",
            "models.1.parameters.weight=[0, 1e-1]",
            "parameters.normalize=false",
            "dtype=",
            "seed = 3",
        ],
    )
    assert recipe.models[0].parameters["weight"].constant == 2
    assert recipe.models[1].parameters["weight"].at("x", 1.0) == 0.1
    assert recipe.parameters["normalize"].constant is False
    assert (recipe.dtype, recipe.seed) == (None, 3)
    assert recipe.places["parameters.normalize"].file == "overrides"
    assert recipe.places["models[2].parameters.weight"].line == 11
    bare = read("merge_method: linear\nmodels: [a, b]\n", overrides=["models[1].parameters.weight=4"])
    assert bare.models[1].parameters["weight"].constant == 4
    assert read({"merge_method": "linear", "models": ["a"]}, overrides=["models[0].parameters.weight=4"])
    assert bare.places["models[1].model"].line == 2


def test_overrides_change_the_final_document() -> None:
    assert read(CHAIN, overrides=["parameters.lambda=2"]).parameters["lambda"].constant == 2


def test_a_recipe_as_the_source(tmp_path: Path) -> None:
    path = tmp_path / "r.yml"
    path.write_text(TIES)
    recipe = load(path, methods=eutectic.methods)
    assert load(recipe, methods=eutectic.methods) is recipe
    changed = load(recipe, methods=eutectic.methods, overrides=["parameters.lambda=2"])
    assert changed.parameters["lambda"].constant == 2
    assert (changed.file, changed.folder, changed.notes) == (recipe.file, recipe.folder, recipe.notes)
    assert changed.places["parameters.lambda"].file == "overrides"
    assert changed.places["dtype"].line == recipe.places["dtype"].line
    assert "R120" in refused(replace(recipe, method="wrong"))


@dataclass
class Module:
    """Stands for a live module."""

    label: Any = 3


class Lazy(collections.abc.Mapping[str, object]):
    """A mapping whose values must not be read while a recipe is."""

    label = "checkpoint-7"

    def __getitem__(self, name: str) -> object:
        raise KeyError(name)

    def __iter__(self) -> Any:
        raise AssertionError("read")

    def __len__(self) -> int:
        return 1


def test_live_objects() -> None:
    module, lazy, state = Module(), Lazy(), {"w": object()}
    recipe = load(
        {
            "merge_method": "ties",
            "base_model": module,
            "models": [lazy, {"model": state}, {"model": {"model": Path("p")}}],
        },
        methods=eutectic.methods,
    )
    assert recipe.base is module
    assert [entry.model for entry in recipe.models] == [lazy, state, "p"]
    assert recipe.models[1].model is state
    assert recipe.to_dict()["base_model"] == "Module"
    assert [entry["model"] for entry in recipe.to_dict()["models"]] == ["checkpoint-7", "dict", "p"]
    assert recipe.with_live_objects()["base_model"] is module
    again = load(recipe, methods=eutectic.methods, overrides=["seed=1"])
    assert again.models[1].model is state
    assert not same_model(module, lazy)
    assert "R133 models[1]: the model 'Module' is listed twice" in refused(
        {"merge_method": "linear", "models": [module, {"model": module}]}
    )


def test_recipes_and_numbers_from_python(tmp_path: Path) -> None:
    (tmp_path / "sub" / "here").mkdir(parents=True)
    (tmp_path / "sub" / "inner.yml").write_text("merge_method: linear\nmodels: [here]\n")
    inner = load(tmp_path / "sub" / "inner.yml", methods=eutectic.methods)
    recipe = read(
        {"merge_method": "linear", "models": ({"model": inner}, "b"), "parameters": {"weight": Fraction(1, 2)}}
    )
    model = recipe.models[0].model
    assert isinstance(model, Recipe)
    assert recipe.parameters["weight"].constant == 0.5
    found = model.models[0].model
    assert isinstance(found, str) and Path(found).resolve() == tmp_path / "sub" / "here"
    assert label_of(replace(inner, file=None)) == "linear recipe"
    assert read({"merge_method": "linear", "models": ["a"], "seed": Seven()}).seed == 7
    for half in (np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.nn.Parameter(torch.tensor(0.5))):
        recipe = read({"merge_method": "linear", "models": ["a", "b"], "parameters": {"weight": half}})
        assert recipe.parameters["weight"].constant == 0.5


class Seven:
    """An integer that is no `int`, as numpy's are."""

    def __int__(self) -> int:
        return 7


__import__("numbers").Integral.register(Seven)


class Third:
    """A method of somebody else: a required parameter a model, and an integer."""

    def __init__(self) -> None:
        self.name, self.space, self.base, self.models = "third", "weights", "ignored", (2, 3)
        self.scopes, self.statistics = ("tensor",), ""
        self.accepted: dict[str, str] = {}
        self.params = {
            "share": Param("share", "float", per_model=True, required=True, default=None),
            "steps": Param("steps", "int", per_model=False, required=False, default=1),
        }

    def get(self, name: str, /) -> Third | None:
        return self if name == "third" else None

    def names(self) -> list[str]:
        return ["third"]

    def resolved(self, has_base: bool, /) -> Third:
        return self

    def steps(self) -> dict[str, Any]:
        return {}


def test_any_table_of_methods() -> None:
    table = Third()
    text = "merge_method: third\nmodels:\n- {model: a, parameters: {share: 1}}\n- b\nparameters: {steps: [1, '3']}\n"
    with pytest.raises(RecipeError) as caught:
        load(text, methods=table)
    assert [str(problem) for problem in caught.value.problems if problem.code != "C200"] == [
        "R126 recipe:4:3 models[1]: third needs 'share' for each model; write `share:` under `parameters`"
    ]
    recipe = load(text, methods=table, overrides=["parameters.share=2"])
    assert recipe.parameters["steps"].at("x", 0.9) == 1
    assert recipe.parameters["steps"].at("x", 1.0) == 3
    with pytest.raises(RecipeError, match="third merges 2 to 3 models, not 4"):
        load("merge_method: third\nmodels: [a, b, c, d]\nparameters: {share: 1}\n", methods=table)


def test_torch_is_not_imported() -> None:
    code = "import sys, eutectic.methods, eutectic.recipe as r\n"
    code += f"r.load({LINEAR!r}, methods=eutectic.methods)\nassert not {{'torch', 'numba'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("written", "meant"), [("1", True), ("1.0", True), ("0", False), ("0.0", False), ("true", True)]
)
def test_one_and_zero_are_booleans_as_in_mergekit(written: str, meant: bool) -> None:
    recipe = load(
        f"merge_method: linear\nmodels: [a, b]\nparameters: {{normalize: {written}}}\n", methods=eutectic.methods
    )
    assert recipe.parameters["normalize"].constant is meant


def test_models_and_artefacts_that_do_not_exist_are_told_beside_other_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    recipe = """merge_method: fisher
models:
  - {model: ./here, statistics: ./gone, parameters: {wieght: 1}}
  - {model: ./gone, statistics: org/fisher}
"""
    with pytest.raises(RecipeError) as caught:
        load(recipe, methods=eutectic.methods)
    told = [(problem.code, problem.where, problem.message) for problem in caught.value.problems]
    assert told == [
        ("C200", "models[0].statistics", "'./gone' does not exist"),
        ("R121", "models[0].parameters.wieght", "fisher has no parameter 'wieght'"),
        ("C200", "models[1].model", "'./gone' does not exist"),
    ]
    Path("gone").symlink_to("nowhere")
    with pytest.raises(RecipeError) as caught:
        load(recipe, methods=eutectic.methods)
    assert "did you mean 'gone'" not in str(caught.value)
    # By themselves they are for whoever opens them.
    assert load(recipe.replace("wieght", "weight"), methods=eutectic.methods).models[0].statistics == "./gone"


def test_a_wrong_value_of_a_sweep_has_its_own_line_and_column() -> None:
    text = """merge_method: ties
base_model: base
models: [a, b]
parameters:
  density: {sweep: [0.1, 7]}
  weight:
  - {filter: mlp, value: {sweep: [x, 1]}}
  - value: [y, 1]
"""
    with pytest.raises(RecipeError) as caught:
        load_sweep(text, methods=eutectic.methods)
    found = {(p.code, p.where, p.line, p.column) for p in caught.value.problems if p.code != "C200"}
    assert found == {
        ("R123", "parameters.density", 5, 26),
        ("R123", "parameters.weight[0].value", 7, 35),
        ("R123", "parameters.weight[1].value[0]", 8, 13),
    }


def test_statistics_of_a_base_that_is_listed_have_no_effect() -> None:
    recipe = read({"merge_method": "ties", "base_model": "a", "models": [{"model": "a", "statistics": "s"}, "b"]})
    assert recipe.notes == ("models[0].statistics has no effect: the base is not merged",)


@pytest.mark.parametrize("source", [None, 5, b"r.yml", ["merge_method"]])
def test_what_is_no_recipe_at_all(source: object) -> None:
    assert refused(source).endswith("is no recipe; give a path, YAML text, a dict or a Recipe")
