"""A live merge scores what it scores once written and loaded, to the last bit; what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import eutectic
from eutectic.errors import EutecticError
from eutectic.evaluate import Choice, ExactMatch, Loader, Perplexity, Settings, evaluate_models, measure
from eutectic.testing import tiny_llama, write_safetensors

transformers = pytest.importorskip("transformers")
TEXT = torch.arange(3, 60)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=TEXT).logits
    return found


def write(recipe: Any, out: Path) -> str:
    return eutectic.merge(recipe, out).path


def refusal(call: Any) -> str:
    with pytest.raises(EutecticError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("tied", [False, True])
def test_live_equals_written(here: Path, dtype: str, tied: bool) -> None:
    base = tiny_llama("x", seed=5, layers=1, tied=tied)
    for seed in (6, 7):
        tiny_llama(f"x{seed}", seed=seed, base=base, noise=0.1)
    recipe = {"merge_method": "ties", "base_model": "x", "models": ["x6", "x7"], "dtype": dtype}
    out = write(recipe, here / "out")
    tasks = [Perplexity("text.jsonl", block=16), Choice("choice.jsonl"), ExactMatch("match.jsonl", max_new_tokens=3)]
    found = evaluate_models([recipe, out], tasks, cache=False)
    for scores in found.scores.values():
        live, written = scores.values()
        assert live.as_json(items=True) == written.as_json(items=True)
    with eutectic.merged(recipe) as merge, Loader().module(merge, "causal") as module:
        assert module.dtype == getattr(torch, dtype)
        stock = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
        assert torch.equal(logits(module), logits(stock))
        head, embeddings = module.lm_head.weight, module.get_input_embeddings().weight
        assert (head.data_ptr() == embeddings.data_ptr()) == tied


def test_tied_in_one_model_only(here: Path) -> None:
    tiny_llama("tied", seed=1, layers=1, tied=True)
    recipe = {"merge_method": "linear", "models": ["tied", "base"]}
    out = write(recipe, here / "out")
    found = evaluate_models([recipe, out], [Perplexity("text.jsonl", block=16)], cache=False)
    live, written = found.scores["text"].values()
    assert live.value == written.value


def test_experts_that_transformers_fuses(here: Path) -> None:
    config = transformers.MixtralConfig(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    for seed, name in enumerate(("m1", "m2")):
        torch.manual_seed(seed)
        transformers.MixtralForCausalLM(config).save_pretrained(here / name)
    recipe = {"merge_method": "linear", "models": ["m1", "m2"]}
    out = write(recipe, here / "out")
    with eutectic.merged(recipe) as merge, Loader().module(merge, "causal") as module:
        assert torch.equal(logits(module), logits(transformers.AutoModelForCausalLM.from_pretrained(out)))


def test_a_module_is_refilled_and_says_the_same_as_a_new_one(here: Path) -> None:
    loader = Loader()
    seen = []
    for name in ("a", "b", "a"):
        with eutectic.open(name) as source, loader.module(source, "causal") as module:
            seen.append(id(module))
            with Loader().module(source, "causal") as fresh:
                assert torch.equal(logits(module), logits(fresh))
    assert len(set(seen)) == 1
    with eutectic.open("a") as source, loader.module(source, "causal", dtype="float32") as module:
        assert id(module) != seen[0] and module.dtype == torch.float32


def test_changed_tensors_are_seen(here: Path) -> None:
    """A search changes tensors in place; a score is of what they are."""
    state = dict(eutectic.open("a"))
    loader = Loader(module=lambda: transformers.AutoModelForCausalLM.from_pretrained("a"), tokenizer="a")
    source, run = eutectic.open(state), Settings(loader=loader)
    task = Perplexity("text.jsonl", block=16)
    first = measure(source, task, run)
    assert first.value == eutectic.evaluate("a", task, cache=False).value
    state["lm_head.weight"] *= 2
    assert measure(source, task, run).value != first.value
    recipe = {"merge_method": "linear", "models": [state, "b"]}
    with eutectic.merged(recipe) as merge:
        before = measure(merge, task, run)
        state["lm_head.weight"] *= 2
        assert measure(merge, task, run).value != before.value


def test_a_live_module_stays_as_it_is(here: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained("a").train()
    model.model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    task = Perplexity("text.jsonl", block=16)
    found = eutectic.evaluate(model, task, tokenizer="a", cache=False)
    assert found.value == eutectic.evaluate("a", task, cache=False).value
    assert model.training and not model.model.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    tokenizer = transformers.AutoTokenizer.from_pretrained("a")
    assert eutectic.evaluate(model, task, tokenizer=tokenizer, cache=False).value == found.value


def test_a_score_does_not_move_the_users_random_numbers(here: Path) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    eutectic.evaluate("a", Perplexity("text.jsonl", block=16), cache=False)
    assert torch.equal(torch.rand(4), wanted)


def test_missing_tensors_are_not_random(here: Path) -> None:
    state = dict(eutectic.open("a"))
    del state["model.norm.weight"]
    write_safetensors(here / "a" / "model.safetensors", state)
    task = Perplexity("text.jsonl", block=16)
    said = refusal(lambda: eutectic.evaluate("a", task, cache=False))
    assert said.startswith("E905 'a' lacks tensors of LlamaForCausalLM: model.norm.weight")


def test_shapes_that_do_not_fit(here: Path) -> None:
    config = json.loads((here / "a" / "config.json").read_text()) | {"intermediate_size": 32}
    (here / "a" / "config.json").write_text(json.dumps(config))
    said = refusal(lambda: eutectic.evaluate("a", Perplexity("text.jsonl", block=16), cache=False))
    assert said.startswith("E905 'a' does not fit LlamaForCausalLM")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "E905 'a' has no config.json beside its weights"),
        ("{", "E905 transformers makes no causal model of the config.json of 'a': Expecting property name"),
        ("[]", "E905 transformers makes no causal model"),
        ("{}", "E905 transformers makes no causal model"),
        (
            '{"model_type": "nonesuch", "auto_map": {"AutoModelForCausalLM": "m.M"}}',
            "E905 transformers makes no causal",
        ),
        ('{"model_type": "clip"}', "E905 transformers makes no causal model"),
    ],
)
def test_what_is_no_language_model(here: Path, config: str | None, said: str) -> None:
    (here / "a" / "config.json").unlink()
    if config is not None:
        (here / "a" / "config.json").write_text(config)
    found = refusal(lambda: eutectic.evaluate("a", Perplexity("text.jsonl", block=16), cache=False))
    assert said in found and len(found) < 400


def test_code_beside_a_model_is_never_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "a" / "evil.py").write_text("open('ran', 'w')\nclass M: pass\nclass T: pass\n")
    for name, entry in (
        ("config.json", {"AutoModelForCausalLM": "evil.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.T", None]}),
    ):
        data = json.loads((here / "a" / name).read_text()) | {"auto_map": entry}
        (here / "a" / name).write_text(json.dumps(data))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to trust it"))
    try:
        eutectic.evaluate("a", Perplexity("text.jsonl", block=16), cache=False)
    except EutecticError as error:
        assert error.problems[0].code in ("E905", "E906")
    assert not (here / "ran").exists()


def test_no_tokenizer(here: Path) -> None:
    for path in (here / "a").glob("tokenizer*"):
        path.unlink()
    task = Perplexity("text.jsonl", block=16)
    assert refusal(lambda: eutectic.evaluate("a", task, cache=False)).startswith("E906 'a' has no tokenizer")
    assert eutectic.evaluate("a", task, cache=False, tokenizer="b").value > 0
    (here / "a" / "tokenizer.json").write_text("{")
    assert refusal(lambda: eutectic.evaluate("a", task, cache=False)).startswith("E906 the tokenizer of 'a' cannot be")


def test_a_vocabulary_that_is_too_large(here: Path) -> None:
    small = tiny_llama("small", layers=1, vocab=20)
    (Path(small) / "tokenizer.json").write_bytes((here / "a" / "tokenizer.json").read_bytes())
    said = refusal(lambda: eutectic.evaluate(small, Perplexity("text.jsonl", block=16), cache=False))
    assert said.startswith("E906 the tokenizer of 'small' gives token ") and "the model has 20" in said


def test_text_that_is_too_long(here: Path) -> None:
    (here / "long.jsonl").write_text(json.dumps({"prompt": "w5 " * 126, "answer": "w5"}) + "\n")
    said = refusal(lambda: eutectic.evaluate("a", ExactMatch("long.jsonl", max_new_tokens=3), cache=False))
    assert said.startswith("E907 item 1 has 129 tokens, 'a' takes 128")
    said = refusal(lambda: eutectic.evaluate("a", Perplexity("text.jsonl"), cache=False))
    assert said.startswith("E907 block: 'a' takes 128 tokens, a window has 512; set block: 128 or less in a task file")


def test_a_merge_takes_the_tokenizer_that_its_recipe_names(here: Path) -> None:
    tokens = json.loads((here / "b" / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["w5"], vocabulary["w6"] = vocabulary["w6"], vocabulary["w5"]
    (here / "b" / "tokenizer.json").write_text(json.dumps(tokens))
    recipe = {"merge_method": "linear", "models": ["a", "b"], "tokenizer_source": "b"}
    out = write(recipe, here / "out")
    live, written = (
        evaluate_models([recipe, out], [Perplexity("text.jsonl", block=16)], cache=False).scores["text"].values()
    )
    assert live.value == written.value
    other = eutectic.evaluate({**recipe, "tokenizer_source": "a"}, Perplexity("text.jsonl", block=16), cache=False)
    assert other.value != live.value


def test_a_mixture_without_a_common_tokenizer(here: Path) -> None:
    from eutectic.connectivity import barrier

    path = here / "b" / "tokenizer.json"
    tokens = json.loads(path.read_text())
    task = Perplexity("text.jsonl", block=16)
    tokens["model"]["vocab"]["new"] = tokens["model"]["vocab"].pop("w95")  # in a reserved row: nearly the same
    path.write_text(json.dumps(tokens))
    assert eutectic.evaluate("recipe.yml", task, cache=False).value > 0
    vocabulary = tokens["model"]["vocab"]
    vocabulary["w5"], vocabulary["w6"] = vocabulary["w6"], vocabulary["w5"]
    path.write_text(json.dumps(tokens))
    wanted = "E906 the vocabularies of 'a' and 'b' differ: 2 tokens have other numbers ('w5' "
    for call in (
        lambda: eutectic.evaluate("recipe.yml", task, cache=False),
        lambda: eutectic.soup(["a", "b"], task=task, cache=False),
        lambda: barrier("a", "b", task, cache=False),
        lambda: eutectic.evaluate("recipe.yml", Choice("choice.jsonl"), cache=False),
    ):
        assert refusal(call).startswith(wanted)
    assert eutectic.evaluate("recipe.yml", task, cache=False, tokenizer="a").value > 0
    assert eutectic.evaluate("b", task, cache=False).value > 0


@pytest.mark.parametrize("task", ["perplexity", "choice", "match"])
def test_nan_is_named(here: Path, task: str) -> None:
    state = dict(eutectic.open("a"))
    state["lm_head.weight"][7] = torch.nan
    write_safetensors(here / "a" / "model.safetensors", state)
    tasks = {
        "perplexity": Perplexity("text.jsonl", block=16),
        "choice": Choice("choice.jsonl"),
        "match": ExactMatch("match.jsonl", max_new_tokens=3),
    }
    said = refusal(lambda: eutectic.evaluate("a", tasks[task], cache=False))
    name = {"perplexity": "text", "choice": "choice", "match": "match"}[task]
    assert said.startswith(f"E908 {name}: item 1 scores nan with model 'a'")


def test_nan_after_some_prompts_alone(here: Path) -> None:
    """The first token of the vocabulary, taken for ever, would be an answer, and a wrong one."""
    state = dict(eutectic.open("a"))
    state["model.embed_tokens.weight"][90] = torch.nan
    write_safetensors(here / "a" / "model.safetensors", state)
    (here / "match.jsonl").write_text('{"prompt": "w5 w6", "answer": "w7"}\n{"prompt": "w5 w90", "answer": "w7"}\n')
    said = refusal(lambda: eutectic.evaluate("a", ExactMatch("match.jsonl", max_new_tokens=1), cache=False))
    assert said.startswith("E908 match: item 2 scores nan with model 'a'; `eutectic compare` finds broken weights")


def test_a_module_of_ones_own(here: Path) -> None:
    torch.manual_seed(0)
    nets = [torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)) for _ in "ab"]
    recipe = {"merge_method": "linear", "models": [net.state_dict() for net in nets]}
    from eutectic.evaluate import Classification

    loader = [(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1]))]
    task = Classification(loader, metric="cross_entropy")

    def fresh() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))

    found = eutectic.evaluate(recipe, task, module=fresh)
    average = fresh().eval()
    average.load_state_dict(dict(eutectic.merged(recipe)))
    with torch.inference_mode():
        logs = torch.log_softmax(average(loader[0][0]).double(), -1).numpy()
    np.testing.assert_allclose(found.items, -logs[np.arange(5), [0, 1, 2, 0, 1]], rtol=1e-12)
    wrong = refusal(lambda: eutectic.evaluate(recipe, task, module=lambda: torch.nn.Linear(4, 8)))
    assert wrong.startswith("E905 'merge' does not fit the module: ")
    bare = refusal(lambda: eutectic.evaluate(recipe, task))
    assert bare.startswith("E905 nothing says what module 'merge' is; in Python, `module=`")
