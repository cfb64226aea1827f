"""Outputs are what transformers and safetensors read: nothing missing, nothing unexpected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import eutectic
from eutectic.testing import tiny_llama

transformers = pytest.importorskip("transformers")


def merged_llama(tmp_path: Path, *, tied: bool = False, **options: Any) -> Path:
    base = tiny_llama(tmp_path / "base", seed=1, tied=tied)
    a, b = (tiny_llama(tmp_path / name, seed=seed, base=base) for seed, name in enumerate("ab", 2))
    recipe = {"merge_method": "ties", "base_model": base, "models": [a, b], "parameters": {"density": 0.5}}
    return Path(eutectic.merge(recipe, tmp_path / "out", options=eutectic.Options(**options)).path)


def load(folder: Path, kind: str = "AutoModelForCausalLM") -> Any:
    """The model, loaded without a missing, unexpected or mismatched key."""
    model, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    return model.eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 20_000])
def test_a_causal_lm(tmp_path: Path, tied: bool, shard_bytes: int) -> None:
    out = merged_llama(tmp_path, tied=tied, shard_bytes=shard_bytes)
    assert (out / "model.safetensors.index.json").exists() == (shard_bytes == 20_000)
    model = load(out)
    assert model.dtype == torch.bfloat16
    head, embeddings = model.lm_head.weight, model.get_input_embeddings().weight
    assert (head.data_ptr() == embeddings.data_ptr()) == tied
    source = eutectic.open(out)
    assert all(torch.equal(value, source[name]) for name, value in model.state_dict().items() if name in source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    tokens = tokenizer("w5 w6 w7", return_tensors="pt")
    made = model.generate(input_ids=tokens["input_ids"], max_new_tokens=3, do_sample=False)
    assert made.shape[0] == 1 and made.shape[1] > tokens["input_ids"].shape[1]


def test_tied_by_config_although_the_head_is_stored(tmp_path: Path) -> None:
    paths = []
    for seed, name in enumerate("ab"):
        folder = Path(tiny_llama(tmp_path / name, seed=seed, layers=1))
        config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
        (folder / "config.json").write_text(json.dumps(config))
        paths.append(str(folder))
    out = Path(eutectic.merge({"merge_method": "linear", "models": paths}, tmp_path / "out").path)
    model = load(out)
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_tied_in_one_model_only_loads_untied(tmp_path: Path) -> None:
    tied = tiny_llama(tmp_path / "a", seed=1, layers=1, tied=True)
    own = tiny_llama(tmp_path / "b", seed=2, layers=1)
    out = Path(eutectic.merge({"merge_method": "linear", "models": [tied, own]}, tmp_path / "out").path)
    model = load(out)
    a, b = eutectic.open(tied), eutectic.open(own)
    expected = (a["model.embed_tokens.weight"].float() + b["lm_head.weight"].float()) / 2
    assert torch.equal(model.lm_head.weight.data, expected.bfloat16())
    assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()


def test_any_safetensors_reader(tmp_path: Path) -> None:
    out = merged_llama(tmp_path)
    with safe_open(out / "model.safetensors", "pt") as file:
        source = eutectic.open(out)
        assert set(file.keys()) == set(source.specs)
        assert file.metadata()["format"] == "pt"
        assert all(torch.equal(file.get_tensor(name), source[name]) for name in file.keys())  # noqa: SIM118


def test_an_encoder_with_position_ids(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = transformers.BertModel(config)
        model.save_pretrained(tmp_path / name)
    # As older versions wrote it: a buffer that newer ones leave out.
    state = dict(eutectic.open(tmp_path / "a"))
    from eutectic.testing import write_safetensors

    state["embeddings.position_ids"] = torch.arange(512).unsqueeze(0)
    write_safetensors(tmp_path / "a" / "model.safetensors", state, {"format": "pt"})
    recipe = {"merge_method": "linear", "models": [str(tmp_path / "a"), str(tmp_path / "b")]}
    out = eutectic.merge(recipe, tmp_path / "out")
    manifest = json.loads((Path(out.path) / "eutectic.json").read_text())
    assert manifest["tensors"]["embeddings.position_ids"]["fate"] == "copied"
    assert manifest["tensors"]["embeddings.position_ids"]["reason"] == "int64 buffer, not in b"
    model, report = transformers.BertModel.from_pretrained(out.path, output_loading_info=True)
    assert not report["missing_keys"] and set(report["unexpected_keys"]) <= {"embeddings.position_ids"}
    words = torch.arange(5).unsqueeze(0)
    assert model.eval()(words).last_hidden_state.isfinite().all()


def test_a_mixture_of_experts(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        num_experts_per_tok=2,
        max_position_embeddings=32,
    )
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / name)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    t = [{"filter": "/experts\\./", "value": [0, 1]}, {"filter": "/gate/", "value": 0}, {"value": 0.5}]
    recipe = {"merge_method": "slerp", "base_model": a, "models": [a, b], "parameters": {"t": t}}
    done = eutectic.merge(recipe, tmp_path / "out")
    # Experts have numbers too, and are no layers.
    depths = {job.name: job.parameters["t"] for job in done.plan.jobs if ".experts." in job.name}
    assert depths and all(value == float(".layers.1." in name) for name, value in depths.items())
    assert load(Path(done.path))(torch.arange(5).unsqueeze(0)).logits.isfinite().all()
