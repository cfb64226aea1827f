"""Symmetries of a model: declared, else traced, else refused with what did not fit and what would do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eutectic.alignment.families import attempt, declared
from eutectic.alignment.finding import symmetries_of
from eutectic.alignment.matching import match_weights
from eutectic.alignment.proof import check
from eutectic.checkpoint import MemorySource, open_source
from eutectic.checkpoint.source import Spec
from eutectic.checkpoint.symmetry import Symmetries
from eutectic.errors import CheckpointError, Problem, RecipeError
from eutectic.testing import tiny_llama


def refusal(*arguments: Any, **options: Any) -> tuple[Problem, ...]:
    with pytest.raises(RecipeError) as caught:
        symmetries_of(*arguments, **options)
    return caught.value.problems


def sizes(*shapes: tuple[str, tuple[int, ...]]) -> dict[str, Spec]:
    return {name: Spec("float32", shape) for name, shape in shapes}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return Path(tiny_llama(tmp_path / "llama", seed=1))


def changed(folder: Path, **keys: Any) -> Path:
    """Other values in config.json; None removes a key."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **keys}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def test_a_config_that_cannot_be_read_is_said_to_be_so(llama: Path) -> None:
    (llama / "config.json").write_text('{"model_type": "llama",')
    problems = refusal(open_source(llama))
    assert [(one.code, one.message) for one in problems] == [
        ("G160", "no symmetries are declared that fit"),
        ("G161", "is no valid JSON object"),
    ]


def test_a_folder_is_enough(llama: Path) -> None:
    with open_source(llama) as source:
        found = symmetries_of(source)
        assert found.origin == "declared for llama"
        assert found.problems(source.specs) == []
        assert {"residual", "layers.0.mlp", "layers.0.heads"} <= found.groups.keys()


def test_a_checkpoint_without_heads_in_its_config_is_refused(llama: Path) -> None:
    problems = refusal(open_source(changed(llama, num_attention_heads=None)))
    assert [one.code for one in problems] == ["G160", "G161"]
    assert "num_attention_heads" in problems[1].message
    assert "module and an input" in problems[0].hint


@pytest.mark.parametrize("keys", [{"model_type": None}, {"model_type": "lama"}, {"model_type": ["lama"]}])
def test_a_family_that_is_not_stated_is_looked_for(llama: Path, keys: dict[str, Any]) -> None:
    problems = refusal(open_source(changed(llama, **keys)))
    assert [one.code for one in problems] == ["G160", "G161"]
    assert "nearest to" in problems[0].message
    assert ("did you mean 'llama'?" in problems[1].hint) is bool(keys["model_type"])


def llama_specs(layers: int = 3) -> tuple[dict[str, Spec], dict[str, Any]]:
    names = [("model.embed_tokens.weight", (9, 8)), ("model.norm.weight", (8,)), ("lm_head.weight", (9, 8))]
    for layer in range(layers):
        at = f"model.layers.{layer}"
        names += [(f"{at}.self_attn.{kind}_proj.weight", (8, 8)) for kind in "qkvo"]
        names += [(f"{at}.mlp.{kind}_proj.weight", (12, 8)) for kind in ("gate", "up")]
        names += [(f"{at}.mlp.down_proj.weight", (8, 12)), (f"{at}.input_layernorm.weight", (8,))]
        names += [(f"{at}.post_attention_layernorm.weight", (8,))]
    return sizes(*names), {"model_type": "llama", "num_attention_heads": 2, "hidden_size": 8}


def test_the_specs_are_those_of_a_llama() -> None:
    assert declared(*llama_specs()) is not None


def without(end: str) -> Callable[[dict[str, Spec]], None]:
    def change(specs: dict[str, Spec]) -> None:
        for name in [name for name in specs if name.endswith(end)]:
            del specs[name]

    return change


