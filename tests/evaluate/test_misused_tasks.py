"""What is given in Python where something else belongs: one clear problem, and no traceback of another library."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import eutectic
from eutectic.errors import CheckpointError, RecipeError
from eutectic.evaluate import Call, Classification, paired
from eutectic.testing import tiny_llama

BATCHES = [(torch.eye(3), torch.tensor([0, 1, 0]))]


def said(call, kind=RecipeError):
    with pytest.raises(kind) as caught:
        call()
    (problem,) = caught.value.problems
    return str(problem)


@pytest.mark.parametrize(
    ("returned", "what"), [(None, "None"), ([1.0, None], "None among its numbers"), ([], "no number")]
)
def test_a_function_that_returns_nothing_is_called_so(returned, what):
    call = Call(lambda source: returned, name="mine")
    assert said(lambda: eutectic.evaluate(nn.Linear(3, 2), call)) == (
        f"E911 mine: it returned {what} for model 'Linear'; it returns a number, or one number an item"
    )


def test_a_function_or_a_class_in_place_of_a_task_is_told_what_to_write():
    net = nn.Linear(3, 2)
    assert "E901 task: a function is no task; a function goes into `eutectic.evaluate.Call(" in said(
        lambda: eutectic.evaluate(net, lambda source: 1.0)
    )
    assert said(lambda: eutectic.evaluate(net, Call)) == "E901 task: Call is a class; make one: give it data"


def test_a_module_in_place_of_the_function_that_makes_one():
    net, task = nn.Linear(3, 2), Classification(BATCHES)
    given = net.state_dict()
    assert said(lambda: eutectic.evaluate(given, task, module=net)).startswith(
        "E905 module: must be a function that makes a module, without arguments, not a Linear; "
    )
    assert said(lambda: eutectic.evaluate(given, task, module=3)).endswith("leaves a module alone")
    assert said(lambda: eutectic.evaluate(given, task, module=dict)) == (
        "E905 module: the function made a dict, and no module"
    )
    assert eutectic.evaluate(given, task, module=lambda: nn.Linear(3, 2)).value >= 0


def test_a_cache_and_scores_that_are_none():
    score = eutectic.evaluate(nn.Linear(3, 2), Classification(BATCHES))
    assert said(lambda: eutectic.evaluate(nn.Linear(3, 2), Classification(BATCHES), cache=3)) == (
        "E912 cache: must be True, False or a folder, not 3"
    )
    assert said(lambda: paired(score, 3)) == "E909 b: must be a score of `eutectic.evaluate`, not a int"


def test_tensors_that_do_not_fit_the_config_are_named_with_both_shapes(tmp_path):
    folder = tiny_llama(tmp_path / "odd", seed=1)
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    wide = config["intermediate_size"]
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config | {"intermediate_size": 2 * wide}))
    (tmp_path / "text.txt").write_text("eutectic " * 40)
    task = {"task": "perplexity", "data": str(tmp_path / "text.txt"), "block": 32}
    told = said(lambda: eutectic.evaluate(folder, task, cache=False), CheckpointError)
    first = f"model.layers.0.mlp.down_proj.weight is [{config['hidden_size']}, {wide}]"
    assert told.startswith(f"E905 'odd' does not fit LlamaForCausalLM as its config.json has it: {first} and not [")
    assert "ignore_mismatched_sizes" not in told and "; do config.json and the weights belong together?" in told