def having(end: str, *shape: int) -> Callable[[dict[str, Spec]], None]:
    def change(specs: dict[str, Spec]) -> None:
        for layer in range(3):
            specs[f"model.layers.{layer}.{end}"] = Spec("float32", shape)

    return change


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (having("mlp.gate_proj.lora_A", 2, 8), "G162", "no tensor of llama is called this"),
        (having("self_attn.q_norm.weight", 4), "G162", "no tensor of llama is called this"),
        (having("mlp.up_proj.weight", 11, 8), "G102", "[11, 8]"),
        (having("input_layernorm.weight", 8, 1), "G162", "has 2 dimensions, and in llama 1"),
        (having("input_layernorm.weight"), "G162", "has 0 dimensions, and in llama 1"),
        (without("up_proj.weight"), "G162", "that make its units"),
        (without("down_proj.weight"), "G162", "that read its units"),
        (without("v_proj.weight"), "G162", "of its value"),
    ],
)
def test_what_is_no_plain_member_of_its_family_is_refused(
    change: Callable[[dict[str, Spec]], None], code: str, words: str
) -> None:
    specs, config = llama_specs()
    change(specs)
    found = attempt(specs, config)
    assert found.symmetries is None
    assert found.family == "llama"
    assert [one.code for one in found.problems if words in str(one)] == [code] * 3


def test_tensors_that_differ_in_numbers_are_told_of_together(llama: Path) -> None:
    problems = refusal(open_source(changed(llama, model_type="starcoder2")))
    alike = [one for one in problems if "mlp.gate_proj" in one.where]
    assert [one.where for one in alike] == ["model.layers.*.mlp.gate_proj.weight (2 tensors)"]


def test_layers_that_share_weights_are_refused() -> None:
    specs, config = llama_specs()
    tied = {}
    for name in list(specs):
        if ".1." in name:
            tied[name] = name.replace(".1.", ".0.")
            del specs[name]
    found = attempt(specs, config, tied=tied)
    assert found.symmetries is None
    assert {one.code for one in found.problems} == {"G163"}


def test_a_tied_head_reads_what_the_embedding_makes() -> None:
    specs, config = llama_specs()
    del specs["lm_head.weight"]
    table = declared(specs, config, tied={"lm_head.weight": "model.embed_tokens.weight"})
    assert table is not None
    assert "residual" in table.groups
    assert table.problems(specs) == []


def test_what_comes_out_of_a_model_without_a_head_stays() -> None:
    specs, config = llama_specs()
    bare = {name.removeprefix("model."): spec for name, spec in specs.items() if name != "lm_head.weight"}
    table = declared(bare, {**config, "architectures": ["LlamaModel"], "tie_word_embeddings": True})
    assert table is not None and "residual" not in table.groups
    table = declared(bare, {**config, "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True})
    assert table is not None and "residual" in table.groups


@pytest.mark.parametrize(("named", "free"), [("XLMRobertaModel", False), ("XLMRobertaForMaskedLM", True)])
def test_a_class_over_tokens_is_not_told_by_letters_within_its_name(named: str, free: bool) -> None:
    specs, config = llama_specs()
    bare = {name.removeprefix("model."): spec for name, spec in specs.items() if name != "lm_head.weight"}
    table = declared(bare, {**config, "architectures": [named]})
    assert table is not None and ("residual" in table.groups) is free


@pytest.mark.parametrize("odd", [0, -2, 2.0, True, "x", [2], {"of": 2}])
@pytest.mark.parametrize("key", ["num_attention_heads", "num_key_value_heads", "head_dim"])
def test_what_is_no_number_in_a_config_is_refused_by_name(key: str, odd: Any) -> None:
    specs, config = llama_specs()
    found = attempt(specs, {**config, key: odd})
    if key == "head_dim" and odd == 0:
        assert found.symmetries is not None
        return
    assert found.symmetries is None
    assert [one.message for one in found.problems] == [f"{key} is {odd!r}, and must be a whole number above 0"]


@pytest.mark.parametrize(
    "odd", [{"rope_parameters": 3}, {"partial_rotary_factor": "x"}, {"architectures": "LlamaForCausalLM"}]
)
def test_an_odd_config_moves_no_more_than_a_usual_one(odd: dict[str, Any]) -> None:
    specs, config = llama_specs()
    table, usual = declared(specs, {**config, **odd}), declared(specs, config)
    assert table is not None and usual is not None
    assert table.groups == usual.groups and table.gauges.items() <= usual.gauges.items()


@pytest.mark.parametrize(
    "shapes",
    [
        # A skip over widths that do not follow, one kind of layers under two names, layers without a number.
        [("fc1.weight", (8, 4)), ("fc2.weight", (8, 4)), ("fc3.weight", (2, 8))],
        [("fc1.weight", (8, 4)), ("fc2.weight", (8, 16)), ("fc3.weight", (2, 8))],
        [("a1.weight", (8, 4)), ("b2.weight", (2, 8))],
        [("first.weight", (8, 4)), ("second.weight", (2, 8))],
        # A depthwise convolution, a convolution after a matrix that it does not fit.
        [("0.weight", (8, 3, 3, 3)), ("1.weight", (8, 1, 3, 3)), ("2.weight", (2, 8, 1, 1))],
        # Something else with a tensor of its own.
        [("0.weight", (8, 4)), ("1.weight", (2, 8)), ("scale", (8,))],
    ],
)
def test_layers_that_are_not_in_a_row_are_not_taken_for_it(shapes: list[tuple[str, tuple[int, ...]]]) -> None:
    found = attempt(sizes(*shapes))
    assert found.symmetries is None
    assert found.problems


def test_a_group_norm_must_be_described() -> None:
    shapes = [("0.weight", (8, 3, 3, 3)), ("1.weight", (8,)), ("1.bias", (8,)), ("3.weight", (2, 8, 1, 1))]
    found = attempt(sizes(*shapes))
    assert ["num_groups" in one.message for one in found.problems] == [True]
    table = declared(sizes(*shapes), {"num_groups": 4})
    assert table is not None
    assert table.groups["0"].within == "0.norm"
    assert table.groups["0.norm"].size == 4


class Skipped(nn.Module):
    """What names do not show."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, rows: Tensor) -> Tensor:
        made = torch.relu(self.first(rows))
        return self.last(made + torch.tanh(self.second(made)))


@pytest.mark.parametrize("inputs", [torch.ones(2, 4), (torch.ones(2, 4),), {"rows": torch.ones(2, 4)}])
def test_what_is_not_declared_is_traced(inputs: Any) -> None:
    torch.manual_seed(0)
    module = Skipped()
    found = symmetries_of(open_source(module), module=module, inputs=inputs)
    assert [group.size for group in found.groups.values()] == [8]
    assert check(module, found, torch.randn(2, 4)).holds


def test_a_module_of_other_tensors_is_refused() -> None:
    problems = refusal(open_source(Skipped()), module=nn.Linear(4, 3), inputs=torch.ones(2, 4))
    assert {one.code for one in problems} == {"G101"}


def test_a_module_alone_is_not_traced() -> None:
    module = Skipped()
    first = refusal(open_source(module), module=module)[0]
    assert (first.code, first.hint) == ("G160", "give the input to trace its graph, or a table of your own")


class Skipping(nn.Module):
    """Named as layers in a row, with a skip that no name shows."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.fc1(x).relu()
        return self.fc3(first + self.fc2(first).relu())  # type: ignore[no-any-return]


def test_what_names_tell_is_proved_where_there_is_a_module_and_an_input() -> None:
    module, inputs = Skipping(), torch.randn(4, 3)
    source = open_source(module)
    told = symmetries_of(source)
    assert told.groups.keys() == {"fc1", "fc2"} and told.origin == "declared for layers in a row, by names alone"
    assert not check(module, told, inputs).holds
    found = symmetries_of(source, module=module, inputs=inputs)
    assert found.origin == "traced" and len(found.groups) == 1 and check(module, found, inputs).holds
    row = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    assert symmetries_of(open_source(row), module=row, inputs=inputs).origin == "declared for layers in a row"


@pytest.mark.parametrize("inputs", [torch.randn(4, 5), "words", {"y": torch.randn(4, 3)}])
def test_inputs_that_the_module_does_not_take_are_not_passed_over(inputs: Any) -> None:
    module = Skipping()
    (problem,) = refusal(open_source(module), module=module, inputs=inputs)
    assert (problem.code, problem.where) == ("G140", "inputs")
    assert problem.message.startswith("Skipping cannot be called with them: ")


def test_a_tied_tensor_may_be_stored_once_though_nothing_says_that_it_is_tied() -> None:
    module = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8), nn.Linear(8, 9))
    module[4].weight = module[0].weight
    stored = {name: tensor for name, tensor in module.state_dict().items() if name != "4.weight"}
    inputs = torch.arange(9)[None]
    table = symmetries_of(MemorySource("once", stored), module=module, inputs=inputs)
    assert table.axes.keys() == stored.keys() and table.groups and check(module, table, inputs).holds


def test_what_is_not_open_is_refused() -> None:
    module: Any = nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match=r"C200 a Linear is no open model; give what `eutectic.open` makes"):
        symmetries_of(module)
    with pytest.raises(CheckpointError) as caught:
        match_weights(module, module.state_dict(), Symmetries({}, {}))
    assert [one.code for one in caught.value.problems] == ["C200", "C200"]
